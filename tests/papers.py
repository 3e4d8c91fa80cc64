"""What the three READMEs hold: their commands, their Python, the names of files and options they mention."""

import ast
import re
from pathlib import Path
from typing import Any

__all__ = ["PAPERS", "code_spans", "commands", "fenced", "read_paper", "run_python_block", "sections"]

ROOT = Path(__file__).resolve().parent.parent
PAPERS = ("README.md", "training/README.md", "serving/README.md")


def read_paper(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def fenced(name: str, language: str) -> list[str]:
    """The content of every fenced block of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", read_paper(name), re.MULTILINE | re.DOTALL)


def commands(name: str) -> list[str]:
    """Every command of the shell blocks on one line, without its comment."""
    joined = "".join(fenced(name, "bash")).replace("\\\n", " ").replace("|\n", "|")
    lines = [re.sub(r"\s+#\s.*", "", line) for line in joined.splitlines()]
    return [re.sub(r"\s+", " ", line).strip() for line in lines if line.strip()]


def sections(name: str) -> dict[str, str]:
    """Text by heading, without the fenced blocks."""
    prose = re.sub(r"^```.*?^```$", "", read_paper(name), flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def code_spans(text: str) -> list[str]:
    """What stands between backticks; a table's \\| is |."""
    return [re.sub(r"\s+", " ", span).replace("\\|", "|") for span in re.findall(r"`([^`]+)`", text)]


def run_python_block(code: str, names: dict[str, Any]) -> list[Any]:
    """Run statement by statement in `names`; the values of the expressions that stand alone, in order."""
    values = []
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Expr):
            values.append(eval(compile(ast.Expression(statement.value), "README", "eval"), names))
        else:
            exec(compile(ast.Module([statement], []), "README", "exec"), names)
    return values
