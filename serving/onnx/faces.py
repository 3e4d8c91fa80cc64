"""MTCNN on onnxruntime: the networks that `triemo export` wrote, in the cascade that torch's detector runs in too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state
from PIL import Image

from triemo.serving.onnx.processing.face_cascade_triemo import FaceCascade

__all__ = ["OnnxFaceDetector", "load_session"]

NETWORKS = ("pnet", "rnet", "onet")
# They share no class of their own.
_RUNTIME_ERRORS = tuple(
    entry
    for entry in vars(onnxruntime_pybind11_state).values()
    if isinstance(entry, type) and issubclass(entry, Exception)
)


def load_session(file: Path, options: Any = None) -> Any:
    """
    A graph, ready to run.

    Raises:
        ValueError: a file that is missing or damaged.
    """
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except _RUNTIME_ERRORS as error:
        raise ValueError(f"model: cannot load {file}: {error}") from error


class OnnxFaceDetector(FaceCascade):
    """
    Finds faces in RGB frames.

    Args:
        folder: holds `face_pnet.onnx`, `face_rnet.onnx` and `face_onet.onnx`.
        options: onnxruntime's session options.
        detection_size, min_face_size, thresholds: as in `FaceCascade`.
    """

    def __init__(self, folder: Path, options: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._networks = {name: load_session(folder / f"face_{name}.onnx", options) for name in NETWORKS}

    @staticmethod
    def is_in(folder: Path) -> bool:
        """
        Whether the folder holds the networks.

        Raises:
            ValueError: some of them are missing.
        """
        missing = [name for name in NETWORKS if not (folder / f"face_{name}.onnx").is_file()]
        if missing and len(missing) < len(NETWORKS):
            raise ValueError(f"model: {folder} lacks {', '.join(f'face_{name}.onnx' for name in missing)}.")
        return not missing

    def shrunk(self, frames: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
        """As in `FaceCascade`."""
        return np.stack([_resized(frame, size) for frame in frames])

    def resized(self, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """As in `FaceCascade`."""
        return np.stack([_resized(image.transpose(1, 2, 0), size) for image in images])

    def proposals(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As in `FaceCascade`."""
        return self._run("pnet", images)

    def examined(
        self, network: str, images: np.ndarray, owner: np.ndarray, boxes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As in `FaceCascade`."""
        scores, offsets = np.zeros(len(boxes), np.float32), np.zeros((len(boxes), 4), np.float32)
        for frame in np.unique(owner):
            rows = owner == frame
            scores[rows], offsets[rows] = self._run(network, images[frame : frame + 1], boxes[rows].astype(np.float32))
        return scores, offsets

    def _run(self, network: str, *values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        session = self._networks[network]
        names = [entry.name for entry in session.get_inputs()]
        scores, offsets = session.run(None, dict(zip(names, values, strict=True)))
        return scores, offsets


def _resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width, 3) uint8 -> (3, *size), as torch's antialiased bilinear resize of bytes up to rounding."""
    if frame.shape[:2] != size:
        image = Image.fromarray(np.ascontiguousarray(frame))
        frame = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(frame.transpose(2, 0, 1))
