"""Our classes as the library's shared tests want them; run by `shared_tests.py`, which puts those on the path."""

import copy
import re
import unittest
from typing import Any

import numpy as np
import torch
from exclusions import EXCLUSIONS
from tests.test_configuration_common import ConfigTester
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from tests.test_modeling_common import ModelTesterMixin
from tests.test_processing_common import ProcessorTesterMixin
from tests.test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin
from tiny_checkpoint import tiny_processor
from tiny_models import all_inputs, audio_inputs, text_inputs, tiny_audio_config, tiny_config, vision_inputs
from transformers import ViTConfig, Wav2Vec2Config

from triemo.modeling import (
    TriemoAudioConfig,
    TriemoAudioModel,
    TriemoConfig,
    TriemoForEmotionClassification,
    TriemoForPreTraining,
    TriemoModel,
)
from triemo.processing import TriemoFeatureExtractor, TriemoImageProcessor, TriemoProcessor

BATCH, SIZES = 3, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
WAVES = {
    "conv_dim": (8, 8),
    "conv_kernel": (8, 4),
    "conv_stride": (8, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}


class Tester:
    """What the mixin asks a model tester: a config, inputs, and the numbers that shapes are compared with."""

    def __init__(self, parent: unittest.TestCase, config: Any, inputs: dict[str, torch.Tensor], steps: int):
        self.parent, self.config, self.inputs = parent, config, inputs
        self.batch_size, self.seq_length, self.is_training = BATCH, steps, True
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            setattr(self, name, getattr(config, name))

    def get_config(self) -> Any:
        return copy.deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        return self.get_config(), dict(self.inputs)


class ModelCase(ModelTesterMixin):
    """A case is a config and its inputs; `steps` is the length of the joint sequence."""

    all_model_classes = (TriemoModel, TriemoForEmotionClassification)
    test_resize_embeddings = False
    fields: dict[str, Any] = {}
    steps = 0

    def inputs(self) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def make_config(self) -> Any:
        return tiny_config(**self.fields)

    def setUp(self) -> None:
        torch.manual_seed(0)
        self.model_tester = Tester(self, self.make_config(), self.inputs(), self.steps)

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
        prepared = copy.deepcopy(inputs_dict)
        if return_labels and model_class is TriemoForEmotionClassification:
            prepared["labels"] = torch.zeros(BATCH, dtype=torch.long)
        return prepared


class TriModalTest(ModelCase, unittest.TestCase):
    all_model_classes = (TriemoModel, TriemoForEmotionClassification, TriemoForPreTraining)
    steps = 7 + 7 + 3

    def inputs(self):
        return all_inputs(BATCH)


class TextOnlyTest(ModelCase, unittest.TestCase):
    fields = {"audio_config": None, "vision_config": None}
    test_resize_embeddings = True
    steps = 7

    def inputs(self):
        return text_inputs(BATCH)


class AudioOnlyTest(ModelCase, unittest.TestCase):
    fields = {"text_config": None, "vision_config": None}
    steps = 7

    def inputs(self):
        return audio_inputs(BATCH)


class VisionOnlyTest(ModelCase, unittest.TestCase):
    fields = {"text_config": None, "audio_config": None}
    steps = 3

    def inputs(self):
        return vision_inputs(BATCH)


class VectorsTest(ModelCase, unittest.TestCase):
    all_model_classes = (TriemoModel, TriemoForEmotionClassification, TriemoForPreTraining)
    fields = {f"{m}_config": None for m in ("text", "audio", "vision")} | {
        "text_feature_size": 6,
        "audio_feature_size": 5,
        "vision_feature_size": 4,
        "audio_step_rate": None,
    }
    steps = 5 + 6 + 3

    def inputs(self):
        return {
            "text_features": torch.randn(BATCH, 5, 6),
            "input_features": torch.randn(BATCH, 6, 5),
            "vision_features": torch.randn(BATCH, 3, 4),
        }


class WaveformAndViTTest(ModelCase, unittest.TestCase):
    fields = {
        "text_config": None,
        "audio_config": Wav2Vec2Config(**SIZES, **WAVES),
        "vision_config": ViTConfig(**SIZES, image_size=32, patch_size=8, num_channels=1),
        "sampling_rate": 640,
    }
    steps = 10 + 3

    def inputs(self):
        waves = {"input_values": torch.randn(BATCH, 640), "audio_attention_mask": torch.ones(BATCH, 640).long()}
        return waves | vision_inputs(BATCH)


class AudioTowerTest(ModelCase, unittest.TestCase):
    all_model_classes = (TriemoAudioModel,)
    steps = 31

    def make_config(self):
        return tiny_audio_config()

    def inputs(self):
        inputs = audio_inputs(BATCH)
        return {"input_features": inputs["input_features"], "attention_mask": inputs["audio_attention_mask"]}


class ConfigTest(unittest.TestCase):
    def test_config(self):
        fields = {"hidden_size": 32, "num_attention_heads": 2, "audio_feature_size": 5}
        ConfigTester(self, config_class=TriemoConfig, has_text_modality=False, **fields).run_common_tests()

    def test_audio_config(self):
        ConfigTester(self, config_class=TriemoAudioConfig, has_text_modality=False).run_common_tests()


class FeatureExtractorTester:
    """Log-mel frames of clips of growing length, which is what `pad` takes."""

    def __init__(self, parent: unittest.TestCase):
        self.parent, self.batch_size, self.min_seq_length, self.max_seq_length = parent, 4, 40, 160
        self.seq_length_diff = 40
        self.feature_size, self.padding_value, self.sampling_rate = 80, 0.0, 16000

    def prepare_feat_extract_dict(self) -> dict[str, Any]:
        return {"feature_size": self.feature_size, "sampling_rate": self.sampling_rate}

    def prepare_inputs_for_common(self, equal_length: bool = False, numpify: bool = False) -> list:
        lengths = [160] * 4 if equal_length else range(40, 200, self.seq_length_diff)
        clips = [torch.rand(length, self.feature_size) for length in lengths]
        return [clip.numpy() if numpify else clip.tolist() for clip in clips]


class FeatureExtractorTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = TriemoFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = FeatureExtractorTester(self)


class ImageProcessorTester(ImageProcessingTester):
    """Small pictures taken whole, in colour; every still is a clip of one frame."""

    def __init__(self, parent: unittest.TestCase):
        size = {"height": 32, "width": 32}
        whole = {"do_detect_faces": False, "do_grayscale": False, "size": size}
        super().__init__(parent, batch_size=3, max_resolution=90, **whole)

    def _get_image_processing_classes(self) -> dict[str, Any]:
        return {"pil": TriemoImageProcessor}

    def expected_output_image_shape(self, images: list) -> tuple[int, ...]:
        return 1, self.num_channels, self.size["height"], self.size["width"]


class ImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageProcessorTester


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = TriemoProcessor
    videos_input_name = "pixel_values"

    @classmethod
    def _setup_from_components(cls) -> TriemoProcessor:
        return tiny_processor()

    def prepare_audio_inputs(self, batch_size: int | None = None) -> list:
        """A second of noise each; the mixin's sounds hold no syllable, and count as absent."""
        return [np.random.default_rng(0).uniform(-0.5, 0.5, 16000)] * (batch_size or 1)


def leave_out(case: type) -> None:
    """Skips what `EXCLUSIONS` names for this case."""
    for name in dir(case):
        for pattern, reason in EXCLUSIONS.items():
            if name.startswith("test_") and re.fullmatch(pattern, f"{case.__name__}.{name}"):
                setattr(case, name, unittest.skip(reason)(getattr(case, name)))


for found in [value for value in list(globals().values()) if isinstance(value, type)]:
    if issubclass(found, unittest.TestCase):
        leave_out(found)
