"""One reader a family of corpora, the label maps, and the registry of them all."""

__all__: list[str] = []
