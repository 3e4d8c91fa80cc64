"""Files to turns: tables with media and several dialogues, transcripts alone, recordings cut by their transcript."""

import json

import numpy as np
import pytest
from media_files import sine, write_clip, write_sound

from triemo.processing import load_frames
from triemo.serving.samples import UsageError
from triemo.serving.timeline.dialogues import read_dialogues
from triemo.serving.timeline.transcripts import Utterance

RATE = 16000


@pytest.fixture
def recording(tmp_path):
    """Three seconds, each louder than the one before."""
    sound = np.concatenate([sine(1, RATE) * loud for loud in (0.1, 0.3, 0.9)], axis=1)
    return str(write_sound(tmp_path / "call.wav", sound, RATE))


def test_a_recording_is_cut_by_its_transcript(recording, tmp_path):
    rows = [{"start": 0, "end": 1, "text": "a", "speaker": "x"}, {"start": 0.5, "end": 2, "speaker": "y"}]
    rows += [{"start": 2, "end": 9, "text": "c"}, {"start": 8, "end": 9, "text": "d"}]
    (tmp_path / "call.json").write_text(json.dumps(rows))
    (one,) = read_dialogues(recording, str(tmp_path / "call.json"))
    assert one.name == "call.wav" and any("begin after the recording's end at 3.0 s" in note for note in one.notes)
    turns = list(one.turns())
    assert [(t["speaker"], t["text"]) for t in turns] == [("x", "a"), ("y", None), (None, "c")]
    sounds = [t["audio"]["array"] for t in turns]
    assert [len(sound) for sound in sounds] == [RATE, 1.5 * RATE, RATE]
    assert turns[0]["audio"]["sampling_rate"] == RATE
    loud = [float(np.abs(sound).max()) for sound in sounds]
    assert loud[0] < 0.5 * loud[1] < 0.25 * loud[2]
    assert np.array_equal(sounds[0][RATE // 2 :], sounds[1][: RATE // 2])


def test_frames_of_a_video_are_cut_too(tmp_path):
    """Two seconds at 10 Hz that grow brighter: each turn has the frames of its time, about four a second."""
    clip = write_clip(tmp_path / "call.mp4", frames=20, rate=10, sound=sine(2, 48000))
    (tmp_path / "call.srt").write_text(
        "1\n00:00:00,000 --> 00:00:01,000\na\n\n2\n00:00:00,500 --> 00:00:02,000\nb\n\n"
        "3\n00:00:01,900 --> 00:00:01,950\nc\n"
    )
    (one,) = read_dialogues(str(clip), str(tmp_path / "call.srt"))
    first, second, third = one.turns()
    assert [len(turn.get("video", [])) for turn in (first, second, third)] == [4, 6, 0]
    assert [len(turn["audio"]["array"]) for turn in (first, second, third)] == [RATE, 1.5 * RATE, RATE / 20]
    assert np.array_equal(first["video"][2], second["video"][0])
    frames, times = load_frames(str(clip))
    shown = frames[int(np.searchsorted(times, 1.625 + 1e-4)) - 1]
    assert np.abs(second["video"][4].astype(int) - shown).mean() < 2


def test_who_spoke_when_is_enough(recording, tmp_path):
    (tmp_path / "call.rttm").write_text("SPEAKER c 1 0 1.5 <NA> <NA> S0 <NA>\nSPEAKER c 1 1.5 1 <NA> <NA> S1 <NA>\n")
    (one,) = read_dialogues(recording, diarization=str(tmp_path / "call.rttm"))
    assert one.utterances == [Utterance(0, 1.5, None, "S0"), Utterance(1.5, 2.5, None, "S1")]
    assert [len(turn["audio"]["array"]) for turn in one.turns()] == [1.5 * RATE, RATE]


def test_a_table_of_several_dialogues(tmp_path):
    (tmp_path / "turns.csv").write_text(
        "dialogue,turn,speaker,utterance,audio,image\n"
        "b,2,ann,second,,\nb,1,bob,,sounds/1.wav,\na,1,,alone,https://x.org/y.wav,face.png\n"
    )
    first, second = read_dialogues(str(tmp_path / "turns.csv"))
    assert (first.name, second.name) == ("b", "a")
    assert list(first.turns()) == [
        {"speaker": "bob", "text": None, "audio": str(tmp_path / "sounds/1.wav")},
        {"speaker": "ann", "text": "second"},
    ]
    assert first.notes == ["transcript: the rows of b are not in order, and were sorted by their turn"]
    (turn,) = second.turns()
    assert turn == {
        "speaker": None, "text": "alone", "audio": "https://x.org/y.wav", "image": str(tmp_path / "face.png")
    }  # fmt: skip


def test_a_transcript_alone_is_its_words(tmp_path):
    (tmp_path / "chat.txt").write_text("Ann: hello\nBob: no\n")
    (one,) = read_dialogues(str(tmp_path / "chat.txt"))
    assert list(one.turns()) == [{"speaker": "Ann", "text": "hello"}, {"speaker": "Bob", "text": "no"}]


def test_what_does_not_go_together_is_refused(recording, tmp_path):
    (tmp_path / "chat.txt").write_text("Ann: hello\n")
    (tmp_path / "turns.csv").write_text("turn,text\nfirst,a\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    chat = str(tmp_path / "chat.txt")
    for arguments, error, message in (
        ((recording,), UsageError, "a recording needs --transcript"),
        ((chat, chat), UsageError, "--transcript is for a recording"),
        ((str(tmp_path / "turns.csv"), None, chat), UsageError, "a table has a column speaker"),
        ((recording, chat), ValueError, "turn 1 of 1 has no time, by which .*call.wav could be cut"),
        ((str(tmp_path / "turns.csv"),), ValueError, "turns.csv:2: got the turn 'first'"),
        ((str(tmp_path / "empty.jsonl"),), ValueError, "holds no turn"),
        ((str(tmp_path / "gone.wav"), chat), ValueError, "gone.wav"),
    ):
        with pytest.raises(error, match=message):
            read_dialogues(*arguments)
