"""Still images from whatever people hold them in, always as an upright RGB picture."""

import struct
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .media_sources_triemo import MediaLimitError, current_limits, is_media_source, is_tensor, open_source

__all__ = [
    "animation_frames",
    "load_image",
    "open_image",
    "picture_kind",
    "read_still",
    "shrink_factor",
    "split_frames",
]

# What Pillow and its plugins raise for damaged files, by the plugin.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)
# Pillow tries all it knows by default, and EPS starts Ghostscript on the file.
_FORMATS = "AVIF BMP GIF HEIF JPEG JPEG2000 MPO PNG PPM TIFF WEBP".split()
_ANIMATIONS = ("AVIF", "GIF", "PNG", "WEBP")
_LARGE_SIDE = 2048  # pixels: what is at least twice as long is shrunk by a whole factor, and stays longer than this


def load_image(source: Any) -> Image.Image:
    """Load one image as 8-bit RGB.

    Args:
        source: path, http(s) or file URL, bytes, `{"bytes", "path"}`; `PIL.Image.Image`; NumPy array of shape
            (height, width) or (height, width, channels); torch tensor (height, width) or (channels, height, width).
            Channels are 1 (grey), 3 (RGB) or 4 (RGBA); uint8 or bool, other integers within 0..255, uint16, or floats
            within 0..1.

    Returns:
        The image in mode "RGB": EXIF orientation applied, transparency composited over white, 16-bit greys scaled to
        8 bits, the first picture of an animation. A file of 4,096 pixels or more on its longer side is shrunk while
        it is decoded, by a whole factor (`shrink_factor`).

    Raises:
        ValueError: unreadable or damaged file, wrong shape, no pixels, values out of range, NaN or infinite, or a
            size beyond `MediaLimits`.
    """
    if isinstance(source, Image.Image):
        return _within_limits(source, "the given PIL image")
    if is_tensor(source):
        return _within_limits(_from_array(_channels_last(source)), "the given tensor")
    if isinstance(source, np.ndarray):
        return _within_limits(_from_array(source), "the given array")
    if not is_media_source(source):
        raise ValueError(
            'An image must be a path, URL, bytes, {"bytes", "path"}, PIL image, NumPy array or torch tensor, got '
            f"{type(source).__module__}.{type(source).__name__}."
        )
    with open_source(source) as (file, name):
        return read_still(file, name)


def read_still(file: BinaryIO, name: str) -> Image.Image:
    """The picture in an open file, or an animation's first; result and errors as of `load_image`."""
    with open_image(file, name) as image:
        factor = shrink_factor(image.width, image.height)
        if factor > 1:
            image.draft(None, (image.width // factor, image.height // factor))  # of JPEG alone, and its powers of two
            factor = shrink_factor(image.width, image.height)
        image.load()
        return _rgb(_reduced(image, factor), name)


@contextmanager
def open_image(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    """
    A file as a Pillow image that is not decoded yet; what goes wrong inside the block is the file's fault.

    Raises:
        ValueError: not an image, damaged, or of a size beyond `MediaLimits`.
    """
    file.seek(0)
    try:
        with _PILLOWS_LIMIT.lifted(), Image.open(file, formats=_known_formats()) as image:
            current_limits().check_size(image.width, image.height, name)
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(f"Cannot read an image from {name}: not an image file.") from error
    except MediaLimitError:
        raise
    except _BROKEN as error:
        raise ValueError(f"Cannot read an image from {name}: {error}.") from error


class _PillowsLimit:
    """Pillow's own limit of pixels, of which a process has one. While any thread reads a picture here it is lifted:
    `MediaLimits` stands in its place, and who raises that limit has raised them all."""

    def __init__(self) -> None:
        self._lock, self._readers, self._own = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    @contextmanager
    def lifted(self) -> Iterator[None]:
        with self._lock:
            if self._readers == 0:
                self._own, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if self._readers == 0:
                    Image.MAX_IMAGE_PIXELS = self._own


_PILLOWS_LIMIT = _PillowsLimit()


@lru_cache(maxsize=1)
def _known_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def shrink_factor(width: int, height: int) -> int:
    """By which whole factor a picture is shrunk when it is decoded: 1 below 4,096 pixels on the longer side."""
    return max(1, max(width, height) // _LARGE_SIDE)


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    if factor == 1:
        return image
    if image.mode in ("1", "P") or image.mode.startswith("I;16"):  # modes that cannot be averaged
        return image.resize((max(1, image.width // factor), max(1, image.height // factor)), Image.Resampling.NEAREST)
    exif = image.getexif()
    reduced = image.reduce(factor)
    reduced.info["exif"] = exif.tobytes()  # with the orientation, which `reduce` leaves behind
    return reduced


def picture_kind(file: BinaryIO, name: str) -> tuple[str, bool] | None:
    """
    The format of a picture file, by Pillow's name, and whether it has several pictures in time (they are not counted,
    which would read all of it); None if it is no picture, or one that Pillow cannot open.

    Raises:
        MediaLimitError: a size beyond `MediaLimits`.
    """
    try:
        with open_image(file, name) as image:
            animated = image.format in _ANIMATIONS and bool(getattr(image, "is_animated", False))
            return str(image.format), animated
    except MediaLimitError:
        raise
    except ValueError:
        return None


def animation_frames(file: BinaryIO, name: str) -> Iterator[tuple[float, Image.Image]]:
    """
    The pictures of an animation by Pillow, each with the second at which it appears, as they are decoded.

    Raises:
        ValueError: not even the first picture can be read, or more pictures than the limit.
    """
    limits = current_limits()
    with open_image(file, name) as image:
        seconds = 0.0
        for index in range(int(limits.animation_frames) + 1):
            try:
                image.seek(index)
                image.load()
            except _BROKEN:
                if index == 0:
                    raise
                return  # the end, or where a damaged file breaks off
            limits.check("animation_frames", index + 1, name, f"an animation of more than {index} pictures")
            yield seconds, _rgb(image.copy(), name)
            seconds += (image.info.get("duration") or 100) / 1000


def split_frames(source: Any) -> list[Any]:
    """A clip that is already in memory as a list of images; one image is a clip of one frame.

    Args:
        source: list or tuple of images, array (frames, height, width, channels), tensor
            (frames, channels, height, width), or one image (array or tensor of rank 2 or 3, PIL image).

    Raises:
        ValueError: no frames, or neither an image nor a list of them.
    """
    if isinstance(source, np.ndarray) or is_tensor(source):
        if source.ndim not in (2, 3, 4):
            raise ValueError(
                "A video array must be (frames, height, width, channels), as a tensor (frames, channels, height, "
                f"width), got shape {tuple(source.shape)}."
            )
        frames = list(source) if source.ndim == 4 else [source]
    elif isinstance(source, Image.Image):
        frames = [source]
    elif isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        frames = list(source)
    else:
        kind = "a dict without bytes or path" if isinstance(source, Mapping) else type(source).__name__
        raise ValueError(f"A video must be a file, a list of frames, an array or a tensor, got {kind}.")
    if not frames:
        raise ValueError("A video must have at least one frame, got none.")
    return frames


def _channels_last(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # NumPy has no such type
        tensor = tensor.float()
    if tensor.ndim == 3:
        if tensor.shape[0] not in (1, 3, 4):
            raise ValueError(
                "An image tensor must be (channels, height, width) with 1, 3 or 4 channels, got shape "
                f"{tuple(tensor.shape)}."
            )
        tensor = tensor.permute(1, 2, 0)
    return tensor.numpy()


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        raise ValueError(
            "An image array must be (height, width) or (height, width, channels) with 1, 3 or 4 channels, got shape "
            f"{array.shape}."
        )
    if array.size == 0:
        raise ValueError(f"An image array must have pixels, got shape {array.shape}.")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(_eight_bits(array)))


def _eight_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return _from_16_bits(array)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"An image array must hold integers or floats, got {array.dtype}.")
    limit = 1 if array.dtype.kind == "f" else 255
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and high <= limit):
        raise ValueError(f"An image array of {array.dtype} must lie within 0..{limit}, got {low} to {high}.")
    if limit == 255:
        return array.astype(np.uint8)
    return np.round(array.astype(np.float32) * 255).astype(np.uint8)


def _from_16_bits(array: np.ndarray) -> np.ndarray:
    return np.round(np.clip(array, 0, 65535) / 257).astype(np.uint8)


def _within_limits(image: Image.Image, name: str) -> Image.Image:
    current_limits().check_size(image.width, image.height, name)
    return _rgb(image, name)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width == 0 or image.height == 0:
        raise ValueError(f"Cannot read an image from {name}: it has no pixels ({image.width} x {image.height}).")
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow clips these modes to 255 on conversion, which turns most 16-bit pictures white.
        image = Image.fromarray(_from_16_bits(np.asarray(image)))
    elif image.mode == "F":
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
