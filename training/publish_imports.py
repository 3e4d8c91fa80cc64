"""What Python files import: of ours, to take it along; of others, to require it."""

import ast
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["PROJECT", "modules_of", "requirements_of"]

PROJECT = Path(__file__).resolve().parent.parent
# Import names that are not the distribution's.
_IMPORTED_AS = {"pillow": "PIL", "opencv-python-headless": "cv2", "pyyaml": "yaml", "scikit-learn": "sklearn"}


def requirements_of(files: Iterable[Path]) -> list[str]:
    """Of the libraries that Triemo requires, with their bounds, those that these files import anywhere."""
    imported = {name.partition(".")[0] for file in files for level, name in _imports(file) if not level}
    lines = set()
    for requirement in map(Requirement, metadata.requires("triemo") or []):
        name = requirement.name.lower()
        if name != "triemo" and _IMPORTED_AS.get(name, name.replace("-", "_")) in imported:
            lines.add(f"{name}{requirement.specifier}")
    return sorted(lines)


def modules_of(entry: Path, project: Path = PROJECT) -> set[Path]:
    """
    The files of `triemo` that a file imports, directly or not, with their packages.

    Args:
        entry: a Python file.
        project: the folder in which `modeling`, `processing`, `training` and `serving` lie.
    """
    found: set[Path] = set()
    waiting = [entry]
    while waiting:
        file = waiting.pop()
        for level, name in _imports(file):
            parts = name.split(".")
            if not level and parts[0] != "triemo":
                continue
            place = file.parent / Path(*parts) if level else project.joinpath(*parts[1:])
            module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            new = {path for path in (module, module.parent / "__init__.py") if path.is_file()} - found
            found |= new
            waiting += new
    return found


def _imports(file: Path) -> Iterator[tuple[int, str]]:
    """Level (0 is absolute) and name of each module that an import may mean, wherever it stands in the file."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module
            yield from ((node.level, f"{node.module}.{alias.name}") for alias in node.names)
