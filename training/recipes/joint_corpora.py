"""One split of every corpus that the joint part learns from: sentences, the checked voices, faces, and real clips.

Shapes: T log-mel frames at 100 Hz, N faces, F frames of a clip.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from triemo.processing import TriemoImageProcessor
from triemo.training.corpora.images import ferplus_majority
from triemo.training.corpora.labels import label2id
from triemo.training.corpora.registry import load_corpus
from triemo.training.recipes.faces import FACE_SIZE, grey_faces
from triemo.training.recipes.stages import ReleaseRun
from triemo.training.recipes.text import load_texts
from triemo.training.recipes.voice import log_mel_frames
from triemo.training.recipes.voice_means import Clip, read_clips

__all__ = ["AllCorpora", "LogMelClips", "film_faces"]

FILM_SUFFIX = ".mp4"
FILM_FRAMES = 4


class LogMelClips(Sequence):
    """Log-mel frames (T, M) of files, read when asked for; those asked for lately stay in memory."""

    def __init__(self, paths: Sequence[str], kept: int = 4000) -> None:
        self.paths = list(paths)
        self.read = lru_cache(kept)(lambda path: log_mel_frames([path])[0])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):
        return self.read(self.paths[index])

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[index] for index in range(len(self)))


class AllCorpora:
    """One split, with the attributes of `joint.Corpora` and besides:

    `frames`: row of a film among the faces -> rows of its frames in `pixels` (one row of `labels["vision"]` a film).
    `pairs`: films as `{"audio": row, "vision": row}`, the voice and the face of one person at once.

    Args:
        run: folders; its `open_licences` leaves corpora out.
        split: `train`, `validation` or `test`.
        text_corpora: as of `load_texts`; a corpus named twice is drawn from twice as often.
        voice_check: stage that listed the voices.
        face_corpora: some of `ferplus` and `raf_db`.
    """

    def __init__(
        self, run: ReleaseRun, split: str, text_corpora: Sequence[str], voice_check: str, face_corpora: Sequence[str]
    ) -> None:
        self.texts: list[str] = []
        self.labels: dict[str, list[list[int]]] = {"text": [], "audio": [], "vision": []}
        self.text_rows: dict[str, tuple[int, int]] = {}
        for corpus in run.usable(text_corpora):
            texts, classes = load_texts(run.data, corpus, split)
            self.text_rows[corpus] = (len(self.texts), len(self.texts) + len(texts))
            self.texts += texts
            self.labels["text"] += classes
        self.voices = [clip for clip in read_clips(run.folder(voice_check)) if clip.split == split]
        self.clips = LogMelClips([clip.path for clip in self.voices])
        self.labels["audio"] = [[label2id[clip.label]] for clip in self.voices]
        pixels = []
        for corpus in run.usable(face_corpora) if face_corpora else []:
            found, labels = still_faces(run, corpus, split)
            pixels.append(found)
            self.labels["vision"] += [[label] for label in labels]
        self.frames: dict[int, list[int]] = {}
        self.pairs: list[dict[str, int]] = []
        stills = sum(map(len, pixels))
        films = {row: clip for row, clip in enumerate(self.voices) if clip.path.endswith(FILM_SUFFIX)}
        for (row, clip), faces in zip(films.items(), film_faces(list(films.values()), run.weights), strict=True):
            if not len(faces):
                continue
            self.pairs.append({"audio": row, "vision": len(self.labels["vision"])})
            self.frames[len(self.labels["vision"])] = list(range(stills, stills + len(faces)))
            self.labels["vision"].append([label2id[clip.label]])
            pixels.append(faces)
            stills += len(faces)
        self.pixels = torch.cat(pixels)


def still_faces(run: ReleaseRun, corpus: str, split: str) -> tuple[torch.Tensor, list[int]]:
    """Grey faces (N, 96, 96) uint8 with the class that each has; those of FERPlus without a majority are left out.

    Raises:
        ValueError: for another corpus.
    """
    if corpus not in ("ferplus", "raf_db"):
        raise ValueError(f"face_corpora: got {corpus!r}, expected some of ferplus and raf_db")
    data = load_corpus(corpus, run.data)[split]
    labels = [label2id[name] for name in data["label"]]
    if corpus == "ferplus":
        labels = ferplus_majority(np.array(data["votes"])).tolist()
    chosen = [row for row, label in enumerate(labels) if label >= 0]
    images = data["image"]
    return grey_faces([images[row] for row in chosen], FACE_SIZE), [labels[row] for row in chosen]


def film_faces(clips: Sequence[Clip], weights: str | None) -> list[torch.Tensor]:
    """Grey faces (F, 96, 96) uint8 in up to `FILM_FRAMES` frames of every film, as our own detector crops them; F is 0
    where it finds none.

    Raises:
        ValueError: when there are films and `<weights>/mtcnn` holds no detector.
    """
    if not clips:
        return []
    detectors = sorted((Path(weights) / "mtcnn").glob("*.safetensors")) if weights else []
    if not detectors:
        raise ValueError(f"weights: got no face detector for films, expected {weights}/mtcnn/*.safetensors")
    processor = TriemoImageProcessor(face_detector_weights=detectors[0], num_frames=FILM_FRAMES)
    found = []
    for clip in clips:
        data = processor(clip.path, return_tensors="pt")
        crops = data["pixel_values"][0, data["video_attention_mask"][0].bool(), 0]
        found.append(((crops * 0.25 + 0.5) * 255).round().clamp(0, 255).byte())
    return found
