"""Transcripts of every form give the same utterances; what is guessed, cut or left out is told, the rest refused."""

import json
from pathlib import Path

import pytest

from triemo.serving.timeline.transcripts import Utterance, parse_seconds, read_transcript

EXPECTED = [
    Utterance(0.5, 1.75, "Hello there, how are you?", "Ann Lee"),
    Utterance(2.0, 3.0, "Fine & well", "Bob"),
    Utterance(3.25, 4.0, "Good.", "Ann Lee"),
]
SRT = """1
00:00:00,500 --> 00:00:01,750
Ann Lee: Hello <i>there</i>,
how are you?

2
00:00:02,000 --> 00:00:03,000
{\\an8}Bob: Fine & well

3
00:00:03,250 --> 00:00:04,000
Ann Lee: Good.
"""
VTT = """WEBVTT

NOTE made by hand

00:00.500 --> 00:01.750 align:left
<v Ann Lee>Hello <i>there</i>,
how are you?

00:02.000 --> 00:03.000
<v.loud Bob>Fine &amp; well</v>

00:03.250 --> 00:04.000
<v Ann Lee>Good.
"""
ROWS = [{"start": u.start, "end": u.end, "text": f" {u.text}", "speaker": u.speaker} for u in EXPECTED]
CSV = "StartTime,EndTime,Utterance,Speaker\n" + "".join(
    f'"00:00:{u.start:06.3f}",{u.end},"{u.text}",{u.speaker}\n'.replace("00.500", "00,500") for u in EXPECTED
)
CHUNKS = {"text": "all", "chunks": [{"timestamp": [r["start"], r["end"]], **r} for r in ROWS]}
WORDS = {"segments": [{**r, "speaker": None, "words": [{"word": "a", "speaker": r["speaker"]}]} for r in ROWS]}
FORMS = {
    "a.srt": SRT,
    "a.vtt": VTT,
    "whisperx.json": json.dumps({"language": "en", "segments": ROWS}),
    "whisperx_words.json": json.dumps(WORDS),
    "transformers.json": json.dumps(CHUNKS),
    "list.json": json.dumps(ROWS),
    "a.jsonl": "\n".join(map(json.dumps, ROWS)),
    "a.csv": CSV,
}


def write(folder: Path, name: str, content: str, encoding: str = "utf-8") -> Path:
    (folder / name).write_text(content, encoding=encoding)
    return folder / name


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_utterances(name, tmp_path):
    notes: list[str] = []
    assert read_transcript(write(tmp_path, name, FORMS[name]), notes=notes) == EXPECTED
    guessed = ["transcript: names before a colon are taken for speakers (Ann Lee, Bob)"]
    assert notes == (guessed if name == "a.srt" else [])


def test_utf16_with_its_mark_and_a_wrong_encoding(tmp_path):
    assert read_transcript(write(tmp_path, "a.srt", SRT, "utf-16")) == EXPECTED
    latin = write(tmp_path, "b.txt", "Zoë: hé", "latin-1")
    with pytest.raises(ValueError, match="encoding: .*b.txt is not utf-8"):
        read_transcript(latin)
    assert read_transcript(latin, encoding="latin-1") == [Utterance(text="hé", speaker="Zoë")]


def test_lines_with_names(tmp_path):
    text = (
        "Ann: Hello there.\nhow is it: well?\n\n[00:01:02] SPEAKER 1: See https://a.b\n王芳：你好\n"
        "[Bob] : 12:30 it is\n"
    )
    assert read_transcript(write(tmp_path, "a.txt", text)) == [
        Utterance(text="Hello there. how is it: well?", speaker="Ann"),
        Utterance(start=62.0, text="See https://a.b", speaker="SPEAKER 1"),
        Utterance(text="你好", speaker="王芳"),
        Utterance(text="12:30 it is", speaker="Bob"),
    ]
    notes: list[str] = []
    plain = read_transcript(write(tmp_path, "b.txt", "one\nhttp://two\n"), notes=notes)
    assert plain == [Utterance(text="one"), Utterance(text="http://two")]
    assert "each line is a turn of an unknown speaker" in notes[0]


def test_rttm_alone_and_beside_a_transcript(tmp_path):
    rttm = write(
        tmp_path,
        "a.rttm",
        "SPKR-INFO a 1 <NA> <NA> <NA> unknown S0 <NA>\nSPEAKER a 1 0.0 2.4 <NA> <NA> S0 <NA> <NA>\n"
        "SPEAKER a 1 2.4 9.0 <NA> <NA> S1 <NA> <NA>\n",
    )
    assert read_transcript(rttm) == [Utterance(0.0, 2.4, None, "S0"), Utterance(2.4, 11.4, None, "S1")]
    rows = [{"start": 0, "end": 3, "text": "a"}, {"start": 3, "end": 4, "text": "b", "speaker": "X"}]
    rows.append({"start": 20, "end": 21, "text": "c"})
    transcript = write(tmp_path, "b.json", json.dumps(rows))
    pyannote = write(
        tmp_path,
        "c.json",
        json.dumps({"content": [{"segment": {"start": 0, "end": 2.4}, "track": "A", "label": "S0"}]}),
    )
    for diarization in (rttm, pyannote):
        notes: list[str] = []
        found = read_transcript(transcript, diarization=diarization, notes=notes)
        assert [one.speaker for one in found] == ["S0", "X", None]
        assert notes == ["transcript: the speaker of 1 of 3 turns is unknown"]


def test_order_overlap_early_and_empty_turns_are_told(tmp_path):
    rows = [
        {"start": 5, "end": 6, "text": "third"},
        {"start": -1, "end": 1, "text": "first"},
        {"text": "first's neighbour"},
        {"start": 0.5, "end": 2},
        {"text": " "},
        {"start": 3, "end": 3},
    ]
    notes: list[str] = []
    found = read_transcript(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows))), notes=notes)
    assert [(one.start, one.end, one.text) for one in found] == [
        (0.0, 1, "first"),
        (None, None, "first's neighbour"),
        (0.5, 2, None),
        (5, 6, "third"),
    ]
    assert notes == [
        "transcript: 1 turns of a.jsonl begin before 0 s, where the recording begins",
        "transcript: 2 turns of a.jsonl have neither words nor a length, and are left out",
        "transcript: the turns of a.jsonl are not in order, and were sorted by their start",
    ]
    notes.clear()
    read_transcript(write(tmp_path, "b.json", json.dumps([*ROWS, {"start": 3.5, "text": "o"}])), notes=notes)
    assert notes == ["transcript: 1 turns of b.json begin before the one before has ended"]


def test_cues_that_cannot_be_read_and_several_voices_are_told(tmp_path):
    text = SRT.replace("00:00:02,000", "-00:00:02,000") + "\n4\n00:00:05,000 --> 00:00:06,000\n- Hi\n- Hello\n"
    notes: list[str] = []
    found = read_transcript(write(tmp_path, "a.srt", text), notes=notes)
    assert [one.text for one in found] == [EXPECTED[0].text, EXPECTED[2].text, "- Hi - Hello"]
    assert notes[0] == "transcript: 1 cues of a.srt have times that cannot be read, and are left out"
    assert notes[1] == "transcript: 1 cues of a.srt hold several voices, and are read as one turn each"


def test_a_transcript_longer_than_its_recording(tmp_path):
    rows = [{"start": 0, "text": "a"}, {"start": 2, "end": 9, "text": "b"}, {"start": 6, "end": 7, "text": "c"}]
    file = write(tmp_path, "a.json", json.dumps(rows))
    notes: list[str] = []
    assert read_transcript(file, seconds=5.0, notes=notes) == [Utterance(0, 2, "a"), Utterance(2, 5.0, "b")]
    assert notes[-2:] == [
        "transcript: 1 turns begin after the recording's end at 5.0 s and are left out",
        "transcript: 1 turns go on beyond the recording's end at 5.0 s and are cut there",
    ]
    late = write(tmp_path, "b.json", json.dumps(rows[2:]))
    with pytest.raises(ValueError, match=r"all 1 turns begin after the recording's end at 5.0 s"):
        read_transcript(late, seconds=5.0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.doc", "x", "expected a file that ends in .srt"),
        ("a.srt", "no cues here", "cannot be read as SRT"),
        ("a.vtt", "00:01.000 --> 00:02.000\nx\n", "cannot be read as VTT"),
        ("a.vtt", "WEBVTT\n\n00:05.000 --> 00:04.000\nx\n", r"a.vtt, turn 1: ends at 4 s, before it starts at 5 s"),
        ("a.json", "{", "is no JSON"),
        ("a.json", '{"text": "x"}', "expected a list of objects, or one under segments"),
        ("a.json", '[{"start": "soon"}]', "turn 1: got the time 'soon'"),
        ("a.json", '[{"start": 1e999}]', "turn 1: got the time inf"),
        ("a.json", '[{"text": 7}]', "turn 1: got the text 7"),
        ("a.json", "[]", "holds no turn"),
        ("a.txt", " \n", "holds no turn"),
        ("a.rttm", "SPEAKER a 1 0.0", "a.rttm:1: got 4 fields"),
        ("a.csv", "a,a\n1,2\n", "expected different column names"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(name, content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_transcript(write(tmp_path, name, content))
    with pytest.raises(ValueError, match="missing.srt is no file"):
        read_transcript(tmp_path / "missing.srt")


def test_times():
    times = [parse_seconds(value, "") for value in ("1:02:03.5", "00:01:02,500", "62.5", 62.5, "-0:01.0", "", None)]
    assert times == [3723.5, 62.5, 62.5, 62.5, -1.0, None, None]
