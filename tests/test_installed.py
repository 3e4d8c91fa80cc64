"""The wheel, installed where no checkout is: what is in it, and the scripts run as modules."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny_checkpoint import save_tiny_checkpoint
from tiny_data import write_table
from tiny_runs import arguments

pytest.importorskip("setuptools", minversion="77", reason="builds a wheel: pip install 'triemo[dev]'")

FOLDERS = ("modeling", "processing", "training", "serving")
NOT_SHIPPED = ("training/recipes/", "serving/assets/make_", "training/README.md", "serving/README.md")


def run(*command: object, cwd: Path) -> str:
    """What a Python command prints, run where neither the checkout nor a PYTHONPATH is in reach."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def sources(repo_root, tmp_path_factory) -> Path:
    """A copy of what a wheel is built from: the build leaves files beside it."""
    folder = tmp_path_factory.mktemp("sources")
    for name in FOLDERS:
        shutil.copytree(repo_root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo_root / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder, sources, cwd=folder)
    (built,) = folder.glob("triemo-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of an environment with the wheel in it. It borrows this one's packages, and not this triemo:
    what makes an editable install visible is a .pth file, which is not read in folders that another one names."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    interpreter = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text("\n".join(entry for entry in sys.path if entry.endswith("site-packages")))
    offline = ("--no-deps", "--no-index", "--quiet", "--no-warn-script-location")
    run(sys.executable, "-m", "pip", "--python", interpreter, "install", *offline, wheel, cwd=folder)
    return interpreter


def test_wheel_holds_the_rooms_and_their_files_and_nothing_else(sources, wheel):
    """Against the folders themselves, so that a new room cannot be forgotten."""
    expected = {
        f"triemo/{path.relative_to(sources)}"
        for name in FOLDERS
        for path in (sources / name).rglob("*")
        if path.is_file() and not str(path.relative_to(sources)).startswith(NOT_SHIPPED)
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        scripts = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt"))).decode()
    assert held == expected
    assert "triemo/training/finetune.py" in held and "triemo/serving/page/space/README.md" in held
    assert "triemo = triemo.serving.cli:app" in scripts


@pytest.mark.slow
def test_scripts_run_as_modules_without_a_checkout(python, tmp_path):
    """Fine-tuning, by itself and under `accelerate launch`, and then the evaluation of what it wrote."""
    place = tmp_path
    save_tiny_checkpoint(place / "tiny")
    write_table(place / "data", train=4, validation=2, test=2)
    found = "import triemo.training, triemo.serving.cli; print(triemo.training.__file__)"
    assert Path(run(python, "-c", found, cwd=place).strip()).is_relative_to(python.parents[1])
    told = run(python, "-m", "triemo.training.finetune", "--help", cwd=place)
    assert "--table" in told and "default: triemo/triemo-small" in " ".join(told.split())
    launch = (python, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m")
    run(*launch, "triemo.training.finetune", *arguments(place, "mine", max_steps=1), cwd=place)
    learnt = json.loads((place / "mine" / "results.json").read_text())
    assert learnt["steps"] == 1
    scored = ("--model", place / "mine", "--table", place / "data" / "table.csv", "--output", place / "scores")
    run(python, "-m", "triemo.training.evaluate_model", *scored, "--use_cpu", "true", cwd=place)
    scores = json.loads((place / "scores" / "evaluation.json").read_text())
    assert {name: part["samples"] for name, part in scores["parts"].items()} == {"table": 2}
