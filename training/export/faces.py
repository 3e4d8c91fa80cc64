"""MTCNN's three networks as ONNX, made of the very functions that the torch detector calls."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from triemo.processing.mtcnn_triemo import CROP_SIZES, classify, cut, normalised, propose

__all__ = ["Examine", "Propose", "export_face_networks"]


class Propose(nn.Module):
    """P-Net: frames of one size (b, 3, height, width) uint8 -> probabilities, offsets."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__()
        self.weights = weights

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return propose(self.weights, images)


class Examine(nn.Module):
    """R-Net or O-Net with the cutting before it: (1, 3, height, width) uint8, boxes (n, 4) -> (n,), (n, 4)."""

    def __init__(self, weights: dict[str, torch.Tensor], network: str):
        super().__init__()
        self.weights = weights
        self.network = network

    def forward(self, image: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return classify(self.weights, self.network, cut(normalised(image), boxes, CROP_SIZES[self.network]))


def export_face_networks(image_processor: Any, folder: Path) -> None:
    """Write `face_pnet.onnx`, `face_rnet.onnx` and `face_onet.onnx`; nothing where the processor has no weights."""
    weights = getattr(image_processor, "_face_detector_weights", None)
    if weights is None:
        return
    weights = {name: tensor.float() for name, tensor in weights.items()}
    dynamic = torch.export.Dim.DYNAMIC
    frames = torch.randint(0, 256, (2, 3, 60, 80), dtype=torch.uint8)
    boxes = torch.tensor([[1.0, 2.0, 30.0, 31.0], [-3.0, 4.0, 40.0, 47.0], [5.0, 5.0, 55.0, 55.0]])
    _write(Propose(weights), (frames,), ({0: dynamic, 2: dynamic, 3: dynamic},), folder / "face_pnet.onnx")
    for network in CROP_SIZES:
        shapes = ({2: dynamic, 3: dynamic}, {0: dynamic})
        _write(Examine(weights, network), (frames[:1], boxes), shapes, folder / f"face_{network}.onnx")


def _write(module: nn.Module, example: tuple, dynamic_shapes: tuple, file: Path) -> None:
    program = torch.onnx.export(
        module.eval(), example, dynamo=True, verbose=False, opset_version=20, dynamic_shapes=dynamic_shapes
    )
    if program is None:
        raise ValueError(f"torch.onnx.export gave no graph for {file.name}.")
    program.save(str(file), external_data=False)
