"""Every way to hold a picture gives the same upright RGB image, and what is no picture is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from triemo.processing.media_triemo import load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = PIXELS[:, :, 0]


def encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=options.pop("format", "png"), **options)
    return buffer.getvalue()


def array_of(source):
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_every_kind_of_source_gives_the_same_picture(tmp_path):
    image = Image.fromarray(PIXELS)
    path = tmp_path / "a b.png"
    image.save(path)
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    sources = [path, str(path), path.as_uri(), encoded(image), {"bytes": encoded(image), "path": None}, image]
    sources += [
        {"bytes": None, "path": str(path)},
        PIXELS,
        PIXELS / 255,
        PIXELS.astype(np.int64),
        tensor,
        tensor / 255,
    ]
    for source in sources:
        np.testing.assert_array_equal(array_of(source), PIXELS)


def test_grey_and_16_bit_pictures():
    three = np.stack([GREY] * 3, axis=-1)
    wide = GREY.astype(np.uint16) * 257  # full scale to full scale
    sources = [
        GREY,
        GREY[..., None],
        torch.from_numpy(GREY),
        torch.from_numpy(GREY)[None],
        wide,
        encoded(Image.fromarray(wide)),
    ]
    sources += [Image.fromarray(GREY), Image.fromarray(wide.astype(np.int32)), Image.fromarray(np.float32(GREY / 255))]
    for source in sources:
        np.testing.assert_array_equal(array_of(source), three)
    np.testing.assert_array_equal(array_of(np.array([[True, False]]))[0, :, 0], [255, 0])


def test_transparency_is_composited_over_white():
    opaque, half, clear = (200, 0, 0, 255), (0, 0, 0, 128), (0, 0, 0, 0)
    pixels = np.array([[opaque, half, clear]], dtype=np.uint8)
    expected = [[(200, 0, 0), (127, 127, 127), (255, 255, 255)]]
    for source in (pixels, encoded(Image.fromarray(pixels)), torch.from_numpy(pixels).permute(2, 0, 1)):
        np.testing.assert_array_equal(array_of(source), expected)
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    np.testing.assert_array_equal(array_of(encoded(palette, transparency=1)), [[(10, 20, 30), (255, 255, 255)]])


@pytest.mark.parametrize(("orientation", "quarter_turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(orientation, quarter_turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = encoded(Image.fromarray(PIXELS), exif=exif)
    np.testing.assert_array_equal(array_of(source), np.rot90(PIXELS, quarter_turns))


def test_an_animation_gives_its_first_picture():
    first, second = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (8, 6), "blue")
    source = encoded(first, format="gif", save_all=True, append_images=[second])
    assert (array_of(source) == (255, 0, 0)).all()


def test_cmyk_jpeg_becomes_rgb():
    source = encoded(Image.new("CMYK", (8, 6), (0, 255, 255, 0)), format="jpeg")
    assert np.abs(array_of(source)[3, 3].astype(int) - (255, 0, 0)).max() < 6


def test_url(media, media_url):
    Image.fromarray(PIXELS).save(media / "picture.png")
    np.testing.assert_array_equal(array_of(f"{media_url}/picture.png"), PIXELS)


BAD = {
    "CHW array": (np.zeros((3, 8, 6), np.uint8), r"\(3, 8, 6\)"),
    "HWC tensor": (torch.zeros(8, 6, 3), r"\(8, 6, 3\)"),
    "rank 1": (np.zeros(5), "shape"),
    "no pixels": (np.zeros((0, 5, 3), np.uint8), "pixels"),
    "floats to 255": (PIXELS.astype(np.float32), "within 0..1"),
    "negative": (np.full((2, 2), -1), "within 0..255"),
    "NaN": (np.full((2, 2), np.nan), "nan"),
    "complex": (np.zeros((2, 2), complex), "complex"),
    "number": (5, "builtins.int"),
    "bytes": (b"no picture", "<bytes>.*not an image"),
    "cut off": (
        encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 90, 3), np.uint8)))[:3000],
        "<bytes>",
    ),
    "URL scheme": ("s3://bucket/picture.png", "s3"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused(name):
    source, reason = BAD[name]
    with pytest.raises(ValueError, match=reason):
        load_image(source)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    for name, reason in {
        "empty.png": "empty",
        "text.png": "not an image",
        "gone.png": "No such",
        "": "directory",
    }.items():
        with pytest.raises(ValueError, match=f"{name}.*{reason}"):
            load_image(tmp_path / name)
