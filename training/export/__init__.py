"""A checkpoint as ONNX: the graph, its int8 counterpart, the face networks."""

__all__: list[str] = []
