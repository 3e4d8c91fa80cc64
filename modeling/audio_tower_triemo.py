"""The built-in audio tower: two convolutions and transformer layers over log-mel frames of any length.

Shape legend: B batch, F frames (100 Hz), T = ceil(F / 2) steps (50 Hz), M mel bins, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, WhisperConfig, WhisperModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils.generic import can_return_tuple

from .configuration_triemo import TriemoAudioConfig
from .layers_triemo import TriemoEncoderLayer, run_layers, sinusoidal_positions


class TriemoAudioModel(PreTrainedModel):
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
    _supports_sdpa = True
    _supports_attention_backend = True

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
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TriemoAudioModel) and hasattr(module, "layer_weights"):
            init.zeros_(module.layer_weights)

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
        if unexpected or set(missing) - {"layer_weights"}:
            raise ValueError(f"Whisper encoder does not fit: missing {missing}, unexpected {unexpected}.")
        return model

    def output_mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """Mask (B, F) of frames -> mask (B, T) of steps: a step stands for its first frame."""
        return attention_mask[:, ::2]

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """
        Args:
            input_features: log-mel frames of shape (B, F, M).
            attention_mask: of shape (B, F), 1 for frames of the clip, 0 for padding at its end.

        Returns:
            `last_hidden_state` of shape (B, T, D); states of padded steps are arbitrary.
        """
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
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
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=states, attention_mask=self.output_mask(attention_mask)
        )
        all_states, attentions = run_layers(self.layers, states, mask, bool(output_attentions))
        if self.config.use_weighted_layer_sum:
            weights = self.layer_weights.softmax(0).to(states.dtype)
            states = torch.einsum("n,nbtd->btd", weights, torch.stack(all_states[1:]))
        else:
            states = all_states[-1]
        return BaseModelOutput(
            last_hidden_state=self.layer_norm(states),
            hidden_states=tuple(all_states) if output_hidden_states else None,
            attentions=attentions,
        )


__all__ = ["TriemoAudioModel"]
