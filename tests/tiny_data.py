"""A generated table of sentences, voices and faces whose class can be learned, beside a tiny checkpoint."""

import csv
import wave
from pathlib import Path

import numpy as np
from PIL import Image

SENTENCES = {"anger": "i am so angry", "joy": "i am so happy", "sadness": "this is a sad day"}
CLASSES = tuple(SENTENCES)
COLUMNS = ("text", "audio", "image", "label", "split", "gender")


def write_voice(path: Path, hertz: float, seed: int, seconds: float = 0.4) -> None:
    """A noisy tone, 16 kHz mono."""
    times = np.arange(int(16000 * seconds)) / 16000
    wave_form = 0.3 * np.sin(2 * np.pi * hertz * times) + 0.02 * np.random.default_rng(seed).normal(size=len(times))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((wave_form * 32767).astype("<i2").tobytes())


def write_silence(path: Path, seconds: float = 0.4) -> None:
    """Zeros, 16 kHz mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(2 * int(16000 * seconds)))


def write_face(path: Path, kind: int, seed: int) -> None:
    """Two eyes and a mouth that goes up, down or straight, in noise."""
    pixels = np.random.default_rng(seed).integers(60, 110, (32, 32)).astype(np.uint8)
    pixels[9:12, 8:12] = pixels[9:12, 20:24] = 230
    for column in range(8, 24):
        bend = (abs(column - 16) - 4) // 2
        pixels[22 + (bend if kind == 0 else -bend if kind == 1 else 0), column] = 240
    Image.fromarray(pixels).save(path)


def write_table(folder: Path, train: int = 12, validation: int = 6, test: int = 6, **changes: str) -> Path:
    """`table.csv`; every third row lacks a modality. `changes` maps a file's place "row:column" to another value."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    splits = ["train"] * train + ["validation"] * validation + ["test"] * test
    for number, split in enumerate(splits):
        kind = number % 3
        label = CLASSES[kind]
        write_voice(folder / f"{number}.wav", (300, 900, 1800)[kind], number, 0.3 + 0.05 * (number % 4))
        write_face(folder / f"{number}.png", kind, number)
        row = {"text": f"{SENTENCES[label]} {'ab'[number % 2]}", "audio": f"{number}.wav", "image": f"{number}.png"}
        if number % 3 == 0 and split == "train":
            row[("text", "audio", "image")[number // 3 % 3]] = ""
        rows.append(row | {"label": label, "split": split, "gender": ("female", "male")[number % 2]})
    for place, value in changes.items():
        number, column = place.strip("_").split("_", 1)
        rows[int(number)][column] = value
    table = folder / "table.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return table


def write_spoken_dialogues(folder: Path) -> Path:
    """
    `turns.csv`: 6 dialogues of 2 to 4 turns as of `write_dialogues`, with a voice and a face each; turns lack one or
    two of the three in turn, and the second of `d1` is silence alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for dialogue, split in enumerate(["train"] * 4 + ["validation", "test"]):
        for turn in range(2 + dialogue % 3):
            number = len(rows)
            kind = (dialogue + turn) % 3
            write_voice(folder / f"{number}.wav", (300, 900, 1800)[kind], number, 0.3 + 0.05 * (number % 4))
            write_face(folder / f"{number}.png", kind, number)
            row = {"text": SENTENCES[CLASSES[kind]], "audio": f"{number}.wav", "image": f"{number}.png"}
            for lacks in (("audio",), (), ("text", "image"), ("image",))[number % 4]:
                row[lacks] = ""
            row |= {"dialogue": f"d{dialogue}", "turn": turn, "speaker": "ab"[turn % 2], "split": split}
            rows.append(row | {"label": "" if (dialogue, turn) == (0, 1) else CLASSES[kind]})
    silent = next(row for row in rows if (row["dialogue"], row["turn"]) == ("d1", 1))
    silent |= {"text": "", "image": "", "audio": "silence.wav"}
    write_silence(folder / "silence.wav")
    table = folder / "turns.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


def write_dialogues(
    table: Path, splits: tuple[str, ...] = ("train",) * 8 + ("validation",) * 3 + ("test",) * 2
) -> Path:
    """
    A csv of dialogues of 2 to 5 turns between two speakers, in words, a split each. Who hears anger is sad next; the
    second turn of each has no label.
    """
    draw = np.random.default_rng(0)
    rows = []
    for dialogue, split in enumerate(splits):
        label = "joy"
        for turn in range(2 + dialogue % 4):
            label = "sadness" if label == "anger" else CLASSES[int(draw.integers(3))]
            row = {"dialogue": f"d{dialogue}", "turn": turn, "speaker": f"{dialogue}{'ab'[turn % 2]}", "split": split}
            rows.append(row | {"text": SENTENCES[label], "label": "" if turn == 1 else label})
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table
