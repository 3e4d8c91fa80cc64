"""The figures that README and model card quote are those of metrics.json."""

import json
from pathlib import Path

import pytest

from triemo.training.figures_table import figures_table, replace_figures


def test_replacing_keeps_the_rest_and_is_idempotent():
    document = "before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n"
    once = replace_figures(document, "| new |")
    assert once == "before\n<!-- figures -->\n| new |\n<!-- /figures -->\nafter\n"
    assert replace_figures(once, "| new |") == once
    with pytest.raises(ValueError, match="expected the marks"):
        replace_figures("no marks here", "| new |")


@pytest.mark.parametrize("name", ["README.md", "model_card.md"])
def test_documents_quote_the_measured_figures(repo_root: Path, checkpoint: Path, name: str):
    document = (repo_root / name).read_text()
    table = figures_table(json.loads((checkpoint / "metrics.json").read_text()))
    assert replace_figures(document, table) == document, "run: python training/figures_table.py"
    values = [line.split("|")[3].strip() for line in table.splitlines() if line.startswith("| ") and ". " not in line]
    assert len([value for value in values if value[:1].isdigit()]) >= 10
