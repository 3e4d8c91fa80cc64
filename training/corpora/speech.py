"""Speech corpora in the layout they are distributed in: RAVDESS, CREMA-D, IEMOCAP.

The acted sentences of RAVDESS and CREMA-D are the same for every emotion, so they stand in `sentence`, not in `text`:
a model that read them could learn nothing from them.
"""

import re
from pathlib import Path

from datasets import DatasetDict

from triemo.training.corpora.labels import CREMA_D_CODES, IEMOCAP_CODES, RAVDESS_LABELS, map_label
from triemo.training.corpora.published_splits import split_by_members, split_members
from triemo.training.corpora.rows import SOUND_SUFFIXES, corpus_folder, label_rows, media_rows, read_csv, to_datasets

__all__ = ["crema_d_table", "iemocap_table", "ravdess_table"]

# RAVDESS ------------------------------------------------------------------------------------------------------

RAVDESS_SENTENCES = {1: "Kids are talking by the door.", 2: "Dogs are sitting by the door."}
# Fields of an official name, `modality-channel-emotion-intensity-statement-repetition-actor`, and how far they go.
RAVDESS_FIELDS = {
    **{"modality": 3, "channel": 2, "emotion": 8, "intensity": 2, "statement": 2, "repetition": 2},
    "actor": 24,
}


def ravdess_table(
    root: str | Path | None = None,
    classes: str = "seven",
    calm: str = "neutral",
    fold: int | None = None,
    validation: bool = True,
) -> DatasetDict:
    """RAVDESS speech: `audio`, `label`, `speaker`, `gender`, `sentence`, `intensity`.

    Args:
        root: folder of the corpora.
        classes: `seven`, or `own` (eight).
        calm: `neutral` merges calm into neutral, `drop` leaves its clips out; of the own classes only `drop` acts.
        fold: one of the five published folds of actors as test; None gives the release's split.
        validation: whether the next fold is validation, or stays in train.

    Raises:
        ValueError: naming a file without an official name, or a split without a clip.
    """
    folder = corpus_folder(root, "ravdess")
    files = sorted(path for path in folder.glob("Actor_*/*") if path.suffix.lower() in SOUND_SUFFIXES)
    rows = [_ravdess_row(path) for path in files]
    rows = [row for row in rows if map_label("ravdess", row["label"], calm) is not None]
    rows = media_rows(label_rows(rows, "ravdess", classes), "audio", False)
    members = split_members("ravdess_release" if fold is None else "ravdess_folds", fold, validation)
    return to_datasets(split_by_members(rows, "speaker", members))


def _ravdess_row(path: Path) -> dict:
    fields = path.stem.split("-")
    if len(fields) != len(RAVDESS_FIELDS) or not all(field.isdigit() for field in fields):
        raise ValueError(f"file name: got {path.name!r} in {path.parent}, expected seven two-digit fields")
    values = dict(zip(RAVDESS_FIELDS, map(int, fields), strict=True))
    for name, limit in RAVDESS_FIELDS.items():
        if not 1 <= values[name] <= limit:
            raise ValueError(f"{name}: got {values[name]} in {path}, expected 1 to {limit}")
    return {
        "audio": str(path),
        "label": RAVDESS_LABELS[values["emotion"] - 1],
        "speaker": str(values["actor"]),
        "gender": "male" if values["actor"] % 2 else "female",
        "sentence": RAVDESS_SENTENCES[values["statement"]],
        "intensity": ("normal", "strong")[values["intensity"] - 1],
        "row": str(path),
    }


# CREMA-D ------------------------------------------------------------------------------------------------------

CREMA_D_SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
CREMA_D_LEVELS = ("XX", "LO", "MD", "HI")


def crema_d_table(
    root: str | Path | None = None, classes: str = "seven", split_file: str = "crema_d_actors"
) -> DatasetDict:
    """CREMA-D (Cao et al., 2014): `crema_d/AudioWAV/1001_DFA_ANG_XX.wav`, or any other kind of sound, and
    `VideoDemographics.csv` where it is.

    Columns: `audio`, `label`, `speaker`, `sentence`, `level` and, with the demographics, `gender`, `age`, `race`.
    With a folder `VideoFlash/` also `video`. There is no surprise among the labels.

    Args:
        root: folder of the corpora.
        classes: `seven` or `own` (six).
        split_file: of actors; the corpus has no official split.

    Raises:
        ValueError: naming a file without an official name, or an actor without demographics.
    """
    folder = corpus_folder(root, "crema_d", "CREMA-D")
    people = _crema_d_people(folder / "VideoDemographics.csv")
    films = folder / "VideoFlash"
    rows = []
    for path in sorted(path for path in (folder / "AudioWAV").glob("*") if path.suffix.lower() in SOUND_SUFFIXES):
        parts = path.stem.split("_")
        codes = (range(1001, 1092), CREMA_D_SENTENCES, CREMA_D_CODES, CREMA_D_LEVELS)
        fields = [int(parts[0]) if parts[0].isdigit() else None, *parts[1:]]
        if len(fields) != 4 or any(field not in known for field, known in zip(fields, codes, strict=True)):
            raise ValueError(f"file name: got {path.name!r} in {path.parent}, expected as 1001_DFA_ANG_XX")
        actor, sentence, emotion, level = parts
        if people and actor not in people:
            raise ValueError(f"speaker: got {actor} in {path}, expected it in VideoDemographics.csv")
        row = {
            "audio": path,
            "label": CREMA_D_CODES[emotion],
            "speaker": actor,
            "sentence": CREMA_D_SENTENCES[sentence],
            "level": level,
            "row": str(path),
            **people.get(actor, {}),
        }
        rows.append({**row, "video": films / f"{path.stem}.flv"} if films.is_dir() else row)
    if not rows:
        raise ValueError(f"corpus: got no sound in {folder / 'AudioWAV'}, expected the clips")
    rows = media_rows(label_rows(rows, "crema_d", classes), "audio", False)
    rows = media_rows(rows, "video", False) if films.is_dir() else rows
    return to_datasets(split_by_members(rows, "speaker", split_members(split_file)))


def _crema_d_people(path: Path) -> dict[str, dict]:
    if not path.is_file():
        return {}
    people = read_csv(path, ("ActorID", "Age", "Sex", "Race"))
    return {
        p["ActorID"]: {"gender": p["Sex"].lower(), "age": int(p["Age"]), "race": p["Race"].lower()} for p in people
    }


# IEMOCAP ------------------------------------------------------------------------------------------------------

_EVALUATION = re.compile(
    r"^\[(?P<start>[\d.]+) - (?P<end>[\d.]+)\]\t(?P<name>Ses0(?P<session>\d)\w+_(?P<who>[FM])\w+)\t(?P<code>\w+)\t"
    r"\[(?P<valence>[\d.]+), (?P<arousal>[\d.]+), (?P<dominance>[\d.]+)\]"
)
_TRANSCRIPT = re.compile(r"^(?P<name>Ses\w+) \[[\d.]+-[\d.]+\]:(?P<text>.*)$")
_TAG = re.compile(r"\[[A-Z_ ]+\]")


def iemocap_table(
    root: str | Path | None = None,
    classes: str = "seven",
    fold: int = 4,
    validation: bool = True,
    keep_tags: bool = False,
) -> DatasetDict:
    """IEMOCAP (Busso et al., 2008): `iemocap/SessionN/` (or `iemocap/IEMOCAP_full_release/SessionN/`).

    Labels from `dialog/EmoEvaluation/*.txt`, words from `dialog/transcriptions/*.txt`, sound from
    `sentences/wav/DIALOGUE/UTTERANCE.wav`. Columns: `text`, `audio`, `label`, `speaker`, `dialogue`, `session`,
    `gender`, `valence`, `arousal`, `dominance` (1 to 5), `start`, `end` (seconds in the dialogue).

    Args:
        root: folder of the corpora.
        classes: `seven` (excited is joy, frustrated and other are left out) or `own` (ten). Utterances without a
            majority (`xxx`) are left out of both.
        fold: which session is the test, from 0; the last by default. The next one is validation.
        validation: without it train has four sessions and there is no validation.
        keep_tags: leave tags such as `[LAUGHTER]` in the words; they tell the emotion and no recogniser writes them.

    Raises:
        ValueError: naming file and line of an unknown code or an utterance without words.
    """
    folder = corpus_folder(root, "iemocap/IEMOCAP_full_release", "IEMOCAP_full_release", "iemocap")
    rows = []
    for path in sorted(folder.glob("Session[1-5]/dialog/EmoEvaluation/Ses*.txt")):
        words = _iemocap_words(path.parents[1] / "transcriptions" / path.name)
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            match = _EVALUATION.match(line)
            if match is None:
                continue
            name, code = match["name"], match["code"]
            if code not in IEMOCAP_CODES:
                raise ValueError(f"label: got {code!r} in {path}:{number}, expected one of {sorted(IEMOCAP_CODES)}")
            if name not in words:
                raise ValueError(f"text: got no words of {name} ({path}:{number}), expected some in transcriptions")
            if IEMOCAP_CODES[code] is None:
                continue
            text = words[name] if keep_tags else " ".join(_TAG.sub(" ", words[name]).split())
            rows.append(
                {
                    "text": text or None,
                    "audio": path.parents[2] / "sentences" / "wav" / path.stem / f"{name}.wav",
                    "label": IEMOCAP_CODES[code],
                    "speaker": f"Ses0{match['session']}{match['who']}",
                    "dialogue": path.stem,
                    "session": match["session"],
                    "gender": {"F": "female", "M": "male"}[match["who"]],
                    **{key: float(match[key]) for key in ("valence", "arousal", "dominance", "start", "end")},
                    "row": f"{path}:{number}",
                }
            )
    if not rows:
        raise ValueError(f"corpus: got no labelled utterance in {folder}, expected Session1 to Session5")
    rows = media_rows(label_rows(rows, "iemocap", classes), "audio", False)
    return to_datasets(split_by_members(rows, "session", split_members("iemocap_sessions", fold, validation)))


def _iemocap_words(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise ValueError(f"corpus: got no file {str(path)!r}, expected the words of the dialogue")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {match["name"]: match["text"].strip() for match in map(_TRANSCRIPT.match, lines) if match}
