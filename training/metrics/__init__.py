"""Scores, calibration, subsets, retrieval and probes, and their pictures."""

__all__: list[str] = []
