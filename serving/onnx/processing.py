"""`triemo.processing`'s files under a second name, for a process without torch.

`import triemo.processing` registers Auto classes, and those import torch. A module with `__path__` is a package to the
import system: this one has the same files and registers nothing. Its modules are others than `triemo.processing`'s, so
only functions and plain data are to be taken from here.
"""

from pathlib import Path

__all__: list[str] = []

__path__ = [str(Path(__file__).resolve().parents[2] / "processing")]
