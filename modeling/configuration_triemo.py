"""Configuration of Triemo: one sub-config per modality tower, and the joint part that stands on them."""

# No postponed annotations here: `@strict` checks the types of fields only where they are real types.
import dataclasses
import math
from collections.abc import Callable
from itertools import combinations
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging
from transformers.utils.type_validators import interval, probability

logger = logging.get_logger(__name__)

MODALITIES = ("text", "audio", "vision")
# The seven ways in which a sample can have some of them, the smallest first.
SUBSETS = tuple(subset for size in (1, 2, 3) for subset in combinations(MODALITIES, size))

# What gives each modality to a model; at most one of them.
_SOURCES = {
    "text": ("text_config", "text_vocab_size", "text_feature_size"),
    "audio": ("audio_config", "audio_feature_size"),
    "vision": ("vision_config", "vision_feature_size"),
}

# Keywords that are no field of any config but that every Hugging Face config takes.
_COMMON_FIELDS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "torch_dtype",
}
# What checkpoints held once and what says nothing any more in an old config.json: settings of one run, which the
# trainers pass to the losses, and a second size of the vocabulary.
_RETIRED_FIELDS = {
    "class_weights",
    "contrastive_local_loss",
    "contrastive_soft_labels",
    "frame_mask_probability",
    "label_smoothing",
    "vocab_size",
}


@strict
class TriemoAudioConfig(PreTrainedConfig):
    r"""
    Configuration of [`TriemoAudioModel`], a log-mel encoder of the shape of Whisper's that takes any length.

    Args:
        num_mel_bins (`int`, *optional*, defaults to 80):
            Bins of one log-mel frame.
        hidden_size (`int`, *optional*, defaults to 384):
            Width of the encoder.
        num_hidden_layers (`int`, *optional*, defaults to 4):
            Number of transformer layers.
        num_attention_heads (`int`, *optional*, defaults to 6):
            Attention heads of a layer.
        intermediate_size (`int`, *optional*, defaults to 1536):
            Width of the feed-forward part of a layer.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward part.
        hidden_dropout (`float`, *optional*, defaults to 0.0):
            Dropout after the convolutions and on each residual branch.
        attention_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on attention probabilities.
        use_weighted_layer_sum (`bool`, *optional*, defaults to `False`):
            Return a learned average of all layers' states instead of the last layer's.
        statistics_size (`int`, *optional*, defaults to 0):
            Width of the bottleneck through which mean and standard deviation over the voiced steps are added to
            every step ([`TriemoVoiceStatistics`]); 0 for none.
        layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the layer normalisations.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
    """

    model_type = "triemo_audio"
    base_config_key = "audio_config"

    num_mel_bins: int = 80
    hidden_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    intermediate_size: int = 1536
    hidden_act: str = "gelu"
    hidden_dropout: float | int = probability(default=0.0)
    attention_dropout: float | int = probability(default=0.0)
    use_weighted_layer_sum: bool = False
    statistics_size: int = interval(min=0)(default=0)
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    @classmethod
    def from_whisper_config(cls, whisper: Any, **overrides: Any) -> "TriemoAudioConfig":
        """The config whose encoder takes Whisper's encoder weights; `whisper` is a `WhisperConfig` or its dict."""
        values = whisper if isinstance(whisper, dict) else whisper.to_dict()
        return cls(
            **{
                "num_mel_bins": values["num_mel_bins"],
                "hidden_size": values["d_model"],
                "num_hidden_layers": values["encoder_layers"],
                "num_attention_heads": values["encoder_attention_heads"],
                "intermediate_size": values["encoder_ffn_dim"],
                "hidden_act": values["activation_function"],
                "hidden_dropout": values["dropout"],
                "attention_dropout": values["attention_dropout"],
                **overrides,
            }
        )

    def validate_architecture(self) -> None:
        """Run by `@strict` after construction."""
        _check_heads("audio_config", self.hidden_size, self.num_attention_heads)


@strict
class TriemoConfig(PreTrainedConfig):
    r"""
    Configuration of [`TriemoModel`] and its heads.

    Each modality is given by one of: a tower (`*_config`, the configuration of any Hugging Face encoder), the width
    of precomputed vectors (`*_feature_size`), or, for text, the size of a plain token vocabulary
    (`text_vocab_size`). A modality given by none of them does not exist in the model.

    Args:
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Text encoder, for example a `BertConfig`.
        audio_config (`dict` or `PreTrainedConfig`, *optional*):
            Speech encoder, for example a `Wav2Vec2Config`; a `WhisperConfig` becomes a [`TriemoAudioConfig`].
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Image encoder, run on every frame, for example a `ResNetConfig`.
        text_vocab_size (`int`, *optional*):
            Vocabulary size for plain token ids without a tower.
        text_feature_size (`int`, *optional*):
            Width of precomputed text vectors.
        audio_feature_size (`int`, *optional*):
            Width of precomputed audio vectors (`input_features` then goes straight to the embedding).
        vision_feature_size (`int`, *optional*):
            Width of precomputed vision vectors.
        hidden_size (`int`, *optional*, defaults to 256):
            Width of the joint encoder.
        num_hidden_layers (`int`, *optional*, defaults to 2):
            Layers of the joint encoder.
        num_attention_heads (`int`, *optional*, defaults to 4):
            Heads of the joint encoder and of the six directed attentions.
        intermediate_size (`int`, *optional*, defaults to 1024):
            Width of the feed-forward part of a joint layer.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the joint layers and of the classification head.
        hidden_dropout (`float`, *optional*, defaults to 0.1):
            Dropout on embeddings and residual branches.
        attention_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on attention probabilities.
        classifier_dropout (`float`, *optional*, defaults to 0.1):
            Dropout in the classification head.
        layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the layer normalisations.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
        projection_dim (`int`, *optional*, defaults to 256):
            Width of the unimodal embeddings.
        text_position_type (`str`, *optional*, defaults to `"learned"`):
            `"learned"` or `"sinusoidal"` index positions of text steps.
        max_text_positions (`int`, *optional*, defaults to 512):
            Longest text, in steps.
        sampling_rate (`int`, *optional*, defaults to 16000):
            Rate of `input_values`, in Hz.
        audio_frame_rate (`float`, *optional*, defaults to 100.0):
            Rate of `input_features` frames, in Hz.
        audio_step_rate (`float`, *optional*, defaults to 10.0):
            Rate to which audio steps are averaged before the joint encoder, in Hz; `None` keeps every step.
        video_frame_rate (`float`, *optional*, defaults to 4.0):
            Rate assumed for frames that come without `video_times`, in Hz.
        num_frames (`int`, *optional*, defaults to 16):
            Frames that the stock video-classification pipeline samples from a clip.
        step_aligned (`bool`, *optional*, defaults to `False`):
            The modalities' steps correspond one to one (an utterance or a window each), and fusion keeps them.
        context_type (`str`, *optional*, defaults to `"none"`):
            What follows the fusion in [`TriemoForEmotionSequence`]: `"none"`, `"transformer"`, `"recurrent"` or
            `"graph"`.
        context_layers (`int`, *optional*, defaults to 2):
            Layers of a transformer or recurrent context; a graph has the two of its formula.
        context_causal (`bool`, *optional*, defaults to `False`):
            Whether an utterance sees only what was said before it.
        context_window (`int`, *optional*):
            How many utterances one sees on each side; `None` for all of the dialogue.
        speaker_dropout (`float`, *optional*, defaults to 0.0):
            Probability, in training, that a dialogue's speakers are unknown.
        base_model_name_or_path (`str`, *optional*):
            Of a [`TriemoForEmotionSequence`] over vectors: Hub id or folder of the checkpoint whose towers made them.
        utterance_layers (`dict`, *optional*):
            The layers of these towers whose means make a vector, `{"text": [4, -1]}`; see `UtteranceEncoder`.
        modality_dropout (`float`, *optional*, defaults to 0.0):
            Probability, in training, of dropping a modality from a sample; one always stays.
        mlm_weight (`float`, *optional*, defaults to 1.0):
            Weight of masked language modelling in the pretraining loss; 0 leaves it out.
        contrastive_weight (`float`, *optional*, defaults to 1.0):
            Weight of the contrastive loss in pretraining; 0 leaves it out.
        frame_weight (`float`, *optional*, defaults to 0.0):
            Weight of predicting masked sound and face steps in pretraining; 0 leaves it out.
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
            Logarithm of the factor of similarities (1 / temperature) at the start; 2.6592 is a temperature of 0.07.
        logit_scale_max (`float`, *optional*, defaults to 4.6052):
            Its upper bound; 4.6052 is the logarithm of 100.
        mlm_uses_joint_states (`bool`, *optional*, defaults to `True`):
            Masked tokens are predicted with voice and face in sight; `False` hides these, to measure what they add.
        tie_word_embeddings (`bool`, *optional*, defaults to `True`):
            The last layer of masked language modelling is the token embedding.
        regression_loss (`str`, *optional*, defaults to `"mse"`):
            `"mse"` or `"ccc"` (1 - concordance correlation coefficient).
        calibration_temperature (`float` or `dict`, *optional*, defaults to 1.0):
            Temperature fitted on validation data; pipelines divide logits by it before the softmax. A dict has one for
            each subset of modalities (`"text"`, `"text+audio"`, ...), and 1 stands for those that it lacks.
        min_score (`float` or `dict`, *optional*, defaults to 0.0):
            Score below which pipelines call an answer uncertain. A dict has one for each subset of modalities, and 0
            stands for those that it lacks.
    """

    model_type = "triemo"
    sub_configs = {"text_config": AutoConfig, "audio_config": AutoConfig, "vision_config": AutoConfig}
    keys_to_ignore_at_inference = [
        "text_embeds",
        "audio_embeds",
        "vision_embeds",
        "modality_mask",
        "hidden_states",
        "attentions",
        "fusion_attentions",
        "utterance_mask",
    ]

    text_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    text_vocab_size: int | None = None
    text_feature_size: int | None = None
    audio_feature_size: int | None = None
    vision_feature_size: int | None = None

    hidden_size: int = 256
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    hidden_dropout: float | int = probability(default=0.1)
    attention_dropout: float | int = probability(default=0.0)
    classifier_dropout: float | int = probability(default=0.1)
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    projection_dim: int = 256

    text_position_type: Literal["learned", "sinusoidal"] = "learned"
    max_text_positions: int = interval(min=1)(default=512)
    sampling_rate: int = interval(min=1)(default=16000)
    audio_frame_rate: float | int = interval(min=0, exclude_min=True)(default=100.0)
    audio_step_rate: float | int | None = 10.0
    video_frame_rate: float | int = interval(min=0, exclude_min=True)(default=4.0)
    num_frames: int = interval(min=1)(default=16)
    step_aligned: bool = False

    context_type: Literal["none", "transformer", "recurrent", "graph"] = "none"
    context_layers: int = interval(min=1)(default=2)
    context_causal: bool = False
    context_window: int | None = None
    speaker_dropout: float | int = probability(default=0.0)
    base_model_name_or_path: str | None = None
    utterance_layers: dict | None = None

    modality_dropout: float | int = interval(min=0, max=1, exclude_max=True)(default=0.0)
    mlm_weight: float | int = interval(min=0)(default=1.0)
    contrastive_weight: float | int = interval(min=0)(default=1.0)
    frame_weight: float | int = interval(min=0)(default=0.0)
    logit_scale_init_value: float | int = 2.6592
    logit_scale_max: float | int = 4.6052
    mlm_uses_joint_states: bool = True
    tie_word_embeddings: bool = True
    regression_loss: Literal["mse", "ccc"] = "mse"
    calibration_temperature: float | int | dict = 1.0
    min_score: float | int | dict = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        # A misspelt option would be stored and never read. A config.json names the version that saved it, and that
        # may be a newer one with fields of its own, so there an unknown field is only reported.
        if self.transformers_version is not None:
            kwargs = {name: value for name, value in kwargs.items() if name not in _RETIRED_FIELDS}
        unknown = sorted(name for name in kwargs if name not in _COMMON_FIELDS and not name.startswith("_"))
        if unknown and self.transformers_version is None:
            raise ValueError(f"TriemoConfig got unknown fields {unknown}; accepted: {sorted(self._own_fields())}.")
        if unknown:
            logger.warning(f"TriemoConfig ignores the unknown fields {unknown}.")
        for name in self.sub_configs:
            setattr(self, name, resolve_sub_config(name, getattr(self, name)))
        super().__post_init__(**kwargs)

    @classmethod
    def _own_fields(cls) -> set[str]:
        return {field.name for field in dataclasses.fields(cls)}

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities this model has, in the order text, audio, vision."""
        return tuple(m for m in MODALITIES if any(getattr(self, name) is not None for name in _SOURCES[m]))

    @property
    def takes_waveform(self) -> bool:
        """Whether the audio tower reads `input_values` (samples) rather than `input_features` (frames)."""
        return getattr(self.audio_config, "conv_stride", None) is not None

    @property
    def vocab_size(self) -> int:
        """Token ids that the text tower knows; AttributeError for a model without tokens."""
        text: Any = self.text_config
        size = self.text_vocab_size if text is None else text.vocab_size
        if size is None:
            raise AttributeError("vocab_size: this model takes no token ids.")
        return size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        text: Any = self.text_config
        if text is None:
            self.text_vocab_size = value
        else:
            text.vocab_size = value

    @property
    def resolved_problem_type(self) -> str:
        """`problem_type`; where it is None, regression for one output and one label a sample for several."""
        return self.problem_type or ("regression" if self.num_labels == 1 else "single_label_classification")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers. Raises ValueError for a field of a `config.json` that cannot be."""
        try:
            return super().from_dict(config_dict, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(f"config.json: {error}") from error

    def temperature_of(self, modality_mask: Any) -> float:
        """The calibration temperature of a sample; `modality_mask` says whether it has text, audio and vision."""
        return self._of_subset(self.calibration_temperature, modality_mask, 1.0)

    def min_score_of(self, modality_mask: Any) -> float:
        """The score below which the answer for such a sample is uncertain; `modality_mask` as in `temperature_of`."""
        return self._of_subset(self.min_score, modality_mask, 0.0)

    @staticmethod
    def _of_subset(given: Any, modality_mask: Any, default: float) -> float:
        if not isinstance(given, dict):
            return float(given)
        subset = "+".join(name for name, present in zip(MODALITIES, modality_mask, strict=True) if present)
        return float(given.get(subset, default))

    def _check_by_subset(self, field: str, accepts: Callable[[float], bool], expected: str) -> None:
        given = getattr(self, field)
        by_subset = given if isinstance(given, dict) else {"": given}
        for subset, value in by_subset.items():
            in_order = [name for name in MODALITIES if name in subset.split("+")]
            if isinstance(given, dict) and (not in_order or subset != "+".join(in_order)):
                raise ValueError(
                    f"{field}: got the key {subset!r}, expected subsets such as 'text+audio' in the "
                    f"order {', '.join(MODALITIES)}."
                )
            if not isinstance(value, (int, float)) or not accepts(value):
                raise ValueError(f"{field} must be {expected}, got {value!r}.")

    def validate_architecture(self) -> None:
        """Run by `@strict` after construction."""
        _check_heads("config", self.hidden_size, self.num_attention_heads)
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size must be even for sinusoidal positions, got {self.hidden_size}.")
        for modality, sources in _SOURCES.items():
            given = [name for name in sources if getattr(self, name) is not None]
            if len(given) > 1:
                raise ValueError(f"{modality} takes one of {', '.join(sources)}, got {' and '.join(given)}.")
        self._check_by_subset("calibration_temperature", lambda value: 0 < value < math.inf, "a number above 0")
        self._check_by_subset("min_score", lambda value: 0 <= value <= 1, "a number from 0 to 1")
        if self.context_window is not None and self.context_window < 1:
            raise ValueError(f"context_window must be 1 or more, or None, got {self.context_window}.")
        if self.audio_step_rate is not None and self.audio_step_rate <= 0:
            raise ValueError(f"audio_step_rate must be above 0 or None, got {self.audio_step_rate}.")
        if self.logit_scale_init_value > self.logit_scale_max:
            raise ValueError(
                f"logit_scale_init_value must be at most logit_scale_max ({self.logit_scale_max}), "
                f"got {self.logit_scale_init_value}."
            )


def resolve_sub_config(name: str, value: Any) -> PreTrainedConfig | None:
    """A tower's config object from what the user or `config.json` gave; Whisper's becomes the built-in tower's."""
    if value is None:
        return None
    if isinstance(value, PreTrainedConfig):
        return TriemoAudioConfig.from_whisper_config(value) if value.model_type == "whisper" else value
    values = dict(value)
    model_type = values.pop("model_type", None)
    if model_type == TriemoAudioConfig.model_type:
        return TriemoAudioConfig(**values)
    if model_type is None:
        raise ValueError(f"{name} needs a 'model_type', got the keys {sorted(values)}.")
    return resolve_sub_config(name, AutoConfig.for_model(model_type, **values))


def _check_heads(name: str, hidden_size: int, heads: int) -> None:
    if hidden_size % heads:
        raise ValueError(f"{name}: hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}.")


__all__ = ["MODALITIES", "SUBSETS", "TriemoAudioConfig", "TriemoConfig", "resolve_sub_config"]
