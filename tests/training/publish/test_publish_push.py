"""Pushing a folder: one commit or none, whatever happens in between."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from loopback_hub import TOKEN, LoopbackHub

from triemo.training.publish.push import check_repo_id, push_folder

REPO = ("models", "user/model")
CARD = "---\nlicense: mit\n---\n# A model\n"
PUSH = """
import sys
from pathlib import Path
from triemo.training.publish.push import push_folder
push_folder(Path(sys.argv[1]), "user/model")
"""


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "onnx").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights" * 30_000)
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_push_makes_one_commit_and_the_same_again_makes_none(hub, api, folder):
    done = push_folder(folder, "user/model", message="One", api=api)
    repo = hub.repos[REPO]
    assert done.changed and repo.refs == {"main": done.commit} and not repo.private
    assert repo.log() == ["One", "initial commit"]
    assert hub.files("user/model").keys() - contents(folder).keys() == {".gitattributes"}
    assert contents(folder).items() <= hub.files("user/model").items()
    stored = repo.commits[done.commit].files
    assert stored["model.safetensors"].lfs and stored["onnx/model.onnx"].lfs and not stored["config.json"].lfs

    uploads = [request for request in hub.requests if request.startswith("PUT")]
    again = push_folder(folder, "user/model", message="Two", api=api)
    assert not again.changed and again.commit == done.commit and repo.log() == ["One", "initial commit"]
    assert [request for request in hub.requests if request.startswith("PUT")] == uploads


def test_repository_holds_what_the_folder_holds(hub, api, folder):
    (folder / "pytorch_model.bin").write_bytes(b"old")
    push_folder(folder, "user/model", api=api)
    (folder / "pytorch_model.bin").unlink()
    (folder / "config.json").write_text('{"a": 1}')
    done = push_folder(folder, "user/model", api=api)
    assert done.deleted == ("pytorch_model.bin",)
    assert hub.files("user/model").keys() == contents(folder).keys() | {".gitattributes"}
    assert hub.files("user/model")["config.json"] == b'{"a": 1}'
    assert len(hub.repos[REPO].log()) == 3


def test_private_branch_and_pull_request(hub, api, folder):
    with pytest.raises(ValueError, match="no repository user/model"):
        push_folder(folder, "user/model", pull_request=True, api=api)
    push_folder(folder, "user/model", private=True, api=api)
    repo = hub.repos[REPO]
    assert repo.private
    first = dict(repo.refs)
    (folder / "config.json").write_text('{"a": 1}')
    branch = push_folder(folder, "user/model", branch="next", api=api)
    request = push_folder(folder, "user/model", pull_request=True, api=api)
    assert repo.refs["main"] == first["main"]
    assert repo.refs["next"] == branch.commit and repo.refs["refs/pr/1"] == request.commit
    assert request.url.endswith("/discussions/1")
    assert hub.files("user/model", "refs/pr/1")["config.json"] == b'{"a": 1}'

    push_folder(folder, "user/open", api=api)
    with pytest.raises(ValueError, match="public already"):
        push_folder(folder, "user/open", private=True, api=api)
    with pytest.raises(ValueError, match="got both"):
        push_folder(folder, "user/model", branch="next", pull_request=True, api=api)
    assert push_folder(folder, "user/demo", repo_type="space", api=api).changed
    assert ("spaces", "user/demo") in hub.repos


def test_broken_connection_leaves_the_remote_as_it_was(hub, api, folder):
    push_folder(folder, "user/model", api=api)
    before, files = dict(hub.repos[REPO].refs), hub.files("user/model")
    (folder / "model.safetensors").write_bytes(b"others" * 30_000)
    hub.break_at = "POST .*/(commit|preupload)/"
    for options in ({}, {"branch": "next"}, {"pull_request": True}):
        hub.break_at = "POST .*/commit/"
        with pytest.raises(ValueError, match="could not push to user/model: "):
            push_folder(folder, "user/model", api=api, **options)
        assert hub.repos[REPO].refs == before and hub.files("user/model") == files
    with pytest.raises(ValueError, match="could not push to user/new: "):
        push_folder(folder, "user/new", api=api)
    assert list(hub.repos) == [REPO]
    hub.break_at = None
    assert push_folder(folder, "user/model", api=api).changed
    assert hub.files("user/model")["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_lost_answer_does_not_undo_a_commit(hub, api, folder):
    """The commit came to its end, then the line went dead: what was pushed stays."""
    hub.lose_answer_at = "POST .*/commit/"
    with pytest.raises(ValueError, match="could not push"):
        push_folder(folder, "user/model", api=api)
    assert contents(folder).items() <= hub.files("user/model").items()
    hub.lose_answer_at = None
    assert not push_folder(folder, "user/model", api=api).changed


def test_killed_in_the_middle_of_an_upload(hub, api, folder, tmp_path):
    push_folder(folder, "user/model", api=api)
    before, files = dict(hub.repos[REPO].refs), hub.files("user/model")
    (folder / "model.safetensors").write_bytes(b"others" * 30_000)
    (folder / "config.json").write_text('{"a": 1}')
    hub.break_at, hub.hold = "PUT /lfs-store/", True
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    child = subprocess.Popen(
        [sys.executable, "-c", PUSH, str(folder)], env={**environment, "HF_HUB_DISABLE_XET": "1"}, cwd=tmp_path
    )
    assert hub.held.wait(60)
    child.send_signal(signal.SIGKILL)
    child.wait()
    hub.break_at, hub.hold = None, False
    assert hub.repos[REPO].refs == before and hub.files("user/model") == files
    push_folder(folder, "user/model", api=api)
    assert contents(folder).items() <= hub.files("user/model").items()
    assert len(hub.repos[REPO].log()) == 3


def test_commit_of_somebody_else_in_between_is_not_overwritten(hub, api, folder):
    push_folder(folder, "user/model", api=api)
    (folder / "config.json").write_text('{"a": 1}')
    hub.before_commit = lambda: api.upload_file(
        path_or_fileobj=b"theirs", path_in_repo="notes.txt", repo_id="user/model"
    )
    with pytest.raises(ValueError, match="A commit has happened since"):
        push_folder(folder, "user/model", api=api)
    assert hub.files("user/model")["notes.txt"] == b"theirs" and hub.files("user/model")["config.json"] == b"{}"


def test_nothing_is_sent_without_a_token_or_to_a_wrong_name(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ValueError, match="could not push to user/model: "):
        push_folder(folder, "user/model", api=HfApi(endpoint=hub.url, token=False))
    assert not hub.repos
    for wrong in ("model", "a/b/c", "user/../x", ""):
        with pytest.raises(ValueError, match="expected user/name"):
            check_repo_id(wrong)
