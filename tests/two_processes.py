"""Runs a script in two processes that find each other, as torchrun does."""

import os
import subprocess
import sys

__all__ = ["run_two_processes"]


def run_two_processes(*command: object, timeout: float = 500) -> str:
    """What `command` (a script and its arguments) prints, one thread a process; fails with its errors if it fails."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    run = subprocess.run(
        [*launcher, "--rdzv_endpoint", "localhost:0", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout
