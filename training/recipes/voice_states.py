"""Clips of all voice corpora, and what the lower layers of the audio tower make of them, kept on disk.

Lower layers that stay as they are give the same states every epoch, so they run once. Shapes: N rows, S samples, T
steps at 50 Hz, D width of a state.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triemo.modeling import TriemoAudioModel
from triemo.processing.feature_extraction_triemo import TriemoFeatureExtractor
from triemo.processing.media_triemo import load_audio
from triemo.training.common import write_json
from triemo.training.corpora.labels import EMOTIONS, label2id
from triemo.training.corpora.registry import load_corpus
from triemo.training.corpora.sound_check import check_sounds
from triemo.training.data.waveforms import RATE, augment_waveform, join_waveforms
from triemo.training.recipes.stages import ReleaseRun
from triemo.training.recipes.voice import pad_frames

__all__ = ["CachedStates", "Clip", "StateRow", "read_clips", "train_voice_check", "train_voice_states"]

PART_ROWS = 256  # a minute or two each; a part that is there is not computed again
BATCH_SECONDS = 60.0  # of sound, at most, go through the layers together
SPLITS = ("test", "validation", "train")  # of a file that is there twice, the one that is measured stays
CLIPS_FILE, PLAN_FILE = "clips.json", "plan.json"


# Clips -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """A file with a voice. `label` is one of `EMOTIONS`."""

    path: str
    corpus: str
    split: str
    label: str
    speaker: str
    seconds: float


def train_voice_check(run: ReleaseRun, name: str, *, corpora: list[str]) -> dict:
    """Lists the clips of all corpora in `<output>/<name>/clips.json`, without silent, cut, unreadable and double ones.

    Args:
        run: folders; its `open_licences` leaves corpora out.
        name: of the stage.
        corpora: of voices, by name.
    """
    rows = []
    for corpus in run.usable(corpora):
        data = load_corpus(corpus, run.data)
        for split in SPLITS:
            if split in data:
                columns = (data[split][column] for column in ("row", "label", "speaker"))
                rows += [(*row, corpus, split) for row in zip(*columns, strict=True)]
    checked = check_sounds([row[0] for row in rows], [row[1] for row in rows])
    clips, left_out = [], []
    for (path, label, speaker, corpus, split), sound in zip(rows, checked, strict=True):
        if sound.fault is None:
            clips.append(asdict(Clip(path, corpus, split, label, str(speaker), sound.seconds)))
        else:
            left_out.append({**asdict(sound), "corpus": corpus, "split": split})
    run.folder(name).mkdir(parents=True, exist_ok=True)
    write_json(run.folder(name) / CLIPS_FILE, clips)
    counts = {corpus: sum(clip["corpus"] == corpus for clip in clips) for corpus in run.usable(corpora)}
    return {"clips": counts, "hours": sum(clip["seconds"] for clip in clips) / 3600, "left_out": left_out}


def read_clips(folder: Path) -> list[Clip]:
    """Of a stage of `train_voice_check`. Raises ValueError where it has not run."""
    if not (folder / CLIPS_FILE).is_file():
        raise ValueError(f"clips: got no {folder / CLIPS_FILE}, expected the stage of the voice check to have run")
    return [Clip(**clip) for clip in json.loads((folder / CLIPS_FILE).read_text())]


# Rows --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StateRow:
    """What is kept once: clips (numbers in the list), one after the other; `copy` 0 is as recorded, others are
    augmented, each in its own way."""

    clips: tuple[int, ...]
    copy: int


def plan_rows(clips: Sequence[Clip], copies: int, joined: int, seconds: float, seed: int) -> list[StateRow]:
    """Every clip as it is; of the training clips also augmented copies, and some of a speaker's clips of one emotion
    joined, every other of them augmented."""
    rows = [StateRow((number,), 0) for number in range(len(clips))]
    training = [number for number, clip in enumerate(clips) if clip.split == "train"]
    rows += [StateRow((number,), copy + 1) for copy in range(copies) for number in training]
    alike: dict[tuple[str, str, str], list[int]] = {}
    for number in training:
        clip = clips[number]
        alike.setdefault((clip.corpus, clip.speaker, clip.label), []).append(number)
    random = np.random.default_rng(seed)
    groups = [group for group in alike.values() if len(group) > 1]
    for place in range(joined if groups else 0):
        group = groups[int(random.integers(len(groups)))]
        chosen, length, wanted = [], 0.0, random.uniform(seconds / 2, seconds)
        for number in random.permutation(group).tolist():
            if length >= wanted:
                break
            chosen.append(number)
            length += clips[number].seconds
        rows.append(StateRow(tuple(chosen), place % 2))
    return rows


def row_waveform(row: StateRow, clips: Sequence[Clip], seconds: float, seed: int) -> np.ndarray:
    """Samples (S,) of a row, at most so many seconds of them."""
    random = np.random.default_rng([seed, row.copy, *row.clips])
    waveform = join_waveforms([load_audio(clips[number].path, RATE) for number in row.clips], random, seconds)
    return augment_waveform(waveform, random) if row.copy else waveform


# Cache -------------------------------------------------------------------------------------------------------


def load_tower(run: ReleaseRun, encoder: str, layers: int, **fields: Any) -> TriemoAudioModel:
    """The first `layers` layers of Whisper's encoder, with `fields` of the config, such as attentive pooling.

    Raises:
        ValueError: for more layers than the encoder has.
    """
    torch.manual_seed(run.seed)
    tower = TriemoAudioModel.from_whisper(run.encoder(encoder), **fields)
    if not 0 < layers <= len(tower.layers):
        raise ValueError(f"layers: got {layers}, expected 1 to {len(tower.layers)}")
    tower.layers = tower.layers[:layers]
    tower.config.num_hidden_layers = layers
    return tower.eval()


def train_voice_states(
    run: ReleaseRun,
    name: str,
    *,
    check: str,
    encoder: str,
    frozen_layers: int,
    copies: int = 1,
    joined: int = 0,
    seconds: float = 15.0,
) -> dict:
    """Keeps the states of all clips after the frozen layers, in half precision, in parts of `PART_ROWS` rows.

    Args:
        run: folders and seed.
        name: of the stage, whose folder holds the cache.
        check: stage of the voice check.
        encoder: Hub id of a Whisper model, or a folder.
        frozen_layers: lowest layers, which stay as they are.
        copies: augmented copies of every training clip.
        joined: rows of several training clips of a speaker and emotion, one after the other.
        seconds: longest row.

    Raises:
        ValueError: where the folder holds states of other settings.
    """
    clips = read_clips(run.folder(check))
    folder = run.folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    rows = plan_rows(clips, copies, joined, seconds, run.seed)
    plan = {
        "settings": {"encoder": encoder, "frozen_layers": frozen_layers, "seconds": seconds, "seed": run.seed},
        "clips": [asdict(clip) for clip in clips],
        "rows": [[list(row.clips), row.copy] for row in rows],
    }
    if not (folder / PLAN_FILE).exists():
        write_json(folder / PLAN_FILE, plan)
    elif json.loads((folder / PLAN_FILE).read_text()) != plan:
        raise ValueError(f"states: got other clips or settings in {folder}, expected an empty folder or the same")
    lower = load_tower(run, encoder, frozen_layers).to(run.device)
    files = {start: folder / f"{start // PART_ROWS:04d}.npy" for start in range(0, len(rows), PART_ROWS)}
    files = {start: file for start, file in files.items() if not file.exists()}
    frames = torch.utils.data.DataLoader(
        RowFrames(rows, clips, seconds, run.seed),
        batch_sampler=[range(start, min(start + PART_ROWS, len(rows))) for start in files],
        collate_fn=list,
        num_workers=run.workers,
    )
    for file, part_frames in zip(files.values(), frames, strict=True):
        states = _lower_states(lower, part_frames)
        write_json(file.with_suffix(".json"), [len(state) for state in states])
        part = file.with_suffix(".part")
        with part.open("wb") as stream:
            np.save(stream, np.concatenate(states))
        part.replace(file)
        print(f"{name}: {file.name} of {-(-len(rows) // PART_ROWS)} parts", flush=True)
    return {"rows": len(rows), "bytes": sum(file.stat().st_size for file in folder.glob("*.npy"))}


@dataclass
class RowFrames(torch.utils.data.Dataset):
    """Item n is the log-mel frames (F, M) of row n; the fields are those of `row_waveform`."""

    rows: Sequence[StateRow]
    clips: Sequence[Clip]
    seconds: float
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        waveform = row_waveform(self.rows[index], self.clips, self.seconds, self.seed)
        return TriemoFeatureExtractor()(waveform, RATE, return_tensors="np")["input_features"][0]


@torch.no_grad()
def _lower_states(lower: TriemoAudioModel, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """States (T, D) float16 of each clip's log-mel frames (F, M)."""
    found: list[np.ndarray] = [np.empty(0)] * len(frames)
    order = sorted(range(len(frames)), key=lambda index: len(frames[index]))
    while order:
        count = max(1, int(BATCH_SECONDS * 100 // len(frames[order[min(len(order), 16) - 1]])))
        chosen, order = order[: min(count, 16)], order[min(count, 16) :]
        features, mask = (x.to(lower.device) for x in pad_frames([torch.from_numpy(frames[i]) for i in chosen]))
        states = lower(input_features=features, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        for index, state, steps in zip(chosen, states, lower.output_mask(mask).sum(1).tolist(), strict=True):
            found[index] = state[:steps].half().cpu().numpy()
    return found


class CachedStates(torch.utils.data.Dataset):
    """Rows of a folder of states: item n is `{"states": (T, D) float32, "labels": (C,)}`. Files are mapped, not read.

    Args:
        folder: of a stage of `train_voice_states`.
        rows: numbers of the rows to give, None for all.

    Raises:
        ValueError: when a part is missing.
    """

    def __init__(self, folder: Path, rows: Sequence[int] | None = None) -> None:
        plan = json.loads((folder / PLAN_FILE).read_text())
        self.clips = [Clip(**clip) for clip in plan["clips"]]
        self.plan = [StateRow(tuple(clips), copy) for clips, copy in plan["rows"]]
        files = [folder / f"{part:04d}.npy" for part in range(-(-len(self.plan) // PART_ROWS))]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise ValueError(f"states: got no {missing[0]} in {folder}, expected all {len(files)} parts")
        self.parts = [np.load(file, mmap_mode="r") for file in files]
        self.lengths = [length for file in files for length in json.loads(file.with_suffix(".json").read_text())]
        self.starts = [0]
        for length in self.lengths:
            self.starts.append(self.starts[-1] + length)
        self.rows = list(range(len(self.plan))) if rows is None else list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def clip(self, row: int) -> Clip:
        """The first clip of a row of the plan, whose corpus, speaker and label are those of all of its clips."""
        return self.clips[self.plan[row].clips[0]]

    def select(self, rows: Sequence[int]) -> "CachedStates":
        """The same files, other rows of the plan."""
        chosen = copy.copy(self)
        chosen.rows = list(rows)
        return chosen

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index]
        part, first = row // PART_ROWS, self.starts[row] - self.starts[row - row % PART_ROWS]
        states = torch.from_numpy(self.parts[part][first : first + self.lengths[row]].astype(np.float32))
        return {"states": states, "labels": torch.eye(len(EMOTIONS))[label2id[self.clip(row).label]]}
