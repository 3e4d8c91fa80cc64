"""Stage 3 of the small checkpoint: the built-in audio tower from Whisper's encoder, fitted to RAVDESS without tuning.

Tuning the encoder on 1,064 clips of 18 actors scored below the untouched encoder on unseen actors, so its layers stay
as they are. Fitted are which layers are averaged, and the scale of each dimension.
"""

import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score

from triemo.modeling import TriemoAudioModel
from triemo.modeling.layers_triemo import masked_mean
from triemo.processing.feature_extraction_triemo import TriemoFeatureExtractor
from triemo.training.corpora import load_ravdess

__all__ = ["log_mel_frames", "pad_frames", "standardise_states", "train_audio"]

# Which layers (from 1) enter the average; the logit of a layer that does not is so low that it weighs 2 %.
LAYER_CHOICES = ((2,), (3,), (2, 3), (1, 2, 3), (1, 2, 3, 4))
LOGIT_OUT = -4.0


def log_mel_frames(paths: list[str]) -> list[torch.Tensor]:
    """Log-mel frames (T, 80) at 100 Hz of every file, unpadded."""
    extractor = TriemoFeatureExtractor()
    return [torch.as_tensor(np.asarray(extractor(path)["input_features"][0])).float() for path in paths]


def pad_frames(clips: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (T_i, M) as features (B, T, M) with zeros at the end, and their mask (B, T)."""
    lengths = torch.tensor([len(clip) for clip in clips])
    features = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    return features, (torch.arange(features.shape[1]) < lengths[:, None]).long()


def clip_states(model: TriemoAudioModel, clips: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean state (N, D) of every clip, and mean and standard deviation (D,) over all valid steps of all clips."""
    order = sorted(range(len(clips)), key=lambda index: len(clips[index]))
    pooled, total, squares, count = torch.zeros(len(clips), model.config.hidden_size), 0.0, 0.0, 0
    for start in range(0, len(order), 16):
        chosen = order[start : start + 16]
        features, mask = pad_frames([clips[index] for index in chosen])
        with torch.no_grad():
            states = model(input_features=features, attention_mask=mask).last_hidden_state
        mask = model.output_mask(mask)
        pooled[chosen] = masked_mean(states, mask)
        valid = states[mask.bool()].double()
        total, squares, count = total + valid.sum(0), squares + (valid**2).sum(0), count + len(valid)
    mean = total / count
    return pooled, mean.float(), (squares / count - mean**2).clamp(min=1e-8).sqrt().float()


def standardise_states(model: TriemoAudioModel, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Folds (state - mean) / deviation into the last layer normalisation, which is affine: nothing is added.

    Whisper's states differ in scale by dimension so much that what is trained on top of them learns slowly.
    """
    with torch.no_grad():
        model.layer_norm.bias.copy_((model.layer_norm.bias - mean) / deviation)
        model.layer_norm.weight.div_(deviation)


def train_audio(args) -> dict:
    """Chooses the layers by a linear probe (train actors 1-18, scored on 19-20), standardises, saves the tower."""
    start = time.time()
    corpus = load_ravdess(args.data)
    clips = {split: log_mel_frames(corpus[split]["path"]) for split in ("train", "validation")}
    labels = {split: np.array(corpus[split]["label"]) for split in clips}
    model = TriemoAudioModel.from_whisper(args.encoder(args.audio_encoder), use_weighted_layer_sum=True).eval()
    scores, fitted = {}, {}
    for layers in LAYER_CHOICES:
        logits = [0.0 if layer + 1 in layers else LOGIT_OUT for layer in range(model.config.num_hidden_layers)]
        with torch.no_grad():
            model.layer_weights.copy_(torch.tensor(logits))
        pooled, mean, deviation = clip_states(model, clips["train"])
        centre, spread = pooled.mean(0), pooled.std(0)
        probe = LogisticRegression(C=0.05, max_iter=500)
        probe.fit(((pooled - centre) / spread).numpy(), labels["train"])
        held_out = (clip_states(model, clips["validation"])[0] - centre) / spread
        uar = recall_score(labels["validation"], probe.predict(held_out.numpy()), average="macro")
        scores["+".join(map(str, layers))] = float(uar)
        fitted[layers] = (logits, mean, deviation)
    best = max(LAYER_CHOICES, key=lambda layers: scores["+".join(map(str, layers))])
    logits, mean, deviation = fitted[best]
    with torch.no_grad():
        model.layer_weights.copy_(torch.tensor(logits))
    standardise_states(model, mean, deviation)
    model.save_pretrained(Path(args.output) / "audio")
    return {"validation_uar_of_a_linear_probe": scores, "layers": list(best), "minutes": (time.time() - start) / 60}
