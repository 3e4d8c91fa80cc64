"""Triemo's model. Importing this package registers its classes with the Auto classes of transformers."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForVideoClassification,
)

from .audio_tower_triemo import TriemoAudioModel
from .configuration_triemo import MODALITIES, SUBSETS, TriemoAudioConfig, TriemoConfig
from .contexts_triemo import TriemoContextCache
from .fusion_triemo import TriemoFusion
from .modeling_triemo import (
    TriemoClassifierOutput,
    TriemoForEmotionClassification,
    TriemoModel,
    TriemoModelOutput,
    TriemoPreTrainedModel,
)
from .pretraining_triemo import TriemoForPreTraining, TriemoForPreTrainingOutput
from .sequence_triemo import TriemoForEmotionSequence, TriemoSequenceOutput

AutoConfig.register(TriemoConfig.model_type, TriemoConfig, exist_ok=True)
AutoConfig.register(TriemoAudioConfig.model_type, TriemoAudioConfig, exist_ok=True)
AutoModel.register(TriemoConfig, TriemoModel, exist_ok=True)
AutoModel.register(TriemoAudioConfig, TriemoAudioModel, exist_ok=True)
AutoModelForPreTraining.register(TriemoConfig, TriemoForPreTraining, exist_ok=True)
AutoModelForTokenClassification.register(TriemoConfig, TriemoForEmotionSequence, exist_ok=True)
for auto_class in (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForVideoClassification,
):
    auto_class.register(TriemoConfig, TriemoForEmotionClassification, exist_ok=True)

__all__ = [
    "MODALITIES",
    "SUBSETS",
    "TriemoAudioConfig",
    "TriemoAudioModel",
    "TriemoClassifierOutput",
    "TriemoConfig",
    "TriemoContextCache",
    "TriemoForEmotionClassification",
    "TriemoForEmotionSequence",
    "TriemoForPreTraining",
    "TriemoForPreTrainingOutput",
    "TriemoFusion",
    "TriemoModel",
    "TriemoModelOutput",
    "TriemoPreTrainedModel",
    "TriemoSequenceOutput",
]
