"""MTCNN, the cascade of three small networks of Zhang et al., "Joint Face Detection and Alignment using Multi-task
Cascaded Convolutional Networks" (IEEE Signal Processing Letters, 2016), in plain torch and NumPy.

The networks are functions over a dictionary of weights and not modules: building one draws no random numbers, so that
a detector made in the middle of a training does not change its course.

Shapes: n crops or candidates, b frames of one clip. Boxes are rows x0, y0, x1, y1 in pixels.
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

__all__ = ["MtcnnFaceDetector", "load_mtcnn_weights", "non_maximum_suppression"]

_PYRAMID_FACTOR = 0.709  # each level holds half the area of the one before
_CELL, _STRIDE = 12, 2  # P-Net's receptive field and step, pixels
_FRAMES_AT_ONCE = 8  # more do not run faster, and memory grows with them
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


def non_maximum_suppression(
    boxes: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    groups: np.ndarray | None = None,
    threshold_across: float | None = None,
    relative_to_smaller: bool = False,
) -> np.ndarray:
    """Greedy suppression: indices of the boxes (n, 4) kept, best score first.

    A box falls when it overlaps a better kept one by more than `threshold` (area of the intersection over the union,
    or over the smaller box). With `groups` (n,), pairs of different groups are held to `threshold_across`; None lets
    them stand side by side.
    """
    order = np.argsort(-scores, kind="stable")
    if len(order) < 2:
        return order
    b = boxes[order]
    top_left = np.maximum(b[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(b[:, None, 2:], b[None, :, 2:])
    intersection = np.clip(bottom_right - top_left, 0, None).prod(axis=-1)
    areas = (b[:, 2:] - b[:, :2]).prod(axis=-1)
    if relative_to_smaller:
        base = np.minimum(areas[:, None], areas[None])
    else:
        base = areas[:, None] + areas[None] - intersection
    overlap = intersection / np.maximum(base, 1e-9)
    suppresses = overlap > threshold
    if groups is not None:
        g = groups[order]
        across = overlap > threshold_across if threshold_across is not None else np.zeros_like(suppresses)
        suppresses = np.where(g[:, None] == g[None], suppresses, across)
    alive = np.ones(len(order), dtype=bool)
    for i in range(len(order) - 1):
        if alive[i]:
            alive[i + 1 :] &= ~suppresses[i, i + 1 :]
    return order[alive]


class MtcnnFaceDetector:
    """Finds faces in RGB frames.

    Args:
        weights: the three networks, as `load_mtcnn_weights` returns them.
        detection_size: frames are shrunk to this longer side in pixels before detection; never enlarged.
        min_face_size: the smallest face side looked for, in pixels of the shrunk frame. Halving it makes the first
            network four times dearer.
        thresholds: face probability asked by each of the three networks.
    """

    def __init__(
        self,
        weights: Weights,
        detection_size: int = 480,
        min_face_size: int = 24,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7),
    ) -> None:
        if min_face_size < _CELL:
            raise ValueError(f"min_face_size must be at least {_CELL} pixels, got {min_face_size}")
        if detection_size < min_face_size:
            raise ValueError(f"detection_size must be at least min_face_size={min_face_size}, got {detection_size}")
        self.weights = {name: tensor.float() for name, tensor in weights.items()}
        self.detection_size = detection_size
        self.min_face_size = min_face_size
        self.thresholds = thresholds

    @torch.inference_mode()
    def __call__(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Frames (height, width, 3) uint8 RGB of any sizes; returns a (faces, 5) float32 array for each: x0, y0, x1,
        y1 in pixels of the frame (they may reach over its border) and the face probability, best first."""
        results: list[np.ndarray] = [np.zeros((0, 5), dtype=np.float32) for _ in frames]
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, frame in enumerate(frames):
            by_shape.setdefault(frame.shape, []).append(index)
        batches = [
            (shape, indices[start : start + _FRAMES_AT_ONCE])
            for shape, indices in by_shape.items()
            for start in range(0, len(indices), _FRAMES_AT_ONCE)
        ]
        for shape, indices in batches:
            scale = min(1.0, self.detection_size / max(shape[:2]))
            images = _shrunk([frames[i] for i in indices], scale)
            scale_xy = np.array([images.shape[3] / shape[1], images.shape[2] / shape[0]] * 2, dtype=np.float32)
            for index, found in zip(indices, self._detect(images), strict=True):
                found[:, :4] /= scale_xy
                results[index] = found
        return results

    def _detect(self, images: torch.Tensor) -> list[np.ndarray]:
        """Images (b, 3, height, width) uint8 -> b arrays (faces, 5) in pixels of these images."""
        threshold_p, threshold_r, threshold_o = self.thresholds
        owner, boxes = self._propose(images, threshold_p)
        images = _normalised(images)

        logits, regression = _r_net(self.weights, _crop(images, owner, boxes, 24))
        owner, boxes, scores, offsets = _passing(logits, regression, owner, boxes, threshold_r)
        kept = _per_frame(owner, boxes, scores, 0.7)
        owner, boxes = owner[kept], _square(_regress(boxes[kept], offsets[kept]))

        logits, regression = _o_net(self.weights, _crop(images, owner, boxes, 48))
        owner, boxes, scores, offsets = _passing(logits, regression, owner, boxes, threshold_o)
        boxes = _regress(boxes, offsets)
        kept = _per_frame(owner, boxes, scores, 0.7, relative_to_smaller=True)
        faces = np.concatenate([boxes, scores[:, None]], axis=1)[kept].astype(np.float32)
        owner = owner[kept]
        return [faces[owner == i] for i in range(len(images))]

    def _propose(self, images: torch.Tensor, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """P-Net over the pyramid, all frames of a level in one batch: owners (n,), square boxes (n, 4)."""
        height, width = images.shape[2:]
        scale, levels = _CELL / self.min_face_size, []
        while min(height, width) * scale >= _CELL:
            levels.append(scale)
            scale *= _PYRAMID_FACTOR
        owners, boxes, scores, offsets, level_of = [], [], [], [], []
        for level, scale in enumerate(levels):
            size = (int(height * scale + 1), int(width * scale + 1))
            # Each level is shrunk from the one before, which costs a fraction of starting from the frame.
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
            logits, regression = _p_net(self.weights, _normalised(images))
            probability = torch.softmax(logits, dim=1)[:, 1]
            frame, row, column = torch.nonzero(probability >= threshold, as_tuple=True)
            corner = torch.stack([column, row], dim=1).float() * _STRIDE
            ratio = torch.tensor([width / size[1], height / size[0]])
            boxes.append(torch.cat([corner * ratio, (corner + _CELL) * ratio], dim=1).numpy())
            scores.append(probability[frame, row, column].numpy())
            offsets.append(regression[frame, :, row, column].numpy())
            owners.append(frame.numpy())
            level_of.append(np.full(len(frame), level))
        if not levels:
            return np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=np.float32)
        owner, box, score, offset, group = map(np.concatenate, (owners, boxes, scores, offsets, level_of))
        kept = _per_frame(owner, box, score, 0.5, groups=group, threshold_across=0.7)
        return owner[kept], _square(_regress(box[kept], offset[kept]))


def _shrunk(frames: Sequence[np.ndarray], scale: float) -> torch.Tensor:
    """Frames of one size -> (b, 3, height, width) uint8, shrunk by `scale`."""
    height, width = frames[0].shape[:2]
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    shrunk = []
    for frame in frames:
        # One by one, so that a long clip is never copied whole. Bytes and channels last: torch has quick paths for
        # resampling and pooling in that layout (measured: three times quicker in all).
        image = torch.from_numpy(np.require(frame, np.uint8, ["C", "W"])).permute(2, 0, 1)[None]
        if scale < 1.0:
            image = F.interpolate(image, size=size, mode="bilinear", antialias=True)
        shrunk.append(image)
    return torch.cat(shrunk).contiguous(memory_format=torch.channels_last)


def _normalised(images: torch.Tensor) -> torch.Tensor:
    """Bytes to float32 around zero, (x - 127.5) / 128."""
    return images.to(torch.float32).sub_(127.5).mul_(1 / 128)


def _crop(images: torch.Tensor, owner: np.ndarray, boxes: np.ndarray, size: int) -> torch.Tensor:
    """Cuts (n, 3, size, size) out of the images (b, 3, height, width); two samples a pixel and side, averaged."""
    height, width = images.shape[2:]
    crops = images.new_zeros((len(boxes), 3, size, size)).contiguous(memory_format=torch.channels_last)
    steps = (torch.arange(2 * size, dtype=torch.float32) + 0.5) / (2 * size)
    box = torch.from_numpy(boxes.astype(np.float32))
    x = (box[:, :1] + steps * (box[:, 2:3] - box[:, :1])) * (2 / width) - 1
    y = (box[:, 1:2] + steps * (box[:, 3:4] - box[:, 1:2])) * (2 / height) - 1
    shape = (len(boxes), 2 * size, 2 * size)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    for frame in np.unique(owner):
        rows = torch.from_numpy(np.flatnonzero(owner == frame))
        flat = grid[rows].reshape(1, -1, 2 * size, 2)
        cut = F.grid_sample(images[frame : frame + 1], flat, padding_mode="border", align_corners=False)
        crops[rows] = F.avg_pool2d(cut[0].reshape(3, len(rows), 2 * size, 2 * size), 2).transpose(0, 1)
    return crops


def _passing(
    logits: torch.Tensor, offsets: torch.Tensor, owner: np.ndarray, boxes: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    scores = torch.softmax(logits, dim=1)[:, 1].numpy()
    keep = scores >= threshold
    return owner[keep], boxes[keep], scores[keep], offsets.numpy()[keep]


def _per_frame(
    owner: np.ndarray, boxes: np.ndarray, scores: np.ndarray, threshold: float, **kwargs: Any
) -> np.ndarray:
    """Suppression within each frame: indices kept."""
    groups = kwargs.pop("groups", None)
    kept = [np.zeros(0, dtype=np.int64)]
    for frame in np.unique(owner):
        rows = np.flatnonzero(owner == frame)
        inside = groups[rows] if groups is not None else None
        kept.append(rows[non_maximum_suppression(boxes[rows], scores[rows], threshold, groups=inside, **kwargs)])
    return np.concatenate(kept)


def _regress(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Moves each side by its predicted offset, given relative to the box's width and height."""
    size = np.concatenate([boxes[:, 2:] - boxes[:, :2]] * 2, axis=1)
    return boxes + offsets * size


def _square(boxes: np.ndarray) -> np.ndarray:
    """Squares around the same centres, as long as the longer side."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


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
