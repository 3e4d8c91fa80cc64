"""One encoder, its masked mean over steps, one linear layer: what tunes a tower before the joint model sees it."""

import torch
import torch.nn.functional as F
from torch import nn

from triemo.modeling.layers_triemo import masked_mean
from triemo.training.augmentation import one_hot

__all__ = ["PooledClassifier"]


class PooledClassifier(nn.Module):
    """Classifier over the mean state of an encoder.

    Args:
        encoder: text encoder, or a `TriemoAudioModel` (whose steps are fewer than its input frames).
        num_labels: number of classes C.
        dropout: dropout on the pooled state.
        label_smoothing: of the cross-entropy, while training.
        standardise: bring every dimension of the pooled state to unit variance first. Whisper's states differ in
            scale by dimension so much that a plain linear layer hardly learns in a few epochs.
        deviation: pool the standard deviation over the steps beside the mean: how a voice moves.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_labels: int,
        dropout: float = 0.1,
        label_smoothing: float = 0.0,
        standardise: bool = False,
        deviation: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.deviation = encoder, deviation
        width = encoder.config.hidden_size * (2 if deviation else 1)
        self.normalisation = nn.BatchNorm1d(width) if standardise else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_labels)
        self.label_smoothing = label_smoothing

    def forward(self, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """`inputs` go to the encoder and hold `attention_mask`; `labels` are (B,) ids or (B, C) probabilities."""
        mask = inputs["attention_mask"]
        states = self.encoder(**inputs).last_hidden_state.float()
        if hasattr(self.encoder, "output_mask"):
            mask = self.encoder.output_mask(mask)
        pooled = masked_mean(states, mask)
        if self.deviation:
            spread = masked_mean((states - pooled[:, None]) ** 2, mask)
            pooled = torch.cat([pooled, (spread + 1e-5).sqrt()], dim=-1)
        logits = self.classifier(self.dropout(self.normalisation(pooled))).float()
        if labels is None:
            return {"logits": logits}
        smoothing = self.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits, one_hot(labels, logits.shape[-1]), label_smoothing=smoothing)
        return {"loss": loss, "logits": logits}
