"""Make torchaudio importable next to a torch without CUDA: `python -m triemo.serving.repair_torchaudio`.

The torchaudio wheel on PyPI is a CUDA build. Next to a CPU-only torch its compiled files cannot find
`libc10_cuda.so`, and `import torchaudio` raises OSError; so do `evaluate` and parts of transformers, which import it.
Those files are optional: mel spectrograms, MFCC, resampling and Kaldi features are pure torch. Without them
torchaudio imports; only `lfilter`-type operators and forced alignment are missing. With a CUDA torch nothing is
touched.
"""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["RepairReport", "find_torchaudio", "main", "repair_torchaudio"]

# Names of the libraries that a CUDA build links to, as they stand in the file's table of needed libraries.
CUDA_LIBRARIES = (b"libc10_cuda.so", b"libtorch_cuda.so", b"libcudart.so")


@dataclass
class RepairReport:
    """What was done and why.

    Attributes:
        reason: one sentence for the user.
        removed: the files that were removed, possibly none.
    """

    reason: str
    removed: list[Path] = field(default_factory=list)


def find_torchaudio() -> Path | None:
    """Folder of the installed torchaudio, found without importing it, or None."""
    spec = importlib.util.find_spec("torchaudio")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def repair_torchaudio(folder: Path | None, torch_cuda: str | None) -> RepairReport:
    """Remove torchaudio's compiled CUDA files where torch has no CUDA. A second call finds nothing to do.

    Args:
        folder: torchaudio's package folder, or None if it is not installed.
        torch_cuda: `torch.version.cuda`, None for a torch built without CUDA.

    Returns:
        What was removed and the reason.

    Raises:
        PermissionError: if a file that has to go cannot be removed.
    """
    if folder is None:
        return RepairReport("torchaudio is not installed: nothing to repair.")
    if torch_cuda is not None:
        return RepairReport(f"torch is built for CUDA {torch_cuda}: torchaudio is left as it is.")
    compiled = sorted((folder / "lib").glob("*.so"))
    if not compiled:
        return RepairReport("torchaudio has no compiled files: nothing to repair.")
    if not any(_needs_cuda(path) for path in compiled):
        return RepairReport("torchaudio is not a CUDA build: it is left as it is.")
    # All of them go, also one that links to no CUDA library: it depends on the ones that do.
    for path in compiled:
        path.unlink()
    return RepairReport(
        f"removed {len(compiled)} compiled CUDA files of torchaudio, because this torch has no CUDA and they keep "
        "torchaudio from importing. All that Triemo uses of it is pure torch and works without them.",
        removed=compiled,
    )


def main() -> int:
    """Repair the installed torchaudio and say what was done; returns the exit status."""
    import torch

    try:
        report = repair_torchaudio(find_torchaudio(), torch.version.cuda)
    except PermissionError as error:
        print(f"triemo: cannot remove {error.filename}: no permission. Repair it as its owner.", file=sys.stderr)
        return 1
    print(f"triemo: {report.reason}")
    for path in report.removed:
        print(f"  - {path}")
    return 0


def _needs_cuda(path: Path) -> bool:
    content = path.read_bytes()
    return any(name in content for name in CUDA_LIBRARIES)


if __name__ == "__main__":
    sys.exit(main())
