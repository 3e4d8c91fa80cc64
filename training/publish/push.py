"""Makes a Hub repository hold exactly one folder, in one commit, or leaves it as it was."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

__all__ = ["Pushed", "check_repo_id", "push_folder"]

logger = logging.getLogger("triemo.training.publish.command")
_KEPT = {".gitattributes"}  # the Hub's own


@dataclass(frozen=True)
class Pushed:
    """Where a push went; `commit` is the one before it when nothing had changed."""

    url: str
    commit: str
    changed: bool
    deleted: tuple[str, ...]


def check_repo_id(repo: str, field: str = "repo") -> str:
    """Raises ValueError for what is not `user/name`."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{field}: got {repo!r}, expected user/name as on the Hub: {error}") from error
    if repo.count("/") != 1:
        raise ValueError(f"{field}: got {repo!r}, expected user/name as on the Hub.")
    return repo


def push_folder(
    folder: Path,
    repo: str,
    *,
    repo_type: str = "model",
    private: bool = False,
    branch: str | None = None,
    pull_request: bool = False,
    message: str = "Publish with triemo",
    api: HfApi | None = None,
) -> Pushed:
    """
    Push every file of a folder and delete what the repository has besides, in one commit.

    A repository or branch that is not there is made, and removed again if the push does not come to its end. Nobody
    else's commit is overwritten: one that came in between is an error. Nothing is committed where nothing changed.

    Args:
        folder: what the repository shall hold.
        repo: `user/name`.
        repo_type: "model", or "space" (a Gradio one).
        private: make a new repository private.
        branch: commit to this branch instead of main.
        pull_request: open a pull request instead of committing.
        message: the commit's summary.
        api: a client of another endpoint or token than the environment's.

    Raises:
        ValueError: a wrong name, both a branch and a pull request, a pull request to a repository that is not there,
            `private` for one that is public, or a push that failed, with the reason.
    """
    api = api or HfApi()
    check_repo_id(repo)
    if branch and pull_request:
        raise ValueError("branch and pull request: got both, expected one of them.")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    try:
        with _place(api, repo, repo_type, private, branch, not pull_request) as head:
            here = set(api.list_repo_files(repo, repo_type=repo_type, revision=head))
            deleted = sorted(here - files.keys() - _KEPT)
            operations = [CommitOperationDelete(name) for name in deleted]
            commit = api.create_commit(
                repo,
                [*operations, *(CommitOperationAdd(name, path) for name, path in files.items())],
                commit_message=message,
                repo_type=repo_type,
                revision=None if pull_request else branch,
                create_pr=pull_request,
                parent_commit=head,
            )
    except ValueError:
        raise
    except Exception as error:  # the client's HTTP library is httpx or a fork of it, by release
        cause = f" {error.__cause__}" if isinstance(error, RuntimeError) and error.__cause__ else ""
        reason = " ".join(f"{error}{cause}".split()) or type(error).__name__
        raise ValueError(f"repo: could not push to {repo}: {reason}") from error
    return Pushed(commit.pr_url or str(commit.commit_url), commit.oid, commit.oid != head, tuple(deleted))


@contextmanager
def _place(api: HfApi, repo: str, repo_type: str, private: bool, branch: str | None, may_make: bool) -> Iterator[str]:
    """The commit to build on. What had to be made for it goes again if the block fails."""
    made_repo = made_branch = False
    try:
        info = api.repo_info(repo, repo_type=repo_type)
        if private and not info.private:
            raise ValueError(f"private: {repo} is public already; make it private on the Hub first.")
    except RepositoryNotFoundError as error:
        if not may_make:
            raise ValueError(f"pull request: there is no repository {repo} to make it to.") from error
        sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
        api.create_repo(repo, repo_type=repo_type, private=private or None, **sdk)
        made_repo = True
    head = None
    try:
        if branch:
            made_branch = not _has_branch(api, repo, repo_type, branch)
            if made_branch:
                api.create_branch(repo, branch=branch, repo_type=repo_type)
        head = api.repo_info(repo, repo_type=repo_type, revision=branch).sha
        yield str(head)
    except BaseException:
        try:
            # Not if a commit came to its end after all and only its answer was lost.
            is_untouched = head in (None, api.repo_info(repo, repo_type=repo_type, revision=branch).sha)
            if made_repo and is_untouched:
                api.delete_repo(repo, repo_type=repo_type, missing_ok=True)
            elif made_branch and is_untouched:
                api.delete_branch(repo, branch=str(branch), repo_type=repo_type)
        except Exception as error:
            logger.warning("What was made for this push to %s could not be removed again: %s", repo, error)
        raise


def _has_branch(api: HfApi, repo: str, repo_type: str, branch: str) -> bool:
    try:
        api.repo_info(repo, repo_type=repo_type, revision=branch)
    except RevisionNotFoundError:
        return False
    return True
