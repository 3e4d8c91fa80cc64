"""Streaming shards against the same clips in a map-style loader, and the memory of a long pass against a short one.

    python tests/benchmarks/bench_streaming.py [--clips 240 --seconds 2 --workers 0]

Prints clips/s of both loaders with their ratio (wanted: at least 0.8), and the peak memory of a process that streams
one pass and of one that streams many, with their ratio (wanted: at most 1.1). Each memory figure is a process of its
own. The clips are tones with a drawn face; decoding, log-mel and picture processing are those of training.
"""

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "modeling"), str(ROOT / "tests" / "processing")]

from tiny_checkpoint import tiny_processor  # noqa: E402
from tiny_data import write_face, write_voice  # noqa: E402

from triemo.training.data.masking import PretrainCollator  # noqa: E402
from triemo.training.data.packing import pack_clips  # noqa: E402
from triemo.training.data.sampling import EmotionRows  # noqa: E402
from triemo.training.data.shards import ShardReader, list_shards  # noqa: E402
from triemo.training.data.streaming import ShardBatches, StreamLoader  # noqa: E402
from triemo.training.data.tables import load_table  # noqa: E402

BATCH = 16


def write_clips(folder: Path, clips: int, seconds: float) -> None:
    (folder / "clips").mkdir(parents=True)
    lines = ["file,audio,image,text"]
    for number in range(clips):
        write_voice(folder / "clips" / f"{number}.wav", 200 + number % 50 * 20, number, seconds)
        write_face(folder / "clips" / f"{number}.png", number % 3, number)
        lines.append(f"{number}.wav,clips/{number}.wav,clips/{number}.png,this is sentence {number}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = [line.split(",") for line in lines]
    words = "\n".join(f"{cells[0]},{cells[3]}" for cells in table) + "\n"
    (folder / "transcripts.csv").write_text(words, encoding="utf-8")
    pack_clips(folder / "clips", folder / "shards", folder / "transcripts.csv", samples_per_shard=40, check=False)


def streamed(folder: Path, workers: int) -> StreamLoader:
    collator = PretrainCollator(tiny_processor())
    reader = partial(ShardReader, list_shards(folder / "shards")["train"], buffer=100)
    return StreamLoader(ShardBatches(reader, collator.prepare, collator.collate, BATCH), workers)


def in_memory(folder: Path, workers: int) -> DataLoader:
    """Encoded rows in memory, decoded as the stream's are."""
    collator = PretrainCollator(tiny_processor())
    table = load_table(folder / "train.csv", "train", labelled=False)["train"]
    rows = [
        {
            **row,
            "audio": {"bytes": Path(row["audio"]["path"]).read_bytes(), "path": None},
            "image": {"bytes": Path(row["image"]["path"]).read_bytes(), "path": None},
        }
        for row in table
    ]
    prepared = EmotionRows([rows], collator.prepare)
    return DataLoader(prepared, BATCH, shuffle=True, num_workers=workers, collate_fn=collator.collate, drop_last=True)


def clips_per_second(loader: object, batches: int) -> float:
    started, seen = time.perf_counter(), 0
    while seen < batches:
        for _ in itertools.islice(loader, batches - seen):  # type: ignore[call-overload]
            seen += 1
    return seen * BATCH / (time.perf_counter() - started)


def peak_of(folder: Path, batches: int) -> float:
    """Peak memory in MB of a fresh process that streams so many batches."""
    command = [sys.executable, __file__, "--folder", str(folder), "--only_stream", str(batches)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--long", type=int, default=10, help="Passes of the long run.")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--only_stream", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.only_stream:
        clips_per_second(streamed(Path(args.folder), 0), args.only_stream)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    batches = args.clips // BATCH
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        write_clips(folder, args.clips, args.seconds)
        loaders = {"in memory": in_memory(folder, args.workers), "streamed": streamed(folder, args.workers)}
        speeds: dict[str, list[float]] = {kind: [] for kind in loaders}
        for _ in range(args.repeats):  # in turn, so that a busy machine slows both
            for kind, loader in loaders.items():
                speeds[kind].append(clips_per_second(loader, batches))
        for kind, found in speeds.items():
            print(f"{kind:10s} {max(found):8.1f} clips/s (best of {args.repeats}, {args.workers} workers)")
        print(f"streamed / in memory: {max(speeds['streamed']) / max(speeds['in memory']):.3f}")
        short, long = peak_of(folder, batches), peak_of(folder, batches * args.long)
        print(f"peak memory: {short:.0f} MB for one pass, {long:.0f} MB for {args.long}, ratio {long / short:.3f}")


if __name__ == "__main__":
    main()
