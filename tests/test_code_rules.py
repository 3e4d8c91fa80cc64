"""Rules about the sources that no linter knows: who imports whom, what travels as remote code, what is never used."""

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from transformers.dynamic_module_utils import get_imports, get_relative_imports

ROOT = Path(__file__).resolve().parent.parent
OURS = ("modeling", "processing", "training", "serving")
FILES = [file for folder in OURS for file in sorted((ROOT / folder).rglob("*.py"))]
TRAVELLING = [file for file in FILES if file.relative_to(ROOT).parts[0] in ("modeling", "processing")]

INIT = ROOT / "training" / "__init__.py"  # imports nothing, and stands in no room

# What a file that travels to the Hub may import outright: the loader refuses the file where one of these is missing.
ALWAYS_THERE = {"torch", "transformers", "numpy", "safetensors", "huggingface_hub"}
# Audio and pictures cannot be had without these, and their error message from the loader is the right one.
NEEDED_BY_PROCESSING = {"torchaudio", "PIL"}
# Layers, from the bottom: each may import the ones named.
MAY_IMPORT = {
    "modeling": set(),
    "processing": set(),
    "training": {"modeling", "processing"},
    "serving": {"modeling", "processing", "training"},
}
# The rooms of training in their order: each may import itself and what stands before it. A dot names a file of a room.
ORDER = (
    ("common",),
    ("corpora.labels",),
    ("data",),
    ("corpora",),
    ("metrics",),
    (
        "arguments",
        "sources",
        "start",
        "run_folder",
        "trainer",
        "pretraining_data",
        "pretraining_trainer",
        "evaluation",
        "dialogue_task",
    ),
    # Rooms that stand side by side: none of these imports another one.
    ("finetune", "pretrain", "evaluate_model", "evaluate_pretraining", "export", "publish"),
    ("recipes",),
)
SIDE_BY_SIDE = 6

# An offence: the line it stands on, if it stands on one, and what is wrong.
Offence = tuple[int | None, str]


def check(rule: Callable[[Path], Iterable[Offence]], files: Iterable[Path] = FILES) -> None:
    """Walks all files, and fails with every offence there is."""
    found = [
        f"{file.relative_to(ROOT)}{f':{line}' if line else ''}: {what}" for file in files for line, what in rule(file)
    ]
    assert not found, "\n".join(["", *found])


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def imports_of(file: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.Import | ast.ImportFrom)]


def modules_of(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Absolute names of what is imported; none for a sibling."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.level:
        return []
    return [f"triemo.{alias.name}" for alias in node.names] if node.module == "triemo" else [node.module or ""]


def test_there_are_files_to_check():
    assert {file.relative_to(ROOT).parts[0] for file in FILES} >= set(OURS)


def test_an_offence_is_found_and_named(tmp_path):
    """The rules themselves, on a file that breaks each of them once."""
    wrong = tmp_path / "modeling" / "wrong.py"
    wrong.parent.mkdir()
    wrong.write_text(
        "from triemo.training.common import write_json\nfrom ..other import x\nimport modeling\nimport pickle\n"
        "assert x\ntorch.load('x')\nnp.load('x', allow_pickle=True)\ntry:\n    y\nexcept Exception:\n    pass\n"
    )
    assert [line for line, _ in layers_downwards(wrong, layer="modeling")] == [1, 3]
    assert [line for line, _ in only_siblings(wrong)] == [2, None]
    assert sorted(line for line, _ in unsafe_or_silent(wrong)) == [4, 5, 6, 7, 10]
    assert [what for _, what in offers(wrong)] == ["no `__all__`"]
    wrong.write_text(
        "from triemo.training.data.tables import x\nfrom triemo.training import finetune\nfrom .labels import y\n"
        "from triemo.training.common import z\nimport triemo.training.corpora.labels\n"
    )
    tree_of.cache_clear()
    assert [line for line, _ in order_in_training(wrong, "common")] == [1, 2, 3, 5]
    assert [line for line, _ in order_in_training(wrong, "corpora.labels")] == [1, 2, 3]
    assert [line for line, _ in order_in_training(wrong, "data.shards")] == [2, 3]
    assert [line for line, _ in order_in_training(wrong, "publish.push")] == [2, 3]
    assert [line for line, _ in order_in_training(wrong, "recipes.joint")] == [3]
    assert [line for line, _ in order_in_training(wrong, "elsewhere")] == [None]


def only_siblings(file: Path) -> Iterator[Offence]:
    """`from .name import X`, and the loader's regular expressions see the very same siblings, none in a docstring."""
    siblings = set()
    for node in imports_of(file):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        if node.level > 1:
            yield node.lineno, "a parent's import does not travel"
        elif not node.module:
            yield node.lineno, "`from . import x` is not followed by the loader"
        elif "." in node.module:
            yield node.lineno, "sub-folders do not travel"
        elif not (file.parent / f"{node.module}.py").is_file():
            yield node.lineno, f"no sibling {node.module}"
        else:
            siblings.add(node.module)
    seen = set(get_relative_imports(file))
    if seen != siblings:
        yield None, f"the loader sees the siblings {sorted(seen)}, and the file imports {sorted(siblings)}"


def test_travelling_files_import_only_siblings():
    check(only_siblings, TRAVELLING)


def only_what_is_there(file: Path) -> Iterator[Offence]:
    """Asks the loader itself, which looks into functions too: an optional package is imported in a try block."""
    allowed = ALWAYS_THERE | set(sys.stdlib_module_names)
    if file.relative_to(ROOT).parts[0] == "processing":
        allowed |= NEEDED_BY_PROCESSING
    missing = set(get_imports(file)) - allowed
    if missing:
        yield None, f"the loader refuses the file where {sorted(missing)} is missing"


def test_travelling_files_need_only_what_is_there():
    check(only_what_is_there, [file for file in TRAVELLING if file.name != "__init__.py"])


def layers_downwards(file: Path, layer: str | None = None) -> Iterator[Offence]:
    layer = layer or file.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[layer] | ({layer} if layer in ("training", "serving") else set())
    for node in imports_of(file):
        for module in modules_of(node):
            first, _, rest = module.partition(".")
            if first in OURS:
                yield node.lineno, f"{module} loads classes twice; import triemo.{module}"
            elif first == "triemo" and rest.split(".")[0] not in allowed:
                yield node.lineno, f"{layer} may not import {module}"


def test_layers_import_downwards_by_the_installed_name():
    check(layers_downwards)


def place_of(module: str) -> tuple[int, str] | None:
    """Where a module of training, such as "data.tables", stands: the step in `ORDER` and the room there."""
    parts = module.split(".")
    for name in (".".join(parts[:2]), parts[0]):
        for step, rooms in enumerate(ORDER):
            if name in rooms:
                return step, name
    return None


def order_in_training(file: Path, module: str | None = None) -> Iterator[Offence]:
    module = module or ".".join(file.relative_to(ROOT / "training").with_suffix("").parts)
    place = place_of(module)
    if place is None:
        yield None, "stands nowhere in the order of training; give it a place in ORDER"
        return
    step, room = place
    for node in imports_of(file):
        names = modules_of(node)
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "import by the installed name, triemo.training"
        elif names == ["triemo.training"] and isinstance(node, ast.ImportFrom):
            names = [f"triemo.training.{alias.name}" for alias in node.names]
        for name in names:
            if not name.startswith("triemo.training."):
                continue
            other = place_of(name.removeprefix("triemo.training."))
            if other is None or other[0] > step or (other[0] == step == SIDE_BY_SIDE and other[1] != room):
                yield node.lineno, f"{room} may not import {name}, which does not stand before it"


def test_rooms_of_training_import_what_stands_before_them():
    check(order_in_training, [f for f in FILES if f.is_relative_to(ROOT / "training") and f != INIT])


def installed_names(distribution: str, seen: set[str]) -> set[str]:
    """Normalised names of a distribution's dependencies, and theirs, as far as they are installed."""
    for text in metadata.requires(distribution) or []:
        name = re.sub(r"[-_.]+", "-", Requirement(text).name).lower()
        if name in seen:
            continue
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        seen.add(name)
        installed_names(name, seen)
    return seen


def test_no_training_module_hides_a_library():
    """A script in training/ has its folder first on the import path."""
    installed = installed_names("triemo", set())
    libraries = set(sys.stdlib_module_names)
    for module, distributions in metadata.packages_distributions().items():
        if {re.sub(r"[-_.]+", "-", name).lower() for name in distributions} & installed:
            libraries.add(module)
    assert {"evaluate", "datasets", "peft", "torch"} <= libraries
    ours = {p.stem if p.is_file() else p.name for p in (ROOT / "training").iterdir()} - {"__init__", "__pycache__"}
    assert not ours & libraries


def unsafe_or_silent(file: Path) -> Iterator[Offence]:
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert is left out under python -O; raise an error"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("torch.load", "torch.save"):
                yield node.lineno, f"{called}; use safetensors"
            if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords):
                yield node.lineno, "allow_pickle runs code from the file"
        if isinstance(node, ast.Import | ast.ImportFrom):
            pickling = {name.split(".")[0] for name in modules_of(node)} & {"pickle", "dill", "cloudpickle", "joblib"}
            if pickling:
                yield node.lineno, f"{sorted(pickling)} runs code from files"
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            if broad and len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
                yield node.lineno, "a swallowed error"


def test_nothing_unsafe_or_silent():
    """Weights are safetensors only, user errors are ValueErrors, and no error is swallowed without a word."""
    check(unsafe_or_silent)


def offers(file: Path) -> Iterator[Offence]:
    tree = tree_of(file)
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    if "__all__" not in assigned:
        yield None, "no `__all__`"
        return
    defined = set(assigned)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    try:
        offered = ast.literal_eval(assigned["__all__"])
    except ValueError:  # put together from other modules' lists
        return
    for name in sorted(set(offered) - defined):
        yield None, f"`__all__` names {name}, which the module does not define"


def test_modules_say_what_they_offer():
    """`__all__` exists and names only what the module defines."""
    check(offers)
