"""A conversation's head as ONNX: the vectors of whole dialogues in, logits of every utterance out.

Shapes: B dialogues, N utterances of the longest, D_m width of modality m's vectors, C classes.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from onnxscript import opset21 as op
from torch import nn

from triemo.modeling.inputs_triemo import MASKS
from triemo.processing.utterances_triemo import VECTORS
from triemo.training.export.folder import TOLERANCE, largest_difference, write_graph

__all__ = ["DialogueGraph", "export_dialogues_onnx"]


@torch.library.custom_op("triemo::lstm", mutates_args=())
def lstm(
    inputs: torch.Tensor, weight: torch.Tensor, recurrent: torch.Tensor, bias: torch.Tensor, width: int
) -> torch.Tensor:
    """One layer of an LSTM over (B, N, D), with weights in ONNX's order -> (B, N, width). A name for the exporter."""
    raise NotImplementedError("triemo::lstm stands in an exported graph alone.")


@lstm.register_fake
def _(
    inputs: torch.Tensor, weight: torch.Tensor, recurrent: torch.Tensor, bias: torch.Tensor, width: int
) -> torch.Tensor:
    return inputs.new_empty(*inputs.shape[:2], width)


def onnx_lstm(inputs: Any, weight: Any, recurrent: Any, bias: Any, width: int) -> Any:
    """The same in ONNX, whose operator takes steps before dialogues and gives (N, directions, B, width)."""
    states, _, _ = op.LSTM(op.Transpose(inputs, perm=[1, 0, 2]), weight, recurrent, bias, hidden_size=width)
    return op.Transpose(op.Squeeze(states, op.Constant(value_ints=[1])), perm=[1, 0, 2])


class ExportableLSTM(nn.Module):
    """
    An LSTM that the exporter writes as ONNX's operator, of any length. torch would take its own apart, step by step,
    into a graph of the one length that it was written with.

    Args:
        layers: `nn.LSTM` of one direction, batch first.
    """

    def __init__(self, layers: nn.LSTM):
        super().__init__()
        self.layers = layers
        for number in range(layers.num_layers):
            weight, recurrent, *biases = (
                self.in_order(getattr(layers, f"{name}_l{number}")).detach()
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            named = {"weight": weight, "recurrent": recurrent, "bias": torch.cat(biases)}
            for name, value in named.items():
                self.register_buffer(f"{name}_{number}", value.unsqueeze(0))

    @staticmethod
    def in_order(values: torch.Tensor) -> torch.Tensor:
        """Gates (4 * width, ...) input, forget, cell, output of torch as ONNX's input, output, forget, cell."""
        first, forget, cell, output = values.chunk(4)
        return torch.cat([first, output, forget, cell])

    def forward(self, inputs: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """(B, N, D) -> states (B, N, width), and nothing that could be gone on from."""
        if not torch.compiler.is_exporting():
            return self.layers(inputs, state)
        for number in range(self.layers.num_layers):
            weights = (getattr(self, f"{name}_{number}") for name in ("weight", "recurrent", "bias"))
            inputs = lstm(inputs, *weights, self.layers.hidden_size)
        return inputs, None


class DialogueGraph(nn.Module):
    """
    Args:
        model: a `TriemoForEmotionSequence` over vectors.
    """

    def __init__(self, model: Any):
        super().__init__()
        # A copy, with attention written out: torch's own leaves its result in another layout once it is taken apart.
        self.model = copy.deepcopy(model)
        self.model.set_attn_implementation("eager")
        if model.config.context_type == "recurrent":
            context = self.model.context.encoder
            context.lstms = nn.ModuleList([ExportableLSTM(layers) for layers in context.lstms])

    def forward(
        self,
        text_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        video_attention_mask: torch.Tensor | None = None,
        speakers: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor]:
        """Vectors (B, N, D_m), masks (B, N) int64, speakers (B, N) int64, -1 unknown -> logits (B, N, C)."""
        tensors = {"text_features": text_features, "attention_mask": attention_mask, "speakers": speakers}
        tensors |= {"input_features": input_features, "audio_attention_mask": audio_attention_mask}
        tensors |= {"vision_features": vision_features, "video_attention_mask": video_attention_mask}
        return (self.model(**tensors).logits,)


def export_dialogues_onnx(model: Any, file: str | Path) -> float:
    """
    Write a head over vectors as one graph, of any number of dialogues and utterances. Every input of the modalities
    that it has is given; where an utterance lacks one, its mask is 0.

    Args:
        model: a `TriemoForEmotionSequence` in float32 with `config.step_aligned`.
        file: to write, its folder made where it is not there; labels, temperature, and where its vectors come from
            stand in the metadata.

    Returns:
        The largest difference of its logits from torch's, over every subset of the modalities.

    Raises:
        ValueError: a model of clips, or a graph that does not give torch's logits; then no file is left.
    """
    config, file = model.config, Path(file)
    if not config.step_aligned:
        raise ValueError("model: got one whose utterances are clips, expected one over vectors (step_aligned).")
    draw = torch.Generator().manual_seed(0)
    inputs: dict[str, torch.Tensor] = {}
    for modality in config.modalities:
        width = getattr(config, f"{modality}_feature_size")
        inputs[VECTORS[modality]] = torch.randn(2, 5, width, generator=draw)
        inputs[MASKS[modality]] = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs["speakers"] = torch.tensor([[0, 1, 0, 2, -1], [0, 0, 1, -1, -1]])
    metadata = {
        "modalities": list(config.modalities),
        "labels": [config.id2label[index] for index in range(config.num_labels)],
        "calibration_temperature": config.calibration_temperature,
        "base_model_name_or_path": config.base_model_name_or_path,
        "utterance_layers": config.utterance_layers,
    }
    graph = DialogueGraph(model).eval()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    try:
        write_graph(graph, inputs, ["logits"], part, metadata, {torch.ops.triemo.lstm.default: onnx_lstm})
        difference = largest_difference(graph, part, inputs, config.modalities)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the graph's logits differ from torch's by {difference:.2g}, expected {TOLERANCE} or less."
            )
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return difference
