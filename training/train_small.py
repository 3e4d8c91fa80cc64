"""Trains `checkpoints/triemo-small` in five stages, each below an hour on two cores and each resumable.

    python training/train_small.py --stage all --data ../shared/data --weights ../shared/weights --output runs/small

Stages: `vision` (face ResNet on FER2013), `text` (MiniLM on GoEmotions), `audio` (Whisper encoder fitted to RAVDESS),
`joint` (joint encoder, fusion and heads on all three and on composites), `evaluate` (figures, calibration, release).
"""

import json
import sys
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import torch
from transformers import HfArgumentParser

__all__ = ["SmallArguments", "main"]

STAGES = ("vision", "text", "audio", "joint", "evaluate")


@dataclass
class SmallArguments:
    """What `train_small.py` takes on the command line."""

    stage: str = field(default="all", metadata={"help": "one of vision, text, audio, joint, evaluate, or all of them"})
    data: str | None = field(default=None, metadata={"help": "folder of the corpora (default: TRIEMO_DATA)"})
    weights: str | None = field(default=None, metadata={"help": "folder with local copies of the Hub encoders"})
    output: str = field(default="runs/small", metadata={"help": "folder of the towers, trainer states and logs"})
    checkpoint: str = field(default="checkpoints/triemo-small", metadata={"help": "folder of the released model"})
    text_encoder: str = field(default="sentence-transformers/all-MiniLM-L6-v2", metadata={"help": "Hub id or folder"})
    audio_encoder: str = field(default="openai/whisper-tiny.en", metadata={"help": "Hub id or folder"})
    vision_epochs: int = field(default=48, metadata={"help": "passes over FER2013"})
    text_epochs: int = field(default=2, metadata={"help": "passes over GoEmotions"})
    joint_steps: int = field(default=600, metadata={"help": "optimiser steps of the joint stage"})
    seed: int = field(default=0, metadata={"help": "seed of every stage"})
    threads: int = field(default=2, metadata={"help": "torch threads"})
    cpu: bool = field(default=True, metadata={"help": "train on the CPU; --no_cpu takes the accelerator"})

    def encoder(self, name: str) -> str:
        """The Hub id, or the local copy under `weights` where there is one."""
        base = name.split("/")[-1]
        for candidate in (base, f"{base}-encoder"):
            if self.weights and (Path(self.weights) / candidate).is_dir():
                return str(Path(self.weights) / candidate)
        return name


def main(arguments: list[str] | None = None) -> None:
    """Runs the stages asked for and writes what each reports to `<output>/<stage>.json`."""
    parser = HfArgumentParser(SmallArguments, description=__doc__.splitlines()[0])
    (args,) = parser.parse_args_into_dataclasses(arguments)
    if args.stage not in (*STAGES, "all"):
        raise ValueError(f"stage: got {args.stage!r}, expected one of {(*STAGES, 'all')}")
    torch.set_num_threads(args.threads)
    Path(args.output).mkdir(parents=True, exist_ok=True)
    for stage in STAGES if args.stage == "all" else (args.stage,):
        report_file = Path(args.output) / f"{stage}.json"
        if args.stage == "all" and stage != "evaluate" and report_file.exists():
            print(f"{stage}: done before, see {report_file}")
            continue
        start = time.time()
        train = getattr(import_module(f"triemo.training.small_{stage}"), f"train_{stage}")
        report = {"command": " ".join(["python", *sys.argv]), "seed": args.seed, **train(args)}
        report["minutes_in_this_process"] = (time.time() - start) / 60
        unfinished = report_file.with_suffix(".part")
        unfinished.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
        unfinished.replace(report_file)
        print(json.dumps(report, indent=2, sort_keys=True))


if __name__ == "__main__":
    main()
