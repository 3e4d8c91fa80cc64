"""Clips in memory and their batches."""

import torch

from triemo.training.augmentation import warp_log_mel
from triemo.training.voice_clips import MARGIN, VoiceClips, VoiceCollator, pad_frames


def clips(*lengths: int) -> list[torch.Tensor]:
    return [torch.full((length, 80), index / 10) for index, length in enumerate(lengths)]


def test_padding_is_zero_and_masked():
    features, mask = pad_frames(clips(3, 5))
    assert features.shape == (2, 5, 80) and mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert (features[0, 3:] == 0).all() and (features[1] == 0.1).all()


def test_pauses_at_both_ends_go_and_a_margin_stays():
    clip = torch.zeros(200, 80)
    clip[60:100] = 1.0
    data = VoiceClips([clip, torch.ones(7, 80)], [2, 7], [1, 2]).voiced()
    assert torch.equal(data.clips[0], clip[60 - MARGIN : 100 + MARGIN])
    assert len(data.clips[1]) == 7  # the same loudness throughout
    assert data[0]["label"] == 2 and (data.labels, data.speakers) == ([2, 7], [1, 2])


def test_mixing_mixes_sound_with_label_and_the_first_clip_stays_the_louder():
    torch.manual_seed(0)
    # A clip of the constant i has the label i: what is mixed of one is mixed of the other.
    data = VoiceClips([torch.full((40, 80), float(index)) for index in range(8)], range(8), range(8))
    plain = VoiceCollator(8, warp=0.0, mix_up=0.0, masks=0)([data[index] for index in range(8)])
    assert torch.equal(plain["labels"], torch.eye(8))
    mixed = VoiceCollator(8, warp=0.0, mix_up=1.0, masks=0)([data[index] for index in range(8)])
    assert torch.allclose(mixed["labels"].sum(1), torch.ones(8)) and not torch.equal(mixed["labels"], torch.eye(8))
    assert (mixed["labels"].diagonal() >= 0.5).all()
    expected = mixed["labels"] @ torch.arange(8.0)
    assert torch.allclose(mixed["input_features"].mean((1, 2)), expected, atol=1e-4)


def test_a_mixed_clip_is_as_long_as_the_longer_one():
    torch.manual_seed(1)
    data = VoiceClips(clips(30, 50), [0, 1], [1, 2])
    mixed = VoiceCollator(8, warp=0.0, mix_up=1.0)([data[0], data[1]])
    pairs = {(30, 50), (50, 50)}  # the order drawn may leave each with itself
    assert tuple(mixed["attention_mask"].sum(1).tolist()) in pairs


def test_masked_cells_take_the_clips_mean_and_others_stay():
    torch.manual_seed(0)
    clip = torch.randn(60, 80)
    found = VoiceCollator(8, warp=0.0, mix_up=0.0)([{"clip": clip, "label": 0}])["input_features"][0]
    changed = found != clip
    assert 0 < changed.float().mean() < 0.5
    assert torch.allclose(found[changed], clip.mean(), atol=1e-5)


def test_a_warp_without_cuts_keeps_both_ends():
    torch.manual_seed(0)
    clip = torch.linspace(0, 1, 400)[:, None].expand(400, 80)
    for _ in range(10):
        warped = warp_log_mel(clip, max_cut=0.0)
        assert warped[0, 0] == 0 and abs(float(warped[-1, 0]) - 1) < 1e-4 and 340 <= len(warped) <= 460
