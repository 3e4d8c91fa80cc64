"""`triemo demo`: the seven subsets side by side and what each modality contributes."""

import io
import json
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from triemo.processing.explanations_triemo import subsets_of
from triemo.serving import printing

SENTENCE = "Oh wow, you really came!"


def test_json_of_the_demo_clip(triemo, assets):
    result = triemo("demo", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["file"].endswith("demo.mp4")
    assert document["text"] == (assets / "demo.txt").read_text().strip()
    subsets = {tuple(entry["modalities"]): entry["scores"] for entry in document["subsets"]}
    assert len(subsets) == 7
    assert all(sum(scores.values()) == pytest.approx(1, abs=1e-5) for scores in subsets.values())
    together = subsets[("text", "audio", "vision")]
    assert together == {entry["label"]: entry["score"] for entry in document["scores"]}
    parts = document["contributions"]
    assert parts.pop("label") == document["label"] == max(together, key=together.get)
    assert set(parts) == {"without_input", "text", "audio", "vision"}
    assert parts["without_input"] == pytest.approx(1 / 7)
    assert sum(parts.values()) == pytest.approx(document["score"], abs=1e-9)


def test_table_agrees_with_the_json(triemo):
    result = triemo("demo")
    document = json.loads(triemo("demo", "--json").stdout)
    lines = result.stdout.splitlines()
    assert "demo.mp4" in lines[0] and document["text"] in lines[1]
    assert "words, voice, face (4 of 4 frames)" in lines[2]
    for label in document["subsets"][0]["scores"]:
        row = next(line for line in lines if re.match(rf" ?{label} +\d", line))
        shown = [float(number) for number in re.findall(r"[\d.]+", row)]
        assert shown == [round(100 * entry["scores"][label], 1) for entry in document["subsets"]]
    reads = next(line for line in lines if line.split()[:1] == ["reads"]).split()[1:]
    assert reads == [max(entry["scores"], key=entry["scores"].get) for entry in document["subsets"]]
    assert f"What makes it {document['label']}" in result.stdout
    for key, name in (("text", "words"), ("audio", "voice"), ("vision", "face")):
        assert re.search(rf"^ ?{name} +\{100 * document['contributions'][key]:+.1f}\b", result.stdout, re.MULTILINE)
    assert "expression, not inner feeling" in result.stdout


def test_own_clip_with_words(triemo, clips):
    result = triemo("demo", clips / "faceless.mp4", "--text", SENTENCE, "--json")
    document = json.loads(result.stdout)
    assert document["text"] == SENTENCE and document["missing"] == ["no face was found in 4 frames"]
    assert [entry["modalities"] for entry in document["subsets"]] == [["text"], ["audio"], ["text", "audio"]]
    table = triemo("demo", clips / "faceless.mp4", "--text", SENTENCE).stdout
    assert "read from words and voice alone" in table and "face   " not in table


def test_words_alone(triemo):
    document = json.loads(triemo("demo", "--text", SENTENCE, "--json").stdout)
    assert len(document["subsets"]) == 1
    assert document["contributions"]["text"] == pytest.approx(document["score"] - 1 / 7)


def test_errors_are_one_plain_line(triemo, clips):
    for bad, status in ((["missing.mp4"], 1), ([clips / "broken.mp4"], 1), ([clips / "mute.mp4", "--image", "x"], 2)):
        result = triemo("demo", *bad)
        assert result.exit_code == status and result.stdout == ""
        assert len(result.stderr.splitlines()) == 1 and str(bad[0]) in result.stderr


def test_widest_table_fits_into_80_columns():
    """All seven subsets read as the longest label, each of them certain."""
    labels = ["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]
    certain = {label: float(label == "surprise") for label in labels}
    console = Console(width=80, record=True, file=io.StringIO())
    printing.print_subsets(console, dict.fromkeys(subsets_of(("text", "audio", "vision")), certain))
    lines = console.export_text().splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert next(line for line in lines if "reads" in line).split() == ["reads"] + ["surprise"] * 7


@pytest.mark.slow
def test_the_released_checkpoint_reads_the_demo_clip(checkpoint):
    """What `make demo` runs: no option, the checkout's weights."""
    from typer.testing import CliRunner

    from triemo.serving.cli import app

    result = CliRunner().invoke(app, ["demo", "--json", "--device", "cpu"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["model"] == str(checkpoint)
    assert len(document["subsets"]) == 7 and document["missing"] == []
    assert document["frames"]["with_face"] >= 0.95 * document["frames"]["sampled"]
    parts = {name: value for name, value in document["contributions"].items() if name != "label"}
    assert sum(parts.values()) == pytest.approx(document["score"], abs=1e-9)
