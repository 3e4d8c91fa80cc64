"""`triemo dialogue`: what it prints, writes and sends, whole and live, and how it fails."""

import json

import pytest
from test_dialogue_pipeline import tiny_head
from tiny_checkpoint import save_tiny_checkpoint
from typer.testing import CliRunner

from triemo.serving.cli import app

TURNS = [
    {"dialogue": "call 7", "speaker": "ann", "text": "i am so happy", "start": 0.0},
    {"dialogue": "call 7", "speaker": "bob", "text": "not fine", "start": 1.5},
    {"dialogue": "call 7", "speaker": "ann", "text": "what a day", "start": 62.0},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A head that sees what came before alone, beside its towers."""
    folder = tmp_path_factory.mktemp("dialogue")
    save_tiny_checkpoint(folder / "towers")
    fields = {"context_causal": True, "context_window": 4, "base_model_name_or_path": "somebody/towers"}
    tiny_head(**fields).save_pretrained(folder / "head")
    return folder / "head"


@pytest.fixture
def triemo(checkpoint, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments, **options):
        command = ["dialogue", *map(str, arguments), "--model", str(checkpoint), "--device", "cpu"]
        return CliRunner().invoke(app, command, **options)

    return run


@pytest.fixture
def turns(tmp_path):
    file = tmp_path / "turns.jsonl"
    file.write_text("\n".join(map(json.dumps, TURNS)))
    return file


def test_a_table_is_read_printed_and_written(triemo, turns, tmp_path):
    result = triemo(turns, "--output", tmp_path / "out", "--rule", "anger above 0")
    assert result.exit_code == 0, result.output
    assert "call 7: 3 turns" in result.stdout and "1:02.0" in result.stdout and "what a day" in result.stdout
    assert "Who moved whom" in result.stdout and "Alert: turn 1, ann: anger above 0" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".json", ".csv", ".png", ".html"}
    document = json.loads((tmp_path / "out" / "call_7.json").read_text())
    assert [turn["speaker"] for turn in document["turns"]] == ["ann", "bob", "ann"]
    assert {alert["turn"] for alert in document["alerts"]} == {1, 2}
    as_json = triemo(turns, "--json", "--no-explain")
    read = json.loads(as_json.stdout)
    assert "influence" not in read
    for one, other in zip(read["turns"], document["turns"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5) and one["label"] == other["label"]


def test_live_gives_each_turn_the_answer_of_the_whole_dialogue(triemo, turns):
    whole = json.loads(triemo(turns, "--json", "--no-explain").stdout)["turns"]
    lines = [{key: value for key, value in turn.items() if key != "dialogue"} for turn in TURNS]
    given = [json.dumps(lines[0]), "no json", json.dumps({"speaker": "bob"}), *map(json.dumps, lines[1:])]
    result = triemo("-", "--live", "--rule", "anger above 0 by bob", input="\n".join(given))
    assert result.exit_code == 1  # two lines could not be read
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["turn"] for answer in answers] == [1, 2, 2, 2, 3]
    assert "is no JSON" in answers[1]["error"] and "nothing to read from" in answers[2]["error"]
    kept = [answers[0], *answers[3:]]
    assert [answer["score"] for answer in kept] == pytest.approx([turn["score"] for turn in whole], abs=1e-5)
    assert [len(answer["alerts"]) for answer in kept] == [0, 1, 0] and kept[1]["alerts"][0]["start"] == 1.5


def test_a_failing_hook_is_said_and_loses_nothing(triemo, turns, tmp_path):
    arguments = ("--rule", "anger above 0", "--output", tmp_path / "out")
    result = triemo(turns, *arguments, "--alert", "http://127.0.0.1:9/hook")
    assert result.exit_code == 1 and "call 7: 3 turns" in result.stdout
    assert "triemo: turn 1 of call 7: alert: the URL does not lead to a public address." in result.stderr
    assert (tmp_path / "out" / "call_7.html").is_file()
    unasked = triemo(turns, "--alert", "http://127.0.0.1:9/hook")
    assert unasked.exit_code == 2 and "--alert needs a --rule" in unasked.stderr


def test_the_hook_is_called_where_that_is_allowed(triemo, turns, monkeypatch):
    called = []
    monkeypatch.setattr(
        "triemo.serving.dialogue.post_alert",
        lambda url, alert, allow_private: called.append((url, alert, allow_private)),
    )
    arguments = ("--rule", "anger above 0 by bob", "--alert", "http://127.0.0.1:9/hook", "--alert-private")
    assert triemo(turns, *arguments).exit_code == 0
    assert [(url, alert.turn, private) for url, alert, private in called] == [("http://127.0.0.1:9/hook", 2, True)]


def test_turns_without_anything(triemo, tmp_path):
    file = tmp_path / "turns.csv"
    file.write_text("speaker,text\nann,happy\nbob,\n")
    result = triemo(file)
    assert result.exit_code == 1 and "dialogue turns.csv, turn 2: there is nothing to read from" in result.stderr
    kept = triemo(file, "--keep-empty")
    assert kept.exit_code == 0 and "Turn 2: Nothing is given in it." in kept.stdout


def test_other_checkpoints_and_files_are_refused_by_name(triemo, checkpoint, turns, tmp_path):
    wrong = CliRunner().invoke(app, ["dialogue", str(turns), "--model", str(checkpoint.parent / "towers")])
    assert (
        wrong.exit_code == 1
        and "holds TriemoForEmotionClassification, expected TriemoForEmotionSequence" in wrong.stderr
    )
    assert triemo(tmp_path / "gone.jsonl").exit_code == 1
    assert "--live reads turns as they come" in triemo("-", "--live", "--output", "x", input="").stderr
    assert "got the emotion 'rage'" in triemo(turns, "--rule", "rage above 0.5").stderr
