"""The page that `triemo serve` opens, and its Space."""

__all__: list[str] = []
