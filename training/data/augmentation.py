"""Augmentation of whole batches in torch: faces, log-mel frames, mixing of examples.

Shapes: B batch, T log-mel frames, M mel bins, C classes, S side of a square image.
"""

import torch
import torch.nn.functional as F

__all__ = [
    "augment_faces",
    "augment_log_mel",
    "cut_mix",
    "disturb_faces",
    "jpeg_loss",
    "mix_up",
    "normalise_faces",
    "one_hot",
    "warp_log_mel",
]

# The processor's numbers: x / 255, then (x - 0.5) / 0.25.
FACE_MEAN, FACE_STD = 0.5, 0.25
# The crop that MTCNN's box gives of a picture of RAF-DB, which is cut tighter: over 237 pictures of train its
# side is 1.19 times the picture's (quartiles 1.14 and 1.26) and its centre lies 0.05 sides higher.
DETECTED_SIDE, DETECTED_RISE = 1.19, 0.045
# Luminance quantisation of JPEG at quality 50 (ITU-T T.81, table K.1).
JPEG_TABLE = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
).float()


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


def disturb_faces(pixels: torch.Tensor, tight: torch.Tensor | None = None, strength: float = 1.0) -> torch.Tensor:
    """Grey uint8 (B, S, S) as (B, 1, S, S): what a detector, a camera and a file do to a face.

    At strength 1: half of the images flipped; rotation up to 15 degrees; the box larger or smaller by up to 22 %, its
    sides unequal by up to 6 %, off by up to 8 % of the side, in 15 % of the images twice that; gamma (deviation 0.25
    of its logarithm), contrast 0.6 to 1.4, brightness up to 0.12; in a fifth of the images light from one side, noise,
    20 to 48 pixels enlarged again, blur, or JPEG of quality 10 to 75; in a tenth 15 to 55 % of the light; in 35 % a
    box of 8 to 34 % of the side erased.

    Args:
        pixels: faces, S a multiple of 8.
        tight: (B,) bool, faces that are cut tighter than a detector's crop; 40 % of them are widened to one, and what
            lies beyond repeats the border.
        strength: of everything.
    """
    batch, size = len(pixels), pixels.shape[-1]
    images = pixels.unsqueeze(1).float() / 255
    images = F.grid_sample(images, _box_grid(batch, size, tight, strength), padding_mode="border", align_corners=False)
    images = _other_light(images, strength)
    images = (_lower_resolution(images, strength) - FACE_MEAN) / FACE_STD
    extent = (0.04 + 0.13 * torch.rand(batch, 2)) * size
    middle = torch.rand(batch, 2) * size
    position = torch.arange(size).float()
    rows = (position - middle[:, :1]).abs() < extent[:, :1]
    columns = (position - middle[:, 1:]).abs() < extent[:, 1:]
    erased = rows[:, :, None] & columns[:, None, :] & (torch.rand(batch, 1, 1) < 0.35 * strength)
    return torch.where(erased.unsqueeze(1), 0.7 * torch.randn(batch, 1, 1, 1), images)


def _spread(limit: float, *shape: int) -> torch.Tensor:
    return (torch.rand(*shape) * 2 - 1) * limit


def _some(batch: int, probability: float) -> torch.Tensor:
    """Row numbers of a random part of the batch."""
    return (torch.rand(batch) < probability).nonzero()[:, 0]


def _box_grid(batch: int, size: int, tight: torch.Tensor | None, strength: float) -> torch.Tensor:
    """Where each pixel of the crop lies in the picture, (B, S, S, 2)."""
    angle = _spread(0.26 * strength, batch)
    side = torch.exp(_spread(0.2 * strength, batch) - 0.04 * strength)
    aspect = torch.exp(_spread(0.06 * strength, batch))
    shift = _spread(0.16 * strength, batch, 2) * torch.where(torch.rand(batch, 1) < 0.15, 2, 1)
    if tight is not None:
        widened = tight & (torch.rand(batch) < 0.4)
        side = torch.where(widened, side * DETECTED_SIDE, side)
        shift[:, 1] -= 2 * DETECTED_RISE * widened
    flip = torch.where(torch.rand(batch) < 0.5, -1.0, 1.0)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = flip * angle.cos() * side * aspect, -flip * angle.sin() * side
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() * side * aspect, angle.cos() * side
    theta[:, :, 2] = shift
    return F.affine_grid(theta, [batch, 1, size, size], align_corners=False)


def _other_light(images: torch.Tensor, strength: float) -> torch.Tensor:
    """Gamma, light from a side, contrast, brightness, darkness and noise on images (B, 1, S, S) of 0 to 1."""
    batch, size = len(images), images.shape[-1]
    images = images.clamp(1e-3, 1) ** torch.exp(torch.randn(batch, 1, 1, 1) * 0.25 * strength)
    rows = _some(batch, 0.2 * strength)
    direction = 2 * torch.pi * torch.rand(len(rows), 1, 1, 1)
    axis = 2 * torch.arange(size) / (size - 1) - 1  # linspace may miss the device that draws are made on
    ramp = axis * direction.cos() + axis[:, None] * direction.sin()
    images[rows] *= 1 + 0.6 * torch.rand(len(rows), 1, 1, 1) * ramp
    centre = images.mean((2, 3), keepdim=True)
    images = (images - centre) * (1 + _spread(0.4 * strength, batch, 1, 1, 1)) + centre
    images = images + _spread(0.12 * strength, batch, 1, 1, 1)
    rows = _some(batch, 0.1 * strength)
    images[rows] *= 0.15 + 0.4 * torch.rand(len(rows), 1, 1, 1)
    rows = _some(batch, 0.2 * strength)
    images[rows] += torch.randn(len(rows), 1, size, size) * 0.06 * torch.rand(len(rows), 1, 1, 1)
    return images.clamp(0, 1)


def _lower_resolution(images: torch.Tensor, strength: float) -> torch.Tensor:
    """Fewer pixels, blur and JPEG on images (B, 1, S, S) of 0 to 1; one size and one blur a batch keep it quick."""
    batch, size = len(images), images.shape[-1]
    if len(rows := _some(batch, 0.2 * strength)):
        low = int(torch.randint(20, 49, ()))
        small = F.interpolate(images[rows], (low, low), mode="bilinear", antialias=True)
        images[rows] = F.interpolate(small, (size, size), mode="bilinear")
    if len(rows := _some(batch, 0.2 * strength)):
        width = 3 if torch.rand(()) < 0.6 else 5
        blurred = images[rows]
        for _ in range(2):
            blurred = F.avg_pool2d(F.pad(blurred, [width // 2] * 4, mode="replicate"), width, 1)
        images[rows] = torch.lerp(images[rows], blurred, torch.rand(len(rows), 1, 1, 1))
    if len(rows := _some(batch, 0.2 * strength)):
        images[rows] = jpeg_loss(images[rows], 10 + 65 * torch.rand(len(rows)))
    return images


def jpeg_loss(images: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """Grey images (B, 1, S, S) of 0 to 1 as JPEG of a quality (B,) of 1 to 100 leaves them; S a multiple of 8."""
    batch, _, size, _ = images.shape
    if size % 8:
        raise ValueError(f"images: got {size} pixels a side, expected a multiple of 8")
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
    table = (JPEG_TABLE.to(images.device) * scale[:, None, None]).round().clamp(1, 255)[:, None, None]
    step, frequency = torch.arange(8).float(), torch.arange(8).float()[:, None]
    cosine = torch.cos((2 * step + 1) * frequency * torch.pi / 16) / 2
    cosine[0] /= 2**0.5
    blocks = (images * 255 - 128).reshape(batch, size // 8, 8, size // 8, 8).transpose(2, 3)
    kept = (cosine @ blocks @ cosine.T / table).round() * table
    blocks = cosine.T @ kept @ cosine + 128
    return (blocks.transpose(2, 3).reshape(batch, 1, size, size) / 255).clamp(0, 1)


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


def cut_mix(images: torch.Tensor, targets: torch.Tensor, max_area: float = 0.35) -> tuple[torch.Tensor, torch.Tensor]:
    """CutMix (Yun et al., 2019) of a batch with itself, one square a batch: images (B, C, S, S), targets (B, ...)."""
    size = images.shape[-1]
    side = int(size * (float(torch.rand(())) * max_area) ** 0.5)
    top, left = (int(torch.randint(0, size - side + 1, ())) for _ in range(2))
    order = torch.randperm(len(images))
    mixed = images.clone()
    mixed[:, :, top : top + side, left : left + side] = images[order, :, top : top + side, left : left + side]
    weight = 1 - side**2 / size**2
    return mixed, weight * targets + (1 - weight) * targets[order]
