"""`triemo predict`: what is read, from what, and what is said where something is missing or wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from triemo.serving.printing import disagreement

LABELS = {"anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"}
SENTENCE = "I can't believe it, I'm so happy to see you!"


def shares(table: str) -> dict[str, float]:
    """The rows "label  12.3 %  ###" of a table."""
    return {label: float(score) for label, score in re.findall(r"^ ?(\w+) +([\d.]+) %", table, re.MULTILINE)}


def test_json_holds_the_pipelines_answer_and_what_it_rests_on(triemo, reader, assets):
    clip = assets / "demo.mp4"
    result = triemo("predict", clip, "--text", SENTENCE, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    expected = reader({"video": str(clip), "text": SENTENCE})
    assert [entry["label"] for entry in document["scores"]] == [entry["label"] for entry in expected]
    assert [entry["score"] for entry in document["scores"]] == pytest.approx([e["score"] for e in expected], abs=1e-6)
    assert (document["label"], document["score"]) == tuple(document["scores"][0].values())
    assert document["file"] == str(clip) and document["text"] == SENTENCE
    assert document["modalities"] == ["text", "audio", "vision"]
    assert document["frames"] == {"with_face": 4, "sampled": 4}
    assert document["missing"] == [] and result.stderr == ""


def test_table_shows_every_emotion_best_first_within_80_columns(triemo, assets):
    result = triemo("predict", assets / "demo.mp4", "--text", "I am [bold]fine[/bold]")
    assert result.exit_code == 0, result.stderr
    scores = shares(result.stdout)
    assert set(scores) == LABELS
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert sum(scores.values()) == pytest.approx(100, abs=0.5)
    assert "Read from: words, voice, face (4 of 4 frames)" in result.stdout
    assert "I am [bold]fine[/bold]" in result.stdout
    assert "expression, not inner feeling" in result.stdout
    table = [line for line in result.stdout.splitlines() if not line.startswith(("Clip:", "Words:"))]
    assert max(map(cell_len, table)) <= 80


def test_top_k_frames_and_no_sound_track(triemo, assets):
    result = triemo("predict", assets / "demo.mp4", "--top-k", 2, "--frames", 3, "--no-sound-track", "--json")
    document = json.loads(result.stdout)
    assert len(document["scores"]) == 2
    assert document["frames"]["sampled"] == 3
    # The sound was left out on request: nothing is missing.
    assert document["modalities"] == ["vision"] and document["missing"] == []


@pytest.mark.parametrize(
    ("arguments", "modalities", "heading"),
    [
        (["--text", "I miss you"], ["text"], "Words:"),
        (["--audio", "{assets}/demo.flac"], ["audio"], "Sound:"),
        (["--text", "I miss you", "--audio", "{assets}/demo.flac"], ["text", "audio"], "Words:"),
        (["{assets}/demo.flac", "--text", "I miss you"], ["text", "audio"], "Sound:"),
        (["{clips}/face.png"], ["vision"], "Picture:"),
        (["--image", "{clips}/face.png", "--text", "oh"], ["text", "vision"], "Picture:"),
        (["{clips}/face.png", "--audio", "{assets}/demo.flac"], ["audio", "vision"], "Sound:"),
    ],
)
def test_any_combination(triemo, assets, clips, arguments, modalities, heading):
    arguments = [argument.format(assets=assets, clips=clips) for argument in arguments]
    table = triemo("predict", *arguments)
    assert table.exit_code == 0, table.stderr
    assert heading in table.stdout and set(shares(table.stdout)) == LABELS
    document = json.loads(triemo("predict", *arguments, "--json").stdout)
    assert document["modalities"] == modalities
    assert document["frames"] == ({"with_face": 1, "sampled": 1} if "vision" in modalities else None)


def test_own_sound_replaces_the_sound_track(triemo, assets, clips):
    own = json.loads(triemo("predict", assets / "demo.mp4", "--audio", clips / "sound.wav", "--json").stdout)
    track = json.loads(triemo("predict", assets / "demo.mp4", "--json").stdout)
    assert own["modalities"] == track["modalities"] == ["audio", "vision"]
    assert own["scores"] != track["scores"]


def test_clip_without_a_face_says_so_and_reads_the_voice(triemo, clips):
    sound_alone = json.loads(triemo("predict", clips / "faceless.mp4", "--json").stdout)
    assert sound_alone["modalities"] == ["audio"]
    assert sound_alone["frames"] == {"with_face": 0, "sampled": 4}
    assert sound_alone["missing"] == ["no face was found in 4 frames"]
    table = triemo("predict", clips / "faceless.mp4").stdout
    assert "No face was found in 4 frames: read from voice alone." in table
    warned = triemo("predict", clips / "faceless.mp4", "--json").stderr
    assert warned.strip().endswith("No face was found in 4 frames: read from voice alone.")


def test_clip_without_sound_says_so(triemo, clips):
    table = triemo("predict", clips / "mute.mp4").stdout
    assert "The clip has no sound track: read from face alone." in table
    assert "Read from: face (4 of 4 frames)" in table


def test_clip_without_face_and_sound(triemo, clips):
    result = triemo("predict", clips / "empty.mp4", "--text", "oh wow")
    assert (
        "No face was found in 4 frames and the clip has no sound track: read from words alone."
        in result.stdout.splitlines()[3]
    )
    nothing = triemo("predict", clips / "empty.mp4")
    assert nothing.exit_code == 1 and nothing.stdout == ""
    assert "empty.mp4" in nothing.stderr and "neither text nor sound" in nothing.stderr


def test_several_files_with_bad_ones_among_them(triemo, clips, monkeypatch):
    monkeypatch.chdir(clips)
    files = ["mute.mp4", "broken.mp4", "sound.wav", "missing.mp4", "faceless.mp4"]
    table = triemo("predict", *files)
    assert table.exit_code == 1
    assert [line.split(": ")[0] for line in table.stderr.splitlines()] == ["triemo", "triemo"]
    assert "broken.mp4" in table.stderr and "missing.mp4: no such file" in table.stderr
    rows = re.findall(r"^ ?(\S+) +(\w+) +[\d.]+ %  (.*\S)", table.stdout, re.MULTILINE)
    assert [name for name, _, _ in rows] == ["mute.mp4", "sound.wav", "faceless.mp4"]
    assert [source for _, _, source in rows] == ["face (4 of 4 frames)", "voice", "voice"]
    assert "faceless.mp4: No face was found in 4 frames: read from voice alone." in table.stdout

    result = triemo("predict", *files, "--json")
    documents = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [document["file"] for document in documents] == files
    assert [documents[index]["label"] for index in (0, 2, 4)] == [label for _, label, _ in rows]
    assert ["error" in document for document in documents] == [False, True, False, True, False]
    alone = json.loads(triemo("predict", files[2], "--json").stdout)
    assert documents[2] == alone


def test_a_single_bad_file_is_one_plain_line(triemo, clips, tmp_path):
    (tmp_path / "zero.mp4").touch()
    for bad in (clips / "broken.mp4", tmp_path / "zero.mp4", tmp_path, tmp_path / "missing.wav"):
        result = triemo("predict", bad)
        assert result.exit_code == 1 and result.stdout == ""
        assert len(result.stderr.splitlines()) == 1 and str(bad) in result.stderr
        document = json.loads(triemo("predict", bad, "--json").stdout)
        assert document["file"] == str(bad) and str(bad) in document["error"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "give a file"),
        (["a.mp4", "b.mp4", "--text", "oh"], "--text would add to one file, got 2 files"),
        (["{assets}/demo.flac", "--audio", "x.wav"], "--audio"),
        (["{assets}/demo.mp4", "--image", "x.png"], "--image"),
        (["--text", "oh", "--top-k", "0"], "--top-k"),
        (["--frames", "0", "a.mp4"], "--frames"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_wrong_command_lines_exit_with_2(triemo, assets, arguments, named):
    result = triemo("predict", *[argument.format(assets=assets) for argument in arguments])
    assert result.exit_code == 2 and result.stdout == ""
    assert named in result.stderr


def test_candidate_labels_are_the_only_ones(triemo, clips):
    chosen = ["--candidate-labels", "joy, fear"]
    document = json.loads(triemo("predict", "--text", SENTENCE, *chosen, "--json").stdout)
    assert {entry["label"] for entry in document["scores"]} == {"joy", "fear"}
    assert sum(entry["score"] for entry in document["scores"]) == pytest.approx(1)
    # Of several files too, the mistake is named once.
    wrong = triemo("predict", clips / "sound.wav", clips / "face.png", "--candidate-labels", "joy,glee")
    assert wrong.exit_code == 1 and wrong.stdout == ""
    assert len(wrong.stderr.splitlines()) == 1 and "candidate_labels: got 'glee'" in wrong.stderr


def test_explanations_in_json_and_for_people(triemo, clips, reader):
    given = [clips / "sound.wav", "--text", SENTENCE, "--explain"]
    document = json.loads(triemo("predict", *given, "--json").stdout)
    told = document["explanation"]
    expected = reader({"audio": str(clips / "sound.wav"), "text": SENTENCE}, explain=True)["explanation"]
    assert told == json.loads(json.dumps(expected))
    assert [entry["word"] for entry in told["words"]] == SENTENCE.split()
    table = triemo("predict", *given).stdout
    assert "What makes it" in table and f"Words  {SENTENCE}" in table
    best = max(told["moments"], key=lambda moment: moment["effect"])
    (voice,) = [line for line in table.splitlines() if line.startswith("Voice")]
    assert f"from {best['timestamp'][0]:.1f} to {best['timestamp'][1]:.1f} s" in voice
    assert len(voice.split()[1]) == len(told["moments"])
    alone = told["alone"]
    says = f"Words and voice disagree: words alone say {alone['text']['label']}"
    assert (says in table) == told["disagree"] == (alone["text"]["label"] != alone["audio"]["label"])


def test_how_modalities_disagree():
    alone = {"audio": {"label": "anger", "score": 0.7}, "vision": {"label": "joy", "score": 0.512}}
    assert disagreement(alone) == "Voice and face disagree: voice alone says anger (70.0 %), face joy (51.2 %)."


def test_below_the_least_score_an_answer_is_uncertain(triemo, clips):
    least = ["--min-score", "0.99"]
    assert json.loads(triemo("predict", "--text", SENTENCE, *least, "--json").stdout)["uncertain"] is True
    assert json.loads(triemo("predict", "--text", SENTENCE, "--json").stdout)["uncertain"] is False
    assert "Uncertain: the best score is below" in triemo("predict", "--text", SENTENCE, *least).stdout
    several = triemo("predict", clips / "sound.wav", clips / "face.png", *least).stdout
    assert several.count("(uncertain)") == 2


def test_empty_words_are_refused(triemo):
    result = triemo("predict", "--text", " ")
    assert result.exit_code == 1 and "nothing to process" in result.stderr


def test_the_installed_command(tiny_checkpoint: Path, assets, clips):
    """Through another process: the exit status, and nothing but the document on stdout."""
    command = [sys.executable, "-m", "triemo.serving.cli", "predict", "--model", str(tiny_checkpoint), "--json"]
    run = subprocess.run(
        [*command, str(clips / "faceless.mp4"), str(clips / "broken.mp4")], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 1
    assert json.loads(run.stdout)[0]["modalities"] == ["audio"]
    assert "Traceback" not in run.stderr and "broken.mp4" in run.stderr
    # What is missing is said once, not by the image processor as well.
    assert run.stderr.lower().count("no face was found") == 1


def test_a_pipe_of_narrow_encoding(tiny_checkpoint: Path):
    """As on some systems by default: what it cannot hold is replaced, bars are drawn with what it can."""
    command = [sys.executable, "-m", "triemo.serving.cli", "predict", "--model", str(tiny_checkpoint)]
    run = subprocess.run(
        [*command, "--text", "i am happy, Déjà vu 😀"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert run.returncode == 0, run.stderr
    assert "D?j? vu ?" in run.stdout and "###" in run.stdout


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from triemo.serving.cli import app; "
        "result = CliRunner().invoke(app, ['predict', '--help']); "
        "print(result.exit_code, 'Examples' in result.stdout, 'torch' in sys.modules or 'transformers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.split() == ["0", "True", "False"], run.stderr
