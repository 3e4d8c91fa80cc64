"""What a folder is checked for before it is published: no pickle, and that it loads where Triemo is not installed."""

import ast
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

__all__ = ["check_loads", "check_no_pickles", "first_example", "lay_out_cache"]

_PICKLED = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack"}
_MEDIA = {".mp4", ".flac", ".opus", ".wav", ".png", ".jpg", ".jpeg", ".svg"}
_COMMIT = "0" * 40
_SCRIPT = Path(__file__).with_name("loads.py")


def check_no_pickles(folder: Path, whole: bool = False) -> None:
    """
    Refuse weights that can run code.

    Args:
        folder: looked at are its files and those of `onnx/`.
        whole: look into every sub-folder, and also refuse what is of no known kind or not what its name says.

    Raises:
        ValueError: naming the file.
    """
    folder = Path(folder)
    inner = folder.rglob("*") if whole else (*folder.iterdir(), *folder.glob("onnx/*"))
    for path in sorted(file for file in inner if file.is_file()):
        name = path.relative_to(folder)
        if path.suffix.lower() in _PICKLED or _is_pickle(path):
            raise ValueError(f"checkpoint: {name} is a pickle or of a kind that may hold one; expected safetensors.")
        if whole:
            _check_kind(path, name)


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(name).suffix in (".pkl", ".pickle") for name in archive.namelist())


def _check_kind(path: Path, name: Path) -> None:
    kind = path.suffix.lower()
    try:
        if kind == ".json":
            json.loads(path.read_text("utf-8"))
        elif kind == ".safetensors":
            with safe_open(path, framework="np") as weights:
                weights.keys()
        elif kind == ".py":
            ast.parse(path.read_text("utf-8"))
        elif kind in (".md", ".txt", ".css", ".srt", ".yaml") or path.name == "LICENSE":
            path.read_text("utf-8")
        elif kind != ".onnx" and kind not in _MEDIA and not path.name.endswith(".onnx.data"):
            raise ValueError(f"checkpoint: {name} is of a kind that is not published.")
    except (UnicodeDecodeError, json.JSONDecodeError, SyntaxError, SafetensorError) as error:
        raise ValueError(f"checkpoint: {name} is not what its name says: {error}") from error


def check_loads(folder: Path, repo: str) -> None:
    """
    Load a folder by every Auto class and run the first example of its card, in a process of its own, offline, where
    `triemo` cannot be imported and the Hub's cache holds this folder under the name `repo`.

    Raises:
        ValueError: with the last lines of what went wrong.
    """
    with tempfile.TemporaryDirectory(prefix="triemo-publish-") as temporary:
        lay_out_cache(folder, repo, Path(temporary) / "hf" / "hub")
        empty = Path(temporary) / "empty"
        empty.mkdir()
        environment = {**os.environ, "HF_HOME": str(Path(temporary) / "hf"), "HF_HUB_OFFLINE": "1"}
        for name in ("HF_HUB_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_CACHE"):
            environment.pop(name, None)
        card = Path(folder) / "README.md"
        example = first_example(card.read_text("utf-8")) if card.is_file() else ""
        if json.loads((Path(folder) / "config.json").read_text("utf-8")).get("step_aligned"):
            example = ""  # it needs the checkpoint of the towers, which is another repository
        job = Path(temporary) / "job.json"
        job.write_text(json.dumps({"repo": repo, "example": example}))
        done = subprocess.run(
            [sys.executable, str(_SCRIPT), str(job)], cwd=empty, env=environment, capture_output=True, text=True
        )
    if done.returncode:
        reason = " | ".join(done.stderr.strip().splitlines()[-3:])
        raise ValueError(f"checkpoint: it does not load where triemo is not installed: {reason}")


def lay_out_cache(folder: Path, repo: str, cache: Path) -> None:
    """The Hub's cache as it is after a download of `repo`, its files being links to those of the folder."""
    place = cache / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / _COMMIT
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            link = snapshot / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(_COMMIT)


def first_example(card: str) -> str:
    """The first Python block of a card, or nothing."""
    return card.partition("```python\n")[2].partition("```")[0]
