"""The installed package, the torchaudio repair, the make targets, the docstring check and the demo's clip."""

import os
import re
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import av
import numpy as np
import pytest
from packaging.requirements import Requirement

from triemo.serving.assets.make_demo_clip import ASSETS, make_demo_clip
from triemo.serving.repair_torchaudio import find_torchaudio, repair_torchaudio

TARGETS = ("help", "venv", "demo", "test", "style", "quality", "clean")


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)


# The package


def test_version_and_command_are_declared():
    assert metadata.version("triemo") == "0.1.0"
    (command,) = metadata.entry_points(group="console_scripts", name="triemo")
    assert command.value == "triemo.serving.cli:app"


def test_torch_pin_admits_the_release_tried_and_no_later_one():
    requirements = {r.name: r for r in map(Requirement, metadata.requires("triemo") or []) if r.marker is None}
    assert requirements["torch"].specifier.contains("2.13.0")
    assert not requirements["torch"].specifier.contains("2.14.0")
    for name in ("torchaudio", "transformers", "datasets", "accelerate", "evaluate", "peft", "safetensors", "av"):
        assert requirements[name].specifier.contains(metadata.version(name)), name


def test_no_generic_name_becomes_importable(tmp_path):
    """From another folder `triemo.modeling` is found, and `modeling` is not."""
    code = (
        "from importlib.util import find_spec\n"
        "names = ['modeling', 'processing', 'training', 'serving']\n"
        "print([n for n in names if find_spec(n)], [n for n in names if not find_spec('triemo.' + n)])"
    )
    result = run_python("-c", code, cwd=tmp_path)
    assert result.stdout.strip() == "[] []", result.stderr


# The torchaudio repair


@pytest.fixture
def site_packages(tmp_path):
    """A torchaudio whose compiled files link to CUDA, except one."""
    lib = tmp_path / "torchaudio" / "lib"
    lib.mkdir(parents=True)
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('libc10_cuda.so: cannot open')\n")
    (lib / "__init__.py").touch()
    (lib / "_torchaudio.abi3.so").write_bytes(b"\x7fELF\0libc10.so\0libc10_cuda.so\0")
    (lib / "libtorchaudio.abi3.so").write_bytes(b"\x7fELF\0libc10.so\0")
    return tmp_path


def test_repair_removes_cuda_files_without_cuda_and_once_only(site_packages):
    folder = site_packages / "torchaudio"
    report = repair_torchaudio(folder, torch_cuda=None)
    assert [path.name for path in report.removed] == ["_torchaudio.abi3.so", "libtorchaudio.abi3.so"]
    assert "no CUDA" in report.reason
    assert sorted(p.name for p in (folder / "lib").iterdir()) == ["__init__.py"]
    assert (folder / "__init__.py").exists()
    again = repair_torchaudio(folder, torch_cuda=None)
    assert again.removed == [] and "nothing to repair" in again.reason


def test_repair_leaves_a_cuda_torch_alone(site_packages):
    report = repair_torchaudio(site_packages / "torchaudio", torch_cuda="13.0")
    assert report.removed == [] and "13.0" in report.reason
    assert len(list((site_packages / "torchaudio" / "lib").glob("*.so"))) == 2


def test_repair_leaves_a_cpu_torchaudio_alone(site_packages):
    (site_packages / "torchaudio" / "lib" / "_torchaudio.abi3.so").write_bytes(
        b"\x7fELF\0libc10.so\0libtorch_cpu.so\0"
    )
    assert repair_torchaudio(site_packages / "torchaudio", torch_cuda=None).removed == []
    assert len(list((site_packages / "torchaudio" / "lib").glob("*.so"))) == 2


def test_repair_without_torchaudio():
    assert "not installed" in repair_torchaudio(None, torch_cuda=None).reason


def test_torchaudio_is_found_without_running_it(site_packages, monkeypatch):
    """The one in front of the path raises on import, as a CUDA build does."""
    monkeypatch.syspath_prepend(site_packages)
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    assert find_torchaudio() == site_packages / "torchaudio"
    assert "torchaudio" not in sys.modules


def test_repair_module_imports_neither_torchaudio_nor_torch(tmp_path):
    code = "import sys, triemo.serving.repair_torchaudio; print({'torch', 'torchaudio'} & set(sys.modules))"
    assert run_python("-c", code, cwd=tmp_path).stdout.strip() == "set()"


def test_installed_torchaudio_imports(tmp_path):
    """What the set-up promises: these three raise next to an unrepaired torchaudio."""
    result = run_python("-c", "import torchaudio, evaluate, transformers.audio_utils", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


# Make and continuous integration


def make(repo_root: Path, *arguments: str) -> str:
    # Without this, a suite started by make would hand its own flags on.
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    result = subprocess.run(["make", *arguments], cwd=repo_root, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_target_exists_and_help_lists_it(repo_root, target):
    make(repo_root, "--dry-run", target)
    assert target == "help" or re.search(rf"^make {target} ", make(repo_root, "help"), flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("demo", "triemo demo"),
        ("test", "-m pytest"),
        ("quality", "mypy modeling processing"),
        ("style", "ruff format"),
    ],
)
def test_target_sets_up_before_it_runs(repo_root, tmp_path, target, command):
    """With an empty VENV the plan creates, installs and repairs, in this order, and then does the work."""
    plan = make(repo_root, "--dry-run", target, f"VENV={tmp_path / 'venv'}")
    steps = ["-m venv", "pip install", "repair_torchaudio", command]
    positions = [plan.find(step) for step in steps]
    assert -1 not in positions and positions == sorted(positions), plan


def test_set_up_that_is_done_is_not_done_again(repo_root, tmp_path):
    (tmp_path / ".triemo-installed").touch()
    assert "pip install" not in make(repo_root, "--dry-run", "venv", f"VENV={tmp_path}")


def test_ci_runs_quality_the_suite_alone_and_the_corpora(repo_root):
    """The checks; the whole suite in a clone that has nothing beside it; here, beside the corpora, what reads them."""
    script = repo_root / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    lines = script.read_text().splitlines()
    steps = [
        "set -euo pipefail",
        "export TRIEMO_REQUIRE_BROWSER=1",
        "make quality",
        'git clone --quiet . "$place/triemo"',
        'env -u TRIEMO_DATA make -C "$place/triemo" test',
        'make test PYTEST="-m corpora"',
    ]
    assert [line for line in lines if line in steps] == steps
    assert "-m pytest -n 2 --dist loadfile -m corpora" in make(repo_root, "--dry-run", "test", "PYTEST=-m corpora")


# The docstring check

RIGHT = '''
LIMIT = 512

@dataclass
class Config:
    """A configuration.

    Args:
        size (`int`, *optional*, defaults to 3):
            The size.
        scale (`float`, *optional*, defaults to `0.5`): its scale.
        names (`list[str]`, *optional*, defaults to `["a, b", "c"]`): names.
        rate (`float`, *optional*): in Hz; defaults to the model's rate.
    """

    size: int = 3
    scale: float = 0.5
    names: list = field(default_factory=lambda: ["a, b", "c"])
    rate: float | None = None


def cut(text, limit=LIMIT, pair=(0, 1), *, mode="mean"):
    """Cut.

    Args:
        text: what to cut.
        limit (`int`, *optional*, defaults to 512): most characters.
        pair (`tuple[int, int]`, *optional*, defaults to (0, 1)): a pair.
        mode (`str`, *optional*, defaults to `"mean"`): how.

    Returns:
        The mode, which defaults to `"max"` elsewhere.
    """
'''


@pytest.mark.parametrize(
    ("change", "line", "expected"),
    [
        (("size: int = 3", "size: int = 4"), 9, "Config: `size`: got `3` in the docstring, expected `4`"),
        (("scale: float = 0.5", "scale: float = 0.25"), 11, "Config: `scale`: got `0.5` in the docstring"),
        (('["a, b", "c"])', '["a"])'), 12, "Config: `names`"),
        (("LIMIT = 512", "LIMIT = 128"), 27, "cut: `limit`: got `512` in the docstring, expected `128`"),
        (("pair=(0, 1)", "pair=(0, 2)"), 28, "cut: `pair`"),
        (('mode="mean"):', 'mode="sum"):'), 29, "cut: `mode`: got `\"mean\"` in the docstring, expected `'sum'`"),
        (('*, mode="mean"):', "*, mode):"), 29, 'cut: `mode`: got `"mean"` in the docstring, expected no default'),
    ],
)
def test_docstring_check_names_the_line_got_and_expected(repo_root, tmp_path, change, line, expected):
    assert change[0] in RIGHT
    wrong = tmp_path / "wrong.py"
    wrong.write_text(RIGHT.replace(*change))
    result = run_python(str(repo_root / ".ci" / "check_docstrings.py"), str(wrong), cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout.count("\n") == 2  # one problem and the count
    assert f"wrong.py:{line}: {expected}" in result.stdout


def test_docstring_check_passes_what_is_right(repo_root, tmp_path):
    (tmp_path / "right.py").write_text(RIGHT)
    result = run_python(str(repo_root / ".ci" / "check_docstrings.py"), str(tmp_path), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "")


# The demo's clip


def read_clip(path: Path) -> tuple[list[np.ndarray], float, float, float]:
    """Frames, frame rate in Hz, length of the picture and of the sound in seconds."""
    with av.open(str(path)) as clip:
        video, audio = clip.streams.video[0], clip.streams.audio[0]
        rate = float(video.average_rate)
        sampling_rate = audio.rate
        frames, samples = [], 0
        for frame in clip.decode(video, audio):
            if isinstance(frame, av.VideoFrame):
                frames.append(frame.to_ndarray(format="rgb24"))
            else:
                samples += frame.samples
    return frames, rate, len(frames) / rate, samples / sampling_rate


def test_demo_clip_shows_and_says_what_it_should():
    frames, rate, seconds, sound_seconds = read_clip(ASSETS / "demo.mp4")
    assert rate == 25.0
    assert frames[0].shape == (480, 640, 3)
    with av.open(str(ASSETS / "demo.flac")) as speech:
        assert speech.streams.audio[0].rate == 16000 and speech.streams.audio[0].channels == 1
        speech_seconds = sum(frame.samples for frame in speech.decode(audio=0)) / 16000
    assert seconds == pytest.approx(speech_seconds, abs=1 / rate)
    assert sound_seconds == pytest.approx(speech_seconds, abs=0.13)  # AAC: one frame of priming, one of padding
    # The picture moves, or sampling frames from it would show nothing.
    assert np.abs(frames[0].astype(int) - frames[-1].astype(int)).mean() > 3
    assert (ASSETS / "demo.mp4").stat().st_size < 300_000
    assert len((ASSETS / "demo.txt").read_text().split()) >= 5


def test_demo_clip_can_be_made_again(tmp_path):
    pytest.importorskip("skimage", reason="scikit-image is only needed to remake the clip")
    make_demo_clip(ASSETS / "demo.flac", tmp_path / "again.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["again.mp4"]
    kept, made = (read_clip(path)[0] for path in (ASSETS / "demo.mp4", tmp_path / "again.mp4"))
    assert len(kept) == len(made)
    for index in (0, -1):
        assert np.abs(kept[index].astype(int) - made[index].astype(int)).mean() < 2
