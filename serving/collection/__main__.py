"""`triemo read` for launchers of several processes.

accelerate launch --num_processes 4 -m triemo.serving.collection clips/ --output results/      # GPUs
torchrun --nproc_per_node 2 -m triemo.serving.collection clips/ --output results/              # no GPU
"""

import sys

from triemo.serving.cli import app

__all__: list[str] = []

if __name__ == "__main__":
    app(["read", *sys.argv[1:]], prog_name="triemo")
