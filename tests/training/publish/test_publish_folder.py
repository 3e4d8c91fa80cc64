"""What a repository is made of, and what is never published."""

import ast
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint

from triemo.training.publish.checks import check_no_pickles, first_example
from triemo.training.publish.command import publish
from triemo.training.publish.folder import assemble_repository, requirements_of
from triemo.training.publish.space import assemble_space

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "tiny")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "onnx/extra.pkl"])
def test_pickle_by_its_name_is_refused(tiny, tmp_path, name):
    (tiny / name).parent.mkdir(exist_ok=True)
    (tiny / name).write_bytes(b"whatever")
    with pytest.raises(ValueError, match=f"{name} is a pickle"):
        publish("user/tiny", tiny, dry_run=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickle_by_its_bytes_is_refused(tiny, tmp_path):
    for protocol in (2, 4, 5):
        (tiny / "model.safetensors").write_bytes(pickle.dumps({"weight": 1}, protocol=protocol))
        with pytest.raises(ValueError, match=r"model\.safetensors is a pickle"):
            assemble_repository(tiny, tmp_path / "out", "user/tiny")
    torch.save({"weight": torch.zeros(1)}, tiny / "model.safetensors")
    assert zipfile.is_zipfile(tiny / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is a pickle"):
        assemble_repository(tiny, tmp_path / "out", "user/tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"\x10" * 64, "a.safetensors is not what its name says"),
        ("a.json", pickle.dumps({}, protocol=0), "a.json is not what its name says"),
        ("a.py", b"def", "a.py is not what its name says"),
        ("a.md", b"\xff\xfe\x00", "a.md is not what its name says"),
        ("a.exe", b"MZ", "a.exe is of a kind that is not published"),
    ],
)
def test_file_that_is_not_what_its_name_says_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        check_no_pickles(tmp_path, whole=True)


def test_own_card_and_graphs_travel_and_peft_s_empty_card_does_not(tiny, tmp_path):
    (tiny / "onnx").mkdir()
    (tiny / "onnx" / "model.onnx").write_bytes(b"graph")
    (tiny / "README.md").write_text("---\nlicense: mit\n---\n# Model Card\n[More Information Needed]\n")
    folder = assemble_repository(tiny, tmp_path / "out", "user/tiny")
    card = (folder / "README.md").read_text()
    assert (folder / "onnx" / "model.onnx").read_bytes() == b"graph"
    assert "More Information" not in card and 'model="user/tiny"' in first_example(card)
    (tiny / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    again = assemble_repository(tiny, tmp_path / "again", "user/tiny")
    assert (again / "README.md").read_text() == (tiny / "README.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "out", "again"}
    with pytest.raises(ValueError, match="new or empty folder"):
        assemble_repository(tiny, tmp_path / "again", "user/tiny")


def test_card_with_figures_that_were_not_measured_is_refused(tiny, tmp_path):
    (tiny / "metrics.json").write_text(json.dumps({"figures": {"meld_test": {"weighted_f1": 0.61}}}))
    (tiny / "README.md").write_text("---\nlicense: mit\n---\n<!-- figures -->\n0.910\n<!-- /figures -->\n")
    with pytest.raises(ValueError, match="not those of metrics.json"):
        publish("user/tiny", tiny, dry_run=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapter_names_its_base(tiny, tmp_path):
    (tiny / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/home/me/base", "r": 2}))
    with pytest.raises(ValueError, match=r"lacks adapter_model\.safetensors"):
        assemble_repository(tiny, tmp_path / "out", "user/tiny")


def test_requirements_are_the_libraries_imported_with_the_project_s_bounds(tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        "import json, torch\nfrom .own import x\ntry:\n    import cv2\nfinally:\n    from PIL import Image\n"
    )
    lines = requirements_of([file])
    assert [line.partition("<")[0].partition(">")[0] for line in lines] == [
        "opencv-python-headless",
        "pillow",
        "torch",
    ]
    assert "<5" in lines[0] and ">=2.11" in lines[2]


def test_wrong_arguments_are_named_before_anything_is_done(tiny, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="repo: got 'tiny'"):
        publish("tiny", tiny, dry_run=out)
    with pytest.raises(ValueError, match="space: got 'demo'"):
        publish("user/tiny", tiny, dry_run=out, space="demo")
    with pytest.raises(ValueError, match="got both"):
        publish("user/tiny", tiny, dry_run=out, branch="next", pull_request=True)
    with pytest.raises(ValueError, match="is no folder"):
        publish("user/tiny", tmp_path / "nowhere", dry_run=out)
    assert not out.exists()


def test_space_is_whole_and_names_the_model_it_shows(tmp_path):
    """Every module of ours that a file in it imports is in it."""
    project = tmp_path / "project"
    for name in ("modeling", "processing", "training", "serving"):
        shutil.copytree(ROOT / name, project / name)
    shutil.rmtree(project / "serving" / "page" / "space", ignore_errors=True)
    with pytest.raises(ValueError, match="user/demo cannot be made"):
        assemble_space(tmp_path / "out", "user/demo", "user/tiny", project)
    space = project / "serving" / "page" / "space"
    space.mkdir()
    (space / "README.md").write_text("---\ntitle: Triemo\nsdk: gradio\napp_file: app.py\n---\n# Demo\n")
    folder = assemble_space(tmp_path / "out", "user/demo", "user/tiny", project)
    assert {path.name for path in folder.iterdir()} == {"README.md", "app.py", "requirements.txt", "triemo"}
    assert "sdk: gradio" in (folder / "README.md").read_text() and "- user/tiny" in (folder / "README.md").read_text()
    assert "triemo" not in (folder / "requirements.txt").read_text()
    assert "torch<" in (folder / "requirements.txt").read_text()
    imported = {
        name
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("triemo.")
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    }
    ours = {name for name in imported if (ROOT / f"{name.partition('.')[2].replace('.', '/')}.py").is_file()}
    assert len(ours) >= 6
    assert not {name for name in ours if not (folder / f"{name.replace('.', '/')}.py").is_file()}
    assert (folder / "triemo" / "serving" / "assets" / "demo.mp4").is_file()
    assert (folder / "triemo" / "modeling" / "fusion_triemo.py").is_file()
    assert not (folder / "triemo" / "serving" / "cli.py").exists()
    assert not list(folder.rglob("__pycache__"))
