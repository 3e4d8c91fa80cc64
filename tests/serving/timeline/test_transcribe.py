"""Words from a speech-recognition model: a tiny Whisper, through the library's pipeline, with its timestamps.

Its weights are random but for the decoder's positions, which are made to say a few words at stated times: what is read
is known, and all that lies between a file's sound and the timeline's rows is the library's and ours.
"""

import json
import logging

import numpy as np
import pytest
import torch
from media_files import sine, write_clip
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from triemo.serving.timeline.command import transcribed

END = "<|endoftext|>"
SPECIAL = "startoftranscript en translate transcribe startoflm startofprev nospeech notimestamps".split()
WORDS = "so happy i miss you oh wow".split()
# Seconds and words; the third goes on beyond a recording of ten seconds, the fourth begins there.
SAID = [(0.5, 2.0, "so happy"), (2.5, 4.5, "i miss you"), (7.0, 12.0, "oh wow"), (12.0, 13.0, "so")]
SIZE = 128


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A folder with the model and its processor."""
    tokenizer = WhisperTokenizer(
        vocab={f"Ġ{word}": index for index, word in enumerate(WORDS)},
        merges=[],
        unk_token=END,
        bos_token=END,
        eos_token=END,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in SPECIAL]})
    tokenizer.add_tokens([f"<|{index * 0.02:.2f}|>" for index in range(1501)])
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in SPECIAL}
    end = tokenizer.convert_tokens_to_ids(END)
    layers = {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes = {f"{part}_ffn_dim": 8 for part in ("encoder", "decoder")}
    tokens = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end}
    tokens["decoder_start_token_id"] = ids["startoftranscript"]
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer),
            d_model=SIZE,
            max_target_positions=64,
            begin_suppress_tokens=None,
            **layers,
            **sizes,
            **tokens,
        )
    )
    script = ["<|en|>"]  # after the start, which stands first
    for start, stop, words in SAID:
        script += [f"<|{start:.2f}|>", *(f"Ġ{word}" for word in words.split()), f"<|{stop:.2f}|>"]
    with torch.no_grad():
        embedding = model.model.decoder.embed_tokens.weight
        embedding.copy_(torch.nn.functional.normalize(torch.randn_like(embedding), dim=-1))
        for position, token in enumerate([*script, END]):
            said = embedding[tokenizer.convert_tokens_to_ids(token)]
            model.model.decoder.embed_positions.weight[position] = 100 * said
    model.generation_config = GenerationConfig(
        **tokens,
        no_timestamps_token_id=ids["notimestamps"],
        prev_sot_token_id=ids["startofprev"],
        is_multilingual=True,
        lang_to_id={"<|en|>": ids["en"]},
        task_to_id={name: ids[name] for name in ("transcribe", "translate")},
        max_initial_timestamp_index=50,
        return_timestamps=True,
        max_length=60,
    )
    folder = tmp_path_factory.mktemp("whisper")
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Whisper's own `generate` is told by the library that it should call another one otherwise."""
    caplog.set_level(logging.ERROR, "transformers.generation.utils")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    tones = np.concatenate([sine(1, 16000, 200 + 60 * second) for second in range(10)], axis=1)
    return write_clip(tmp_path_factory.mktemp("clip") / "long.mp4", 100, 10, tones, sound_rate=16000)


def test_what_a_model_hears_goes_to_its_windows(triemo, whisper, clip, tmp_path):
    result = triemo("timeline", clip, "--transcribe", whisper, "--output", tmp_path, "--format", "jsonl")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "long.timeline.jsonl").read_text("utf-8").splitlines()]
    said = {(row["start"], round(row["end"])): row["text"] for row in rows}
    # A word stands where its middle is: "you" is said from 3.8 to 4.5 s, "oh" from 7 to 8.5, "wow" to the end.
    (first, second), (*_, last) = list(said)[:2], said
    assert (first, second) == ((0, 4), (4, 8)) and last[1] == 10
    assert said == {first: "so happy i miss", second: "you oh", last: "oh wow"}
    assert all("text" in row["modalities"] for row in rows)
    told = " ".join(result.output.split())
    assert "1 turns begin after the recording's end at 10.0" in told and "1 turns go on beyond" in told


class Recognizer:
    """Says what it is told to."""

    type = "seq2seq_whisper"

    def __init__(self, *chunks: tuple[float | None, float | None, str]) -> None:
        self._chunks = [{"timestamp": chunk[:2], "text": chunk[2]} for chunk in chunks]

    def __call__(self, sound, return_timestamps):
        assert sound["sampling_rate"] == 16000 and sound["raw"].ndim == 1 and return_timestamps is True
        return {"chunks": self._chunks}


def test_what_cannot_be_meant_is_left_out(monkeypatch, clip, tmp_path):
    """As models hallucinate it in long silence: times that run backwards, and words beyond the end."""
    with pytest.raises(ValueError, match="transcribe: cannot load .*nowhere"):
        transcribed(str(clip), 10.0, str(tmp_path / "nowhere"), "cpu", [])
    backwards, blank, late, untimed = (3.0, 1.0, " oh"), (0.0, 1.0, " "), (11.0, 12.0, "wow"), (None, None, "so")
    told: dict[tuple, list[str]] = {
        (backwards, blank): [],
        # Its end unknown, the first goes on to where the next one begins.
        (backwards, late): [
            "transcript: 1 turns begin after the recording's end at 10.0 s and are left out",
            "transcript: 1 turns go on beyond the recording's end at 10.0 s and are cut there",
        ],
        (backwards, untimed): ["transcript: 1 turns have no time and are left out"],
    }
    for chunks, expected in told.items():
        notes: list[str] = []
        monkeypatch.setattr("transformers.pipeline", lambda *_, chunks=chunks, **__: Recognizer(*chunks))
        (word,) = transcribed(str(clip), 10.0, "any", None, notes)
        assert word["text"] == "oh" and word["timestamp"][0] == 3.0 and word["timestamp"][1] > 3.0
        assert notes == expected
    monkeypatch.setattr("transformers.pipeline", lambda *_, **__: Recognizer(late, blank))
    notes = []
    assert transcribed(str(clip), 10.0, "any", None, notes) == []
    assert notes == ["transcript: any heard no words in the recording"]
