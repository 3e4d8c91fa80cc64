"""Stage 5 of the small checkpoint: weights in half precision, calibration, and every figure on the official tests."""

import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

import triemo.processing
from triemo.modeling import TriemoForEmotionClassification
from triemo.training.composites import draw_composites
from triemo.training.corpora import RAVDESS_SPLITS, corpus_hash
from triemo.training.emotion_metrics import (
    best_thresholds,
    classification_scores,
    expected_calibration_error,
    fit_temperature,
    multi_label_scores,
)
from triemo.training.label_maps import EMOTIONS, LABEL_MAP_VERSION, to_soft_target
from triemo.training.small_joint import Corpora, TriModalCollator, predict_logits, subset_scores

__all__ = ["save_half", "save_processor", "train_evaluate"]

PER_CLASS = 100  # composites of each emotion in the test
PROTOCOLS = {
    "goemotions": "text alone; official test of GoEmotions, ekman grouping (7 classes), without dialogue context. "
    "multi_label: macro F1 over all 5,427 rows, softmax against one threshold a class, thresholds fitted on the "
    "official dev split. single_label: the top class on the rows that carry one label.",
    "fer2013": "face alone, one 48x48 image resized to 96x96, no face detection, no test-time augmentation. "
    "PublicTest is the validation split (the epoch was chosen on it), PrivateTest the test; train without "
    "exact duplicates.",
    "ravdess": "voice alone; test actors 21-24, validation 19-20, train 1-18. Seven classes: calm merged into "
    "neutral, and calm dropped from the test (training merges it in both cases).",
    "composites": "synthetic: sentence, voice and face of the same emotion joined from the test splits of GoEmotions "
    f"(single-label rows), RAVDESS (actors 21-24) and FER2013 (PrivateTest), {PER_CLASS} of each emotion; the seven "
    "subsets are scored on the same examples. No such figure says how well real clips are read.",
    "calibration": "one temperature for all modalities, fitted on the validation splits (each corpus counts alike); "
    "expected calibration error with 15 equal-width bins on the tests named above (calm merged, rows of one label).",
}


def save_half(model: TriemoForEmotionClassification, folder: str | Path) -> None:
    """Writes config and float16 safetensors to `folder`, file by file under another name first.

    The config names float32: it is what the weights are loaded as, half precision is only how they are stored.
    """
    folder = Path(folder)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.half().save_pretrained(part)
    config_file = part / "config.json"
    config = json.loads(config_file.read_text())
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        section.pop("_name_or_path", None)  # a folder of this machine
        if "dtype" in section:
            section["dtype"] = "float32"
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    for path in part.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone
        path.replace(folder / path.name)
    part.rmdir()


def save_processor(folder: str | Path, tokenizer_folder: str | Path, weights: str | None = None) -> bool:
    """Writes the processor that fits the checkpoint, with MTCNN's weights where `<weights>/mtcnn` holds them.

    Returns False when this install has no `TriemoProcessor`.
    """
    processor_class = getattr(triemo.processing, "TriemoProcessor", None)
    if processor_class is None:
        return False
    detector = next((Path(weights) / "mtcnn").glob("*.safetensors"), None) if weights else None
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, model_max_length=512)
    tokenizer.backend_tokenizer.no_truncation()  # training's limit is not the user's
    processor = processor_class(
        image_processor=triemo.processing.TriemoImageProcessor(face_detector_weights=detector),
        feature_extractor=triemo.processing.TriemoFeatureExtractor(),
        tokenizer=tokenizer,
    )
    processor.save_pretrained(folder)
    return True


def single_modality(corpora: Corpora, name: str) -> list[dict]:
    """Every row of one corpus as an item of that modality alone."""
    return [
        {"rows": {name: row}, "label": np.array(to_soft_target(list(classes)), dtype=np.float32)}
        for row, classes in enumerate(corpora.labels[name])
    ]


class Measured:
    """Logits of a split's three corpora, one modality at a time, and which rows carry a single label."""

    def __init__(self, model, corpora: Corpora, tokenizer) -> None:
        self.collator = TriModalCollator(corpora, tokenizer, augment=False)
        self.logits, self.targets, self.single = {}, {}, {}
        for name in ("text", "audio", "vision"):
            items = single_modality(corpora, name)
            self.logits[name] = predict_logits(model, self.collator, items).numpy()
            self.targets[name] = np.stack([item["label"] for item in items]) > 0
            self.single[name] = self.targets[name].sum(1) == 1

    def top_class(self, name: str, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Logits and class ids of the rows with one label."""
        keep = self.single[name] if rows is None else self.single[name] & rows
        return self.logits[name][keep], self.targets[name][keep].argmax(1)


def calibrate(measured: Measured) -> float:
    """The temperature over the three corpora, each with the same total weight."""
    parts = [measured.top_class(name) for name in measured.logits]
    weights = np.concatenate([np.full(len(labels), 1 / len(labels)) for _, labels in parts])
    return fit_temperature(
        np.concatenate([logits for logits, _ in parts]), np.concatenate([labels for _, labels in parts]), weights
    )


def train_evaluate(args) -> dict:
    """Releases `<output>/joint` into `args.checkpoint` and writes `metrics.json` there."""
    runs, checkpoint = Path(args.output), Path(args.checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(runs / "text")
    save_half(TriemoForEmotionClassification.from_pretrained(runs / "joint"), checkpoint)
    model = TriemoForEmotionClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    validation = Measured(model, Corpora(args.data, "validation"), tokenizer)
    temperature = calibrate(validation)
    model.config.calibration_temperature = temperature
    save_half(model, checkpoint)
    model.float()

    corpora = Corpora(args.data, "test")
    test = Measured(model, corpora, tokenizer)
    thresholds = best_thresholds(
        torch.softmax(torch.from_numpy(validation.logits["text"]).double(), -1).numpy(), validation.targets["text"]
    )
    spoken = np.array([name != "calm" for name in corpora.voice["original_label"]])
    figures = {
        "goemotions_test": {
            "multi_label": multi_label_scores(test.logits["text"], test.targets["text"], thresholds),
            "thresholds": dict(zip(EMOTIONS, thresholds.round(3).tolist(), strict=True)),
            "single_label": classification_scores(*test.top_class("text")),
        },
        "fer2013_public_test": classification_scores(*validation.top_class("vision")),
        "fer2013_private_test": classification_scores(*test.top_class("vision")),
        "ravdess_actors_21_24_calm_merged": classification_scores(*test.top_class("audio")),
        "ravdess_actors_21_24_calm_dropped": classification_scores(*test.top_class("audio", spoken)),
        "composites_test_synthetic": subset_scores(
            model, test.collator, draw_composites(corpora.labels, PER_CLASS, args.seed)
        ),
        "expected_calibration_error": {
            name: {
                "before": expected_calibration_error(*test.top_class(name)),
                "after": expected_calibration_error(*test.top_class(name), temperature=temperature),
            }
            for name in test.logits
        },
    }
    reports = {
        stage: json.loads((runs / f"{stage}.json").read_text())
        for stage in ("vision", "text", "audio", "joint")
        if (runs / f"{stage}.json").exists()
    }
    metrics = {
        "model": "triemo-small",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "figures": figures,
        "protocols": PROTOCOLS,
        "calibration_temperature": temperature,
        "command": "python training/train_small.py --stage all --data ../shared/data --weights ../shared/weights "
        f"--output {args.output} --seed {args.seed}",
        "seed": args.seed,
        "ravdess_actors": {name: list(actors) for name, actors in RAVDESS_SPLITS.items()},
        "label_map_version": LABEL_MAP_VERSION,
        "corpora_sha256": {name: corpus_hash(args.data, name) for name in ("ravdess", "fer2013", "goemotions")},
        "stages": reports,
        "training_minutes": {stage: report["minutes"] for stage, report in reports.items()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "datasets", "scikit-learn")},
        },
    }
    unfinished = checkpoint / "metrics.json.part"
    unfinished.write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    unfinished.replace(checkpoint / "metrics.json")
    return {"figures": figures, "processor_saved": save_processor(checkpoint, runs / "text", args.weights)}
