"""The joint part of the small checkpoint: joint encoder, fusion and head on frozen towers, over all seven subsets.

Shapes: B batch, L tokens, T log-mel frames, F video frames.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.modeling_outputs import BaseModelOutput

from triemo.modeling import TriemoAudioModel, TriemoForEmotionClassification
from triemo.processing import TriemoFeatureExtractor
from triemo.processing.processing_triemo import with_named_emoji
from triemo.training.corpora.labels import EMOTIONS, label2id, map_label, to_soft_target
from triemo.training.corpora.registry import load_corpus
from triemo.training.data.augmentation import augment_faces, augment_log_mel, normalise_faces, warp_log_mel
from triemo.training.data.composites import SUBSETS, CompositeDataset, draw_composites, item_classes
from triemo.training.metrics.scores import classification_scores
from triemo.training.recipes.audio import seven_classes
from triemo.training.recipes.joint_corpora import AllCorpora
from triemo.training.recipes.stages import ReleaseRun, train_resumable, trainer_arguments
from triemo.training.recipes.text import MAX_TOKENS, load_texts
from triemo.training.recipes.vision import FacePixels
from triemo.training.recipes.voice import log_mel_frames, pad_frames, voice_logits

__all__ = [
    "TOWERS",
    "Corpora",
    "TriModalCollator",
    "predict_logits",
    "single_modality",
    "subset_logits",
    "train_joint",
]

TOWERS = ("text_tower", "audio_tower", "vision_tower")
FACE_SIZE = 96
MAX_FRAMES = 4
CHANGED_VOICES = 0.5  # a frozen tower hears worse through every change of its input


class Corpora:
    """One split of the corpora in memory: sentences, log-mel clips, grey faces, and their class indices.

    `text_rows` says which sentences are of which corpus: corpus -> (first, behind the last).
    """

    def __init__(self, data: str | None, split: str, text_corpora: Sequence[str] = ("goemotions", "meld")) -> None:
        self.texts: list[str] = []
        self.labels: dict[str, list[list[int]]] = {"text": []}
        self.text_rows: dict[str, tuple[int, int]] = {}
        for corpus in text_corpora:
            texts, classes = load_texts(data, corpus, split)
            self.text_rows[corpus] = (len(self.texts), len(self.texts) + len(texts))
            self.texts += texts
            self.labels["text"] += classes
        self.voice = load_corpus("ravdess", data, "own")[split]
        faces = FacePixels(load_corpus("fer2013", data)[split])
        self.clips, self.pixels = log_mel_frames(self.voice["row"][:]), faces.pixels
        self.labels["audio"] = [[label2id[map_label("ravdess", label)]] for label in self.voice["label"]]
        self.labels["vision"] = [[label] for label in faces.labels.tolist()]


class TriModalCollator:
    """Items of `composites` as the model's tensors. A row without a modality has an all-zero mask there.

    With `augment`, a share `changed` of the voices are warped and masked, and a face becomes one to four augmented
    frames in 4 s. A film's face is as many frames as were taken from it, in their order.
    """

    def __init__(
        self,
        corpora: Corpora | AllCorpora,
        tokenizer: PreTrainedTokenizerBase,
        augment: bool,
        changed: float = CHANGED_VOICES,
    ) -> None:
        self.corpora, self.tokenizer, self.augment, self.changed = corpora, tokenizer, augment, changed
        self.films: dict[int, list[int]] = getattr(corpora, "frames", {})

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        batch = {"labels": torch.stack([torch.as_tensor(item["label"]) for item in items])}
        for name, build in (("text", self.texts), ("audio", self.voices), ("vision", self.faces)):
            owners = torch.tensor([index for index, item in enumerate(items) if name in item["rows"]])
            if len(owners):
                tensors = build([items[index] for index in owners])
                for key, value in tensors.items():
                    batch[key] = value.new_zeros(len(items), *value.shape[1:]).index_copy_(0, owners, value)
        return batch

    def texts(self, items: list[dict]) -> dict[str, torch.Tensor]:
        texts = [self.corpora.texts[item["rows"]["text"]] for item in items]
        texts = [
            self.misheard(text) if item.get("misheard") else text for text, item in zip(texts, items, strict=True)
        ]
        texts = with_named_emoji(texts, self.tokenizer)
        return dict(self.tokenizer(texts, truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt"))

    def misheard(self, text: str) -> str:
        """Words of which a fifth to a half are another sentence's, as a speech recogniser would have them."""
        space = " " if " " in text.strip() else ""  # Chinese is misheard by the character
        words = text.split() if space else list(text)
        other = self.corpora.texts[int(torch.randint(len(self.corpora.texts), ()))]
        others = other.split() if space else list(other)
        wrong = (torch.rand(len(words)) < 0.2 + 0.3 * torch.rand(())).tolist()
        heard = [others[at % len(others)] if wrong[at] and others else word for at, word in enumerate(words)]
        return space.join(heard)

    def voices(self, items: list[dict]) -> dict[str, torch.Tensor]:
        clips = [faint_noise() if item.get("silent") else self.corpora.clips[item["rows"]["audio"]] for item in items]
        if not self.augment or not self.changed:
            features, mask = pad_frames(clips)
            return {"input_features": features, "audio_attention_mask": mask}
        changed = torch.rand(len(clips)) < self.changed
        clips = [
            warp_log_mel(clip, max_stretch=0.12, max_cut=0.1) if warp else clip
            for clip, warp in zip(clips, changed, strict=True)
        ]
        features, mask = pad_frames(clips)
        masked = augment_log_mel(features, mask, time_masks=1, frequency_masks=1, noise_probability=0.3)
        features = torch.where(changed[:, None, None], masked, features)
        return {"input_features": features, "audio_attention_mask": mask}

    def faces(self, items: list[dict]) -> dict[str, torch.Tensor]:
        rows, films = [item["rows"]["vision"] for item in items], self.films
        pictures = [films.get(row, [row]) for row in rows]
        counts = torch.tensor([len(found) for found in pictures])
        if self.augment:
            # Half of the faces are stills, the others clips of two to four frames.
            frames = torch.where(torch.rand(len(rows)) < 0.5, 1, torch.randint(2, MAX_FRAMES + 1, (len(rows),)))
            counts = torch.where(torch.tensor([row in films for row in rows]), counts, frames)
        mask = (torch.arange(int(counts.max())) < counts[:, None]).long()
        owner, step = mask.nonzero(as_tuple=True)
        places = zip(owner.tolist(), step.tolist(), strict=True)
        pixels = self.corpora.pixels[[pictures[row][at % len(pictures[row])] for row, at in places]]
        if self.augment:
            images = augment_faces(pixels, FACE_SIZE)
        else:
            images = normalise_faces(pixels, FACE_SIZE)
        values = images.new_zeros(*mask.shape, *images.shape[1:])
        values[owner, step] = images
        if not self.augment:
            return {"pixel_values": values, "video_attention_mask": mask}
        times = (torch.rand(mask.shape) * 4).sort(dim=1).values
        return {"pixel_values": values, "video_attention_mask": mask, "video_times": times}


def remember_states(tower: TriemoAudioModel) -> None:
    """Makes a frozen tower keep, in half precision, what it made of each clip, for voices come again and again.

    Args:
        tower: in evaluation mode, where a clip's states do not depend on the others of its batch.
    """
    forward, known = tower.forward, {}

    @torch.no_grad()
    def remembering(input_features: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        lengths = attention_mask.sum(1).tolist()
        keys = [clip[:n].cpu().numpy().tobytes() for clip, n in zip(input_features, lengths, strict=True)]
        keys = [hashlib.blake2b(key, digest_size=16).digest() for key in keys]
        new = torch.tensor([row for row, key in enumerate(keys) if key not in known], device=input_features.device)
        if len(new):
            mask = attention_mask[new]
            states = forward(input_features=input_features[new], attention_mask=mask, **kwargs).last_hidden_state
            for row, state, steps in zip(new.tolist(), states, tower.output_mask(mask).sum(1).tolist(), strict=True):
                known[keys[row]] = state[:steps].half().cpu()
        steps = tower.output_mask(attention_mask).shape[1]
        found = nn.utils.rnn.pad_sequence([known[key] for key in keys], batch_first=True).to(input_features)
        return BaseModelOutput(last_hidden_state=F.pad(found, (0, 0, 0, steps - found.shape[1])))

    tower.forward = remembering


def faint_noise() -> torch.Tensor:
    """Log-mel frames (T, M) of a second or three in which nobody speaks."""
    samples = torch.randn(int(torch.randint(16000, 48000, ()))) * 10 ** (-2.5 - 2 * float(torch.rand(())))
    frames = TriemoFeatureExtractor()(samples.numpy(), sampling_rate=16000)["input_features"][0]
    return torch.as_tensor(np.asarray(frames)).float()


class FrozenTowerTrainer(Trainer):
    """Keeps the towers in evaluation mode, for a frozen BatchNorm must not follow the batches.

    With `calm_weight`, examples of the voice alone learn what the tower's statistics say in place of their label, calm
    counting so much: there are few speakers, and a regularised linear map reads less from who speaks than what is
    trained on labels.
    """

    def __init__(self, *args, calm_weight: float | None = None, label_smoothing: float = 0.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.calm_weight, self.label_smoothing = calm_weight, label_smoothing

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        for name in TOWERS:
            getattr(model.triemo, name).eval()
        tensors = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**tensors)
        targets = inputs["labels"] if self.calm_weight is None else self.taught(inputs["labels"], tensors, model)
        smoothing = self.label_smoothing if model.training else 0.0
        loss = F.cross_entropy(outputs.logits.float(), targets, label_smoothing=smoothing)
        return (loss, {"logits": outputs.logits}) if return_outputs else loss

    @torch.no_grad()
    def taught(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor], model) -> torch.Tensor:
        """Targets (B, C) with the statistics' probabilities in the rows that hold a voice and nothing else."""
        if "audio_attention_mask" not in inputs:
            return labels
        alone = inputs["audio_attention_mask"].any(1)
        for mask in ("attention_mask", "video_attention_mask"):
            if mask in inputs:
                alone = alone & ~inputs[mask].any(1)
        if not alone.any():
            return labels
        tower = model.triemo.audio_tower.encoder
        logits = voice_logits(tower, inputs["input_features"][alone], inputs["audio_attention_mask"][alone])
        targets = labels.clone()
        targets[alone] = seven_classes(logits, self.calm_weight).to(labels.dtype)
        return targets


def single_modality(corpora: Corpora, name: str) -> list[dict]:
    """Every row of one corpus as an item of that modality alone."""
    return [
        {"rows": {name: row}, "label": np.array(to_soft_target(list(classes)), dtype=np.float32)}
        for row, classes in enumerate(corpora.labels[name])
    ]


@torch.no_grad()
def predict_logits(model, collator: TriModalCollator, items: list[dict], batch_size: int = 32) -> torch.Tensor:
    """Logits (N, C) of every item, without augmentation, in the order given."""

    def cost(index: int) -> tuple[int, int]:
        rows = items[index]["rows"]
        clip = len(collator.corpora.clips[rows["audio"]]) if "audio" in rows else 0
        return clip, len(collator.corpora.texts[rows["text"]]) if "text" in rows else 0

    model.eval()
    order = sorted(range(len(items)), key=cost)
    logits = torch.zeros(len(items), len(EMOTIONS))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collator([items[index] for index in chosen])
        tensors = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        logits[chosen] = model(**tensors).logits.float().cpu()
    return logits


def subset_logits(model, collator: TriModalCollator, items: list[dict]) -> dict[str, torch.Tensor]:
    """Logits (N, C) from each of the seven subsets, by name such as `text+audio`; items have all three modalities."""
    result = {}
    for subset in SUBSETS:
        kept = [{**item, "rows": {name: item["rows"][name] for name in subset}} for item in items]
        result["+".join(subset)] = predict_logits(model, collator, kept)
    return result


def on_frozen_towers(
    kind: type, run: ReleaseRun, text: str, audio: str, vision: str, start: str | None = None, **fields: Any
) -> Any:
    """
    A model on the towers of three stages, which stay as they are.

    Args:
        kind: its class, of `triemo.modeling`.
        run: folders.
        text, audio, vision: the stages.
        start: a stage whose whole model this is, on the same towers; None joins them anew.
        fields: of the config.
    """
    fields |= {"id2label": dict(enumerate(EMOTIONS)), "label2id": label2id}
    fields |= {"hidden_dropout": 0.1, "classifier_dropout": 0.2}
    if start is None:
        towers = {"text": text, "audio": audio, "vision": vision}
        model = kind.from_encoders_pretrained(**{name: str(run.folder(s)) for name, s in towers.items()}, **fields)
    else:
        model = kind.from_pretrained(run.folder(start), allow_new_head=True, **fields)
    for tower in TOWERS:
        getattr(model.triemo, tower).requires_grad_(False)
    return model


def joint_arguments(
    run: ReleaseRun, name: str, steps: int, batch_size: int, learning_rate: float, bf16: bool
) -> TrainingArguments:
    """The Trainer's arguments for examples that a `CompositeDataset` draws one after the other."""
    return trainer_arguments(
        run,
        name,
        per_device_train_batch_size=batch_size,
        max_steps=steps,
        learning_rate=learning_rate,
        weight_decay=0.05,
        train_sampling_strategy="sequential",
        eval_strategy="no",
        save_strategy="steps",
        save_steps=200,
        save_total_limit=1,
        logging_steps=50,
        bf16=bf16,
    )


def train_joint(
    run: ReleaseRun,
    name: str,
    *,
    text: str,
    audio: str,
    vision: str,
    text_corpora: list[str],
    steps: int,
    batch_size: int,
    learning_rate: float,
    balance: float,
    label_smoothing: float,
    calm_weight: float | None,
    voice_check: str | None = None,
    face_corpora: Sequence[str] = (),
    real: float = 0.0,
    contradicting: float = 0.0,
    silent: float = 0.0,
    misheard: float = 0.0,
    changed: float = CHANGED_VOICES,
    start: str | None = None,
    bf16: bool = True,
) -> dict:
    """Trains what joins the towers and saves the whole model to `<output>/<name>`.

    Args:
        run: folders and seed.
        name: of the stage.
        text, audio, vision: the stages whose towers are taken.
        text_corpora: where sentences come from; a corpus named twice is drawn from twice as often.
        steps: of the optimiser.
        batch_size: examples a step.
        learning_rate: at its peak.
        balance: of `CompositeDataset`.
        label_smoothing: share of a label's mass that all classes get.
        calm_weight: what calm counts where the statistics of the audio tower teach the examples of the voice alone;
            null lets their labels teach them.
        voice_check: stage that listed the voices of many corpora; null takes RAVDESS's voices and FER2013's faces.
        face_corpora: of `AllCorpora`, with `voice_check`.
        real: share of the examples that are films, one person's voice and face at once.
        contradicting, silent, misheard: of `CompositeDataset`.
        changed: share of the voices that are warped and masked; with 0, what the tower made of each clip is kept.
        start: a stage of `train_pretraining` on the same towers, whose joint part learns on; null starts at random.
        bf16: whether to compute in bfloat16, which some processors emulate, many times slower.

    Raises:
        ValueError: for faces of many corpora without their voices.
    """
    if face_corpora and voice_check is None:
        raise ValueError(f"face_corpora: got {list(face_corpora)} without voice_check, expected both or none")
    torch.manual_seed(run.seed)
    model = on_frozen_towers(TriemoForEmotionClassification, run, text, audio, vision, start)
    tokenizer = AutoTokenizer.from_pretrained(run.folder(text))
    if not changed:
        remember_states(model.triemo.audio_tower.encoder)

    def corpora(split: str, texts: list[str]) -> Corpora | AllCorpora:
        if voice_check is None:
            return Corpora(run.data, split, texts)
        return AllCorpora(run, split, texts, voice_check, face_corpora)

    train, validation = corpora("train", text_corpora), corpora("validation", list(dict.fromkeys(text_corpora)))
    trainer = FrozenTowerTrainer(
        model=model,
        args=joint_arguments(run, name, steps, batch_size, learning_rate, bf16),
        calm_weight=calm_weight,
        label_smoothing=label_smoothing,
        train_dataset=CompositeDataset(
            train.labels,
            steps * batch_size,
            seed=run.seed,
            balance=balance,
            pairs=getattr(train, "pairs", ()),
            real=real,
            contradicting=contradicting,
            silent=silent,
            misheard=misheard,
        ),
        data_collator=TriModalCollator(train, tokenizer, augment=True, changed=changed),
    )
    train_resumable(trainer)
    model.save_pretrained(run.folder(name))
    tokenizer.save_pretrained(run.folder(name))
    items = draw_composites(validation.labels, per_class=40, seed=run.seed)
    found = subset_logits(model, TriModalCollator(validation, tokenizer, augment=False), items)
    labels = item_classes(items)
    return {
        "validation_composites": {name: classification_scores(x.numpy(), labels) for name, x in found.items()},
        "steps": steps,
    }
