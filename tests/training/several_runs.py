"""Runs of the scripts one after the other in processes that are already there: starting them takes longest."""

import json
import sys
from importlib import import_module
from pathlib import Path

import torch
from accelerate.state import PartialState

if __name__ == "__main__":
    torch.set_num_threads(1)
    runs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for script, argv in runs:
        import_module(f"triemo.training.{script}").main(argv)
        PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
