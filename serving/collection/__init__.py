"""Whole collections: every clip of a folder, a table or a data set read once, by any number of processes."""

__all__: list[str] = []
