"""The `multimodal-emotion-recognition` pipeline: emotion of any combination of text, sound and picture."""

import os
from collections.abc import Sized
from typing import Any

import torch
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .samples_triemo import TASK, media_kind, read_input

__all__ = ["TASK", "MultimodalEmotionRecognitionPipeline", "media_kind"]


class MultimodalEmotionRecognitionPipeline(Pipeline):
    """
    Emotion scores for one input or many.

    An input is the path, URL or bytes of a video, sound or image file, or a dict with any of `text`, `audio`, `video`,
    `image`, each in any form `TriemoProcessor` takes. A list, a generator or a dataset of inputs gives an answer each.
    The model's `calibration_temperature` is applied before the softmax.

    Parameters, at construction or call:
        top_k: how many labels to return, best first; all by default.
        batch_size: how many inputs go through the model at once; they may have different modalities and lengths.
        use_sound_track: whether the sound of a video counts (default True).
        sampling_rate: of sound given as an array, in Hz.
        num_frames, frame_rate: how frames are taken from videos.

    Example:
        >>> reader = pipeline("multimodal-emotion-recognition", model="triemo/triemo-small", trust_remote_code=True)
        >>> reader({"video": "clip.mp4", "text": "I can't believe it!"}, top_k=2)
    """

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, top_k: int | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        known = ("use_sound_track", "sampling_rate", "num_frames", "frame_rate")
        unknown = sorted(set(kwargs) - set(known))
        if unknown:
            raise ValueError(
                f"{TASK} got unknown parameters {unknown}; accepted: top_k, batch_size, {', '.join(known)}."
            )
        if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
            raise ValueError(f"top_k must be a whole number of at least 1, got {top_k!r}.")
        return kwargs, {}, {} if top_k is None else {"top_k": top_k}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The answer for one input, a list of them for a list; for a generator or a dataset, an iterator."""
        if hasattr(inputs, "select_columns"):  # of the library datasets, which the base class takes for one input
            inputs = (row for row in inputs)
        return super().__call__(inputs, *args, **kwargs)

    def preprocess(self, input_: Any, **parameters: Any) -> dict[str, torch.Tensor]:
        """One input to the tensors of a batch of one."""
        given = read_input(input_)
        # A list in a batch of one is one clip's frames or one sound's samples, not a batch.
        given = {name: [value] for name, value in given.items()}
        tensors = dict(self.processor(**given, return_tensors="pt", **parameters))
        if not any(mask.any() for name, mask in tensors.items() if name.endswith("attention_mask")):
            raise ValueError("no face was found, and the input has neither text nor sound besides.")
        return tensors

    def _forward(self, model_inputs: dict[str, torch.Tensor], **parameters: Any) -> dict[str, torch.Tensor]:
        outputs = self.model(**model_inputs)
        return {"logits": outputs.logits, "modality_mask": outputs.modality_mask}

    def postprocess(self, model_outputs: dict[str, torch.Tensor], top_k: int | None = None) -> list[dict[str, Any]]:
        """Scores of the labels, best first."""
        config: Any = self.model.config
        logits = model_outputs["logits"][0].float()
        temperature = config.temperature_of(model_outputs["modality_mask"][0].tolist())
        if config.resolved_problem_type == "regression":
            scores = logits
        elif config.resolved_problem_type == "multi_label_classification":
            scores = (logits / temperature).sigmoid()
        else:
            scores = (logits / temperature).softmax(-1)
        order = scores.argsort(descending=True)[:top_k].tolist()
        return [{"label": config.id2label[index], "score": scores[index].item()} for index in order]

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> PipelineIterator:
        """As the base class's, but samples with different modalities are collated by the processor."""
        prepared: Any = PipelineIterator(inputs, self.preprocess, preprocess_params)
        if isinstance(inputs, Sized):
            prepared = PipelineDataset(inputs, self.preprocess, preprocess_params)
        loader = torch.utils.data.DataLoader(
            prepared, num_workers=num_workers, batch_size=batch_size, collate_fn=self.processor.pad
        )
        outputs = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Model and processor, and this file with them where the config names it, as in a checkpoint from the Hub."""
        # The base class would always name it, and the folder then asks for trust_remote_code even of the installed
        # package.
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
        if getattr(self.model.config, "custom_pipelines", None):
            custom_object_save(self, save_directory)
