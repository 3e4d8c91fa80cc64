"""One client cannot hold the endpoint: places, deadline, budget, and decoding beside the model."""

import base64
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from media_files import sine, write_sound

import triemo.processing  # noqa: F401  registers the pipeline, which a published folder names itself
from triemo.serving.endpoint import handler as module
from triemo.serving.endpoint.handler import BusyError, EndpointHandler, Limits

SENTENCE = "oh wow you really came !"


@pytest.fixture(scope="module")
def handler(tiny_checkpoint):
    return EndpointHandler(str(tiny_checkpoint))


@pytest.fixture
def held_model(handler, monkeypatch):
    """The model does not answer until this is set; `.entered` is set once it was asked."""
    free, forward = threading.Event(), handler.reader.forward
    free.entered = threading.Event()

    def waiting(tensors):
        free.entered.set()
        assert free.wait(60)
        return forward(tensors)

    monkeypatch.setattr(handler.reader, "forward", waiting)
    yield free
    free.set()


def sound(tmp_path, seconds: float, sampling_rate: int = 8000) -> str:
    path = write_sound(tmp_path / f"{seconds}.wav", sine(seconds, sampling_rate), sampling_rate)
    return base64.b64encode(path.read_bytes()).decode()


def test_more_requests_than_places_are_told_when_to_come_again(handler, held_model, monkeypatch):
    monkeypatch.setattr(handler, "limits", Limits(requests=2))
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(handler, {"inputs": SENTENCE}) for _ in range(2)]
        assert held_model.entered.wait(30)
        begin = time.monotonic()
        while handler._requests < 2:
            time.sleep(0.01)
        with pytest.raises(BusyError, match=r"busy with 2 requests; try again in \d+ seconds") as raised:
            handler({"inputs": SENTENCE})
        assert time.monotonic() - begin < 10
        assert raised.value.status_code == 503 and int(raised.value.headers["Retry-After"]) >= 1
        held_model.set()
        assert [len(one.result(30)) for one in waiting] == [7, 7]
    assert len(handler({"inputs": SENTENCE})) == 7  # the places are free again
    assert handler._requests == 0


def test_who_waits_past_the_deadline_is_told(handler, held_model, monkeypatch):
    """Not for as long as the requests before take: one lock without a limit held everyone for minutes."""
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(handler, {"inputs": SENTENCE})
        assert held_model.entered.wait(30)
        monkeypatch.setattr(handler, "limits", Limits(deadline_seconds=0.5))
        begin = time.monotonic()
        with pytest.raises(BusyError, match="no answer within 0.5 seconds"):
            handler({"inputs": SENTENCE})
        assert 0.4 < time.monotonic() - begin < 10
        held_model.set()
        assert len(first.result(30)) == 7


def test_media_are_decoded_while_the_model_is_busy(handler, held_model, tmp_path, monkeypatch):
    decoded = threading.Event()
    monkeypatch.setattr(
        type(handler.reader), "windows_of", tell_of(type(handler.reader).windows_of, decoded), raising=True
    )
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(handler, {"inputs": SENTENCE})
        assert held_model.entered.wait(30)
        decoded.clear()
        second = pool.submit(handler, {"inputs": {"audio": sound(tmp_path, 0.5)}})
        assert decoded.wait(30)
        with pytest.raises(ValueError, match="inputs.audio"):  # and who sends nonsense is told at once
            handler({"inputs": {"audio": base64.b64encode(b"no sound").decode()}})
        assert not first.done() and not second.done()
        held_model.set()
        assert len(first.result(30)) == len(second.result(30)) == 7


def tell_of(function, event):
    def told(*arguments, **named):
        result = function(*arguments, **named)
        event.set()
        return result

    return told


def test_a_request_has_a_budget_of_seconds(handler, tmp_path, monkeypatch):
    """Each of them is within the limits; nothing is decoded before all are counted."""
    monkeypatch.setattr(handler, "limits", Limits(seconds=4.0, total_seconds=7.0))
    three = {"audio": sound(tmp_path, 3.0)}
    assert len(handler({"inputs": [three, three]})) == 2
    monkeypatch.setattr(type(handler.reader), "windows_of", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"inputs\[2\]: .* 7 seconds together"):
        handler({"inputs": [three, three, three]})


def test_the_budget_admits_what_the_limit_of_one_admits(handler, tmp_path, monkeypatch):
    monkeypatch.setattr(handler, "limits", Limits(seconds=4.0, total_seconds=1.0))
    assert len(handler({"inputs": {"audio": sound(tmp_path, 3.0)}})) == 7


def test_the_model_is_held_for_one_small_batch_at_a_time():
    def rows(*seconds: float) -> list:
        return [module._Row({}, one) for one in seconds]

    def sizes(*seconds: float) -> list[int]:
        return [len(batch) for batch in module._batches(rows(*seconds))]

    assert sizes(*[0.0] * 40) == [16, 16, 8]
    assert sizes(*[50.0] * 5) == [2, 2, 1]
    assert sizes(119.0, 119.0) == [1, 1]
    assert sizes(1.0, 1.0, 100.0, 1.0) == [2, 1, 1]
    assert sizes(500.0) == [1]
    kept = rows(3.0, 50.0, 0.0, 90.0, 1.0)
    assert [row for batch in module._batches(kept) for row in batch] == kept


def test_decoders_have_tokenizers_of_their_own(handler):
    decoders = [handler._decoders.get() for _ in range(module.DECODERS)]
    try:
        tokenizers = {id(one.processor.tokenizer) for one in decoders} | {id(handler.reader.processor.tokenizer)}
        assert len(tokenizers) == module.DECODERS + 1
        assert {id(one.model) for one in decoders} == {id(handler.reader.model)}
        expected = handler.reader.prepare({"text": SENTENCE})
        for one in decoders:
            torch.testing.assert_close(one.prepare({"text": SENTENCE}), expected, rtol=0, atol=0)
    finally:
        for one in decoders:
            handler._decoders.put(one)


def test_seconds_of_a_medium(tmp_path):
    content = base64.b64decode(sound(tmp_path, 1.5))
    assert module.check_media(content, "it", Limits()) == pytest.approx(1.5, abs=0.01)
    assert module.check_media(b"nothing", "it", Limits()) == 0.0
    subtitles = b"1\n00:00:00,000 --> 00:00:02,000\nhello\n"  # a file that can be opened, and holds no media
    assert module.check_media(subtitles, "it", Limits()) == 0.0
