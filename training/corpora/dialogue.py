"""Dialogues, line by line with who speaks: MELD, with the clips where they are, and CPED."""

import logging
from pathlib import Path

from datasets import DatasetDict

from triemo.training.corpora.labels import CPED_LABELS, OWN_LABELS
from triemo.training.corpora.published_splits import split_by_hash
from triemo.training.corpora.rows import corpus_folder, label_rows, media_rows, read_csv, to_datasets

__all__ = ["cped_table", "meld_table", "repair_text"]

logger = logging.getLogger(__name__)

MELD_FILES = {
    "train": ("train_sent_emo.csv", "train_splits"),
    "validation": ("dev_sent_emo.csv", "dev_splits_complete"),
    "test": ("test_sent_emo.csv", "output_repeated_splits_test"),
}
MELD_COLUMNS = (
    *("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID", "Season", "Episode"),
    *("StartTime", "EndTime"),
)
# The 27 characters that Windows-1252 has where Unicode has control characters.
_WINDOWS = {
    code: bytes([code]).decode("cp1252") for code in range(0x80, 0xA0) if code not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}


# The same characters as UTF-8 read as Windows-1252: an apostrophe becomes three letters.
_MISREAD = {
    code.encode("utf-8").decode("cp1252"): code
    for code in _WINDOWS.values()
    if not set(code.encode("utf-8")) & {0x81, 0x8D, 0x8F, 0x90, 0x9D}
}


def repair_text(text: str) -> str:
    """Text with the characters that were meant.

    The csv files went round in several encodings. Some have typographic quotes as control characters (U+0092 for
    the apostrophe, a Windows-1252 byte read as Latin-1), some as three letters (UTF-8 read as Windows-1252). Both
    become the typographic character (U+2019). What is right already stays as it is.
    """
    text = text.translate(_WINDOWS)
    for wrong, right in _MISREAD.items():
        text = text.replace(wrong, right)
    return text


def meld_table(
    root: str | Path | None = None, classes: str = "seven", clips: bool | None = None, drop_missing: bool = False
) -> DatasetDict:
    """MELD (Poria et al., 2019) on its official splits, utterances in the order of their dialogues.

    Columns: `text`, `label`, `speaker`, `dialogue` (`train/0`: the numbers start again in every split), `utterance`
    (int), `sentiment`, `season`, `episode`, `start`, `end` (seconds), and with clips `video`. The six main speakers
    are in every split by design; dialogues are not.

    Args:
        root: folder of the corpora.
        classes: `seven` and `own` are the same set.
        clips: read `train_splits/dia0_utt0.mp4` and so on; None does so when the folders are there.
        drop_missing: leave out lines whose clip is not there (the official archive lacks one of validation), so that
            voice and face are scored on what exists. They are named and counted in any case.

    Raises:
        ValueError: naming file and line of a label outside the seven or a field that cannot be read.
    """
    folder = corpus_folder(root, "meld/MELD.Raw", "meld")
    splits = {}
    for split, (file, clip_folder) in MELD_FILES.items():
        clips_here = folder / clip_folder
        use_clips = clips_here.is_dir() if clips is None else clips
        rows = [_meld_row(cells, split, clips_here if use_clips else None) for cells in _meld_cells(folder / file)]
        rows = label_rows(rows, "meld", classes)
        splits[split] = media_rows(rows, "video", drop_missing) if use_clips else rows
    return to_datasets(splits)


def _meld_cells(path: Path) -> list[dict]:
    try:
        return read_csv(path, MELD_COLUMNS)
    except UnicodeDecodeError:
        return read_csv(path, MELD_COLUMNS, encoding="cp1252")


def _meld_row(cells: dict, split: str, clips: Path | None) -> dict:
    label = cells["Emotion"].strip().lower()
    if label not in OWN_LABELS["meld"]:
        raise ValueError(f"label: got {cells['Emotion']!r} in {cells['row']}, expected one of {OWN_LABELS['meld']}")
    try:
        dialogue, utterance = int(cells["Dialogue_ID"]), int(cells["Utterance_ID"])
        row = {
            "text": repair_text(cells["Utterance"]).strip(),
            "label": label,
            "speaker": repair_text(cells["Speaker"]).strip(),
            "dialogue": f"{split}/{dialogue}",
            "utterance": utterance,
            "sentiment": cells["Sentiment"].strip().lower(),
            "season": int(cells["Season"]),
            "episode": int(cells["Episode"]),
            "start": _seconds(cells["StartTime"]),
            "end": _seconds(cells["EndTime"]),
            "row": cells["row"],
        }
    except ValueError as error:
        raise ValueError(f"row: cannot read {cells['row']} ({error})") from error
    return row if clips is None else {**row, "video": clips / f"dia{dialogue}_utt{utterance}.mp4"}


def _seconds(clock: str) -> float:
    """`00:16:16,059` in seconds."""
    hours, minutes, seconds = clock.strip().replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


# CPED ------------------------------------------------------------------------------------------------------------

CPED_COLUMNS = (
    "TV_ID",
    "Dialogue_ID",
    "Utterance_ID",
    "Speaker",
    "Gender",
    "Age",
    "Scene",
    "Sentiment",
    "Emotion",
    "Utterance",
)


def cped_table(root: str | Path | None = None, classes: str = "seven", keep_unlabelled: bool = False) -> DatasetDict:
    """CPED (Chen et al., 2022), lines of Chinese television plays: `text`, `label`, `speaker`, `dialogue`,
    `utterance` (int), `gender`, `age`, `scene`, `sentiment`, `language`, in the order of the dialogues.

    The official splits are by play. Where the training file (`train_split.csv`) is not there, the validation file
    takes its place, a hash of the dialogue's name takes a tenth of it as validation, and a warning says so: figures of
    such a run are of another protocol than the corpus paper's.

    Args:
        root: folder of the corpora.
        classes: `seven` (positive-other and negative-other have no counterpart and go), or `own` (thirteen).
        keep_unlabelled: lines of no counterpart stay, without a label, for `--task dialogues`: they are what others
            answer to.

    Raises:
        ValueError: naming file and line of an unknown emotion or a field that cannot be read.
    """
    folder = corpus_folder(root, "cped", "CPED")
    validation, test = (_cped_rows(folder / f"{name}_split.csv") for name in ("valid", "test"))
    if (folder / "train_split.csv").is_file():
        splits = {"train": _cped_rows(folder / "train_split.csv"), "validation": validation, "test": test}
    else:
        logger.warning("cped: no train_split.csv; the official validation file is what is trained on.")
        splits = {"train": [], "validation": [], "test": test}
        for row in validation:
            splits["validation" if split_by_hash(row["dialogue"]) == "validation" else "train"].append(row)
    labelled = {split: label_rows(rows, "cped", classes, keep_unlabelled) for split, rows in splits.items()}
    return to_datasets(labelled)


def _cped_rows(path: Path) -> list[dict]:
    rows = []
    for cells in read_csv(path, CPED_COLUMNS):
        label = cells["Emotion"].strip().lower()
        if label not in CPED_LABELS:
            raise ValueError(f"label: got {cells['Emotion']!r} in {cells['row']}, expected one of {CPED_LABELS}")
        play, number = cells["TV_ID"].strip(), cells["Utterance_ID"].rpartition("_")[2]
        if not number.isdigit():
            raise ValueError(f"Utterance_ID: got {cells['Utterance_ID']!r} in {cells['row']}, expected as 27_000_000")
        row = {
            "text": cells["Utterance"].strip(),
            "label": label,
            "speaker": f"{play}/{cells['Speaker'].strip()}",
            "dialogue": cells["Dialogue_ID"].strip(),
            "utterance": int(number),
            **{name.lower(): cells[name].strip() for name in ("Gender", "Age", "Scene", "Sentiment")},
            "language": "zh",
            "row": cells["row"],
        }
        rows.append(row)
    return rows
