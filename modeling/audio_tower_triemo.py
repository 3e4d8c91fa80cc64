"""The built-in audio tower: two convolutions and transformer layers over log-mel frames of any length.

Shape legend: B batch, F frames (100 Hz), T = ceil(F / 2) steps (50 Hz), M mel bins, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import WhisperConfig, WhisperModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils.output_capturing import capture_outputs

from .configuration_triemo import TriemoAudioConfig
from .layers_triemo import (
    RECORDED_OUTPUTS,
    TriemoEncoderLayer,
    attention_mask_for,
    masked_mean,
    sinusoidal_positions,
)
from .loading_triemo import StrictlyLoadedModel

# A step counts as voiced when its mean log-mel lies above this share of the clip's range.
VOICED_SHARE = 0.4


class TriemoVoiceStatistics(nn.Module):
    """
    How a voice sounds over the whole clip: mean and standard deviation of every layer's states over the voiced steps
    (statistics pooling, Snyder et al., 2017), through a bottleneck of S numbers, as one vector to add to every step.
    """

    def __init__(self, config: TriemoAudioConfig):
        super().__init__()
        width = 2 * config.num_hidden_layers * config.hidden_size
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.reduce = nn.Linear(width, config.statistics_size)
        self.expand = nn.Linear(config.statistics_size, config.hidden_size, bias=False)

    def forward(self, states: tuple[torch.Tensor, ...], voiced: torch.Tensor) -> torch.Tensor:
        """States (B, T, D) of every layer and [`voiced_steps`] (B, T) -> (B, D)."""
        return self.expand(self.summarise(states, voiced))

    def summarise(self, states: tuple[torch.Tensor, ...], voiced: torch.Tensor) -> torch.Tensor:
        """The S numbers of each clip, (B, S)."""
        values = statistics_pooling(states, voiced) * self.scale + self.shift
        return self.reduce(values.to(self.reduce.weight.dtype))


def voiced_steps(input_features: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Log-mel frames (B, F, M) and their mask (B, F) -> (B, T), 1 where a step is louder than the clip's pauses."""
    loudness, mask = input_features[:, ::2].float().mean(-1), attention_mask[:, ::2].bool()
    low = loudness.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    high = loudness.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    return (mask & (loudness >= low + VOICED_SHARE * (high - low))).to(attention_mask.dtype)


def statistics_pooling(states: tuple[torch.Tensor, ...], voiced: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation over the voiced steps (B, T) of each of N layers (B, T, D) -> (B, 2 N D) float32."""
    pooled = []
    for layer in states:
        mean = masked_mean(layer.float(), voiced)
        variance = masked_mean((layer.float() - mean.unsqueeze(1)) ** 2, voiced)
        pooled += [mean, (variance + 1e-8).sqrt()]
    return torch.cat(pooled, dim=-1)


class TriemoAudioModel(StrictlyLoadedModel):
    """
    Log-mel encoder of the shape of Whisper's (Radford et al., 2022), with a padding mask instead of a fixed 30 s
    window: the states of a clip do not depend on how far its batch is padded. Its weights load from Whisper's encoder
    ([`~TriemoAudioModel.from_whisper`]), and on a full 30 s window it computes the same states.
    """

    config: TriemoAudioConfig
    config_class = TriemoAudioConfig
    base_model_prefix = "audio_model"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["TriemoEncoderLayer"]
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = RECORDED_OUTPUTS

    def __init__(self, config: TriemoAudioConfig):
        super().__init__(config)
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.hidden_size, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.hidden_size, config.hidden_size, kernel_size=3, stride=2, padding=1)
        self.dropout = nn.Dropout(config.hidden_dropout)
        # Whisper's key projections carry no bias (it cancels in the softmax).
        self.layers = nn.ModuleList(
            [TriemoEncoderLayer(config, key_bias=False) for _ in range(config.num_hidden_layers)]
        )
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.use_weighted_layer_sum:
            self.layer_weights = nn.Parameter(torch.zeros(config.num_hidden_layers))
        self.statistics = TriemoVoiceStatistics(config) if config.statistics_size else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TriemoAudioModel) and hasattr(module, "layer_weights"):
            init.zeros_(module.layer_weights)
        if isinstance(module, TriemoVoiceStatistics):
            init.ones_(module.scale)
            init.zeros_(module.shift)

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution: what stands in an encoder of sound where token embeddings stand."""
        return self.conv1

    def set_input_embeddings(self, value: nn.Conv1d) -> None:
        """Replace the first convolution."""
        self.conv1 = value

    @classmethod
    def from_whisper(cls, name_or_path: str, hub_kwargs: dict | None = None, **overrides: Any) -> TriemoAudioModel:
        """
        Build the tower from Whisper's encoder weights.

        Args:
            name_or_path: Hub id or folder of a Whisper model, or of its encoder half alone.
            hub_kwargs: passed to `from_pretrained` (`revision`, `token`, `local_files_only`, ...).
            overrides: [`TriemoAudioConfig`] fields that differ from what Whisper's config implies.

        Raises:
            ValueError: if the folder holds neither a whole Whisper model nor its encoder.
        """
        hub_kwargs = {"dtype": torch.float32, **(hub_kwargs or {})}
        encoder, info = WhisperEncoder.from_pretrained(name_or_path, output_loading_info=True, **hub_kwargs)
        if info["missing_keys"]:
            whisper, info = WhisperModel.from_pretrained(name_or_path, output_loading_info=True, **hub_kwargs)
            encoder = whisper.encoder
            missing = sorted(key for key in info["missing_keys"] if key.startswith("encoder."))
            if missing:
                raise ValueError(f"{name_or_path} lacks weights of a Whisper encoder, for example {missing[:3]}.")
        return cls.from_whisper_encoder(encoder, **overrides)

    @classmethod
    def from_whisper_encoder(cls, encoder: WhisperEncoder, **overrides: Any) -> TriemoAudioModel:
        """Copy the weights of a `WhisperEncoder` in memory; its position table is not needed (it is a formula)."""
        config: WhisperConfig = encoder.config
        model = cls(TriemoAudioConfig.from_whisper_config(config, **overrides))
        weights = {key: value for key, value in encoder.state_dict().items() if key != "embed_positions.weight"}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        added = {name for name in missing if name.startswith(("layer_weights", "statistics."))}
        if unexpected or set(missing) - added:
            raise ValueError(f"Whisper encoder does not fit: missing {missing}, unexpected {unexpected}.")
        return model

    def output_mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """Mask (B, F) of frames -> mask (B, T) of steps: a step stands for its first frame."""
        return attention_mask[:, ::2]

    # The states that the layers' average is taken of are those before the last normalisation.
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """
        Args:
            input_features: log-mel frames of shape (B, F, M).
            attention_mask: of shape (B, F), 1 for frames of the clip, 0 for padding at its end.

        Returns:
            `last_hidden_state` of shape (B, T, D); states of padded steps are arbitrary.
        """
        output_attentions = bool(kwargs.get("output_attentions", self.config.output_attentions))
        states = input_features.to(self.conv1.weight.dtype)
        if attention_mask is None:
            attention_mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        # Zeros at padded frames before each convolution are what its own zero padding is to a clip alone.
        frame_mask = attention_mask.to(states.dtype).unsqueeze(1)
        states = nn.functional.gelu(self.conv1(states.transpose(1, 2) * frame_mask))
        states = nn.functional.gelu(self.conv2(states * frame_mask)).transpose(1, 2)
        positions = torch.arange(states.shape[1], device=states.device)
        states = states + sinusoidal_positions(positions, self.config.hidden_size).to(states.dtype)
        states = self.dropout(states)
        step_mask = self.output_mask(attention_mask)
        mask = attention_mask_for(self.config, states, step_mask, output_attentions)
        reads_all = self.config.use_weighted_layer_sum or self.statistics is not None
        all_states: tuple[torch.Tensor, ...] = ()
        for layer in self.layers:
            states = layer(states, mask, output_attentions=output_attentions)
            if reads_all:
                all_states += (states,)
        if self.config.use_weighted_layer_sum:
            weights = self.layer_weights.softmax(0).to(states.dtype)
            states = torch.einsum("n,nbtd->btd", weights, torch.stack(all_states))
        states = self.layer_norm(states)
        if self.statistics is not None:
            voiced = voiced_steps(input_features, attention_mask)
            states = states + self.statistics(all_states, voiced).unsqueeze(1)
        return BaseModelOutput(last_hidden_state=states)


__all__ = [
    "TriemoAudioModel",
    "TriemoVoiceStatistics",
    "statistics_pooling",
    "voiced_steps",
]
