"""Runs of the scripts, and predictions, one after the other in processes that are already there: starting them takes
longest. A prediction is `("predict", [model, table, file of the logits])`.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import torch
from accelerate.state import PartialState
from tiny_runs import predicted_logits

if __name__ == "__main__":
    torch.set_num_threads(1)
    runs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for script, argv in runs:
        if script == "predict":
            model, table, file = argv
            Path(f"{file}_{PartialState().process_index}").write_text(json.dumps(predicted_logits(model, table)))
        else:
            import_module(f"triemo.training.{script}").main(argv)
        PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
