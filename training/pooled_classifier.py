"""One encoder, its masked mean over steps, one linear layer: what tunes a tower before the joint model sees it."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from triemo.modeling.layers_triemo import masked_mean
from triemo.training.augmentation import one_hot

__all__ = ["PooledClassifier", "average_checkpoints"]


class PooledClassifier(nn.Module):
    """Classifier over the mean state of an encoder.

    Args:
        encoder: text encoder, or a `TriemoAudioModel` (whose steps are fewer than its input frames).
        num_labels: number of classes C.
        dropout: dropout on the pooled state.
        label_smoothing: of the cross-entropy, while training.
        standardise: bring every dimension of the pooled state to unit variance first. Whisper's states differ in
            scale by dimension so much that a plain linear layer hardly learns in a few epochs.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_labels: int,
        dropout: float = 0.1,
        label_smoothing: float = 0.0,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.normalisation = nn.BatchNorm1d(encoder.config.hidden_size) if standardise else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(encoder.config.hidden_size, num_labels)
        self.label_smoothing = label_smoothing

    def forward(self, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """`inputs` go to the encoder and hold `attention_mask`; `labels` are (B,) ids or (B, C) probabilities."""
        mask = inputs["attention_mask"]
        states = self.encoder(**inputs).last_hidden_state
        if hasattr(self.encoder, "output_mask"):
            mask = self.encoder.output_mask(mask)
        pooled = self.normalisation(masked_mean(states, mask).float())
        logits = self.classifier(self.dropout(pooled)).float()
        if labels is None:
            return {"logits": logits}
        smoothing = self.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits, one_hot(labels, logits.shape[-1]), label_smoothing=smoothing)
        return {"loss": loss, "logits": logits}


def average_checkpoints(folder: str | Path, last: int) -> dict[str, torch.Tensor]:
    """Mean of the weights of the newest `last` Trainer checkpoints in `folder`.

    Raises:
        ValueError: when there is none.
    """
    found = sorted(Path(folder).glob("checkpoint-*/model.safetensors"), key=lambda p: int(p.parent.name.split("-")[1]))
    if not found:
        raise ValueError(f"folder: got no checkpoint in {str(folder)!r}, expected at least one")
    states = [load_file(path) for path in found[-last:]]
    return {name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]}
