"""The handler of an Inference Endpoint; it travels alone."""

__all__: list[str] = []
