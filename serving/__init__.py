"""Command line, timeline and demo. Imports nothing, because `repair_torchaudio` runs before torchaudio can load."""

__all__: list[str] = []
