"""Sentences: GoEmotions, XED, BRIGHTER and SMP2020-EWECT."""

import json
import logging
from pathlib import Path

from datasets import DatasetDict

from triemo.training.corpora.labels import (
    BRIGHTER_LABELS,
    EKMAN_LABELS,
    GOEMOTIONS_LABELS,
    SMP2020_LABELS,
    XED_LABELS,
)
from triemo.training.corpora.published_splits import split_by_hash
from triemo.training.corpora.rows import corpus_folder, label_rows, read_csv, to_datasets

__all__ = ["brighter_table", "goemotions_table", "smp2020_table", "xed_table"]

logger = logging.getLogger(__name__)

FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}


def goemotions_table(root: str | Path | None = None, classes: str = "seven") -> DatasetDict:
    """GoEmotions (Demszky et al., 2020) on its official splits: `text`, `label` (one or more names), `id`.

    Args:
        root: folder of the corpora, with `goemotions/ekman/` or `goemotions/original/`.
        classes: `seven` reads the ekman grouping, `own` the 28 original labels.

    Raises:
        ValueError: naming file and line of a row that is not text, labels, id.
    """
    grouping, names = ("ekman", EKMAN_LABELS) if classes == "seven" else ("original", GOEMOTIONS_LABELS)
    folder = corpus_folder(root, f"goemotions/{grouping}")
    return to_datasets({split: _goemotions_rows(folder / name, names) for split, name in FILES.items()})


def _goemotions_rows(path: Path, names: tuple[str, ...]) -> list[dict]:
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        cells = line.split("\t")
        if len(cells) != 3:
            raise ValueError(f"columns: got {len(cells)} in {path}:{number}, expected text, labels, id")
        text, listed, identifier = cells
        codes = listed.split(",")
        if not all(code.isdigit() and int(code) < len(names) for code in codes) or len(set(codes)) != len(codes):
            raise ValueError(f"label: got {listed!r} in {path}:{number}, expected each once, 0 to {len(names) - 1}")
        labels = [names[index] for index in sorted(map(int, codes))]
        rows.append({"text": text, "label": labels, "id": identifier, "row": f"{path}:{number}"})
    return rows


# XED -------------------------------------------------------------------------------------------------------------


def xed_table(
    root: str | Path | None = None, classes: str = "seven", languages: list[str] | None = None
) -> DatasetDict:
    """XED (Oehman et al., 2020), film subtitles in which annotators marked emotions: `text`, `label` (one or more
    names), `language`.

    English is annotated (`en-annotated.tsv`, `neu_en.txt` for neutral), Chinese is what the labels of other languages
    became when the subtitles were aligned (`zh-projections.tsv`). There is no official split: a hash of the sentence
    deals a tenth each to validation and test, so that one that is there several times is in one split. Which film a
    line is from is not known.

    Args:
        root: folder of the corpora.
        classes: `seven` (anticipation and trust have no counterpart and go), or `own` (nine).
        languages: `en`, `zh` or, by default, both.

    Raises:
        ValueError: another language, or a line whose numbers are no labels, with file and line.
    """
    folder = corpus_folder(root, "xed")
    files = {"en": ("en-annotated.tsv", "neu_en.txt"), "zh": ("zh-projections.tsv",)}
    languages = _chosen("languages", languages, list(files))
    rows = [row for language in languages for name in files[language] for row in _xed_rows(folder / name, language)]
    splits: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
    for row in label_rows(rows, "xed", classes):
        splits[split_by_hash(row["text"])].append(row)
    return to_datasets(splits)


def _xed_rows(path: Path, language: str) -> list[dict]:
    rows, unlabelled = [], 0
    for number, line in enumerate(_lines(path), start=1):
        cells = [cell.strip() for cell in line.split("\t")]
        # The neutral lines have their number first.
        text, codes = (cells[1], cells[0]) if path.name.startswith("neu_") else (cells[0], cells[-1])
        if len(cells) > 2 and not path.name.startswith("neu_") or len(cells) < 2 or not text:
            unlabelled += 1  # pairs of aligned subtitles that were never labelled, and lines broken in two
            continue
        known = [code.strip().isdigit() and 1 <= int(code) <= len(XED_LABELS) for code in codes.split(",")]
        if not all(known):
            raise ValueError(f"label: got {codes!r} in {path}:{number}, expected 1 to {len(XED_LABELS)}")
        labels = sorted({XED_LABELS[int(code) - 1] for code in codes.split(",")})
        rows.append({"text": text, "label": labels, "language": language, "row": f"{path}:{number}"})
    if unlabelled:
        logger.warning(f"xed: {unlabelled} lines of {path.name} have no label and are left out.")
    return rows


# BRIGHTER --------------------------------------------------------------------------------------------------------


def brighter_table(
    root: str | Path | None = None, classes: str = "seven", languages: list[str] | None = None
) -> DatasetDict:
    """BRIGHTER (Muhammad et al., 2025), track A on its official splits: `text`, `label` (one or more names; neutral
    where none is marked), `language`, `id`.

    Where a language's test file comes without its labels, the development file is the test, and a hash of the sentence
    takes a tenth of train as validation; a warning says so.

    Args:
        root: folder of the corpora.
        classes: `seven` and `own` name the same emotions; English has no disgust.
        languages: `eng`, `chn` or, by default, both.

    Raises:
        ValueError: another language, or a mark that is neither 0 nor 1, with file and line.
    """
    folder = corpus_folder(root, "brighter/track_a", "brighter")
    languages = _chosen("languages", languages, ["eng", "chn"])
    splits: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
    for language in languages:
        parts = {
            part: _brighter_rows(folder / part / f"{language}.csv", language) for part in ("train", "dev", "test")
        }
        if parts["test"]:
            for split, part in (("train", "train"), ("validation", "dev"), ("test", "test")):
                splits[split] += parts[part]
        else:
            logger.warning(f"brighter: the test of {language} has no labels; its development file is scored instead.")
            for row in parts["train"]:
                splits["train" if split_by_hash(row["text"]) == "train" else "validation"].append(row)
            splits["test"] += parts["dev"]
    return to_datasets({split: label_rows(rows, "brighter", classes) for split, rows in splits.items()})


def _brighter_rows(path: Path, language: str) -> list[dict]:
    """Rows of a file; none where no row has a label."""
    emotions = [name for name in BRIGHTER_LABELS if name != "neutral" and (language, name) != ("eng", "disgust")]
    cells = read_csv(path, ("id", "text", *emotions))
    if all(not row[name] for row in cells for name in emotions):
        return []
    rows = []
    for row in cells:
        wrong = [name for name in emotions if row[name] not in ("0", "1")]
        if wrong:
            raise ValueError(f"label: got {row[wrong[0]]!r} for {wrong[0]} in {row['row']}, expected 0 or 1")
        labels = [name for name in emotions if row[name] == "1"] or ["neutral"]
        code = {"eng": "en", "chn": "zh"}[language]
        rows.append({"text": row["text"], "label": labels, "language": code, "id": row["id"], "row": row["row"]})
    return rows


# SMP2020-EWECT ---------------------------------------------------------------------------------------------------


def smp2020_table(
    root: str | Path | None = None, classes: str = "seven", topics: list[str] | None = None
) -> DatasetDict:
    """SMP2020-EWECT, Chinese microblogs on its official splits: `text`, `label`, `topic` (`usual`, or `virus` for
    those about the epidemic), `language`, `id`. There is no disgust.

    Args:
        root: folder of the corpora.
        classes: `seven`, or `own` (`neural` is the corpus's word for neutral).
        topics: `usual`, `virus` or, by default, both.

    Raises:
        ValueError: another topic, a file that is no list of posts, or an unknown label, with file and number.
    """
    folder = corpus_folder(root, "smp2020_ewect", "SMP2020-EWECT")
    topics = _chosen("topics", topics, ["usual", "virus"])
    files = {"train": "{}_train.txt", "validation": "{}_eval_labeled.txt", "test": "{}_test_labeled.txt"}
    splits = {
        split: [row for topic in topics for row in _smp2020_rows(folder / name.format(topic), topic)]
        for split, name in files.items()
    }
    return to_datasets({split: label_rows(rows, "smp2020", classes) for split, rows in splits.items()})


def _smp2020_rows(path: Path, topic: str) -> list[dict]:
    if not path.is_file():
        raise ValueError(f"corpus: got no file {str(path)!r}, expected the official split")
    try:
        posts = [(post["content"].strip(), post["label"], post["id"]) for post in json.loads(path.read_text("utf-8"))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"corpus: cannot read {path} ({error!r}), expected a list of id, content, label") from error
    rows = []
    for number, (text, label, identifier) in enumerate(posts):
        label = "neural" if label == "neutral" else label
        if label not in SMP2020_LABELS:
            raise ValueError(f"label: got {label!r} in post {number} of {path}, expected one of {SMP2020_LABELS}")
        row = {"text": text, "label": label, "topic": topic, "language": "zh"}
        rows.append({**row, "id": f"{topic}/{identifier}", "row": f"{path}:{number}"})
    empty = sum(not row["text"] for row in rows)
    if empty:
        logger.warning(f"smp2020: {empty} posts of {path.name} have no words and are left out.")
    return [row for row in rows if row["text"]]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"corpus: got no file {str(path)!r}, expected the official split")
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def _chosen(option: str, given: list[str] | None, known: list[str]) -> list[str]:
    """What of `known` is asked for, all by default. Raises ValueError for none and for others."""
    if given is not None and (not given or set(given) - set(known)):
        raise ValueError(f"{option}: got {given}, expected some of {known}")
    return known if given is None else given
