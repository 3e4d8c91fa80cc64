"""MELD: lines of a television series with their dialogue, in the official csv files and, where there, the clips."""

from pathlib import Path

from datasets import DatasetDict

from triemo.training.corpora.labels import OWN_LABELS
from triemo.training.corpora.rows import corpus_folder, label_rows, media_rows, read_csv, to_datasets

__all__ = ["meld_table", "repair_text"]

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
