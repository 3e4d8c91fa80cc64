"""Pretraining of the joint part on tuned towers, before any label is learned there: masked words read from words,
voice and face together, and the modalities aligned by contrast.

What comes together in a clip: a voice and the sentence that it says, where that is known; the voice and face of a
film; and composites, joined by their labels, so a label says which clips are no negatives of each other.
"""

from collections.abc import Sequence

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Trainer

from triemo.modeling import TriemoForPreTraining
from triemo.modeling.losses_triemo import IGNORE_INDEX
from triemo.training.corpora.labels import EMOTIONS
from triemo.training.corpora.registry import load_corpus
from triemo.training.data.composites import SUBSETS, CompositeDataset
from triemo.training.data.masking import mask_whole_words
from triemo.training.recipes.joint import (
    TOWERS,
    TriModalCollator,
    joint_arguments,
    on_frozen_towers,
    remember_states,
)
from triemo.training.recipes.joint_corpora import AllCorpora
from triemo.training.recipes.stages import ReleaseRun, train_resumable

__all__ = ["MaskedCollator", "add_spoken_sentences", "train_pretraining"]

# A pair is what contrast learns from; words alone are there for masked words.
WEIGHTS = {("text",): 0.2, ("text", "audio"): 0.3, ("text", "vision"): 0.25, ("audio", "vision"): 0.1}


class MaskedCollator(TriModalCollator):
    """As its parent, with whole words hidden (`mlm_labels`) and a class id for each item (`labels` (B,), -100 for
    items of several classes).

    Sentences from `spoken` on are a few that actors know by heart: they are not hidden, and their id is the sentence.

    Args:
        corpora, tokenizer: of the parent.
        spoken: first of those rows of `corpora.texts`.
        probability: share of the words that are hidden.
    """

    def __init__(
        self, corpora: AllCorpora, tokenizer: PreTrainedTokenizerBase, spoken: int, probability: float
    ) -> None:
        super().__init__(corpora, tokenizer, augment=True, changed=0.0)
        self.spoken, self.probability = spoken, probability

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().__call__(items)
        of_sentence = [item["rows"].get("text", -1) - self.spoken for item in items]
        classes = [
            len(EMOTIONS) + sentence if sentence >= 0 else int(label.argmax()) if label.max() == 1 else IGNORE_INDEX
            for sentence, label in zip(of_sentence, batch["labels"], strict=True)
        ]
        batch["labels"] = torch.tensor(classes)
        if "input_ids" in batch:
            masked, hidden = mask_whole_words(
                batch["input_ids"], batch["attention_mask"], self.tokenizer, self.probability
            )
            by_heart = torch.tensor([sentence >= 0 for sentence in of_sentence])[:, None]
            batch["input_ids"] = torch.where(by_heart, batch["input_ids"], masked)
            batch["mlm_labels"] = hidden.masked_fill(by_heart, IGNORE_INDEX)
        return batch


def add_spoken_sentences(corpora: AllCorpora, sentences: dict[str, str]) -> list[dict[str, int]]:
    """Puts the sentences behind the texts, where no composite draws them, and gives the pairs of voice and sentence.

    Args:
        corpora: of one split.
        sentences: by the path of the file in which they are said.
    """
    rows = {sentence: len(corpora.texts) + number for number, sentence in enumerate(sorted(set(sentences.values())))}
    corpora.texts += list(rows)
    return [
        {"audio": row, "text": rows[sentences[clip.path]]}
        for row, clip in enumerate(corpora.voices)
        if clip.path in sentences
    ]


def train_pretraining(
    run: ReleaseRun,
    name: str,
    *,
    text: str,
    audio: str,
    vision: str,
    text_corpora: list[str],
    voice_check: str,
    face_corpora: list[str],
    spoken_corpora: Sequence[str],
    steps: int,
    batch_size: int,
    learning_rate: float,
    real: float = 0.3,
    mlm_probability: float = 0.15,
    mlm_weight: float = 0.3,
) -> dict:
    """Trains joint encoder and projections on frozen towers and saves the whole `TriemoForPreTraining`.

    Args:
        run: folders and seed.
        name: of the stage.
        text, audio, vision: the stages whose towers are taken.
        text_corpora, voice_check, face_corpora: of `AllCorpora`; the training split alone.
        spoken_corpora: of voices whose sentences are words in the column `sentence`.
        steps: of the optimiser.
        batch_size: clips a step, the negatives of each other.
        learning_rate: at its peak.
        real: share of the clips that are a voice with its sentence or a film, each half of them.
        mlm_probability: share of the words that are hidden.
        mlm_weight: of the config.
    """
    torch.manual_seed(run.seed)
    model = on_frozen_towers(TriemoForPreTraining, run, text, audio, vision, mlm_weight=mlm_weight)
    tokenizer = AutoTokenizer.from_pretrained(run.folder(text))
    remember_states(model.triemo.audio_tower.encoder)
    corpora = AllCorpora(run, "train", text_corpora, voice_check, face_corpora)
    written = len(corpora.texts)
    sentences: dict[str, str] = {}
    for corpus in run.usable(spoken_corpora):
        rows = load_corpus(corpus, run.data)["train"]
        sentences |= dict(zip(rows["row"], rows["sentence"], strict=True))
    spoken = add_spoken_sentences(corpora, sentences)
    films = corpora.pairs * max(1, len(spoken) // max(1, len(corpora.pairs)))
    trainer = PretrainingOnTowers(
        model=model,
        args=joint_arguments(run, name, steps, batch_size, learning_rate, bf16=False),
        train_dataset=CompositeDataset(
            corpora.labels,
            steps * batch_size,
            seed=run.seed,
            subset_weights=[WEIGHTS.get(subset, 0.15 if len(subset) == 3 else 0.0) for subset in SUBSETS],
            pairs=[*spoken, *films],
            real=real if spoken or films else 0.0,
        ),
        data_collator=MaskedCollator(corpora, tokenizer, written, mlm_probability),
    )
    train_resumable(trainer)
    model.save_pretrained(run.folder(name))
    tokenizer.save_pretrained(run.folder(name))
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1:]
    return {"pairs": {"spoken": len(spoken), "films": len(corpora.pairs)}, "last_logged": last, "steps": steps}


class PretrainingOnTowers(Trainer):
    """Keeps the frozen towers in evaluation mode, for a frozen BatchNorm must not follow the batches."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        for tower in TOWERS:
            getattr(model.triemo, tower).eval()
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss
