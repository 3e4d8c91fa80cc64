"""Publish a checkpoint, a LoRA adapter, the Space: everything is checked here before anything is sent.

    triemo publish me/triemo-small --checkpoint checkpoints/triemo-small --dry-run out     # write it to a folder
    triemo publish me/triemo-small --checkpoint checkpoints/triemo-small --private         # one commit
    python training/publish/command.py me/triemo-small --checkpoint runs/mine --pull-request

The last is the same without the command line of `triemo`.
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["main", "publish", "publish_command"]


def publish(
    repo: str,
    checkpoint: Path,
    *,
    dry_run: Path | None = None,
    private: bool = False,
    branch: str | None = None,
    pull_request: bool = False,
    base_model: str | None = None,
    card: Path | None = None,
    space: str | None = None,
    message: str = "Publish with triemo",
) -> list[str]:
    """
    Assemble, check and push; see `publish_command` for the arguments.

    Returns:
        A line for each repository, which says what was done.

    Raises:
        ValueError: a file is missing, a pickle is present, the card's figures are not those of metrics.json, the
            folder does not load in a clean process, or the push failed.
    """
    # Here and not above: `triemo --help` does not wait for torch.
    from triemo.training.publish.checks import check_loads
    from triemo.training.publish.folder import assemble_repository
    from triemo.training.publish.push import check_repo_id, push_folder
    from triemo.training.publish.space import assemble_space

    check_repo_id(repo)
    for name, field in ((base_model, "base-model"), (space, "space")):
        if name:
            check_repo_id(name, field)
    if branch and pull_request:
        raise ValueError("branch and pull request: got both, expected one of them.")
    with tempfile.TemporaryDirectory(prefix="triemo-publish-") as temporary:
        place = Path(dry_run) if dry_run else Path(temporary) / "repository"
        folders = [(repo, "model", assemble_repository(Path(checkpoint), place, repo, base_model, card))]
        if space:
            folders.append((space, "space", assemble_space(place.with_name(f"{place.name}-space"), space, repo)))
        # An adapter without its base would have to fetch that first.
        if base_model is None:
            check_loads(place, repo)
        if dry_run:
            return [f"{name}: {_count(folder)} in {folder}, nothing was sent" for name, _, folder in folders]
        lines = []
        for name, kind, folder in folders:
            options = {"private": private, "branch": branch, "pull_request": pull_request, "message": message}
            done = push_folder(folder, name, repo_type=kind, **options)  # type: ignore[arg-type]
            deleted = f", deleted {', '.join(done.deleted)}" if done.deleted else ""
            lines.append(
                f"{name}: {_count(folder)} in one commit{deleted}, {done.url}"
                if done.changed
                else f"{name}: nothing has changed since {done.commit[:7]}, no commit"
            )
        return lines


def publish_command(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/name on the Hub.")],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="Folder of a model or of a LoRA adapter.")],
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", metavar="FOLDER", help="Write and check it there, send nothing.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    branch: Annotated[str | None, typer.Option("--branch", help="Commit to this branch, made if need be.")] = None,
    pull_request: Annotated[bool, typer.Option("--pull-request", help="Open a pull request.")] = False,
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", help="user/name of an adapter's base; by default it is published beside it."),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option("--card", help="Finished card or template; by default the checkpoint's README.md, or a new one."),
    ] = None,
    space: Annotated[str | None, typer.Option("--space", help="Also push the demo Space, to this user/name.")] = None,
    message: Annotated[str, typer.Option("--message", help="Summary of the commit.")] = "Publish with triemo",
) -> None:
    """
    Publish a checkpoint on the Hugging Face Hub in one commit: weights, code, card, endpoint handler.

    Sign in with [bold]hf auth login[/] or the environment variable HF_TOKEN. The repository will hold exactly what is
    published: other files in it are deleted, in the same commit.

    [bold]Examples[/]

    triemo publish me/triemo-small --checkpoint checkpoints/triemo-small --dry-run out

    triemo publish me/my-adapter --checkpoint runs/mine --private --space me/my-demo
    """
    lines = publish(
        repo,
        checkpoint,
        dry_run=dry_run,
        private=private,
        branch=branch,
        pull_request=pull_request,
        base_model=base_model,
        card=card,
        space=space,
        message=message,
    )
    print("\n".join(lines))


def _count(folder: Path) -> str:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB"


def main() -> None:
    try:
        typer.run(publish_command)
    except ValueError as error:
        sys.exit(f"publish: {error}")


if __name__ == "__main__":
    main()
