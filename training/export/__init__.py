"""A checkpoint as ONNX: the graph, its int8 counterpart, the face networks. Here are the names by which the folder is
read, on machines without torch too."""

__all__ = ["DIALOGUES", "GRAPHS", "METADATA", "TOKENIZER"]

GRAPHS = {"fp32": "model.onnx", "int8": "model_int8.onnx"}  # file by precision
DIALOGUES = "dialogue.onnx"  # a head over the vectors of utterances
METADATA = "triemo"  # key of the JSON in a graph's metadata
TOKENIZER = "tokenizer.json"
