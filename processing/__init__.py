"""Triemo's processing. Importing this package registers its classes with the Auto classes and its pipeline."""

# First of all: it says what to do where torchaudio does not load, which transformers imports too.
from .feature_extraction_triemo import TriemoFeatureExtractor  # isort: skip

from transformers import (
    AutoFeatureExtractor,
    AutoModelForTokenClassification,
    AutoModelForVideoClassification,
    AutoProcessor,
    PreTrainedConfig,
)

# By its own module: up to 5.17 `transformers` itself shows a stand-in that asks for torchvision, which is not needed.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .dialogue_pipeline_triemo import DIALOGUE_TASK, ConversationalEmotionRecognitionPipeline, DialogueSession
from .image_processing_triemo import TriemoImageProcessor
from .media_sources_triemo import MediaLimits, media_limits
from .media_triemo import MediaInfo, load_audio, load_frames, load_image, probe_media
from .pipeline_triemo import TASK, MultimodalEmotionRecognitionPipeline
from .processing_triemo import TriemoProcessor
from .utterances_triemo import UtteranceEncoder


class TriemoProcessingKey(PreTrainedConfig):
    """What the Auto classes file Triemo's processing under: they want a config class, and the model's is next door.

    Loading goes by the class names in `processor_config.json`, so nothing ever makes one of these.
    """

    model_type = "triemo_processing"


AutoFeatureExtractor.register(TriemoProcessingKey, TriemoFeatureExtractor, exist_ok=True)
AutoImageProcessor.register(TriemoProcessingKey, slow_image_processor_class=TriemoImageProcessor, exist_ok=True)
AutoProcessor.register(TriemoProcessingKey, TriemoProcessor, exist_ok=True)
for task, pipeline_class, auto_model in (
    (TASK, MultimodalEmotionRecognitionPipeline, AutoModelForVideoClassification),
    (DIALOGUE_TASK, ConversationalEmotionRecognitionPipeline, AutoModelForTokenClassification),
):
    if task not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            task, pipeline_class=pipeline_class, pt_model=(auto_model,), type="multimodal"
        )

__all__ = [
    "DIALOGUE_TASK",
    "TASK",
    "ConversationalEmotionRecognitionPipeline",
    "DialogueSession",
    "MediaInfo",
    "MediaLimits",
    "MultimodalEmotionRecognitionPipeline",
    "TriemoFeatureExtractor",
    "TriemoImageProcessor",
    "TriemoProcessor",
    "UtteranceEncoder",
    "load_audio",
    "load_frames",
    "load_image",
    "media_limits",
    "probe_media",
]
