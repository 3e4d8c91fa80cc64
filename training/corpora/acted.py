"""Small corpora of acted voices, one file a clip, whose name says who speaks and what is acted.

TESS, CASIA, nEMO, EMOVO, SAVEE and the Javanese clips differ in nothing but how their files are named, so each is a
pattern over the path within its folder. The sound may be in any format. What is said is the same for every emotion and
stands in no column `text`: a model that read it could learn nothing from it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from datasets import DatasetDict

from triemo.training.corpora.labels import ACTED_CODES
from triemo.training.corpora.published_splits import split_by_members, split_members
from triemo.training.corpora.rows import SOUND_SUFFIXES, corpus_folder, label_rows, media_rows, to_datasets

__all__ = ["ACTED", "ActedCorpus", "acted_tables", "read_acted"]


@dataclass(frozen=True)
class ActedCorpus:
    """
    Args:
        source: who made it.
        pattern: over a file's path within the corpus's folder, without its suffix, in whole. Groups: `speaker`,
            `emotion` (a code of `ACTED_CODES`), and, where the name tells, `sentence`.
        language: ISO 639-1.
        female, male: speakers, as far as the corpus says; of others there is no `gender`.
        films: suffixes of files with a face: they stand in `video`, all others in `audio`.
    """

    source: str
    pattern: str
    language: str
    female: frozenset[str] = field(default_factory=frozenset)
    male: frozenset[str] = field(default_factory=frozenset)
    films: tuple[str, ...] = ()


ACTED = {
    "tess": ActedCorpus(
        "Pichora-Fuller and Dupuis, 2020: Toronto emotional speech set",
        r"(?:.*/)?(?P<speaker>OAF|YAF)_(?P<sentence>[a-z]+)_(?P<emotion>[a-z]+)",
        "en",
        female=frozenset({"OAF", "YAF"}),
    ),
    "casia": ActedCorpus(
        "Chinese Academy of Sciences, Institute of Automation: Mandarin emotional speech",
        r"(?:.*/)?(?P<speaker>\w+)/(?P<emotion>[a-z]+)/(?P<sentence>\d+)",
        "zh",
    ),
    "nemo": ActedCorpus(
        "Christop, 2024: nEMO, dataset of emotional speech in Polish",
        r"samples/(?P<speaker>[A-Z]{2}\d)_(?P<emotion>[a-z]+)_(?P<sentence>\d+)",
        "pl",
    ),
    "emovo": ActedCorpus(
        "Costantini et al., 2014: EMOVO, an Italian emotional speech database",
        r"(?P<speaker>[fm]\d)/(?P<emotion>[a-z]{3})-(?P=speaker)-(?P<sentence>[a-z]\d)",
        "it",
        female=frozenset({"f1", "f2", "f3"}),
        male=frozenset({"m1", "m2", "m3"}),
    ),
    "savee": ActedCorpus(
        "Haq and Jackson, 2009: Surrey audio-visual expressed emotion",
        r"(?:.*/)?(?P<speaker>[A-Z]{2})[/_]?(?P<emotion>sa|su|[adfhn])(?P<sentence>\d+)",
        "en",
        male=frozenset({"DC", "JE", "JK", "KL"}),
    ),
    "javanese": ActedCorpus(
        "acted Javanese clips, face and voice of ten actors",
        r"(?:audio|video)/(?P<speaker>\d\d)-(?P<sentence>\d\d)-(?P<emotion>\d\d)_\d\d",
        "jv",
        films=(".mp4", ".mkv", ".webm", ".mov", ".avi"),
    ),
}


def read_acted(
    name: str,
    root: str | Path | None = None,
    classes: str = "seven",
    fold: int = 0,
    validation: bool = True,
    clips: str = "all",
) -> DatasetDict:
    """A corpus of acted voices: `audio` (and of the Javanese clips `video`), `label`, `speaker`, `language`,
    `sentence` and, where the corpus says, `gender`.

    Args:
        name: a key of `ACTED`.
        root: folder of the corpora.
        classes: `seven`, or `own`, the corpus's own names.
        fold: which group of speakers is the test, from 0 (`splits/<name>_speakers.json`); the next is validation.
        validation: without it the next group stays in train.
        clips: `all`, `video` (clips with a face) or `audio` (sound alone).

    Raises:
        ValueError: naming a file whose name the corpus does not have, a fold outside their number, or no clip at all.
    """
    corpus, codes = ACTED[name], ACTED_CODES[name]
    if clips not in ("all", "audio", "video") or (clips == "video" and not corpus.films):
        raise ValueError(f"clips: got {clips!r} for {name}, expected all, audio" + (" or video" * bool(corpus.films)))
    folder = corpus_folder(root, name)
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (*SOUND_SUFFIXES, *corpus.films)]
    rows = []
    for path in files:
        kind = "video" if path.suffix.lower() in corpus.films else "audio"
        if clips not in ("all", kind):
            continue
        place = path.relative_to(folder).with_suffix("").as_posix()
        found = re.fullmatch(corpus.pattern, place)
        if found is None or found["emotion"] not in codes:
            raise ValueError(f"file name: got {place!r} in {folder}, expected {corpus.pattern} with {sorted(codes)}")
        rows.append(_row(corpus, found.groupdict(), codes, path, kind))
    if not rows:
        raise ValueError(f"corpus: got no clip in {folder}, expected those of {name}")
    kinds = {kind for kind in ("audio", "video") if any(row[kind] is not None for row in rows)}
    rows = [
        {key: value for key, value in row.items() if key in kinds or key not in ("audio", "video")} for row in rows
    ]
    rows = label_rows(rows, name, classes)
    for kind in sorted(kinds):
        rows = media_rows(rows, kind, False)
    return to_datasets(split_by_members(rows, "speaker", split_members(f"{name}_speakers", fold, validation)))


def _row(corpus: ActedCorpus, told: Mapping[str, str], codes: Mapping[str, str], path: Path, kind: str) -> dict:
    genders = {**dict.fromkeys(corpus.female, "female"), **dict.fromkeys(corpus.male, "male")}
    return {
        "audio": path if kind == "audio" else None,
        "video": path if kind == "video" else None,
        "label": codes[told["emotion"]],
        "speaker": told["speaker"],
        "language": corpus.language,
        "sentence": told["sentence"],
        **({"gender": genders[told["speaker"]]} if told["speaker"] in genders else {}),
        "row": str(path),
    }


# Of two speakers one is the test and the other the training.
acted_tables = {name: partial(read_acted, name, **({"validation": False} if name == "tess" else {})) for name in ACTED}
