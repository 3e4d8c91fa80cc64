"""One encoder, its masked mean over steps, one linear layer: what tunes a tower before the joint model sees it."""

import torch
import torch.nn.functional as F
from torch import nn

from triemo.modeling.layers_triemo import masked_mean

__all__ = ["PooledClassifier"]


class PooledClassifier(nn.Module):
    """Classifier over the mean state of a text encoder.

    Args:
        encoder: of width `config.hidden_size`.
        num_labels: number of classes C.
        dropout: dropout on the pooled state.
    """

    def __init__(self, encoder: nn.Module, num_labels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder, self.dropout = encoder, nn.Dropout(dropout)
        self.classifier = nn.Linear(encoder.config.hidden_size, num_labels)

    def forward(self, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """`inputs` go to the encoder and hold `attention_mask`; `labels` are (B, C) probabilities."""
        pooled = masked_mean(self.encoder(**inputs).last_hidden_state.float(), inputs["attention_mask"])
        logits = self.classifier(self.dropout(pooled)).float()
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}
