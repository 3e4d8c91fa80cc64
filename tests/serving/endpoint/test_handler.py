"""The endpoint's handler: every form of input, limits, errors, and that it needs nothing but the published folder."""

import ast
import base64
import io
import json
import os
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from endpoint_service import HANDLER, load_handler, post, publish, serve
from media_files import sine, write_clip, write_sound
from PIL import Image

SENTENCE = "oh wow you really came !"


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tiny_checkpoint, tmp_path_factory.mktemp("hub") / "triemo-tiny")


@pytest.fixture(scope="module")
def module(folder: Path) -> Any:
    return load_handler(folder)


@pytest.fixture(scope="module")
def handler(module: Any, folder: Path) -> Any:
    return module.EndpointHandler(str(folder))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("media")
    write_clip(folder / "clip.mp4", frames=12, sound=sine(0.5, 16000), sound_rate=16000)
    write_sound(folder / "sound.wav", sine(0.5, 16000, 200), 16000)
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "face.png")
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def close(got: list[dict], expected: list[dict]) -> bool:
    return {e["label"]: e["score"] for e in got} == pytest.approx({e["label"]: e["score"] for e in expected}, abs=1e-5)


def test_it_stands_alone():
    imported = set()
    for node in ast.walk(ast.parse(HANDLER.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"av", "torch", "PIL", "transformers"}


def test_a_long_sound_is_read_in_windows(handler, reader, tmp_path):
    """The pipeline's own answer, beside a short one in the same batch, and of its only subset."""
    path = write_sound(tmp_path / "long.wav", sine(9, 16000, 300), 16000)
    expected = reader(str(path))
    long = {"audio": encoded(path.read_bytes())}
    answers = handler({"inputs": [SENTENCE, long]})
    assert close(answers[1], expected) and close(answers[0], reader({"text": SENTENCE}))
    told = handler({"inputs": long, "parameters": {"subsets": True, "notes": True}})
    assert close(told["scores"], expected) and told["modalities"] == ["audio"]
    assert told["notes"][0] == "recording: 9.0 s were read in 2 windows"


def test_a_sentence_in_each_form(handler, reader):
    expected = reader({"text": SENTENCE})
    assert len(expected) == 7
    for inputs in (SENTENCE, {"text": SENTENCE}, {"text": SENTENCE, "audio": None}):
        assert close(handler({"inputs": inputs}), expected)
    assert close(handler({"inputs": SENTENCE, "parameters": None}), expected)
    top = handler({"inputs": SENTENCE, "parameters": {"top_k": 2}})
    assert len(top) == 2 and close(top, expected[:2])


def test_media_in_each_form(handler, files):
    """The other side is the pipeline on the bytes themselves."""
    for name, field, mime in (("clip", "video", "video/mp4"), ("sound", "audio", "audio/wav"), ("face", "image", "")):
        expected = handler.reader({field: {"bytes": files[name]}})
        lines = base64.encodebytes(files[name]).decode()  # broken into lines, as many tools write it
        assert "\n" in lines.strip()
        for value in (encoded(files[name]), f"data:{mime};base64,{encoded(files[name])}", lines):
            assert close(handler({"inputs": {field: value}}), expected)
        assert close(handler({"inputs": files[name]}), expected)  # a request whose body is the file
    with Image.open(io.BytesIO(files["face"])) as image:
        assert close(handler({"inputs": image}), handler.reader({"image": {"bytes": files["face"]}}))


def test_any_combination_and_lists(handler, files):
    video, audio, image = (encoded(files[name]) for name in ("clip", "sound", "face"))
    inputs = [
        SENTENCE,
        {"video": video, "text": SENTENCE},
        {"audio": audio, "image": image},
        {"text": "i miss you", "audio": audio, "video": video},
        {"image": image, "text": "fine"},
    ] * 4  # more rows than go through the model at once
    answers = handler({"inputs": inputs})
    assert len(answers) == 20
    for given, answer in zip(inputs[:5], answers, strict=False):
        assert close(answer, handler({"inputs": given}))
    assert not close(answers[0], answers[1]) and not close(answers[1], answers[3])
    assert handler({"inputs": [SENTENCE]})[0] == handler({"inputs": SENTENCE})


def test_subsets(handler, files):
    request = {"text": SENTENCE, "audio": encoded(files["sound"]), "image": encoded(files["face"])}
    answer = handler({"inputs": request, "parameters": {"subsets": True}})
    assert answer["modalities"] == ["text", "audio", "vision"] and len(answer["subsets"]) == 7
    keys = {"text": "text", "audio": "audio", "vision": "image"}
    for part in answer["subsets"]:
        alone = {keys[name]: request[keys[name]] for name in part["modalities"]}
        assert close(part["scores"], handler({"inputs": alone}))
    assert close(answer["scores"], handler({"inputs": request}))
    several = handler({"inputs": [SENTENCE, request], "parameters": {"subsets": True, "top_k": 1}})
    assert [len(one["subsets"]) for one in several] == [1, 7]
    assert several[1]["scores"] == several[1]["subsets"][-1]["scores"] and len(several[1]["scores"]) == 1


def test_notes(handler, files, tmp_path):
    """What was cut or left out is told to who asks, and every combination has the same notes."""
    silence = write_sound(tmp_path / "silence.wav", np.zeros((1, 16000), np.float32), 16000).read_bytes()
    long, muted, plain = "oh wow " * 100, {"text": SENTENCE, "audio": encoded(silence)}, SENTENCE
    answers = handler({"inputs": [long, muted, plain], "parameters": {"notes": True, "top_k": 1}})
    assert [sorted(one) for one in answers] == [["modalities", "notes", "scores"]] * 3
    assert [one["modalities"] for one in answers] == [["text"]] * 3
    assert "windows" in answers[0]["notes"][0] and answers[1]["notes"][0].startswith("audio:")
    assert answers[2]["notes"] == [] and close(answers[1]["scores"], answers[2]["scores"])
    both = handler({"inputs": muted, "parameters": {"notes": True, "subsets": True}})
    assert both["notes"] == answers[1]["notes"] and len(both["subsets"]) == 1
    assert handler({"inputs": plain}) == handler({"inputs": plain, "parameters": {"notes": False}})


@pytest.mark.parametrize(
    "request_, said",
    [
        ({}, 'the key "inputs"'),
        ([], 'the key "inputs"'),
        ({"inputs": 3}, "inputs: expected a string or an object, got int"),
        ({"inputs": None}, "inputs: expected a string or an object, got NoneType"),
        ({"inputs": []}, r"inputs: expected 1 to 32 in a list, got 0"),
        ({"inputs": ["a"] * 33}, r"inputs: expected 1 to 32 in a list, got 33"),
        ({"inputs": ["a", {}]}, r"inputs\[1\]: .*got none"),
        ({"inputs": {"text": None}}, "inputs: .*got none"),
        ({"inputs": {"sound": "x"}}, r"inputs: .*text, audio, image, video; got the keys \['sound'\]"),
        ({"inputs": {"text": 5}}, "inputs.text: expected a string, got int"),
        ({"inputs": ""}, "inputs: .*nothing to process"),
        ({"inputs": "a" * 10_001}, "inputs.text: at most 10000 characters, got 10001"),
        ({"inputs": "oh \ud83d"}, "inputs.text: a lone surrogate at character 3"),
        ({"inputs": {"audio": 5}}, "inputs.audio: expected base64, a data URI or a URL, got int"),
        ({"inputs": {"audio": ""}}, "inputs.audio: it is empty|inputs.audio.*empty"),
        ({"inputs": {"audio": "no base64!"}}, "inputs.audio: neither base64 nor"),
        ({"inputs": {"video": "data:video/mp4,abc"}}, "inputs.video: a data URI must be"),
        ({"inputs": [{"video": encoded(b"no video")}]}, r"inputs\[0\].video"),
        ({"inputs": {"image": encoded(b"no image")}}, "inputs.image"),
        ({"inputs": "a", "parameters": []}, "parameters: expected an object, got list"),
        ({"inputs": "a", "parameters": {"topk": 1}}, r"parameters: got \['topk'\], expected top_k, notes or subsets"),
        ({"inputs": "a", "parameters": {"top_k": 0}}, "parameters.top_k: expected a whole number"),
        ({"inputs": "a", "parameters": {"top_k": True}}, "parameters.top_k: expected a whole number"),
        ({"inputs": "a", "parameters": {"subsets": "no"}}, "parameters.subsets: expected true or false"),
    ],
)
def test_errors_name_the_field(handler, request_, said):
    with pytest.raises(ValueError, match=said):
        handler(request_)


def test_a_string_is_never_a_path(handler, clips):
    """Neither the file's content nor whether it exists comes out."""
    for path in (clips / "sound.wav", clips / "no such file.wav"):
        for value in (str(path), path.as_uri()):
            with pytest.raises(ValueError, match=r"^inputs.audio: neither base64 nor"):
                handler({"inputs": {"audio": value}})


def test_sizes_are_limited(module, handler, files, monkeypatch):
    sound = files["sound"]
    monkeypatch.setattr(handler, "limits", module.Limits(media_bytes=2 * len(sound)))
    request = {"audio": encoded(sound)}
    assert len(handler({"inputs": [request, request]})) == 2
    with pytest.raises(ValueError, match=r"inputs\[2\].audio: .*no more bytes than the limit; 0 are left"):
        handler({"inputs": [request, request, request]})
    monkeypatch.setattr(handler, "limits", module.Limits(media_bytes=len(sound) - 1))
    for value in (request, {"audio": "x" * len(sound) * 2}, sound):
        with pytest.raises(ValueError, match="than the limit"):
            handler({"inputs": value})
    monkeypatch.setattr(handler, "limits", module.Limits(pixels=48 * 48 - 1))
    for value, name in (({"image": encoded(files["face"])}, "inputs.image"), (Image.new("RGB", (48, 48)), "inputs: ")):
        with pytest.raises(ValueError, match=rf"{name}.* 48 x 48 pixels is beyond the limit pixels=2303"):
            handler({"inputs": value})
    monkeypatch.setattr(handler, "limits", module.Limits(frame_pixels=128 * 64 - 1))
    with pytest.raises(ValueError, match="inputs.video.* 128 x 64 pixels is beyond the limit frame_pixels=8191"):
        handler({"inputs": {"video": encoded(files["clip"])}})
    assert len(handler({"inputs": {"image": encoded(files["face"])}})) == 7


def test_seconds_are_limited(module, handler, files, tmp_path, monkeypatch):
    write_sound(tmp_path / "ten.wav", np.sin(np.arange(10_000, dtype=np.float32) / 3)[None] / 2, 1000)
    ten = encoded((tmp_path / "ten.wav").read_bytes())
    monkeypatch.setattr(handler, "limits", module.Limits(seconds=10.1))
    handler({"inputs": {"audio": ten}})
    monkeypatch.setattr(handler, "limits", module.Limits(seconds=9.9))
    with pytest.raises(ValueError, match="inputs.audio: at most 9.9 seconds"):
        handler({"inputs": {"audio": ten}})
    # 12 frames at 25 Hz
    handler({"inputs": {"video": encoded(files["clip"])}})
    monkeypatch.setattr(handler, "limits", module.Limits(seconds=0.4))
    with pytest.raises(ValueError, match="inputs.video: at most 0.4 seconds"):
        handler({"inputs": {"video": encoded(files["clip"])}})
    monkeypatch.setattr(handler, "limits", module.Limits(frames=11))
    with pytest.raises(ValueError, match="inputs.video: at most 11 frames"):
        handler({"inputs": {"video": encoded(files["clip"])}})


def test_a_header_that_lies_about_the_duration(module, tmp_path):
    """Three seconds of sound under a header that announces a hundredth of one: what is decoded counts."""
    path = tmp_path / "lie.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(b"\0\0" * 48000)
    honest = path.read_bytes()
    lie = honest[:40] + b"\xff\xff\xff\xff" + honest[44:]  # unknown length, as streamed wavs have it
    with pytest.raises(ValueError, match="lie: at most 2 seconds"):
        module.check_media(lie, "lie", module.Limits(seconds=2.0))
    module.check_media(lie, "lie", module.Limits(seconds=3.1))


def test_a_gap_in_time_counts(module, tmp_path):
    """One second of sound that begins after ten of picture: the silence between would be decoded too."""
    path = write_clip(tmp_path / "gap.mkv", frames=10, sound=sine(1, 16000), sound_rate=16000, sound_start_seconds=10)
    with pytest.raises(ValueError, match="gap: at most 5 seconds"):
        module.check_media(path.read_bytes(), "gap", module.Limits(seconds=5.0))


def test_limits_from_the_environment(module, monkeypatch):
    monkeypatch.setenv("TRIEMO_MAX_MEGABYTES", "1.5")
    monkeypatch.setenv("TRIEMO_MAX_SECONDS", "7")
    monkeypatch.setenv("TRIEMO_MAX_PIXELS", "90000000")
    limits = module.limits_from_environment()
    assert (limits.media_bytes, limits.seconds, limits.inputs) == (1_500_000, 7.0, 32)
    assert limits.media == {"seconds": 7.0, "pixels": 90_000_000, "frame_pixels": 36_000_000, "frames": 14_400}
    for bad in ("many", "0", "inf"):
        monkeypatch.setenv("TRIEMO_MAX_SECONDS", bad)
        with pytest.raises(ValueError, match="TRIEMO_MAX_SECONDS: expected a number"):
            module.limits_from_environment()


def test_a_limit_that_is_raised_holds_in_the_reader_too(module, handler, monkeypatch):
    """The endpoint's limits are given to the media reader, over what the environment or the defaults say."""
    monkeypatch.setenv("TRIEMO_MAX_PIXELS", "100")
    picture = Image.new("RGB", (60, 60), "white")
    monkeypatch.setattr(handler, "limits", module.Limits(pixels=3600))
    assert len(handler({"inputs": picture})) == 7
    thin = Image.new("RGB", (3000, 1))
    with pytest.raises(ValueError, match="3000 x 1 pixels is beyond the limit aspect=50"):
        handler({"inputs": thin})


def test_errors_over_http(handler):
    with serve(handler) as url:
        assert post(url, {"inputs": SENTENCE, "parameters": {"top_k": 1}})[0] == 200
        status, body = post(url, {"inputs": {"audio": "no base64!"}})
        assert status == 400 and body["error"].startswith("inputs.audio: neither base64")


def test_in_a_process_without_triemo(folder, handler, files):
    """What the service does, where only transformers and the folder's requirements are installed."""
    request = {"inputs": {"text": SENTENCE, "audio": encoded(files["sound"]), "image": encoded(files["face"])}}
    script = (
        "import importlib.util, json, sys\n"
        "sys.modules['triemo'] = None\n"
        "spec = importlib.util.spec_from_file_location('handler', sys.argv[1] + '/handler.py')\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['handler'] = module\n"
        "spec.loader.exec_module(module)\n"
        "print(json.dumps(module.EndpointHandler(sys.argv[1])(json.loads(sys.stdin.read()))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        input=json.dumps(request),
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert close(json.loads(done.stdout.splitlines()[-1]), handler(request))
