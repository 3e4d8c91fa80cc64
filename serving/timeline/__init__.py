"""What happens over time: transcripts, windows, conversations, whole collections, and the files that tell of them."""

__all__: list[str] = []
