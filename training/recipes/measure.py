"""Stage 5 of the small checkpoint: weights in half precision, calibration, and every figure on the official tests."""

import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from triemo.modeling import TriemoForEmotionClassification
from triemo.processing import TriemoFeatureExtractor, TriemoImageProcessor, TriemoProcessor
from triemo.training.common import write_json
from triemo.training.corpora.labels import EMOTIONS, LABEL_MAP_VERSION
from triemo.training.corpora.published_splits import split_members
from triemo.training.corpora.rows import corpus_hash
from triemo.training.data.composites import draw_composites, item_classes
from triemo.training.metrics.calibration import calibrated_error, calibration_temperature, expected_calibration_error
from triemo.training.metrics.scores import EmotionMetric, best_thresholds, classification_scores, multi_label_scores
from triemo.training.recipes.joint import Corpora, TriModalCollator, predict_logits, single_modality, subset_logits
from triemo.training.recipes.stages import ReleaseRun

__all__ = ["save_half", "save_processor", "train_evaluate"]

SHARD = "90MB"
PER_CLASS = 100  # composites of each emotion in the test, and in the validation that pairs are calibrated on
PROTOCOLS = {
    "goemotions": "text alone; official test of GoEmotions, ekman grouping (7 classes), without dialogue context. "
    "multi_label: macro F1 over all 5,427 rows, softmax against one threshold a class, thresholds fitted on the "
    "official dev split. single_label: the top class on the rows that carry one label. An emoji goes by its name, as "
    "the processor reads it.",
    "meld": "text alone; official test of MELD, 7 classes, one line at a time: no dialogue context, no speaker.",
    "fer2013": "face alone, one 48x48 image resized to 96x96, no face detection, no test-time augmentation. "
    "PublicTest is the validation split (the epoch was chosen on it), PrivateTest the test; train without "
    "exact duplicates.",
    "ravdess": "voice alone; test actors 21-24, validation 19-20, train 1-18. Seven classes: calm merged into "
    "neutral, and calm dropped from the test (training merges it in both cases, at half its weight).",
    "composites": "synthetic: sentence, voice and face of the same emotion joined from the test splits of GoEmotions "
    "and MELD (single-label rows), RAVDESS (actors 21-24) and FER2013 (PrivateTest), "
    f"{PER_CLASS} of each emotion; the seven subsets are scored on the same examples. No such figure says how well "
    "real clips are read.",
    "calibration": "one temperature for each subset: of a single modality fitted on the official validation splits "
    "(each corpus counts alike), of pairs and all three on synthetic composites of validation examples; it is 1 where "
    "in cross-validation over speakers, or over rows without a voice, it did not lower the cross-entropy by more than "
    "a standard error; expected "
    "calibration error with 15 equal-width bins on the tests named above (calm merged, rows of one label). "
    "if_calibrated: the error's mean over 200 draws of the labels from the model's own probabilities, which is what "
    "perfectly calibrated probabilities give on as many rows.",
}


def save_half(model: TriemoForEmotionClassification, folder: str | Path) -> None:
    """Writes config and float16 safetensors to `folder`, file by file under another name first, in parts of at most
    `SHARD`, which is what Git hosts take.

    The config names float32: it is what the weights are loaded as, half precision is only how they are stored.
    """
    folder = Path(folder)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.half().save_pretrained(part, max_shard_size=SHARD)
    config_file = part / "config.json"
    config = json.loads(config_file.read_text())
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        section.pop("_name_or_path", None)  # a folder of this machine
        if "dtype" in section:
            section["dtype"] = "float32"
    write_json(config_file, config, sort_keys=True)
    folder.mkdir(parents=True, exist_ok=True)
    written = {path.name for path in part.iterdir()}
    for path in part.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone
        path.replace(folder / path.name)
    part.rmdir()
    for path in folder.glob("model*.safetensors*"):
        if path.name not in written:  # of an earlier release with more or fewer parts
            path.unlink()


def save_processor(folder: str | Path, tokenizer_folder: str | Path, weights: str | None = None) -> None:
    """Writes the processor that fits the checkpoint, with MTCNN's weights of `<weights>/mtcnn` or the last release.

    Raises:
        ValueError: when there are none: a release without a face detector reads no clip.
    """
    found = sorted((Path(weights) / "mtcnn").glob("*.safetensors")) if weights else []
    found += sorted(Path(folder).glob("face_detector.safetensors"))
    if not found:
        raise ValueError(f"weights: got no face detector, expected {weights}/mtcnn/*.safetensors or one in {folder}")
    detector = found[0]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, model_max_length=512)
    tokenizer.backend_tokenizer.no_truncation()  # training's limit is not the user's
    tokenizer.backend_tokenizer.no_padding()
    processor = TriemoProcessor(
        image_processor=TriemoImageProcessor(face_detector_weights=detector),
        feature_extractor=TriemoFeatureExtractor(),
        tokenizer=tokenizer,
    )
    processor.save_pretrained(folder)


class Measured:
    """Logits of a split's corpora, one modality at a time, and which rows carry a single label."""

    def __init__(self, model, corpora: Corpora, tokenizer) -> None:
        self.collator, self.text_rows = TriModalCollator(corpora, tokenizer, augment=False), corpora.text_rows
        self.logits, self.targets = {}, {}
        for name in ("text", "audio", "vision"):
            items = single_modality(corpora, name)
            self.logits[name] = predict_logits(model, self.collator, items).numpy()
            self.targets[name] = np.stack([item["label"] for item in items]) > 0

    def rows(self, name: str) -> np.ndarray:
        """Rows of a modality, or of a text corpus, as indices into its modality."""
        return np.arange(*self.text_rows[name]) if name in self.text_rows else np.arange(len(self.targets[name]))

    def all_classes(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Logits and multi-hot targets of a modality or text corpus."""
        modality, rows = "text" if name in self.text_rows else name, self.rows(name)
        return self.logits[modality][rows], self.targets[modality][rows]

    def top_class(self, name: str, keep: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Logits and class ids of the rows with one label; `keep` is a mask over the rows."""
        logits, targets = self.all_classes(name)
        chosen = targets.sum(1) == 1
        chosen = chosen if keep is None else chosen & keep
        return logits[chosen], targets[chosen].argmax(1)


def calibrate(
    measured: Measured, composites: dict[str, torch.Tensor], items: list[dict], speakers: list[str]
) -> dict[str, float]:
    """
    A temperature for each subset: single modalities on their corpora, each counting alike, others on composites. Where
    there is a voice, it has to help the speakers that it was not fitted to; `speakers` are those of all voices.
    """
    labels = np.array(item_classes(items))
    parts: dict[str, list] = {subset: [(x.numpy(), labels)] for subset, x in composites.items()}
    parts |= {name: [measured.top_class(name)] for name in ("audio", "vision")}
    parts["text"] = [measured.top_class(corpus) for corpus in measured.text_rows]
    temperatures = {}
    for subset, found in parts.items():
        weights = np.concatenate([np.full(len(ids), 1 / len(ids)) for _, ids in found])
        logits, ids = (np.concatenate(column) for column in zip(*found, strict=True))
        if subset == "audio":
            groups = speakers
        elif "audio" in subset:
            groups = [speakers[item["rows"]["audio"]] for item in items]
        else:
            groups = [str(row) for row in range(len(ids))]
        temperatures[subset] = calibration_temperature(logits, ids, groups, weights) or 1.0
    return temperatures


def calibration_errors(logits: np.ndarray, labels: np.ndarray, temperature: float) -> dict[str, float]:
    """Before and after the temperature, and what as many rows give if the probabilities after it are right."""
    return {
        "before": expected_calibration_error(logits, labels),
        "after": expected_calibration_error(logits, labels, temperature),
        "if_calibrated": calibrated_error(logits, temperature),
    }


def detailed(logits: np.ndarray, labels: np.ndarray, groups: list[str] | None = None) -> dict[str, Any]:
    """Scores per class and by group, from the project's metric."""
    metric = EmotionMetric("single_label_classification", keep_in_memory=True)
    return metric.compute(
        predictions=logits, references=labels, groups=groups or [""] * len(labels), labels=list(EMOTIONS)
    )


def train_evaluate(run: ReleaseRun, name: str, *, joint: str) -> dict:
    """Releases the model of the stage `joint` into `run.checkpoint` and writes `metrics.json` there.

    Args:
        run: folders and seed.
        name: of the stage.
        joint: the stage whose model is released.
    """
    checkpoint, source = Path(run.checkpoint), run.folder(joint)
    tokenizer = AutoTokenizer.from_pretrained(source)
    save_half(TriemoForEmotionClassification.from_pretrained(source), checkpoint)
    model = TriemoForEmotionClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()

    corpora = Corpora(run.data, "validation")
    validation = Measured(model, corpora, tokenizer)
    items = draw_composites(corpora.labels, PER_CLASS, run.seed)
    found = subset_logits(model, validation.collator, items)
    temperatures = calibrate(validation, found, items, list(map(str, corpora.voice["speaker"])))
    model.config.calibration_temperature = temperatures
    save_half(model, checkpoint)
    model.float()

    corpora = Corpora(run.data, "test")
    test = Measured(model, corpora, tokenizer)
    items = draw_composites(corpora.labels, PER_CLASS, run.seed)
    labels = item_classes(items)
    composites = {name: x.numpy() for name, x in subset_logits(model, test.collator, items).items()}
    metrics = {
        "model": "triemo-small",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "figures": figures(validation, test, corpora, composites, np.array(labels), temperatures),
        "protocols": PROTOCOLS,
        "calibration_temperatures": temperatures,
        "command": f"python training/recipes/release.py --data DATA --weights WEIGHTS --output {run.output}",
        "seed": run.seed,
        "ledger": {"text_tower": ["goemotions", "meld"], "audio_tower": ["ravdess"], "vision_tower": ["fer2013"]},
        "ravdess_actors": {
            name: [int(actor) for actor in actors] for name, actors in split_members("ravdess_release").items()
        },
        "label_map_version": LABEL_MAP_VERSION,
        "corpora_sha256": {name: corpus_hash(run.data, name) for name in ("ravdess", "fer2013", "goemotions", "meld")},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "datasets", "scikit-learn")},
        },
    }
    reports = {file.stem: json.loads(file.read_text()) for file in sorted(Path(run.output).glob("*.json"))}
    reports.pop(name, None)
    metrics["stages"] = reports
    metrics["training_minutes"] = {stage: report["minutes"] for stage, report in reports.items()}
    write_json(checkpoint / "metrics.json", metrics, sort_keys=True)
    save_processor(checkpoint, source, run.weights)
    return {"figures": metrics["figures"]}


def figures(
    validation: Measured,
    test: Measured,
    corpora: Corpora,
    composites: dict[str, np.ndarray],
    composite_labels: np.ndarray,
    temperatures: dict[str, float],
) -> dict[str, Any]:
    """Every figure of `metrics.json`; what is fitted (thresholds, temperatures) comes from validation."""
    logits, targets = validation.all_classes("goemotions")
    thresholds = best_thresholds(torch.softmax(torch.from_numpy(logits).double(), -1).numpy(), targets)
    spoken = np.array([name != "calm" for name in corpora.voice["label"]])
    genders = list(corpora.voice["gender"])
    tops = {name: test.top_class(name) for name in ("goemotions", "meld", "audio", "vision")}
    details = {"goemotions": detailed(*tops["goemotions"]), "meld": detailed(*tops["meld"])}
    details |= {"ravdess": detailed(*tops["audio"], genders), "fer2013": detailed(*tops["vision"])}
    errors = {"text": "goemotions", "text_meld": "meld", "audio": "audio", "vision": "vision"}
    return {
        "goemotions_test": {
            "multi_label": multi_label_scores(*test.all_classes("goemotions"), thresholds),
            "thresholds": dict(zip(EMOTIONS, thresholds.round(3).tolist(), strict=True)),
            "single_label": classification_scores(*tops["goemotions"]),
        },
        "meld_test": classification_scores(*tops["meld"]),
        "fer2013_public_test": classification_scores(*validation.top_class("vision")),
        "fer2013_private_test": classification_scores(*tops["vision"]),
        "ravdess_actors_21_24_calm_merged": classification_scores(*tops["audio"]),
        "ravdess_actors_21_24_calm_dropped": classification_scores(*test.top_class("audio", spoken)),
        "composites_test_synthetic": {
            name: classification_scores(values, composite_labels) for name, values in composites.items()
        },
        "expected_calibration_error": {
            name: calibration_errors(*tops[corpus], temperatures[name.split("_")[0]])
            for name, corpus in errors.items()
        },
        "per_class": {corpus: found["per_class"] for corpus, found in details.items()},
        "subgroups": {"ravdess_gender": details["ravdess"]["groups"]},
    }
