"""The last stage of a checkpoint of many corpora: weights in half precision, temperatures, and every figure.

Each corpus is scored on its own protocol (`PROTOCOLS`); nothing is fitted to a test. Shapes: N rows, C classes.
"""

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from triemo.modeling import TriemoForEmotionClassification
from triemo.processing.media_triemo import load_audio
from triemo.training.common import write_json
from triemo.training.corpora.images import read_ferplus_votes
from triemo.training.corpora.labels import EMOTIONS, LABEL_MAP_VERSION, label2id
from triemo.training.corpora.published_splits import split_members
from triemo.training.corpora.registry import load_corpus
from triemo.training.corpora.rows import corpus_hash
from triemo.training.data.composites import draw_composites, item_classes
from triemo.training.data.waveforms import RATE
from triemo.training.metrics.calibration import calibration_temperature
from triemo.training.metrics.scores import best_thresholds, classification_scores, multi_label_scores
from triemo.training.metrics.selection import pick_min_score, risk_coverage, selective_accuracy
from triemo.training.recipes.faces import held_out_faces
from triemo.training.recipes.joint import TriModalCollator, predict_logits, single_modality, subset_logits
from triemo.training.recipes.joint_corpora import AllCorpora
from triemo.training.recipes.measure import calibration_errors, detailed, save_half, save_processor
from triemo.training.recipes.stages import ReleaseRun
from triemo.training.recipes.voice import log_mel_frames, pad_frames
from triemo.training.recipes.voice_means import Clip, read_clips

__all__ = ["Rows", "measured", "train_evaluate_corpora"]

PER_CLASS = {"validation": 60, "test": 100}  # composites of each emotion
FOLDERS = {"smp2020": "smp2020_ewect"}  # of corpora that lie under another name
SHORT, LONG = 4.0, 12.0  # seconds of the joined voices
PROTOCOLS = {
    "text": "words alone, one sentence at a time, no context. goemotions (ekman), xed and brighter carry several "
    "labels: macro F1 over their classes of softmax against one threshold a class, thresholds fitted on validation; "
    "single_label: the top class on rows of one label. meld, smp2020 (usual, virus): the top class. Official tests of "
    "goemotions, meld and smp2020; the test of brighter is its official dev split (its test has no labels here), a "
    "tenth of its train is validation; xed has no official split: a tenth of its sentences, by a hash.",
    "audio": "voice alone, whole clips, on speakers who were in no training data; validation on others again. A "
    "corpus has the classes it has, and any of the seven may be answered. All but ravdess are 16 kHz mono Opus of "
    "16 kbit/s. ravdess: actors 21-24, calm merged into neutral, and calm dropped from the test.",
    "joined_voices": "clips of one actor and emotion of ravdess, actors 21-24, one after the other, the first "
    f"{SHORT:.0f} and the first {LONG:.0f} seconds of them, read in one piece: how many of each are read right.",
    "vision": "face alone, one image as it is, grey, 96x96, no face detection, no test-time augmentation. raf_db: "
    "official test, aligned faces. ferplus: PrivateTest, the majority of ten votes among the seven classes, images "
    "without one left out. fer2013: PrivateTest, its own labels.",
    "javanese_clips": "films of the test actors, the face and the voice of one person at once, against each alone on "
    "the same films; the words are fixed sentences and not given.",
    "composites": "synthetic: sentence, voice and face of the same emotion joined from the test splits, "
    f"{PER_CLASS['test']} of each emotion; the seven subsets are scored on the same examples. No such figure says "
    "how well real clips are read.",
    "calibration": "one temperature for each subset: of a single modality fitted on the validation splits (each "
    "corpus counts alike), of pairs and all three on synthetic composites of validation examples; it is 1 where in "
    "cross-validation over speakers, or over rows without a voice, it did not lower the cross-entropy by more than a "
    "standard error. Expected calibration error with 15 equal-width bins on the tests (rows of one label). "
    "if_calibrated: the error's mean over 200 draws of the labels from the model's own probabilities.",
    "abstaining": "min_score of each subset: the lowest score from which on the answers to validation rows are right "
    "in nine of ten cases (corpora as for the temperatures); coverage is the share of the test rows that reach it, "
    "accuracy that of their answers.",
}


@dataclass(frozen=True)
class Rows:
    """Answers to N rows: logits (N, C), whether each class is right (N, C), and what no fold divides (N,)."""

    logits: np.ndarray
    targets: np.ndarray
    groups: list[str]

    def chosen(self, keep: np.ndarray) -> "Rows":
        """Those rows where `keep` (N,) is true."""
        return Rows(self.logits[keep], self.targets[keep], [self.groups[row] for row in np.flatnonzero(keep)])

    def top_class(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits and class ids of the rows with one label."""
        one = self.targets.sum(1) == 1
        return self.logits[one], self.targets[one].argmax(1)


# Answers -----------------------------------------------------------------------------------------------------


class Split:
    """What a model answers to one split of all corpora: `text`, `audio` and `vision`, each corpus -> `Rows`."""

    def __init__(
        self, run: ReleaseRun, model: TriemoForEmotionClassification, tokenizer, corpora: AllCorpora, split: str
    ) -> None:
        self.corpora, self.collator = corpora, TriModalCollator(corpora, tokenizer, augment=False)
        found = {}
        for name in ("text", "audio"):
            items = single_modality(corpora, name)
            targets = np.stack([item["label"] for item in items]) > 0
            found[name] = predict_logits(model, self.collator, items).numpy(), targets
        self.text = {
            corpus: Rows(*(column[first:last] for column in found["text"]), [str(row) for row in range(last - first)])
            for corpus, (first, last) in corpora.text_rows.items()
        }
        owners = np.array([clip.corpus for clip in corpora.voices])
        voices = Rows(*found["audio"], [f"{clip.corpus} {clip.speaker}" for clip in corpora.voices])
        self.audio = {corpus: voices.chosen(owners == corpus) for corpus in dict.fromkeys(owners.tolist())}
        self.vision = face_answers(run, model, split)
        self.composites = draw_composites(corpora.labels, PER_CLASS[split], run.seed)
        self.subsets = {
            name: Rows(
                logits.numpy(),
                np.eye(len(EMOTIONS), dtype=bool)[item_classes(self.composites)],
                [
                    voices.groups[item["rows"]["audio"]] if "audio" in name else str(row)
                    for row, item in enumerate(self.composites)
                ],
            )
            for name, logits in subset_logits(model, self.collator, self.composites).items()
        }

    def single(self) -> Iterable[tuple[str, dict[str, Rows]]]:
        """Each modality and its corpora."""
        return (("text", self.text), ("audio", self.audio), ("vision", self.vision))


@torch.no_grad()
def face_answers(run: ReleaseRun, model: TriemoForEmotionClassification, split: str) -> dict[str, Rows]:
    """Stills of a split as a user's would be read: `raf_db`, `ferplus` (the majority of its votes) and `fer2013`."""
    fer2013 = load_corpus("fer2013", run.data, drop_duplicates=False)
    votes = read_ferplus_votes(run.data, {name: len(rows) for name, rows in fer2013.items()})
    faces = held_out_faces(fer2013, votes, load_corpus("raf_db", run.data), split)
    parts = (part[:, None].to(model.device) for part in faces.pixel_values.split(64))
    logits = torch.cat([model(pixel_values=part).logits.float().cpu() for part in parts])
    labels = faces.labels.numpy()
    found = {}
    for name, of_fer, column in (("raf_db", 0, 1), ("ferplus", 1, 1), ("fer2013", 1, 2)):
        keep = (labels[:, 0] == of_fer) & (labels[:, column] >= 0)
        targets = np.eye(len(EMOTIONS), dtype=bool)[labels[keep, column]]
        found[name] = Rows(logits.numpy()[keep], targets, [str(row) for row in range(len(targets))])
    return found


def film_answers(model: TriemoForEmotionClassification, split: Split) -> dict[str, Rows]:
    """Films of one person's face and voice, both and each alone."""
    corpora = split.corpora
    classes = [corpora.labels["audio"][pair["audio"]][0] for pair in corpora.pairs]
    label = np.eye(len(EMOTIONS), dtype=np.float32)
    found = {}
    for subset in (("audio",), ("vision",), ("audio", "vision")):
        items = [
            {"rows": {name: pair[name] for name in subset}, "label": label[emotion]}
            for pair, emotion in zip(corpora.pairs, classes, strict=True)
        ]
        groups = [corpora.voices[pair["audio"]].speaker for pair in corpora.pairs]
        logits = predict_logits(model, split.collator, items).numpy()
        found["+".join(subset)] = Rows(logits, label[classes] > 0, groups)
    return found


@torch.no_grad()
def joined_voices(model: TriemoForEmotionClassification, clips: Iterable[Clip]) -> dict[str, Any]:
    """How many sounds of a speaker and emotion are read right at `SHORT` and at `LONG` seconds."""
    alike: dict[tuple[str, str], list[str]] = {}
    for clip in sorted(clips, key=lambda clip: clip.path):
        alike.setdefault((clip.speaker, clip.label), []).append(clip.path)
    right = dict.fromkeys((SHORT, LONG), 0)
    for (_, label), paths in alike.items():
        sound = np.concatenate([load_audio(path, RATE) for path in paths])
        for seconds in right:
            features, mask = pad_frames(
                log_mel_frames([{"array": sound[: int(seconds * RATE)], "sampling_rate": RATE}])
            )
            features, mask = features.to(model.device), mask.to(model.device)
            logits = model(input_features=features, audio_attention_mask=mask).logits
            right[seconds] += int(logits.argmax()) == label2id[label]
    return {"of": len(alike)} | {f"right_at_{seconds:.0f}_s": count for seconds, count in right.items()}


# Figures -----------------------------------------------------------------------------------------------------


def official_targets(corpus: str, rows: Rows) -> Rows:
    """BRIGHTER scores emotions alone: a sentence without any counts, but there is no class of its own for it."""
    if not corpus.startswith("brighter"):
        return rows
    targets = rows.targets.copy()
    targets[:, label2id["neutral"]] = False
    return Rows(rows.logits, targets, rows.groups)


def text_figures(corpus: str, validation: Rows, test: Rows) -> dict[str, Any]:
    """By the protocol of the corpus: of several labels or of one."""
    if validation.targets.sum(1).max() == 1:
        return classification_scores(*test.top_class())
    single = classification_scores(*test.top_class())
    validation, test = official_targets(corpus, validation), official_targets(corpus, test)
    thresholds = best_thresholds(
        torch.softmax(torch.from_numpy(validation.logits).double(), -1).numpy(), validation.targets
    )
    return {
        "multi_label": multi_label_scores(test.logits, test.targets, thresholds),
        "thresholds": dict(zip(EMOTIONS, thresholds.round(3).tolist(), strict=True)),
        "single_label": single,
    }


def figures(
    validation: Split, test: Split, films: Mapping[str, Rows], temperatures: Mapping[str, float], spoken: np.ndarray
) -> dict[str, Any]:
    """Every figure of `metrics.json`; `spoken` (N,) says which of RAVDESS's test clips are not calm."""
    found: dict[str, Any] = {
        f"{corpus.replace('/', '_')}_test": text_figures(corpus, validation.text[corpus], rows)
        for corpus, rows in test.text.items()
    }
    voices = {name: rows for name, rows in test.audio.items() if name != "ravdess"}
    found |= {f"{corpus}_test": classification_scores(*rows.top_class()) for corpus, rows in voices.items()}
    for calm, keep in (("merged", np.ones_like(spoken)), ("dropped", spoken)):
        scores = classification_scores(*test.audio["ravdess"].chosen(keep).top_class())
        found[f"ravdess_actors_21_24_calm_{calm}"] = scores
    for corpus, name in (
        ("raf_db", "raf_db_test"),
        ("ferplus", "ferplus_private_test"),
        ("fer2013", "fer2013_private_test"),
    ):
        found[name] = classification_scores(*test.vision[corpus].top_class())
    found["javanese_clips_test"] = {name: classification_scores(*rows.top_class()) for name, rows in films.items()}
    found["composites_test_synthetic"] = {
        name: classification_scores(*rows.top_class()) for name, rows in test.subsets.items()
    }
    found["expected_calibration_error"] = {
        f"{modality}_{corpus.replace('/', '_')}": calibration_errors(*rows.top_class(), temperatures[modality])
        for modality, corpora in test.single()
        for corpus, rows in corpora.items()
    }
    found["per_class"] = {
        corpus.replace("/", "_"): detailed(*rows.top_class())["per_class"]
        for _, corpora in test.single()
        for corpus, rows in corpora.items()
    }
    return found


def pooled(split: Split) -> dict[str, tuple[np.ndarray, np.ndarray, list[str], np.ndarray]]:
    """Of each subset logits (N, C), class ids (N,), groups (N,) and weights (N,) of the rows of one label: single
    modalities over their corpora, each counting alike, the others on composites."""
    parts: dict[str, list[Rows]] = {name: [rows] for name, rows in split.subsets.items()}
    parts |= {modality: list(corpora.values()) for modality, corpora in split.single()}
    found = {}
    for subset, corpora in parts.items():
        logits, ids, groups, weights = [], [], [], []
        for number, rows in enumerate(corpora):
            one = rows.chosen(rows.targets.sum(1) == 1)
            logits.append(one.logits)
            ids.append(one.targets.argmax(1))
            groups += [f"{number} {group}" for group in one.groups]
            weights.append(np.full(len(one.groups), 1 / len(one.groups)))
        found[subset] = np.concatenate(logits), np.concatenate(ids), groups, np.concatenate(weights)
    return found


def fit_temperatures(split: Split) -> dict[str, float]:
    """Of each subset, 1 where none helps."""
    return {
        subset: calibration_temperature(logits, ids, groups, weights) or 1.0
        for subset, (logits, ids, groups, weights) in pooled(split).items()
    }


def fit_min_scores(split: Split, temperatures: Mapping[str, float]) -> dict[str, float]:
    """Of each subset the score from which on answers are right in nine of ten cases, where there is one."""
    picked = {
        subset: pick_min_score(logits / temperatures[subset], ids, weights=weights)
        for subset, (logits, ids, _, weights) in pooled(split).items()
    }
    return {subset: found["min_score"] for subset, found in picked.items() if found is not None}


def selective_figures(
    split: Split, temperatures: Mapping[str, float], least: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Of each subset the risk by coverage, and coverage and accuracy at its `min_score`; each row counts alike."""
    found = {}
    for subset, (logits, ids, _, _) in pooled(split).items():
        scaled = logits / temperatures[subset]
        found[subset] = {"risk_coverage": risk_coverage(scaled, ids)}
        if subset in least:
            found[subset]["selective"] = selective_accuracy(scaled, ids, least[subset])
    return found


def speakers(clips: Iterable[Clip]) -> dict[str, dict[str, list[str]]]:
    """Who is heard in which split of which corpus."""
    found: dict[str, dict[str, set[str]]] = {}
    for clip in clips:
        found.setdefault(clip.corpus, {}).setdefault(clip.split, set()).add(clip.speaker)
    return {corpus: {split: sorted(names) for split, names in splits.items()} for corpus, splits in found.items()}


# The stage ---------------------------------------------------------------------------------------------------


def measured(
    run: ReleaseRun,
    model: TriemoForEmotionClassification,
    tokenizer: PreTrainedTokenizerBase,
    text_corpora: Sequence[str],
    voice_check: str,
    face_corpora: Sequence[str],
) -> tuple[Split, dict[str, Any], dict[str, float], dict[str, float]]:
    """A model's answers to the tests, every figure of them, and what was fitted to validation: temperatures, least
    scores.

    Args:
        run: folders and seed.
        model: in single precision.
        tokenizer: of its texts.
        text_corpora, voice_check, face_corpora: of `AllCorpora`; each text corpus once.
    """
    model.eval()

    def answers(split: str) -> Split:
        return Split(run, model, tokenizer, AllCorpora(run, split, text_corpora, voice_check, face_corpora), split)

    validation, test = answers("validation"), answers("test")
    temperatures = fit_temperatures(validation)
    least = fit_min_scores(validation, temperatures)
    voices = [clip for clip in test.corpora.voices if clip.corpus == "ravdess"]
    own = load_corpus("ravdess", run.data, "own")["test"]
    calm = {path for path, label in zip(own["row"], own["label"], strict=True) if label == "calm"}
    spoken = np.array([clip.path not in calm for clip in voices])
    found = figures(validation, test, film_answers(model, test), temperatures, spoken)
    found["abstaining"] = selective_figures(test, temperatures, least)
    found["joined_voices"] = joined_voices(model, voices)
    return test, found, temperatures, least


def train_evaluate_corpora(
    run: ReleaseRun, name: str, *, joint: str, text_corpora: list[str], voice_check: str, face_corpora: list[str]
) -> dict:
    """Releases the model of the stage `joint` into `run.checkpoint` and writes `metrics.json` there.

    Args:
        run: folders and seed.
        name: of the stage.
        joint: the stage whose model is released.
        text_corpora, voice_check, face_corpora: of `AllCorpora`; each text corpus once.
    """
    checkpoint, source = Path(run.checkpoint), run.folder(joint)
    tokenizer = AutoTokenizer.from_pretrained(source)
    save_half(TriemoForEmotionClassification.from_pretrained(source), checkpoint)
    model = TriemoForEmotionClassification.from_pretrained(checkpoint, dtype=torch.float32).to(run.device)
    corpora = {"text_corpora": text_corpora, "voice_check": voice_check, "face_corpora": face_corpora}
    test, found, temperatures, least = measured(run, model, tokenizer, **corpora)
    model.config.calibration_temperature, model.config.min_score = temperatures, least
    save_half(model, checkpoint)
    names = sorted({part.partition("/")[0] for part in [*test.text, *test.audio, *test.vision] if part != "ferplus"})
    metrics = {
        "model": "triemo-small",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "figures": found,
        "protocols": PROTOCOLS,
        "calibration_temperatures": temperatures,
        "min_score": least,
        "command": f"python training/recipes/release.py --config {run.config} --data DATA --weights WEIGHTS",
        "seed": run.seed,
        "speakers": speakers(read_clips(run.folder(voice_check))),
        "ravdess_actors": {
            split: [int(actor) for actor in actors] for split, actors in split_members("ravdess_release").items()
        },
        "label_map_version": LABEL_MAP_VERSION,
        "corpora_sha256": {corpus: corpus_hash(run.data, FOLDERS.get(corpus, corpus)) for corpus in names},
        "ledger": {
            "text_tower": sorted({part.partition("/")[0] for part in test.text}),
            "audio_tower": list(test.audio),
            "vision_tower": [*test.vision],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "datasets", "scikit-learn")},
        },
    }
    reports = {file.stem: json.loads(file.read_text()) for file in sorted(Path(run.output).glob("*.json"))}
    reports.pop(name, None)
    if "left_out_corpora" in reports:
        found["voice_left_out_corpora"] = reports["left_out_corpora"]["left_out"]
    metrics["stages"] = reports
    metrics["training_minutes"] = {stage: report["minutes"] for stage, report in reports.items()}
    write_json(checkpoint / "metrics.json", metrics, sort_keys=True)
    save_processor(checkpoint, source, run.weights)
    return {"figures": found}
