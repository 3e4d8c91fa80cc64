"""Pictures and clips to normalised crops of the main face, for the vision tower.

Shapes: B clips, F frames of the longest clip, C channels (1 grey or 3), H and W pixels of a crop.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import TensorType, cached_file, logging

from .faces_triemo import FaceDetector, resolve_face_detector
from .mtcnn_triemo import load_mtcnn_weights
from .people_triemo import FaceTracks
from .pictures_triemo import (
    DEFAULT_IMAGE_SETTINGS,
    TriemoImagesKwargs,
    checked_image_settings,
    face_boxes,
    picture_arrays,
    read_clips,
)
from .presence_triemo import say_once
from .windows_triemo import Window

__all__ = ["FACE_DETECTOR_FILE", "TriemoImageProcessor"]

logger = logging.get_logger(__name__)

FACE_DETECTOR_FILE = "face_detector.safetensors"  # beside the checkpoint's JSON, as a tokenizer's files are
_SERVICE_KEYS = {"image_processor_type", "processor_class", "feature_extractor_type", "auto_map"}
_HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "revision", "subfolder")


class TriemoImageProcessor(BaseImageProcessor):
    """Finds the main face of each clip, cuts it out of every frame, resizes and normalises it.

    Args:
        face_detector_weights: path of MTCNN's safetensors. `from_pretrained` finds the one beside the checkpoint.
        **kwargs: the fields that `TriemoImagesKwargs` lists, with the defaults of `DEFAULT_IMAGE_SETTINGS`. Any of
            them can also be given to a call, for that call only.

    Raises ValueError for an unknown keyword or a value out of range.
    """

    model_input_names = ["pixel_values", "video_attention_mask", "video_times"]
    valid_kwargs = TriemoImagesKwargs

    def __init__(self, face_detector_weights: str | os.PathLike | None = None, **kwargs: Any) -> None:
        service = {name: kwargs.pop(name) for name in list(kwargs) if name in _SERVICE_KEYS}
        super().__init__(**service)
        settings = checked_image_settings({**DEFAULT_IMAGE_SETTINGS, **kwargs})
        for name, value in settings.items():
            setattr(self, name, value)
        self._detectors: dict[tuple[str, int, int], FaceDetector | None] = {}
        self._face_detector_weights: dict[str, torch.Tensor] | None = None
        if face_detector_weights is not None:
            self._face_detector_weights = load_mtcnn_weights(face_detector_weights)

    def preprocess(
        self,
        images: Any,
        times: Sequence | None = None,
        return_tensors: str | TensorType | None = None,
        without_face: Sequence[str] | None = None,
        return_notes: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares clips of faces.

        Args:
            images: one picture (path, URL, bytes, PIL, array (height, width[, channels]), tensor ([channels,] height,
                width)): a clip of one frame. One clip: a video file, a flat list of pictures, an array (frames,
                height, width, channels), a tensor (frames, channels, height, width). A batch of clips: a list whose
                items are clips; `None` in it is a sample without picture.
            times: seconds of each frame: for each clip a sequence as long as the clip, or None; for a single clip the
                sequence itself. A video file's own times are used where none are given.
            return_tensors: "pt" or "np"; None gives NumPy arrays too.
            without_face: for each clip what it is if no face is found in it: "absent", "whole" or "crop" (whole if it
                looks like a face crop). By default a single picture is "whole", a clip "absent".
            return_notes: add `notes`, a list for each clip of what was noticed (several faces, none, read whole). They
                are no tensors and not for the model. Otherwise each kind is logged once.
            **kwargs: any field of the processor, for this call.

        Returns:
            `pixel_values` (B, F, C, H, W) float32, `video_attention_mask` (B, F) int64, both 0 where there is no frame
            or no face in it, and, if any clip has times, `video_times` (B, F) float32 in seconds (a clip without times
            among them is taken at `frame_rate`, else 4 Hz). A clip in which no face is found is masked altogether,
            with a warning: to the model it is a sample without that modality, and alone it is refused there. A still
            in which none is found at any size is taken whole, unless it is all of one colour.

        Raises ValueError for no frames, unreadable media, wrong shapes, types or values (NaN), times that do not match
        the frames, an unknown keyword.
        """
        settings = self._settings(kwargs)
        clips = read_clips(images, times, settings["num_frames"], settings["frame_rate"], without_face)
        data, notes = picture_arrays(clips, settings, self._detector)
        features = BatchFeature(data=data, tensor_type=return_tensors)
        if return_notes:
            features["notes"] = notes
            return features
        seen = [bool(row.any()) for row in data["video_attention_mask"]]
        missed = [index for index, clip in enumerate(clips) if clip.frames and not seen[index]]
        if missed:
            logger.warning(
                f"No face was found in clip(s) {missed} of {len(clips)}: video_attention_mask is 0 there. Pass "
                "face_detector=None for pictures that are face crops already."
            )
        say_once(logger, [note for row, said in zip(seen, notes, strict=True) if row for note in said])
        return features

    def detect_faces(self, frames: Any, **kwargs: Any) -> list[np.ndarray | None]:
        """The main face of one clip: for each frame x0, y0, x1, y1 in its pixels (float64), None where it is not seen.

        Args:
            frames: one clip or one picture, as `preprocess` takes it.
            **kwargs: any field of the processor, for this call.
        """
        clips = read_clips([frames] if isinstance(frames, (list, tuple)) else frames, None, None, None)
        if len(clips) != 1:
            raise ValueError(f"detect_faces takes one clip, got {len(clips)}")
        settings = self._settings(kwargs)
        boxes, _ = face_boxes(clips[0].frames, settings, self._detector)
        return [None if np.isnan(box).any() else box for box in boxes]

    def _settings(self, overrides: dict[str, Any]) -> dict[str, Any]:
        current = {name: getattr(self, name) for name in DEFAULT_IMAGE_SETTINGS}
        return checked_image_settings({**current, **overrides})

    def window_arrays(self, window: Window, overrides: dict[str, Any], has_more: bool) -> dict[str, np.ndarray]:
        """What `preprocess` returns of the frames of one window, a batch of one; its notes are added to the window's.

        Args:
            window: with frames.
            overrides: fields of the processor, for this call.
            has_more: as in `Window.clip`.
        """
        data, (notes,) = picture_arrays([window.clip(has_more)], self._settings(overrides), self._detector)
        window.notes += notes
        return data

    def face_tracks(self, overrides: dict[str, Any], frame_rate: float) -> FaceTracks | None:
        """Follows faces over a recording by these fields; None where frames are to be taken whole.

        Args:
            overrides: fields of the processor, for this call.
            frame_rate: of the frames, in Hz.
        """
        settings = self._settings(overrides)
        if self._detector(settings) is None:
            return None
        return FaceTracks(settings, self._detector, frame_rate)

    def _detector(self, settings: Mapping[str, Any]) -> FaceDetector | None:
        kind = settings["face_detector"] if settings["do_detect_faces"] else None
        if kind is None or callable(kind):
            return kind
        key = (kind, settings["detection_size"], settings["min_face_size"])
        if key not in self._detectors:
            self._detectors[key] = resolve_face_detector(kind, self._face_detector_weights, *key[1:])
        return self._detectors[key]

    # ----- files ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """As every image processor's; besides, it loads the face detector's weights from `face_detector.safetensors`
        in the same folder or repository, if it is there. `face_detector_weights=<path>` takes another file."""
        path = kwargs.pop("face_detector_weights", None)
        hub = {name: kwargs[name] for name in _HUB_KEYS if kwargs.get(name) is not None}
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        # Always asked for: a pipeline hands on what is the model's, which `from_dict` would refuse.
        processor, unused = super().from_pretrained(pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs)
        name = os.fspath(pretrained_model_name_or_path)
        if path is None and os.path.isfile(name):
            beside = os.path.join(os.path.dirname(name), FACE_DETECTOR_FILE)
            path = beside if os.path.isfile(beside) else None
        elif path is None:
            path = cached_file(name, FACE_DETECTOR_FILE, _raise_exceptions_for_missing_entries=False, **hub)
        if path is not None:
            processor._face_detector_weights = load_mtcnn_weights(path)
        return (processor, unused) if wants_unused else processor

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As every image processor's, but a field that nothing knows is a ValueError rather than left out, unless
        `return_unused_kwargs` gives it back."""
        unknown = sorted(set(kwargs) - set(DEFAULT_IMAGE_SETTINGS) - {"return_unused_kwargs"})
        if unknown and not kwargs.get("return_unused_kwargs", False):
            known = sorted(DEFAULT_IMAGE_SETTINGS)
            raise ValueError(f"Unknown keyword(s) {unknown}; TriemoImageProcessor knows {known}")
        return super().from_dict(image_processor_dict, **kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """As every image processor's; besides, it writes `face_detector.safetensors` if it has the weights."""
        files = super().save_pretrained(save_directory)
        files += self.save_face_detector(save_directory)
        if push_to_hub:
            kwargs.setdefault("repo_id", os.path.basename(os.path.abspath(save_directory)))
            self.push_to_hub(**kwargs)
        return files

    def save_face_detector(self, save_directory: str | os.PathLike) -> list[str]:
        """Writes the detector's weights into a folder, for whoever saves the settings elsewhere (a processor keeps
        them in its own JSON). Returns the paths written: one, or none without weights."""
        if self._face_detector_weights is None:
            return []
        os.makedirs(save_directory, exist_ok=True)
        path = os.path.join(save_directory, FACE_DETECTOR_FILE)
        temporary = f"{path}.{os.getpid()}.tmp"
        save_file(self._face_detector_weights, temporary, metadata={"format": "pt"})
        os.replace(temporary, path)
        return [path]

    def to_dict(self) -> dict[str, Any]:
        """The fields, safe for JSON; a callable detector cannot be written and becomes "auto"."""
        fields = {name: getattr(self, name) for name in DEFAULT_IMAGE_SETTINGS}
        if callable(fields["face_detector"]):
            logger.warning_once("face_detector is a callable, which cannot be saved: 'auto' is written in its place.")
            fields["face_detector"] = "auto"
        fields["size"] = dict(fields["size"])
        if getattr(self, "auto_map", None):
            fields["auto_map"] = self.auto_map
        return {**fields, "image_processor_type": type(self).__name__}

    def __getstate__(self) -> dict[str, Any]:
        # opencv's detectors cannot be copied or sent to a worker; they are made again where they are needed.
        return {**self.__dict__, "_detectors": {}}
