"""Corpora, label maps, metrics, and the scripts that train and measure. Imports nothing: each part loads alone."""

__all__: list[str] = []
