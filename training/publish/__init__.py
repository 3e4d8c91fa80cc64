"""A checkpoint as a repository of the Hub: folder, card, figures, checks, push, Space."""

__all__: list[str] = []
