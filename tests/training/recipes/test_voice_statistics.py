"""Fitting of an audio tower's statistics, on made-up voices."""

import pytest
import torch

from triemo.modeling import TriemoAudioConfig, TriemoAudioModel
from triemo.training.recipes.voice import (
    VoiceClips,
    clip_logits,
    fit_statistics,
    pad_frames,
    standardise_states,
    voice_logits,
)


def tiny_tower(layers: int = 1, **fields) -> TriemoAudioModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 32}
    return TriemoAudioModel(TriemoAudioConfig(**sizes, **{"statistics_size": 8, **fields})).eval()


def voices(count: int) -> VoiceClips:
    """Clips of three speakers whose spectrum, after a little noise, is their class."""
    torch.manual_seed(1)
    labels = [index % 8 for index in range(count)]
    clips = [torch.randn(40 + index % 5, 80) * 0.1 for index in range(count)]
    for clip, label in zip(clips, labels, strict=True):
        clip[:, 10 * label : 10 * label + 10] += 1.0
    return VoiceClips(clips, labels, [index % 3 for index in range(count)])


def test_fitted_statistics_tell_the_class_and_leave_the_encoder_alone():
    tower, given = tiny_tower(), voices(72)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    scores = fit_statistics(tower, given, strength=1.0)
    assert scores["accuracy"] > 0.9  # each speaker unseen
    assert (clip_logits(tower, given.clips).argmax(1) == torch.tensor(given.labels)).float().mean() > 0.95
    changed = {name for name, value in tower.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {
        f"statistics.{name}" for name in ("scale", "shift", "reduce.weight", "reduce.bias", "expand.weight")
    }


def test_a_tower_without_a_number_for_each_class_is_refused():
    with pytest.raises(ValueError, match="statistics_size: got 4, expected 8"):
        fit_statistics(tiny_tower(statistics_size=4), voices(16), strength=1.0)


def test_logits_of_a_clip_do_not_depend_on_its_batch():
    tower, given = tiny_tower(), voices(20)
    fit_statistics(tower, given, strength=1.0)
    together = clip_logits(tower, given.clips)
    alone = torch.cat([voice_logits(tower, *pad_frames([clip])) for clip in given.clips])
    assert torch.allclose(together, alone, atol=1e-4)


def test_standardised_states_have_mean_0_and_deviation_1_before_the_statistics_are_added():
    tower, given = tiny_tower(), voices(8)
    standardise_states(tower, given.clips)
    tower.statistics = None
    states = [tower(clip[None]).last_hidden_state[0] for clip in given.clips]
    assert torch.allclose(torch.cat(states).mean(0), torch.zeros(16), atol=1e-4)
    assert torch.allclose(torch.cat(states).std(0, unbiased=False), torch.ones(16), atol=1e-3)
