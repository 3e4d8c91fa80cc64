"""Command line, timeline and demo. Imports nothing: `triemo.serving.repair_torchaudio` runs before torchaudio loads."""

__all__: list[str] = []
