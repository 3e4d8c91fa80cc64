"""Rules about the sources that no linter knows: who imports whom, what travels as remote code, what is never used."""

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from transformers.dynamic_module_utils import get_imports, get_relative_imports

ROOT = Path(__file__).resolve().parent.parent
OURS = ("modeling", "processing", "training", "serving")
FILES = [file for folder in OURS for file in sorted((ROOT / folder).rglob("*.py"))]
TRAVELLING = [file for file in FILES if file.relative_to(ROOT).parts[0] in ("modeling", "processing")]

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


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imports_of(file: Path) -> list[ast.Import | ast.ImportFrom]:
    return [n for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.Import | ast.ImportFrom)]


def test_there_are_files_to_check():
    assert {file.relative_to(ROOT).parts[0] for file in FILES} >= set(OURS)


@pytest.mark.parametrize("file", TRAVELLING, ids=name_of)
def test_travelling_file_imports_only_siblings(file):
    """`from .name import X`, and the loader's regular expressions see the very same siblings, none in a docstring."""
    siblings = set()
    for node in imports_of(file):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"line {node.lineno}: a parent's import does not travel"
            assert node.module, f"line {node.lineno}: `from . import x` is not followed by the loader"
            assert "." not in node.module, f"line {node.lineno}: sub-folders do not travel"
            assert (file.parent / f"{node.module}.py").is_file(), f"line {node.lineno}: no sibling {node.module}"
            siblings.add(node.module)
    assert set(get_relative_imports(file)) == siblings


@pytest.mark.parametrize("file", [f for f in TRAVELLING if f.name != "__init__.py"], ids=name_of)
def test_travelling_file_needs_only_what_is_there(file):
    """Asks the loader itself, which looks into functions too: an optional package is imported in a try block."""
    allowed = ALWAYS_THERE | set(sys.stdlib_module_names)
    if file.relative_to(ROOT).parts[0] == "processing":
        allowed |= NEEDED_BY_PROCESSING
    assert set(get_imports(file)) <= allowed


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_layers_import_downwards_by_the_installed_name(file):
    layer = file.relative_to(ROOT).parts[0]
    for node in imports_of(file):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif node.level:
            continue
        else:
            modules = [node.module or ""]
            if node.module == "triemo":
                modules = [f"triemo.{alias.name}" for alias in node.names]
        for module in modules:
            first, _, rest = module.partition(".")
            assert first not in OURS, f"line {node.lineno}: {module} loads classes twice; import triemo.{module}"
            if first == "triemo":
                allowed = MAY_IMPORT[layer] | ({layer} if layer in ("training", "serving") else set())
                assert rest.split(".")[0] in allowed, f"line {node.lineno}: {layer} may not import {module}"


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


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_unsafe_or_silent(file):
    """Weights are safetensors only, user errors are ValueErrors, and no error is swallowed without a word."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        where = f"line {getattr(node, 'lineno', '?')}"
        assert not isinstance(node, ast.Assert), f"{where}: assert is left out under python -O; raise an error"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "torch.save"), f"{where}: {called}; use safetensors"
            pickled = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
            assert not pickled, f"{where}: allow_pickle runs code from the file"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else {node.module}
            )
            assert not names & {"pickle", "dill", "cloudpickle", "joblib"}, f"{where}: {names}"
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
            assert not (broad and silent), f"{where}: a swallowed error"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_module_says_what_it_offers(file):
    """`__all__` exists and names only what the module defines."""
    tree = ast.parse(file.read_text("utf-8"))
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    assert "__all__" in assigned
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
    assert not set(offered) - defined
