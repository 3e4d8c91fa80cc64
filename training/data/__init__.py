"""A table or shards in, batches out."""

__all__: list[str] = []
