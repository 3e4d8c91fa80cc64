"""Tiny corpora in the official layouts, with words, people and numbers made up here."""

import csv
import wave
from pathlib import Path

import numpy as np
from media_files import write_clip

MELD_HEADER = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime".split(",")
)
CLIP_HEADER = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode".split(",")


def write_wav(path: Path, seconds: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((1000 * np.sin(np.arange(int(16000 * seconds)) / 8)).astype("<i2").tobytes())
    return path


def write_csv(path: Path, header: list[str], rows: list[list], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_clip_at(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_clip(path, frames=3)


def write_crema_d(root: Path, names: list[str], people: bool = True) -> Path:
    folder = root / "crema_d"
    for name in names:
        write_wav(folder / "AudioWAV" / f"{name}.wav")
    if people:
        actors = sorted({name[:4] for name in names})
        rows = [[actor, 20 + i, ["Male", "Female"][i % 2], "Asian", "Hispanic"] for i, actor in enumerate(actors)]
        write_csv(folder / "VideoDemographics.csv", ["ActorID", "Age", "Sex", "Race", "Ethnicity"], rows)
    return folder


def write_iemocap(root: Path, codes: dict[int, list[str]]) -> Path:
    """One dialogue a session, its speakers taking turns; the codes are those of the utterances."""
    folder = root / "iemocap"
    for session, found in codes.items():
        dialogue = f"Ses0{session}F_script01_1"
        names = [f"{dialogue}_{'FM'[turn % 2]}{turn:03d}" for turn in range(len(found))]
        evaluation = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        words = []
        for turn, (name, code) in enumerate(zip(names, found, strict=True)):
            values = "[2.5000, 3.0000, 3.5000]"
            evaluation += [f"[{turn}.5000 - {turn + 1}.2500]\t{name}\t{code}\t{values}", "C-E2:\tNeutral;\t()", ""]
            words.append(f"{name} [{turn:03d}.5000-{turn + 1:03d}.2500]: Line {turn} [LAUGHTER] goes on.")
            write_wav(folder / f"Session{session}" / "sentences" / "wav" / dialogue / f"{name}.wav")
        words.append("M: breath")
        dialog = folder / f"Session{session}" / "dialog"
        for kind, lines in (("EmoEvaluation", evaluation), ("transcriptions", words)):
            (dialog / kind).mkdir(parents=True, exist_ok=True)
            (dialog / kind / f"{dialogue}.txt").write_text("\n".join(lines) + "\n")
        (dialog / "EmoEvaluation" / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16")  # left by another system's tar
    return folder


def meld_row(number: int, text: str, emotion: str = "joy", dialogue: int = 0, utterance: int = 0) -> list:
    times = ["00:01:02,500", "01:00:00,250"]
    return [number, text, "Ann", emotion, "positive", dialogue, utterance, 1, 2, *times]


def write_meld(root: Path, train: list[list], encoding: str = "utf-8") -> Path:
    folder = root / "meld"
    write_csv(folder / "train_sent_emo.csv", MELD_HEADER, train, encoding)
    write_csv(folder / "dev_sent_emo.csv", MELD_HEADER, [meld_row(1, "dev", "fear")])
    write_csv(folder / "test_sent_emo.csv", MELD_HEADER, [meld_row(1, "test", "anger")])
    return folder


def write_opinions(folder: Path, clips: list[list], header: list[str] | None = None, files: bool = True) -> Path:
    """`label.csv` and, for each row, an official clip `Raw/VIDEO/0001.mp4`."""
    write_csv(folder / "label.csv", header or CLIP_HEADER, clips)
    for row in clips if files else []:
        write_clip_at(folder / "Raw" / row[0] / f"{str(row[1]).zfill(4)}.mp4")
    return folder
