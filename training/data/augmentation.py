"""Augmentation of whole batches in torch: faces, log-mel frames, mixing of examples.

Shapes: B batch, T log-mel frames, M mel bins, C classes, S side of a square image.
"""

import torch
import torch.nn.functional as F

__all__ = ["augment_faces", "augment_log_mel", "mix_up", "normalise_faces", "one_hot", "warp_log_mel"]

# The processor's numbers: x / 255, then (x - 0.5) / 0.25.
FACE_MEAN, FACE_STD = 0.5, 0.25


def one_hot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(B,) class indices, or (B, C) soft targets that pass through, as float (B, C)."""
    return labels.float() if labels.dim() == 2 else F.one_hot(labels, num_classes).float()


def normalise_faces(pixels: torch.Tensor, size: int = 96) -> torch.Tensor:
    """Grey uint8 (B, S, S) as the tower's input (B, 1, size, size), resized as the image processor does."""
    images = pixels.unsqueeze(1).float()
    if images.shape[-1] != size:
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return (images / 255 - FACE_MEAN) / FACE_STD


def augment_faces(pixels: torch.Tensor, size: int = 96, strength: float = 1.0) -> torch.Tensor:
    """Grey uint8 (B, S, S) as (B, 1, size, size): flip, rotation, scale, shift, light, one erased box.

    At strength 1: half of the images flipped, rotation up to 20 degrees, scale 0.82 to 1.18, shift up to 10 % of the
    side, contrast 0.6 to 1.4, brightness up to 0.4 standard deviations, a box of 8 to 35 % of the side erased in
    half of the images.
    """
    batch = len(pixels)

    def uniform(limit: float, *shape: int) -> torch.Tensor:
        return (torch.rand(batch, *shape) * 2 - 1) * limit * strength

    angle = uniform(0.35)
    scale = 1 + uniform(0.18)
    flip = torch.where(torch.rand(batch) < 0.5, -1.0, 1.0)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = flip * angle.cos() / scale, -flip * angle.sin() / scale
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() / scale, angle.cos() / scale
    theta[:, :, 2] = uniform(0.2, 2)
    grid = F.affine_grid(theta, [batch, 1, size, size], align_corners=False)
    images = pixels.unsqueeze(1).float() / 255
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    images = (images - FACE_MEAN) / FACE_STD
    centre = images.mean((2, 3), keepdim=True)
    images = (images - centre) * (1 + uniform(0.4, 1, 1, 1)) + centre + uniform(0.4, 1, 1, 1)

    extent = (0.04 + 0.135 * torch.rand(batch, 2)) * size * strength
    middle = torch.rand(batch, 2) * size
    position = torch.arange(size).float()
    rows = (position - middle[:, :1]).abs() < extent[:, :1]
    columns = (position - middle[:, 1:]).abs() < extent[:, 1:]
    erased = rows[:, :, None] & columns[:, None, :] & (torch.rand(batch, 1, 1) < 0.5)
    return images.masked_fill(erased.unsqueeze(1), 0.0)


def warp_log_mel(
    clip: torch.Tensor, max_tempo: float = 0.15, max_stretch: float = 0.1, max_cut: float = 0.25
) -> torch.Tensor:
    """Another speaker's rendering of a clip (T, M): tempo, vocal tract length (Jaitly and Hinton, 2013), cut ends.

    Tempo changes by up to `max_tempo`, the mel axis is stretched by up to `max_stretch`, and up to a share of
    `max_cut` of the frames goes from each end of clips longer than 2 s.
    """
    frames, bins = clip.shape
    if frames > 200 and max_cut > 0:
        cut = (torch.rand(2) * max_cut * (frames - 150)).long()
        clip = clip[cut[0] : frames - int(cut[1])]
    tempo, stretch = 1 + (torch.rand(2) * 2 - 1) * torch.tensor([max_tempo, max_stretch])
    rows = torch.linspace(-1, 1, max(4, round(len(clip) * float(tempo))))
    # Low bins stay where they are: the axis is stretched from its first bin.
    columns = (torch.linspace(0, 2, bins) * stretch - 1).clamp(max=1)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
    return F.grid_sample(clip[None, None], grid[None], align_corners=True, padding_mode="border")[0, 0]


def augment_log_mel(
    features: torch.Tensor,
    attention_mask: torch.Tensor,
    max_gain: float = 0.25,
    max_tilt: float = 0.15,
    time_masks: int = 2,
    frequency_masks: int = 2,
    noise_probability: float = 0.5,
) -> torch.Tensor:
    """SpecAugment (Park et al., 2019) with gain, spectral tilt and noise on Whisper-scaled log-mel (B, T, M).

    One unit of the scaled log-mel is 40 dB, so the default gain is up to 10 dB and the tilt 6 dB at either end of
    the spectrum; half of the clips get noise 14 to 40 dB below their loudest cell. A time mask covers up to 15 % of
    a clip's valid frames, a frequency mask up to 12 bins; masked cells take the clip's own mean. Frames that
    `attention_mask` (B, T) marks as padding stay 0.
    """
    batch, frames, bins = features.shape
    valid = attention_mask.bool().unsqueeze(-1)
    lengths = attention_mask.sum(1, keepdim=True).float()
    gain = (torch.rand(batch, 1, 1) * 2 - 1) * max_gain
    tilt = (torch.rand(batch, 1, 1) * 2 - 1) * max_tilt * torch.linspace(-1, 1, bins)
    level = features.amax((1, 2), keepdim=True) - 0.35 - 0.65 * torch.rand(batch, 1, 1)
    noise = level + 0.05 * torch.randn(batch, frames, bins)
    noisy = torch.log10(10 ** (4 * features) + 10 ** (4 * noise)) / 4
    features = torch.where(torch.rand(batch, 1, 1) < noise_probability, noisy, features) + gain + tilt
    mean = (features * valid).sum((1, 2), keepdim=True) / (lengths.unsqueeze(-1) * bins)
    masked = torch.zeros(batch, frames, bins, dtype=torch.bool)
    frame, bin_ = torch.arange(frames).float(), torch.arange(bins).float()
    for _ in range(time_masks):
        width = torch.rand(batch, 1) * 0.15 * lengths
        start = torch.rand(batch, 1) * (lengths - width)
        masked |= ((frame >= start) & (frame < start + width)).unsqueeze(-1)
    for _ in range(frequency_masks):
        width = torch.rand(batch, 1) * 12
        start = torch.rand(batch, 1) * (bins - width)
        masked |= ((bin_ >= start) & (bin_ < start + width)).unsqueeze(1)
    return torch.where(masked, mean, features) * valid


def mix_up(
    inputs: torch.Tensor, targets: torch.Tensor, alpha: float, probability: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """mixup (Zhang et al., 2018) of a batch with itself, one weight a batch: inputs (B, ...), soft targets (B, C)."""
    if alpha <= 0 or torch.rand(()) >= probability:
        return inputs, targets
    weight = torch.distributions.Beta(alpha, alpha).sample()
    order = torch.randperm(len(inputs))
    return weight * inputs + (1 - weight) * inputs[order], weight * targets + (1 - weight) * targets[order]
