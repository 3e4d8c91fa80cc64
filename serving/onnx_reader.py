"""The pipeline's call on onnxruntime, without torch: what `triemo export` wrote, from a file on disk to scores.

    reader = OnnxEmotionReader("onnx/")
    reader("clip.mp4", top_k=3)
    reader([{"text": "Leave me alone."}, {"audio": "voice.wav"}], batch_size=2)

Needs onnxruntime, tokenizers, numpy, Pillow and, for sound and video files, PyAV; the command line also typer.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from triemo.serving.onnx_faces import OnnxFaceDetector
from triemo.serving.onnx_inputs import OnnxInputs
from triemo.serving.onnx_processing.samples_triemo import TASK, stack_padded
from triemo.serving.subsets import MASKS

__all__ = ["OnnxConfig", "OnnxEmotionReader"]

GRAPHS = {"fp32": "model.onnx", "int8": "model_int8.onnx"}
METADATA = "triemo"
_PARAMETERS = ("use_sound_track", "sampling_rate", "num_frames", "frame_rate")


@dataclass(frozen=True)
class OnnxConfig:
    """What of a checkpoint's config the runtime needs; names as there."""

    id2label: dict[int, str]
    problem_type: str
    calibration_temperature: float | dict[str, float]

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    def temperature_of(self, modality_mask: Sequence[bool]) -> float:
        """The calibration temperature for a sample that has these of text, audio, vision."""
        if not isinstance(self.calibration_temperature, dict):
            return float(self.calibration_temperature)
        subset = "+".join(name for name, present in zip(MASKS, modality_mask, strict=True) if present)
        return float(self.calibration_temperature.get(subset, 1.0))


class OnnxEmotionReader:
    """
    Emotion scores for one input or many; inputs and answers as those of the `multimodal-emotion-recognition` pipeline.

    Args:
        path: the folder that `triemo export` wrote, or one of its graphs.
        precision: "fp32" or "int8", which of the folder's graphs.
        threads: processor threads; as many as there are cores by default.

    Raises:
        ValueError: no graph there, or one that `triemo export` did not write.
    """

    def __init__(self, path: str | Path, precision: str = "fp32", threads: int | None = None) -> None:
        path = Path(path).expanduser()
        if precision not in GRAPHS:
            raise ValueError(f"precision must be one of {sorted(GRAPHS)}, got {precision!r}.")
        file = path / GRAPHS[precision] if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"model: no graph at {file}, expected what `triemo export` writes.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; its optimiser warns of nodes that it leaves as they are
        if threads is not None:
            options.intra_op_num_threads = threads
        # Weights stored in int8 are expanded when the file is loaded, and not again at every call.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no narrower class
            raise ValueError(f"model: cannot load {file}: {error}") from error
        described = self.session.get_modelmeta().custom_metadata_map.get(METADATA)
        if described is None:
            raise ValueError(f"model: {file} carries no description, expected what `triemo export` writes.")
        facts: dict[str, Any] = json.loads(described)
        self.config = OnnxConfig(
            dict(enumerate(facts["labels"])), facts["problem_type"], facts["calibration_temperature"]
        )
        folder = file.parent

        def make_detector(detection_size: int, min_face_size: int) -> OnnxFaceDetector | None:
            if not OnnxFaceDetector.is_in(folder):
                return None
            return OnnxFaceDetector(folder, options, detection_size, min_face_size)

        shapes = {entry.name: entry.shape for entry in self.session.get_inputs()}
        self._inputs = OnnxInputs(facts, folder, shapes, make_detector)

    @property
    def model(self) -> "OnnxEmotionReader":
        """Itself: as of a pipeline, `reader.model.config` is the config."""
        return self

    def __call__(self, inputs: Any, top_k: int | None = None, batch_size: int = 1, **parameters: Any) -> Any:
        """
        The answer for one input, a list of them for a list; for a generator or a dataset, an iterator.

        Args:
            inputs: path, URL or bytes of a video, sound or image file, or a dict with any of `text`, `audio`, `video`,
                `image`; or many of these.
            top_k: how many labels to return, best first; all by default.
            batch_size: how many inputs go through the graph at once; they may differ in modalities and lengths.
            parameters: `use_sound_track`, `sampling_rate` (Hz), `num_frames`, `frame_rate` (Hz).

        Returns:
            For each input a list of `{"label", "score"}`.

        Raises:
            ValueError: an unknown parameter, media that cannot be read, or nothing to read from.
        """
        unknown = sorted(set(parameters) - set(_PARAMETERS))
        if unknown:
            known = f"top_k, batch_size, {', '.join(_PARAMETERS)}"
            raise ValueError(f"{TASK} got unknown parameters {unknown}; accepted: {known}.")
        for name, value in (("top_k", top_k), ("batch_size", batch_size)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if isinstance(inputs, (list, tuple)):
            return list(self._answers(inputs, top_k, batch_size, parameters))
        if isinstance(inputs, Iterator) or hasattr(inputs, "select_columns"):
            return self._answers(inputs, top_k, batch_size, parameters)
        return next(self._answers([inputs], top_k, 1, parameters))

    def _answers(
        self, inputs: Iterable, top_k: int | None, batch_size: int, parameters: dict[str, Any]
    ) -> Iterator[list[dict[str, Any]]]:
        waiting = iter(inputs)
        while samples := [self.preprocess(input_, **parameters) for input_ in islice(waiting, batch_size)]:
            outputs = self.forward(self._collated(samples))
            for row in range(len(samples)):
                yield self.postprocess({name: value[row : row + 1] for name, value in outputs.items()}, top_k)

    def preprocess(self, input_: Any, **parameters: Any) -> dict[str, np.ndarray]:
        """One input to the arrays of a batch of one; parameters as in a call."""
        return self._inputs.arrays(input_, **parameters)

    def _collated(self, samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        names = dict.fromkeys(name for sample in samples for name in sample)
        padding = {"input_ids": self._inputs.pad_token_id}
        return {name: stack_padded([sample.get(name) for sample in samples], padding.get(name, 0)) for name in names}

    def forward(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`logits` (batch, classes) and `modality_mask` (batch, 3) bool, which of text, audio, vision each has."""
        given = self._inputs.completed(arrays)
        (logits,) = self.session.run(["logits"], given)
        return {"logits": logits, "modality_mask": self._inputs.modality_mask(given)}

    def postprocess(self, outputs: Mapping[str, np.ndarray], top_k: int | None = None) -> list[dict[str, Any]]:
        """Scores of the labels of the first sample, best first."""
        logits = outputs["logits"][0].astype(np.float64)
        scaled = logits / self.config.temperature_of(outputs["modality_mask"][0].tolist())
        if self.config.problem_type == "regression":
            scores = logits
        elif self.config.problem_type == "multi_label_classification":
            scores = 1 / (1 + np.exp(-scaled))
        else:
            scores = np.exp(scaled - scaled.max())
            scores /= scores.sum()
        order = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [{"label": self.config.id2label[index], "score": float(scores[index])} for index in order]
