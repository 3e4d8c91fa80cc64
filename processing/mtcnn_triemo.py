"""MTCNN's three small networks (Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded
Convolutional Networks", IEEE Signal Processing Letters, 2016) in plain torch; the cascade around them lies next door.

The networks are functions over a dictionary of weights and not modules: building one draws no random numbers, so that
a detector made in the middle of a training does not change its course.

Shapes: n crops, b frames of one clip. Boxes are rows x0, y0, x1, y1 in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file

from .face_cascade_triemo import FaceCascade, non_maximum_suppression

__all__ = [
    "CROP_SIZES",
    "MtcnnFaceDetector",
    "classify",
    "cut",
    "load_mtcnn_weights",
    "non_maximum_suppression",
    "normalised",
    "propose",
]

CROP_SIZES = {"rnet": 24, "onet": 48}  # sides of what the second and third network see, pixels
_REQUIRED_SHAPES = {
    "pnet.conv4_1.weight": (2, 32, 1, 1),
    "rnet.dense4.weight": (128, 576),
    "onet.dense5.weight": (256, 1152),
    "onet.dense6_2.weight": (4, 256),
}

Weights = Mapping[str, torch.Tensor]


def load_mtcnn_weights(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Reads the three networks' weights (`pnet.*`, `rnet.*`, `onet.*`) from a safetensors file, any float type.

    Raises ValueError when the file is missing, is no safetensors file or does not hold the three networks.
    """
    if not os.path.isfile(path):
        raise ValueError(f"face_detector_weights: no such file: {os.fspath(path)!r}; expected a safetensors file")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"face_detector_weights: {os.fspath(path)!r} is not a safetensors file: {error}") from error
    for name, shape in _REQUIRED_SHAPES.items():
        got = tuple(weights[name].shape) if name in weights else None
        if got != shape:
            raise ValueError(
                f"face_detector_weights: {os.fspath(path)!r} does not hold MTCNN: {name} is {got}, expected {shape}"
            )
    return weights


class MtcnnFaceDetector(FaceCascade):
    """Finds faces in RGB frames.

    Args:
        weights: the three networks, as `load_mtcnn_weights` returns them.
        detection_size, min_face_size, thresholds: as in `FaceCascade`.
    """

    def __init__(self, weights: Weights, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weights = {name: tensor.float() for name, tensor in weights.items()}

    @torch.inference_mode()
    def __call__(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As in `FaceCascade`."""
        return super().__call__(frames)

    def shrunk(self, frames: Sequence[np.ndarray], size: tuple[int, int]) -> torch.Tensor:
        """As in `FaceCascade`."""
        shrunk = []
        for frame in frames:
            # One by one, so that a long clip is never copied whole. Bytes and channels last: torch has quick paths for
            # resampling and pooling in that layout (measured: three times quicker in all).
            image = torch.from_numpy(np.require(frame, np.uint8, ["C", "W"])).permute(2, 0, 1)[None]
            shrunk.append(image if size == frame.shape[:2] else self.resized(image, size))
        return torch.cat(shrunk).contiguous(memory_format=torch.channels_last)

    def resized(self, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """As in `FaceCascade`."""
        return F.interpolate(images, size=size, mode="bilinear", antialias=True)

    def proposals(self, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """As in `FaceCascade`."""
        probability, offsets = propose(self.weights, images)
        return probability.numpy(), offsets.numpy()

    def examined(
        self, network: str, images: torch.Tensor, owner: np.ndarray, boxes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As in `FaceCascade`."""
        images, size = normalised(images), CROP_SIZES[network]
        crops = images.new_zeros((len(boxes), 3, size, size)).contiguous(memory_format=torch.channels_last)
        box = torch.from_numpy(boxes.astype(np.float32))
        for frame in np.unique(owner):
            rows = torch.from_numpy(np.flatnonzero(owner == frame))
            crops[rows] = cut(images[frame : frame + 1], box[rows], size)
        probability, offsets = classify(self.weights, network, crops)
        return probability.numpy(), offsets.numpy()


def propose(weights: Weights, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """P-Net on (b, 3, height, width) bytes: probabilities (b, rows, columns), offsets (b, 4, rows, columns)."""
    logits, offsets = _p_net(weights, normalised(images))
    return torch.softmax(logits, dim=1)[:, 1], offsets


def classify(weights: Weights, network: str, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """R-Net ("rnet") or O-Net ("onet") on crops (n, 3, size, size): probabilities (n,), offsets (n, 4)."""
    logits, offsets = (_r_net if network == "rnet" else _o_net)(weights, crops)
    return torch.softmax(logits, dim=1)[:, 1], offsets


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Bytes to float32 around zero, (x - 127.5) / 128."""
    return images.to(torch.float32).sub_(127.5).mul_(1 / 128)


def cut(image: torch.Tensor, box: torch.Tensor, size: int) -> torch.Tensor:
    """Boxes (n, 4) of an image (1, 3, height, width) as (n, 3, size, size); two samples a pixel and side, averaged."""
    height, width = image.shape[2:]
    steps = (torch.arange(2 * size, dtype=torch.float32) + 0.5) / (2 * size)
    x = (box[:, :1] + steps * (box[:, 2:3] - box[:, :1])) * (2 / width) - 1
    y = (box[:, 1:2] + steps * (box[:, 3:4] - box[:, 1:2])) * (2 / height) - 1
    shape = (box.shape[0], 2 * size, 2 * size)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    samples = F.grid_sample(image, grid.reshape(1, -1, 2 * size, 2), padding_mode="border", align_corners=False)
    return F.avg_pool2d(samples[0].reshape(3, box.shape[0], 2 * size, 2 * size), 2).transpose(0, 1)


def _conv(weights: Weights, name: str, prelu: str, x: torch.Tensor) -> torch.Tensor:
    return F.prelu(F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"]), weights[f"{prelu}.weight"])


def _dense(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _flatten(x: torch.Tensor) -> torch.Tensor:
    """(n, channels, height, width) -> (n, width * height * channels), the order the dense layers were trained on."""
    return x.permute(0, 3, 2, 1).flatten(1)


# The networks pool with partial windows at the border (ceil_mode), as Caffe did, where they were trained.
def _p_net(w: Weights, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = F.max_pool2d(_conv(w, "pnet.conv1", "pnet.prelu1", x), 2, 2, ceil_mode=True)
    x = _conv(w, "pnet.conv3", "pnet.prelu3", _conv(w, "pnet.conv2", "pnet.prelu2", x))
    return (
        F.conv2d(x, w["pnet.conv4_1.weight"], w["pnet.conv4_1.bias"]),
        F.conv2d(x, w["pnet.conv4_2.weight"], w["pnet.conv4_2.bias"]),
    )


def _r_net(w: Weights, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = F.max_pool2d(_conv(w, "rnet.conv1", "rnet.prelu1", x), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_conv(w, "rnet.conv2", "rnet.prelu2", x), 3, 2, ceil_mode=True)
    x = _flatten(_conv(w, "rnet.conv3", "rnet.prelu3", x))
    x = F.prelu(_dense(w, "rnet.dense4", x), w["rnet.prelu4.weight"])
    return _dense(w, "rnet.dense5_1", x), _dense(w, "rnet.dense5_2", x)


def _o_net(w: Weights, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = F.max_pool2d(_conv(w, "onet.conv1", "onet.prelu1", x), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_conv(w, "onet.conv2", "onet.prelu2", x), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_conv(w, "onet.conv3", "onet.prelu3", x), 2, 2, ceil_mode=True)
    x = _flatten(_conv(w, "onet.conv4", "onet.prelu4", x))
    x = F.prelu(_dense(w, "onet.dense5", x), w["onet.prelu5.weight"])
    return _dense(w, "onet.dense6_1", x), _dense(w, "onet.dense6_2", x)
