"""Loading a published repository elsewhere: what is asked of another process, and what this one answers."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from load_pcm import read_pcm
from media_files import sine, write_clip, write_sound
from PIL import Image
from skimage import data
from transformers import pipeline

from triemo.processing import TASK, MultimodalEmotionRecognitionPipeline

HEADS = [f"AutoModelFor{task}Classification" for task in ("Sequence", "Audio", "Image", "Video")]
MODELS = ["AutoModel", *HEADS]
PROCESSORS = ["AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor", "AutoTokenizer"]
SENTENCE = "I am so happy"


def write_media(folder: Path) -> dict[str, str]:
    write_clip(folder / "clip.mp4", frames=12, sound=sine(0.5, 16000), sound_rate=16000)
    write_sound(folder / "sound.wav", sine(0.5, 16000), 16000)
    write_clip(folder / "long.mp4", frames=12, rate=1, sound=sine(12, 16000), sound_rate=16000)
    Image.fromarray(data.astronaut()).save(folder / "face.png")
    names = ("clip.mp4", "long.mp4", "sound.wav", "face.png")
    return {name.partition(".")[0]: str(folder / name) for name in names}


def fresh_environment(folder: Path) -> str:
    """Python of a new virtual environment: every library of this one, but neither `triemo` nor any other `.pth`."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # All folders of libraries: an environment may borrow those of another one.
    (site_packages / "libraries.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("site-packages"))
    )
    return str(folder / "bin" / "python")


def run_elsewhere(
    arguments: list[str], folder: Path, environment: dict[str, str], python: str = sys.executable
) -> subprocess.CompletedProcess:
    """In `folder`, with a cache of its own."""
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), **environment}
    for name in ("HF_HUB_CACHE", "HF_MODULES_CACHE", "PYTHONPATH"):
        environment.pop(name, None)
    done = subprocess.run(
        [python, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def load_elsewhere(
    folder: Path,
    repo: str,
    blocked: list[str],
    environment: dict[str, str] | None = None,
    python: str = sys.executable,
    **job: Any,
) -> dict:
    """What load_remotely.py finds in a process without the blocked packages, offline unless told otherwise."""
    job |= {"repo": repo, "blocked": blocked, "results": str(folder / "results.json")}
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("load_remotely.py")
    run_elsewhere(
        [str(script), str(folder / "job.json")], folder, {"HF_HUB_OFFLINE": "1", **(environment or {})}, python
    )
    return json.loads((folder / "results.json").read_text())


def pipelines(files: dict[str, str]) -> dict[str, Any]:
    return {
        TASK: [{"video": files["clip"], "text": SENTENCE}, files["face"], files["sound"], files["long"]],
        "text-classification": SENTENCE,
        "audio-classification": files["sound"],
        "image-classification": files["face"],
        "video-classification": files["clip"],
    }


def same_scores(found: Any, wanted: Any) -> None:
    """Nested lists of label and score, or of numbers, within 1e-6."""
    if isinstance(wanted, dict):
        assert found["label"] == wanted["label"]
        assert found["score"] == pytest.approx(wanted["score"], abs=1e-6)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same_scores(one, other)
    else:
        assert found == pytest.approx(wanted, abs=1e-6)


def logits_here(repo: Path, tensors: dict[str, torch.Tensor]) -> dict[str, list]:
    """From the installed package, every Auto class, without trust_remote_code."""
    found = {}
    for name in MODELS:
        model = getattr(transformers, name).from_pretrained(repo)
        assert type(model).__module__ == "triemo.modeling.modeling_triemo"
        with torch.no_grad():
            output = model(**tensors)
        found[name] = (output.pooler_output if name == "AutoModel" else output.logits).tolist()
    return found


def scores_here(repo: Path, files: dict[str, str]) -> dict[str, Any]:
    here = {TASK: {"pipeline_class": MultimodalEmotionRecognitionPipeline}}
    inputs = pipelines(files) | {"audio-classification": read_pcm(files["sound"])}
    return {
        task: pipeline(task, model=str(repo), top_k=7, **here.get(task, {}))(input_) for task, input_ in inputs.items()
    }
