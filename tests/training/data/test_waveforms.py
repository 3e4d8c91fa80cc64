"""Augmentation of waveforms keeps them sound, and does what it says."""

import numpy as np
import pytest

from triemo.training.data.waveforms import (
    RATE,
    augment_waveform,
    in_a_room,
    join_waveforms,
    through_opus,
    with_tempo,
)


def tone(hertz: float = 400.0, seconds: float = 1.5) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)


def loudest_hertz(waveform: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(waveform)).argmax() * RATE / len(waveform))


def test_augmented_clips_are_sound_and_differ_by_their_draw_alone():
    for seed in range(40):
        found = augment_waveform(tone(), np.random.default_rng(seed))
        assert found.dtype == np.float32 and np.isfinite(found).all() and np.abs(found).max() <= 1
        assert 0.5 * RATE < len(found) < 4 * RATE
    once, again = (augment_waveform(tone(), np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(once, again) and not np.array_equal(once, augment_waveform(tone(), np.random.default_rng(4)))
    assert augment_waveform(tone(), np.random.default_rng(0), strength=0) is not None
    assert np.array_equal(augment_waveform(tone(), np.random.default_rng(0), strength=0), tone())


@pytest.mark.parametrize("tempo", [0.8, 1.25])
def test_tempo_changes_the_length_and_not_the_pitch(tempo):
    found = with_tempo(tone(), tempo)
    assert len(found) == round(len(tone()) / tempo)
    assert loudest_hertz(found) == pytest.approx(400, rel=0.02)


def test_a_room_rings_on_after_the_sound():
    clip = np.concatenate([tone(seconds=0.3), np.zeros(RATE // 2, np.float32)])
    found = in_a_room(clip, np.random.default_rng(0))
    after = np.abs(found[int(0.32 * RATE) : int(0.4 * RATE)]).mean()
    assert len(found) == len(clip) and after > 1e-3 > np.abs(clip[int(0.32 * RATE) :]).max()


def test_opus_keeps_the_tone_and_loses_detail():
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 0.05
    found = through_opus(tone(seconds=1.0) + noise, 8000)
    assert len(found) <= RATE and loudest_hertz(found) == pytest.approx(400, rel=0.02)
    high = [np.abs(np.fft.rfft(wave))[int(len(wave) * 7000 / RATE) :].mean() for wave in (found, noise)]
    assert high[0] < 0.5 * high[1]


def test_joined_clips_have_pauses_and_an_end():
    found = join_waveforms([tone(seconds=1.0)] * 3, np.random.default_rng(0), seconds=2.5)
    assert len(found) == int(2.5 * RATE)
    quiet = np.abs(found[RATE : RATE + RATE // 20]).max()
    assert quiet < 1e-3 and np.abs(found[:RATE]).max() > 0.2
