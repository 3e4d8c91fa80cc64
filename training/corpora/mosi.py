"""CMU-MOSI, CMU-MOSEI and CH-SIMS: opinions spoken into a camera, as clips or as vectors.

Two layouts are read. *Clips*: `label.csv` (`video_id,clip_id,text,label,annotation,mode`) and `Raw/VIDEO/CLIP.mp4`,
as all three are distributed with clips. *Utterance vectors* (CMU-MOSI only): `transcripts.csv`, `text_train.csv`,
`audio_train0.csv` and so on, without headers. Vectors in pickle files are not read, for a pickle runs code; save them
as `Features/{text,audio,vision}/VIDEO/CLIP.npy` beside `label.csv`, each (steps, dimensions).
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from triemo.training.corpora.labels import MOSEI_LABELS, POLARITIES, map_label
from triemo.training.corpora.rows import corpus_folder, label_rows, media_rows, read_csv, to_datasets
from triemo.training.data.splits import as_dataset_dict, split_off

__all__ = ["ch_sims_table", "cmu_mosei_table", "cmu_mosi_table"]

FEATURES = ("text", "audio", "vision")
MODES = {"train": "train", "valid": "validation", "validation": "validation", "test": "test"}
TARGETS = ("score", "polarity", "emotions")


def cmu_mosi_table(
    root: str | Path | None = None,
    classes: str = "own",
    target: str | None = None,
    features: Sequence[str] | None = None,
    validation_share: float | int = 0.1,
    seed: int = 0,
    drop_missing: bool = False,
) -> DatasetDict:
    """CMU-MOSI (Zadeh et al., 2016), in either layout: `text`, `label`, `dialogue` (the video), `turn` (its
    place there) and vectors or `video`.

    Args:
        root: folder of the corpora, with `mosi/` or `cmu_mosi/`.
        classes: `own`; sentiment has no map to seven emotions.
        target: `polarity` (class), the only one of the vectors' layout, or `score` (-3 to 3), the clips' default.
        features: which vectors, of `text`, `audio`, `vision`. By default those of sound, with clips none. The text
            and vision vectors of train that are distributed come from networks trained on its labels: nothing carved
            out of train can select a model on them.
        validation_share: of train, in whole videos, for the vectors' layout, which has no validation; 0 makes none.
        seed: of that split.
        drop_missing: leave out rows whose clip is not there; in the clips' layout.

    Raises:
        ValueError: naming file and line where the files disagree.
    """
    _check_own("cmu_mosi", classes)
    folder = corpus_folder(root, "mosi", "cmu_mosi")
    if (folder / "label.csv").is_file():
        return _clips(folder, "cmu_mosi", "own", target or "score", features or (), drop_missing)
    if target not in (None, "polarity"):
        raise ValueError(f"target: got {target!r}, expected 'polarity', the only label of {folder}")
    if drop_missing:
        raise ValueError(f"drop_missing: got True, but the layout of {folder} has no clips")
    features = _known(("audio",) if features is None else features)
    transcripts = _cells(folder / "transcripts.csv", 4)
    data = to_datasets({split: _vector_rows(folder, split, features, transcripts) for split in ("train", "test")})
    if validation_share == 0:
        return data
    train, validation, _ = split_off(data["train"], validation_share, seed, ("dialogue",))
    return as_dataset_dict({"train": train, "validation": validation, "test": data["test"]})


def cmu_mosei_table(
    root: str | Path | None = None,
    classes: str = "own",
    target: str | None = None,
    features: Sequence[str] = (),
    drop_missing: bool = False,
) -> DatasetDict:
    """CMU-MOSEI (Zadeh et al., 2018) as clips: `text`, `label`, `dialogue` (the video), `video`.

    Args:
        root: folder of the corpora, with `mosei/` or `cmu_mosei/`.
        classes: `own`, or `seven` with the emotions.
        target: `score` (-3 to 3), `polarity`, or `emotions`: those of the columns `happy`, `sad`, `anger`,
            `surprise`, `disgust`, `fear` of label.csv that are above zero (several labels; utterances without any
            are left out). `emotions` for the seven classes, else `score`.
        features: of `Features/`, besides the clips.
        drop_missing: leave out rows whose clip is not there.

    Raises:
        ValueError: naming file and line of what cannot be read.
    """
    target = target or ("emotions" if classes == "seven" else "score")
    if classes == "seven" and target != "emotions":
        raise ValueError(f"target: got {target!r} for the seven classes, expected 'emotions'")
    folder = corpus_folder(root, "mosei", "cmu_mosei")
    return _clips(folder, "cmu_mosei", classes, target, features, drop_missing)


def ch_sims_table(
    root: str | Path | None = None,
    classes: str = "own",
    target: str | None = None,
    features: Sequence[str] = (),
    drop_missing: bool = False,
) -> DatasetDict:
    """CH-SIMS (Yu et al., 2020): `text` (Chinese), `label`, `dialogue` (the film), `video`, and the scores that were
    given to one modality alone as `score_text`, `score_audio`, `score_vision` (-1 to 1).

    Args:
        root: folder of the corpora, with `ch_sims/` or `CH-SIMS/`.
        classes: `own`; sentiment has no map to seven emotions.
        target: `score` (-1 to 1) or `polarity`.
        features: of `Features/`, besides the clips.
        drop_missing: leave out rows whose clip is not there.

    Raises:
        ValueError: naming file and line of what cannot be read.
    """
    _check_own("ch_sims", classes)
    folder = corpus_folder(root, "ch_sims", "CH-SIMS")
    return _clips(folder, "ch_sims", "own", target or "score", features, drop_missing)


def _check_own(corpus: str, classes: str) -> None:
    if classes == "seven":
        map_label(corpus, "")  # says that there is no map


def _known(features: Sequence[str]) -> Sequence[str]:
    if unknown := set(features) - set(FEATURES):
        raise ValueError(f"features: got {sorted(unknown)}, expected some of {FEATURES}")
    return features


# Utterance vectors -------------------------------------------------------------------------------------------


def _cells(path: Path, width: int | None = None) -> list[list[str]]:
    """Rows of a csv without a header, all of one width."""
    if not path.is_file():
        raise ValueError(f"corpus: got no file {str(path)!r}, expected it")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    width = width or len(rows[0])
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            raise ValueError(f"columns: got {len(row)} in {path}:{number}, expected {width}")
    return rows


def _numbers(rows: list[list[str]], path: Path) -> np.ndarray:
    try:
        values = np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"vectors: cannot read {path} ({error})") from error
    if not np.isfinite(values).all():
        raise ValueError(f"vectors: got NaN or infinity in {path}:{int(np.argwhere(~np.isfinite(values))[0, 0]) + 1}")
    return values


def _vector_rows(folder: Path, split: str, features: Sequence[str], transcripts: list[list[str]]) -> list[dict]:
    index_path = folder / f"text_{split}.csv"
    places = [int(float(row[0])) for row in _cells(index_path)]
    vectors = {}
    for name in features:
        path = folder / f"{'video' if name == 'vision' else name}_{split}0.csv"
        table = _numbers(_cells(path), path)
        if len(table) != len(places):
            raise ValueError(f"vectors: got {len(table)} rows in {path}, expected {len(places)} as in {index_path}")
        for number, (place, label) in enumerate(zip(places, table[:, -1], strict=True), start=1):
            if label != int(transcripts[place][3]):
                raise ValueError(f"label: got {label:.0f} in {path}:{number}, expected that of transcripts.csv")
        vectors[f"{name}_features"] = table[:, :-1].astype(np.float32)
    rows = []
    for number, place in enumerate(places):
        identifier, text, _, label = transcripts[place]
        rows.append(
            {
                "text": text,
                **{name: table[number : number + 1].tolist() for name, table in vectors.items()},
                "label": {"0": "negative", "1": "positive"}[label],
                "dialogue": identifier.rsplit("_", 1)[0],
                "utterance": identifier,
                # Rows of a video stand by their label there, so their order must not reach a model.
                "turn": _turn(identifier.rpartition("_")[2], f"{folder / 'transcripts.csv'}:{place + 1}"),
                "row": f"{folder / 'transcripts.csv'}:{place + 1}",
            }
        )
    return rows


def _turn(number: str, where: str) -> int:
    """Place of an utterance in its video. Raises ValueError for what is no number, naming the row."""
    if not number.isdigit():
        raise ValueError(f"utterance: got the number {number!r} in {where}, expected digits")
    return int(number)


# Clips -------------------------------------------------------------------------------------------------------


def _clips(
    folder: Path, corpus: str, classes: str, target: str, features: Sequence[str], drop_missing: bool
) -> DatasetDict:
    if target not in TARGETS:
        raise ValueError(f"target: got {target!r}, expected one of {TARGETS}")
    features = _known(features)
    path = folder / "label.csv"
    splits: dict[str, list[dict]] = {split: [] for split in ("train", "validation", "test")}
    needed = ("video_id", "clip_id", "text", "label", "mode", *(MOSEI_LABELS if target == "emotions" else ()))
    for cells in read_csv(path, needed):
        mode = MODES.get(cells["mode"].strip().lower())
        if mode is None:
            raise ValueError(f"mode: got {cells['mode']!r} in {cells['row']}, expected one of {sorted(MODES)}")
        row = _clip_row(folder, cells, target, features)
        if row is not None:
            splits[mode].append(row)
    if target == "emotions":
        splits = {split: label_rows(rows, corpus, classes) for split, rows in splits.items()}
    if (folder / "Raw").is_dir():
        splits = {split: media_rows(rows, "video", drop_missing) for split, rows in splits.items()}
    return to_datasets(splits)


def _clip_row(folder: Path, cells: dict, target: str, features: Sequence[str]) -> dict | None:
    video, clip, where = cells["video_id"], cells["clip_id"], cells["row"]
    try:
        score = float(cells["label"])
        unimodal = {
            f"score_{name}": float(cells[f"label_{name[0].upper()}"])
            for name in FEATURES
            if cells.get(f"label_{name[0].upper()}")
        }
        emotions = [name for name in MOSEI_LABELS if target == "emotions" and float(cells[name]) > 0]
    except ValueError as error:
        raise ValueError(f"label: cannot read {where} ({error})") from error
    if target == "emotions" and not emotions:
        return None
    row: dict[str, Any] = {
        "text": cells["text"].strip() or None,
        "label": {"score": score, "polarity": _polarity(cells, score), "emotions": emotions}[target],
        "dialogue": video,
        "utterance": f"{video}/{clip}",
        "turn": _turn(clip, where),
        "score": score,
        **(unimodal if "label_V" in cells and len(unimodal) == len(FEATURES) else {}),
        "row": where,
    }
    if (folder / "Raw").is_dir():
        row["video"] = _numbered(folder / "Raw" / video, clip, ".mp4")
    for name in features:
        path = _numbered(folder / "Features" / name / video, clip, ".npy")
        try:
            values = np.load(path, allow_pickle=False).astype(np.float32)
        except (OSError, ValueError) as error:
            raise ValueError(f"features: cannot read {path} of {where} ({error})") from error
        if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
            raise ValueError(
                f"features: got an array of {values.shape} in {path}, expected finite (steps, dimensions)"
            )
        row[f"{name}_features"] = values.tolist()
    return row


def _polarity(cells: dict, score: float) -> str:
    """The annotation where there is one, else the sign of the score."""
    name = (cells.get("annotation") or "").strip().lower()
    if name and name not in POLARITIES:
        raise ValueError(f"annotation: got {cells['annotation']!r} in {cells['row']}, expected one of {POLARITIES}")
    return name or POLARITIES[int(np.sign(score)) + 1]


def _numbered(folder: Path, clip: str, suffix: str) -> Path:
    """`CLIP.mp4`; spreadsheets turn the official `0001` into `1`, and the file keeps its zeros."""
    path = folder / f"{clip}{suffix}"
    padded = folder / f"{clip.zfill(4)}{suffix}"
    return padded if not path.is_file() and padded.is_file() else path
