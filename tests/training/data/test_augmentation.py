import io

import numpy as np
import pytest
import torch
from PIL import Image

from triemo.training.data.augmentation import (
    augment_faces,
    augment_log_mel,
    cut_mix,
    disturb_faces,
    jpeg_loss,
    mix_up,
    normalise_faces,
    one_hot,
    warp_log_mel,
)


def test_faces_are_resized_as_pillow_does():
    pixels = torch.randint(0, 256, (2, 48, 48), dtype=torch.uint8)
    images = normalise_faces(pixels, 96)
    for image, source in zip(images, pixels, strict=True):
        resized = Image.fromarray(source.numpy()).resize((96, 96), Image.Resampling.BILINEAR)
        wanted = (np.asarray(resized, dtype=np.float32) / 255 - 0.5) / 0.25
        # Pillow rounds to whole grey levels after each of its two passes.
        assert np.abs(image[0].numpy() - wanted).max() <= 1.01 / 255 / 0.25


def test_faces_without_strength_are_plain_or_flipped():
    pixels = torch.randint(0, 256, (16, 96, 96), dtype=torch.uint8)
    images, plain = augment_faces(pixels, 96, strength=0.0), normalise_faces(pixels, 96)
    same = [torch.allclose(a, b, atol=1e-4) for a, b in zip(images, plain, strict=True)]
    flipped = [torch.allclose(a.flip(-1), b, atol=1e-4) for a, b in zip(images, plain, strict=True)]
    assert all(a != b for a, b in zip(same, flipped, strict=True))
    assert any(same) and any(flipped)


def test_faces_change_at_full_strength_and_stay_finite():
    pixels = torch.randint(0, 256, (8, 48, 48), dtype=torch.uint8)
    images = augment_faces(pixels, 64)
    assert images.shape == (8, 1, 64, 64)
    assert images.isfinite().all()
    assert not torch.allclose(images, normalise_faces(pixels, 64))


def test_undisturbed_faces_are_plain_or_flipped():
    pixels = torch.randint(0, 256, (16, 64, 64), dtype=torch.uint8)
    images, plain = disturb_faces(pixels, strength=0.0), normalise_faces(pixels, 64)
    # Black is raised by a thousandth, so that gamma has no zero to work on.
    same = [torch.allclose(a, b, atol=5e-3) for a, b in zip(images, plain, strict=True)]
    flipped = [torch.allclose(a.flip(-1), b, atol=5e-3) for a, b in zip(images, plain, strict=True)]
    assert all(a != b for a, b in zip(same, flipped, strict=True)) and any(same) and any(flipped)


def test_disturbed_faces_stay_finite_and_leave_their_source():
    pixels = torch.randint(0, 256, (64, 64, 64), dtype=torch.uint8)
    before = pixels.clone()
    images = disturb_faces(pixels, torch.arange(64) < 32)
    assert torch.equal(pixels, before) and images.shape == (64, 1, 64, 64) and images.isfinite().all()
    assert not torch.allclose(images, normalise_faces(pixels, 64), atol=0.1)


def test_tight_faces_are_widened_as_a_detector_would():
    """A white square in the middle becomes smaller by the share that MTCNN's crop is larger, and lower in the crop."""
    pixels = torch.zeros(200, 96, 96, dtype=torch.uint8)
    pixels[:, 24:72, 24:72] = 255
    images = disturb_faces(pixels, torch.ones(200, dtype=torch.bool), strength=0.0)
    white = images[:, 0] > 0
    sides = white.any(1).sum(1)
    wide = sides < 46
    assert 50 < wide.sum() < 110 and (sides[~wide] == 48).all()
    assert sides[wide].float().mean() == pytest.approx(48 / 1.19, abs=1.5)
    rows = (torch.arange(96) * white[wide].any(2)).sum(1) / white[wide].any(2).sum(1)
    assert rows.float().mean() == pytest.approx(47.5 + 0.045 / 1.19 * 96, abs=1)


@pytest.mark.parametrize("quality", [10, 40, 80])
def test_jpeg_loss_is_that_of_pillow(quality):
    ramp = torch.linspace(0, 255, 64)
    pixels = ((ramp + ramp[:, None]) / 2 + 40 * torch.rand(64, 64)).clamp(0, 255).round()
    file = io.BytesIO()
    Image.fromarray(pixels.byte().numpy()).save(file, "jpeg", quality=quality)
    wanted = np.asarray(Image.open(file), dtype=np.float32)
    lost = jpeg_loss(pixels[None, None] / 255, torch.tensor([float(quality)]))[0, 0].numpy() * 255
    assert np.abs(lost - wanted).mean() < 0.8  # Pillow rounds to whole levels
    assert np.abs(pixels.numpy() - wanted).mean() > 2
    with pytest.raises(ValueError, match="images: got 20 pixels a side"):
        jpeg_loss(torch.zeros(1, 1, 20, 20), torch.ones(1))


def test_log_mel_padding_stays_zero_and_input_is_untouched():
    features = torch.randn(3, 120, 80)
    mask = (torch.arange(120) < torch.tensor([[120], [60], [90]])).long()
    features = features * mask[..., None]
    before = features.clone()
    augmented = augment_log_mel(features, mask)
    assert torch.equal(features, before)
    assert (augmented[mask == 0] == 0).all()
    assert not torch.allclose(augmented[1, :60], before[1, :60])


def test_noise_never_lowers_a_cell_of_log_mel():
    """Without gain, tilt and masks only noise is left, and noise adds energy."""
    features = torch.randn(16, 50, 80) * 0.3
    mask = torch.ones(16, 50, dtype=torch.long)
    plain = augment_log_mel(features, mask, max_gain=0, max_tilt=0, time_masks=0, frequency_masks=0)
    assert (plain >= features - 1e-5).all()
    changed = (plain - features).flatten(1).amax(1) > 1e-4
    assert changed.any() and not changed.all()


def test_warp_without_limits_keeps_a_short_clip():
    clip = torch.randn(150, 80)
    assert torch.allclose(warp_log_mel(clip, max_tempo=0, max_stretch=0), clip, atol=1e-3)


def test_warp_changes_the_length_within_limits():
    lengths = [len(warp_log_mel(torch.randn(100, 80))) for _ in range(20)]
    assert 85 <= min(lengths) < 100 < max(lengths) <= 115
    assert all(len(warp_log_mel(torch.randn(400, 80))) >= 0.84 * 270 for _ in range(20))


def test_mix_up_mixes_inputs_and_targets_alike():
    inputs, targets = torch.eye(7)[[0, 1, 2, 3]], torch.eye(7)[[0, 1, 2, 3]]
    mixed, soft = mix_up(inputs, targets, alpha=1.0)
    assert torch.allclose(mixed, soft)
    assert torch.allclose(soft.sum(1), torch.ones(4))
    same, unchanged = mix_up(inputs, targets, alpha=0.0)
    assert same is inputs and unchanged is targets


def test_cut_mix_weighs_targets_by_the_area():
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 16, 16)
    mixed, targets = cut_mix(images, torch.arange(4.0)[:, None])
    assert torch.allclose(mixed.mean((1, 2, 3)), targets[:, 0], atol=1e-5)
    assert images[0].sum() == 0


def test_one_hot_lets_soft_targets_pass():
    assert one_hot(torch.tensor([2]), 3).tolist() == [[0, 0, 1]]
    assert one_hot(torch.tensor([[0.5, 0.5, 0]]), 3).tolist() == [[0.5, 0.5, 0]]
