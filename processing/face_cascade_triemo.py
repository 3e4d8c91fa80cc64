"""The cascade of MTCNN around its three networks: pyramid, thresholds, suppression, boxes. NumPy alone, so that the
networks may run in torch or in another runtime.

Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks" (IEEE Signal
Processing Letters, 2016). Shapes: n crops or candidates, b frames of one clip. Boxes are rows x0, y0, x1, y1, pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["CELL", "STRIDE", "FaceCascade", "non_maximum_suppression"]

CELL = 12  # P-Net's receptive field, pixels
STRIDE = 2  # and its step
_PYRAMID_FACTOR = 0.709  # each level holds half the area of the one before
_FRAMES_AT_ONCE = 8  # more do not run faster, and memory grows with them


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


class FaceCascade:
    """Finds faces in RGB frames; a subclass runs the networks and resizes the pictures.

    Args:
        detection_size: frames are shrunk to this longer side in pixels before detection; never enlarged.
        min_face_size: the smallest face side looked for, in pixels of the shrunk frame. Halving it makes the first
            network four times dearer.
        thresholds: face probability asked by each of the three networks.
    """

    def __init__(
        self,
        detection_size: int = 480,
        min_face_size: int = 24,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7),
    ) -> None:
        if min_face_size < CELL:
            raise ValueError(f"min_face_size must be at least {CELL} pixels, got {min_face_size}")
        if detection_size < min_face_size:
            raise ValueError(f"detection_size must be at least min_face_size={min_face_size}, got {detection_size}")
        self.detection_size = detection_size
        self.min_face_size = min_face_size
        self.thresholds = thresholds

    def shrunk(self, frames: Sequence[np.ndarray], size: tuple[int, int]) -> Any:
        """Frames (height, width, 3) uint8 of one size -> (b, 3, *size) uint8, in the runtime's own kind of array."""
        raise NotImplementedError

    def resized(self, images: Any, size: tuple[int, int]) -> Any:
        """(b, 3, height, width) uint8 -> (b, 3, *size) uint8, bilinear with antialiasing."""
        raise NotImplementedError

    def proposals(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """P-Net on (b, 3, height, width) uint8: probabilities (b, rows, columns), offsets (b, 4, rows, columns)."""
        raise NotImplementedError

    def examined(self, network: str, images: Any, owner: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, ...]:
        """R-Net ("rnet") or O-Net ("onet") on what `boxes` (n, 4) cut out of the images `owner` (n,): (n,), (n, 4)."""
        raise NotImplementedError

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
            size = (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))
            scale_xy = np.array([size[1] / shape[1], size[0] / shape[0]] * 2, dtype=np.float32)
            found_in = self._detect(self.shrunk([frames[i] for i in indices], size), size)
            for index, found in zip(indices, found_in, strict=True):
                found[:, :4] /= scale_xy
                results[index] = found
        return results

    def _detect(self, images: Any, size: tuple[int, int]) -> list[np.ndarray]:
        """Images (b, 3, *size) uint8 -> b arrays (faces, 5) in pixels of these images."""
        owner, boxes = self._propose(images, size)
        owner, boxes, scores, offsets = self._passing("rnet", images, owner, boxes, self.thresholds[1])
        kept = _per_frame(owner, boxes, scores, 0.7)
        owner, boxes = owner[kept], _square(_regress(boxes[kept], offsets[kept]))
        owner, boxes, scores, offsets = self._passing("onet", images, owner, boxes, self.thresholds[2])
        boxes = _regress(boxes, offsets)
        kept = _per_frame(owner, boxes, scores, 0.7, relative_to_smaller=True)
        faces = np.concatenate([boxes, scores[:, None]], axis=1)[kept].astype(np.float32)
        owner = owner[kept]
        return [faces[owner == i] for i in range(len(images))]

    def _propose(self, images: Any, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """P-Net over the pyramid, all frames of a level in one batch: owners (n,), square boxes (n, 4)."""
        height, width = size
        scale, levels = CELL / self.min_face_size, []
        while min(height, width) * scale >= CELL:
            levels.append((int(height * scale + 1), int(width * scale + 1)))
            scale *= _PYRAMID_FACTOR
        if not levels:
            return np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=np.float32)
        owners, boxes, scores, offsets, level_of = [], [], [], [], []
        for level, level_size in enumerate(levels):
            # Each level is shrunk from the one before, which costs a fraction of starting from the frame.
            images = self.resized(images, level_size)
            probability, regression = self.proposals(images)
            frame, row, column = np.nonzero(probability >= self.thresholds[0])
            corner = np.stack([column, row], axis=1).astype(np.float32) * STRIDE
            ratio = np.array([width / level_size[1], height / level_size[0]], dtype=np.float32)
            boxes.append(np.concatenate([corner * ratio, (corner + CELL) * ratio], axis=1))
            scores.append(probability[frame, row, column])
            offsets.append(regression[frame, :, row, column])
            owners.append(frame)
            level_of.append(np.full(len(frame), level))
        owner, box, score, offset, group = map(np.concatenate, (owners, boxes, scores, offsets, level_of))
        kept = _per_frame(owner, box, score, 0.5, groups=group, threshold_across=0.7)
        return owner[kept], _square(_regress(box[kept], offset[kept]))

    def _passing(
        self, network: str, images: Any, owner: np.ndarray, boxes: np.ndarray, threshold: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        scores, offsets = self.examined(network, images, owner, boxes)
        keep = scores >= threshold
        return owner[keep], boxes[keep], scores[keep], offsets[keep]


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
