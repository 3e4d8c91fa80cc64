"""The demo Space: its page, the files of Triemo that it needs, and a card that names the model it shows."""

import shutil
from pathlib import Path

from huggingface_hub import RepoCard

from triemo.training.publish.checks import check_no_pickles
from triemo.training.publish.folder import PROJECT, modules_of, requirements_of

__all__ = ["assemble_space"]


def assemble_space(output: Path, space: str, repo: str, project: Path = PROJECT) -> Path:
    """
    Write the Space's files: those of `serving/page/space`, `app.py`, what it imports of `triemo`, requirements.

    Args:
        output: folder to write; it must not exist or be empty.
        space: `user/name` of the Space.
        repo: `user/name` of the model it shows, which its card names.
        project: the folder in which `serving` lies.

    Raises:
        ValueError: this install has no Space files, or `output` is in use.
    """
    serving, output = project / "serving", Path(output)
    if not (serving / "page" / "space" / "README.md").is_file():
        raise ValueError(f"space: {space} cannot be made, this install has no files at {serving / 'page' / 'space'}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output must be a new or empty folder, got {output}, which is not.")
    hidden = shutil.ignore_patterns("__pycache__")
    shutil.copytree(serving / "page" / "space", output, dirs_exist_ok=True, ignore=hidden)
    if not (output / "app.py").is_file():
        shutil.copyfile(serving / "page" / "app.py", output / "app.py")
    # Triemo is on no package index, so what the page imports of it travels along.
    for file in modules_of(output / "app.py", project):
        copy = output / "triemo" / file.relative_to(project)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    shutil.copytree(
        serving / "assets",
        output / "triemo" / "serving" / "assets",
        ignore=shutil.ignore_patterns("__pycache__", "*.py"),
    )
    if not (output / "requirements.txt").is_file():
        lines = requirements_of(output.rglob("*.py"))
        (output / "requirements.txt").write_text("\n".join(lines) + "\n", "utf-8")
    card = RepoCard.load(output / "README.md")
    card.data["models"] = [repo]
    card.save(output / "README.md")
    check_no_pickles(output, whole=True)
    return output
