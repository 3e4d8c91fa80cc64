"""Clips of all voice corpora, and the mean state of a frozen audio tower over each, kept on disk.

Whatever is fitted on top of these means is fitted in seconds. Shapes: N rows, S samples, F log-mel frames at 100 Hz,
L layers, D width of a state.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from triemo.modeling import TriemoAudioConfig, TriemoAudioModel
from triemo.modeling.audio_tower_triemo import voiced_steps
from triemo.modeling.layers_triemo import masked_mean
from triemo.processing.feature_extraction_triemo import TriemoFeatureExtractor
from triemo.processing.media_triemo import load_audio
from triemo.training.common import write_json
from triemo.training.corpora.registry import load_corpus
from triemo.training.corpora.sound_check import check_sounds
from triemo.training.data.waveforms import RATE, augment_waveform, join_waveforms
from triemo.training.recipes.stages import ReleaseRun
from triemo.training.recipes.voice import in_order

__all__ = ["Clip", "VoiceMeans", "VoiceRow", "read_clips", "train_voice_check", "train_voice_means"]

PART_ROWS = 256  # a minute or two each; a part that is there is not computed again
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
class VoiceRow:
    """What is kept once: clips (numbers in the list), one after the other; `copy` 0 is as recorded, others are
    augmented, each in its own way."""

    clips: tuple[int, ...]
    copy: int


def plan_rows(clips: Sequence[Clip], copies: int, joined: int, seconds: float, seed: int) -> list[VoiceRow]:
    """Every clip as it is; of the training clips also augmented copies, and some of a speaker's clips of one emotion
    joined, every other of them augmented."""
    rows = [VoiceRow((number,), 0) for number in range(len(clips))]
    training = [number for number, clip in enumerate(clips) if clip.split == "train"]
    rows += [VoiceRow((number,), copy + 1) for copy in range(copies) for number in training]
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
        rows.append(VoiceRow(tuple(chosen), place % 2))
    return rows


def row_waveform(row: VoiceRow, clips: Sequence[Clip], seconds: float, seed: int) -> np.ndarray:
    """Samples (S,) of a row, at most so many seconds of them."""
    random = np.random.default_rng([seed, row.copy, *row.clips])
    waveform = join_waveforms([load_audio(clips[number].path, RATE) for number in row.clips], random, seconds)
    return augment_waveform(waveform, random) if row.copy else waveform


# Means -------------------------------------------------------------------------------------------------------


def load_tower(run: ReleaseRun, encoder: str, layers: int, **fields: Any) -> TriemoAudioModel:
    """The first `layers` layers of Whisper's encoder, with `fields` of the config.

    Raises:
        ValueError: for more layers than the encoder has.
    """
    torch.manual_seed(run.seed)
    whole = TriemoAudioModel.from_whisper(run.encoder(encoder))
    if not 0 < layers <= len(whole.layers):
        raise ValueError(f"layers: got {layers}, expected 1 to {len(whole.layers)}")
    config = TriemoAudioConfig.from_dict({**whole.config.to_dict(), "num_hidden_layers": layers, **fields})
    tower = TriemoAudioModel(config)
    kept = {key: value for key, value in whole.state_dict().items() if key in tower.state_dict()}
    tower.load_state_dict(kept, strict=False)  # what `fields` add is not Whisper's
    return tower.eval()


@dataclass
class RowFrames(torch.utils.data.Dataset):
    """Item n is the log-mel frames (F, M) of row n; the fields are those of `row_waveform`."""

    rows: Sequence[VoiceRow]
    clips: Sequence[Clip]
    seconds: float
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        waveform = row_waveform(self.rows[index], self.clips, self.seconds, self.seed)
        return TriemoFeatureExtractor()(waveform, RATE, return_tensors="np")["input_features"][0]


def train_voice_means(
    run: ReleaseRun,
    name: str,
    *,
    check: str,
    encoder: str,
    layers: int,
    copies: int = 1,
    joined: int = 0,
    seconds: float = 15.0,
) -> dict:
    """Keeps the mean state over the voiced steps of every layer, of all clips, in half precision.

    Args:
        run: folders and seed.
        name: of the stage, whose folder gets parts of `PART_ROWS` rows each.
        check: stage of the voice check.
        encoder: Hub id of a Whisper model, or a folder.
        layers: lowest layers, which are all that the tower has.
        copies: augmented copies of every training clip.
        joined: rows of several training clips of a speaker and emotion, one after the other.
        seconds: longest row.

    Raises:
        ValueError: where the folder holds means of other settings.
    """
    clips = read_clips(run.folder(check))
    folder = run.folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    rows = plan_rows(clips, copies, joined, seconds, run.seed)
    plan = {
        "settings": {"encoder": encoder, "layers": layers, "seconds": seconds, "seed": run.seed},
        "clips": [asdict(clip) for clip in clips],
        "rows": [[list(row.clips), row.copy] for row in rows],
    }
    if not (folder / PLAN_FILE).exists():
        write_json(folder / PLAN_FILE, plan)
    elif json.loads((folder / PLAN_FILE).read_text()) != plan:
        raise ValueError(f"means: got other clips or settings in {folder}, expected an empty folder or the same")
    tower = load_tower(run, encoder, layers).to(run.device)
    files = {start: folder / f"{start // PART_ROWS:04d}.npy" for start in range(0, len(rows), PART_ROWS)}
    files = {start: file for start, file in files.items() if not file.exists()}
    frames = torch.utils.data.DataLoader(
        RowFrames(rows, clips, seconds, run.seed),
        batch_sampler=[range(start, min(start + PART_ROWS, len(rows))) for start in files],
        collate_fn=list,
        num_workers=run.workers,
    )
    for file, part_frames in zip(tqdm(files.values(), name), frames, strict=True):
        part = file.with_suffix(".part")
        with part.open("wb") as stream:
            np.save(stream, _mean_states(tower, part_frames))
        part.replace(file)
    return {"rows": len(rows), "bytes": sum(file.stat().st_size for file in folder.glob("*.npy"))}


@torch.no_grad()
def _mean_states(tower: TriemoAudioModel, frames: Sequence[np.ndarray]) -> np.ndarray:
    """Means (N, L, D) float16 of clips' log-mel frames (F, M)."""

    def means(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        features, mask = features.to(tower.device), mask.to(tower.device)
        states = tower(input_features=features, attention_mask=mask, output_hidden_states=True).hidden_states[1:]
        voiced = voiced_steps(features, mask)
        return torch.stack([masked_mean(layer, voiced) for layer in states], 1).half().cpu()

    return in_order([torch.from_numpy(clip) for clip in frames], means).numpy()


class VoiceMeans:
    """What a stage of `train_voice_means` kept: `values` (N, L, D) float16, and the clips and rows that they are of.

    Raises:
        ValueError: where the stage has not run, or a part is missing.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / PLAN_FILE).exists():
            raise ValueError(f"means: got no {folder / PLAN_FILE}, expected that stage to have run")
        plan = json.loads((folder / PLAN_FILE).read_text())
        self.settings = plan["settings"]
        self.clips = [Clip(**clip) for clip in plan["clips"]]
        self.plan = [VoiceRow(tuple(clips), copy) for clips, copy in plan["rows"]]
        files = [folder / f"{part:04d}.npy" for part in range(-(-len(self.plan) // PART_ROWS))]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise ValueError(f"means: got no {missing[0]} in {folder}, expected all {len(files)} parts")
        self.values = np.concatenate([np.load(file) for file in files])

    def clip(self, row: int) -> Clip:
        """The first clip of a row of the plan, whose corpus, speaker and label are those of all of its clips."""
        return self.clips[self.plan[row].clips[0]]

    def recorded(self, row: int) -> bool:
        """Whether the row is one clip as it is."""
        return self.plan[row].copy == 0 and len(self.plan[row].clips) == 1
