"""What `triemo export` does: a checkpoint to a folder that runs without torch."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from triemo.serving.reading import load_reader

__all__ = ["export"]


def export(output: Path, model: str | None = None, int8: bool = True) -> None:
    """
    Write the folder and print what is in it.

    Raises:
        ValueError: no checkpoint there, one that cannot be a graph, or packages that are missing.
    """
    reader = load_reader(model, "cpu")
    console = Console()
    with _without_notes(), Console(stderr=True).status("Exporting; this takes about a minute"):
        try:
            from triemo.training.export.folder import export_onnx
        except ImportError as error:
            raise ValueError(
                f"export needs onnx, onnxruntime and onnxscript: pip install 'triemo[export]' ({error})."
            ) from error
        written = export_onnx(reader.model, reader.processor, output, int8=int8)
    for name, size in written["files"].items():
        console.print(f"{size / 1e6:8.1f} MB  {output / name}", highlight=False, soft_wrap=True)
    console.print(f"Largest difference of a logit from torch's: {written['largest_difference']:.1g}", highlight=False)


@contextmanager
def _without_notes() -> Iterator[None]:
    """Leaves out what exporter and quantiser note for developers, of torchvision and of pre-processing."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
