"""How much faster two processes read a collection than one, each with one thread and one core's work.

    python tests/benchmarks/bench_collection.py --clips 64

Made clips: sounds of 4 s, and stills of the demo's face beside every second one. Processes are forked when the model
is loaded, so the wall clock is that of the reading alone. On a machine that does other things the clock of two
processes is flattered, since they get two shares of it. The processor seconds are not: with as many for two as for one
nothing is lost to sharing, and on two free cores the ratio is twice their quotient, less what the longer share waits.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triemo.processing import load_frames
from triemo.serving.collection.clips import Collection, open_collection
from triemo.serving.collection.reading import Share, read_collection
from triemo.serving.reading import load_reader

ASSETS = Path(__file__).resolve().parents[2] / "serving" / "assets"


def make_clips(folder: Path, count: int) -> None:
    """WAV files of noise that swells and fades, and PNG files."""
    import wave

    from PIL import Image

    face = Image.fromarray(load_frames(str(ASSETS / "demo.mp4"), num_frames=1)[0][0])
    draw = np.random.default_rng(0)
    for number in range(count):
        swell = np.abs(np.sin(np.linspace(0, 6 + number % 5, 64_000)))
        samples = (8000 * swell * draw.uniform(-1, 1, 64_000)).astype("<i2")
        with wave.open(str(folder / f"{number:04d}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
        if number % 2:
            face.save(folder / f"{number:04d}.png")


def seconds_of(reader: Any, collection: Collection, processes: int) -> tuple[float, float]:
    """Wall clock, and processor seconds of all processes together."""
    context = multiprocessing.get_context("fork")
    spent = context.Queue()

    def work(index: int, output: str) -> None:
        torch.set_num_threads(1)
        before = time.process_time()
        read_collection(reader, collection, output, share=Share(index, processes), clips_per_part=8)
        spent.put(time.process_time() - before)

    with tempfile.TemporaryDirectory() as output:
        start = time.perf_counter()
        workers = [context.Process(target=work, args=(index, output)) for index in range(processes)]
        for worker in workers:
            worker.start()
        cpu = sum(spent.get() for _ in workers)
        for worker in workers:
            worker.join()
        if not (Path(output) / "table.parquet").is_file():
            raise RuntimeError(f"{processes} processes left no table.")
        return time.perf_counter() - start, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    reader = load_reader(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        make_clips(Path(folder), given.clips)
        collection = open_collection(folder)
        rounds = [[seconds_of(reader, collection, processes) for processes in (1, 2)] for _ in range(given.rounds)]
    (one, one_cpu), (two, two_cpu) = np.median(np.array(rounds), axis=0)
    load, cores = os.getloadavg()[0], os.cpu_count()
    print(f"one process:   {one:6.1f} s on the clock, {one_cpu:6.1f} processor seconds")
    print(f"two processes: {two:6.1f} s on the clock, {two_cpu:6.1f} processor seconds")
    print(
        f"ratio {one / two:.2f} on the clock, {2 * one_cpu / two_cpu:.2f} by work (load {load:.1f} on {cores} cores)"
    )


if __name__ == "__main__":
    main()
