"""Corpora, label maps, metrics and the scripts that train and measure. Imports nothing, so that each part loads alone."""

__all__: list[str] = []
