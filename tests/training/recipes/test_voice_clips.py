"""Clips in memory and their batches."""

import torch

from triemo.training.data.augmentation import warp_log_mel
from triemo.training.recipes.voice import pad_frames


def clips(*lengths: int) -> list[torch.Tensor]:
    return [torch.full((length, 80), index / 10) for index, length in enumerate(lengths)]


def test_padding_is_zero_and_masked():
    features, mask = pad_frames(clips(3, 5))
    assert features.shape == (2, 5, 80) and mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert (features[0, 3:] == 0).all() and (features[1] == 0.1).all()


def test_a_warp_without_cuts_keeps_both_ends():
    torch.manual_seed(0)
    clip = torch.linspace(0, 1, 400)[:, None].expand(400, 80)
    for _ in range(10):
        warped = warp_log_mel(clip, max_cut=0.0)
        assert warped[0, 0] == 0 and abs(float(warped[-1, 0]) - 1) < 1e-4 and 340 <= len(warped) <= 460
