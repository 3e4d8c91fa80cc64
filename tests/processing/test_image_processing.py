"""Pictures and clips to the vision tower's tensors."""

import copy
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import write_clip
from PIL import Image
from skimage import data
from transformers import AutoImageProcessor, PretrainedConfig, ProcessorMixin

from triemo.processing.image_processing_triemo import FACE_DETECTOR_FILE, TriemoImageProcessor

WEIGHTS = Path(__file__).resolve().parents[2] / "checkpoints" / "triemo-small" / FACE_DETECTOR_FILE


@pytest.fixture(scope="module")
def processor() -> TriemoImageProcessor:
    return TriemoImageProcessor(face_detector_weights=WEIGHTS)


@pytest.fixture
def whole() -> TriemoImageProcessor:
    return TriemoImageProcessor(face_detector=None)


def box_detector(x0: float, y0: float, x1: float, y1: float):
    """Sees that box in every frame that is not black."""

    def detect(frames):
        return [np.array([[x0, y0, x1, y1, 1.0]]) if frame.any() else np.zeros((0, 5)) for frame in frames]

    return detect


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# ----- pixels --------------------------------------------------------------------------------------------------------


def test_a_small_picture_goes_through_whole(processor):
    """FER2013's 48 x 48: no detection; enlarged as Pillow does, x / 255, (x - 0.5) / 0.25, channel first."""
    grey = noise(48, 48)
    out = processor(grey, return_tensors="pt")
    assert out["pixel_values"].shape == (1, 1, 1, 96, 96) and out["pixel_values"].dtype == torch.float32
    assert out["video_attention_mask"].tolist() == [[1]] and out["video_attention_mask"].dtype == torch.int64
    assert "video_times" not in out
    wanted = np.asarray(Image.fromarray(grey).resize((96, 96), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(out["pixel_values"][0, 0, 0], (wanted - 0.5) / 0.25, atol=1e-5)


def test_colour_channels_and_luma(whole):
    frame = np.zeros((96, 96, 3), dtype=np.uint8)
    frame[..., 0], frame[..., 1], frame[..., 2] = 100, 150, 200
    grey = whole(frame, do_normalize=False, do_rescale=False)["pixel_values"]
    np.testing.assert_allclose(grey[0, 0, 0], 0.299 * 100 + 0.587 * 150 + 0.114 * 200, rtol=1e-5)
    colour = whole(frame, do_grayscale=False, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 1.0, 2.0])["pixel_values"]
    assert colour.shape == (1, 1, 3, 96, 96)
    wanted = [(100 / 255 - 0.1) / 0.5, (150 / 255 - 0.2) / 1.0, (200 / 255 - 0.3) / 2.0]
    np.testing.assert_allclose(colour[0, 0, :, 50, 50], wanted, rtol=1e-5)


def test_every_form_of_a_picture_gives_the_same(whole, tmp_path):
    rgb = noise(80, 80, 3)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    opaque = np.concatenate([rgb, np.full((80, 80, 1), 255, np.uint8)], axis=2)
    wanted = whole(rgb)["pixel_values"]
    forms = [
        Image.fromarray(rgb),
        torch.from_numpy(rgb).permute(2, 0, 1),
        rgb.astype(np.float32) / 255,
        opaque,
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        (tmp_path / "a.png").read_bytes(),
        {"bytes": (tmp_path / "a.png").read_bytes(), "path": None},
    ]
    for form in forms:
        np.testing.assert_array_equal(whole(form)["pixel_values"], wanted)
    grey = noise(80, 80)
    np.testing.assert_array_equal(
        whole(grey)["pixel_values"], whole(np.repeat(grey[..., None], 3, axis=2))["pixel_values"]
    )
    np.testing.assert_array_equal(whole(grey[..., None])["pixel_values"], whole(grey)["pixel_values"])


def test_the_cut_is_the_square_around_the_box():
    """Box 40 x 40 at (30, 20), margin 0.5: the square 60 at (20, 10). Resized 1:1, so pixel for pixel."""
    frame = noise(100, 120, 3)
    processor = TriemoImageProcessor(
        face_detector=box_detector(30, 20, 70, 60), face_margin=0.5, face_vertical_offset=0.0, size=60
    )
    out = processor(frame, do_grayscale=False, do_rescale=False, do_normalize=False)["pixel_values"]
    np.testing.assert_array_equal(out[0, 0], frame[10:70, 20:80].transpose(2, 0, 1))
    unresized = processor(frame, do_resize=False, do_grayscale=False, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(unresized["pixel_values"], out)


def test_the_face_fills_the_crop_of_the_astronaut(processor):
    """The crop's square, found again in the picture by its pixels, lies around the face."""
    picture = data.astronaut()
    (box,) = processor.detect_faces(picture)
    np.testing.assert_allclose(box, [180, 62, 270, 176], atol=12)
    crop = processor(picture, do_rescale=False, do_normalize=False)["pixel_values"][0, 0, 0]
    side = 1.07 * np.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    x, y = (box[0] + box[2] - side) / 2, (box[1] + box[3] - side) / 2
    square = Image.fromarray(picture).resize((96, 96), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    np.testing.assert_allclose(crop, np.asarray(square.convert("L")), atol=6)


# ----- clips and batches ---------------------------------------------------------------------------------------------


def test_a_flat_list_is_one_clip_and_a_nested_list_a_batch(whole):
    frames = list(noise(3, 80, 80, 3))
    one = whole(frames, return_tensors="np")
    assert one["pixel_values"].shape == (1, 3, 1, 96, 96)
    np.testing.assert_array_equal(whole(np.stack(frames))["pixel_values"], one["pixel_values"])
    as_tensor = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(whole(as_tensor)["pixel_values"], one["pixel_values"])
    batch = whole([frames, frames[:1], None])
    assert batch["pixel_values"].shape == (3, 3, 1, 96, 96)
    assert batch["video_attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert not batch["pixel_values"][1, 1:].any() and not batch["pixel_values"][2].any()
    assert whole(np.stack([np.stack(frames)] * 2))["pixel_values"].shape == (2, 3, 1, 96, 96)


def test_batching_changes_no_pixel(processor):
    picture = data.astronaut()
    clips = [[picture, picture[20:420, 60:460]], [data.coffee()], [picture[:, ::-1], picture, picture]]
    together = processor(clips)
    for row, clip in enumerate(clips):
        alone = processor([clip])
        length = len(clip)
        np.testing.assert_array_equal(together["pixel_values"][row, :length], alone["pixel_values"][0])
        np.testing.assert_array_equal(together["video_attention_mask"][row, :length], alone["video_attention_mask"][0])


def test_frames_without_a_face_are_zero_and_masked(processor, caplog):
    picture, nobody = data.astronaut(), np.full((512, 512, 3), 90, dtype=np.uint8)
    out = processor([nobody, picture, picture, nobody])
    assert out["video_attention_mask"].tolist() == [[0, 1, 1, 0]]
    assert not out["pixel_values"][0, [0, 3]].any() and out["pixel_values"][0, 1].any()
    assert [box is None for box in processor.detect_faces([nobody, picture])] == [True, False]
    assert not caplog.records
    assert processor(nobody)["video_attention_mask"].tolist() == [[0]]
    assert "No face was found in clip(s) [0] of 1" in caplog.text


def test_a_gap_between_two_sightings_is_filled():
    detect = box_detector(30, 20, 70, 60)
    frames = [noise(100, 120, 3), np.zeros((100, 120, 3), np.uint8), noise(100, 120, 3)]
    out = TriemoImageProcessor(face_detector=detect)(frames)
    assert out["video_attention_mask"].tolist() == [[1, 1, 1]]
    np.testing.assert_allclose(out["pixel_values"][0, 1], -2.0)


def test_times_are_padded_like_the_frames(whole):
    frames = list(noise(3, 80, 80, 3))
    out = whole([frames, frames[:2], None], times=[[0.5, 1.0, 1.5], None, None], return_tensors="pt")
    assert out["video_times"].dtype == torch.float32
    np.testing.assert_allclose(out["video_times"], [[0.5, 1.0, 1.5], [0, 0.25, 0], [0, 0, 0]])
    for times in (np.array([0.0, 0.1, 0.2]), [np.array([0.0, 0.1, 0.2])], (0, 0.1, 0.2)):
        np.testing.assert_allclose(whole(frames, times=times)["video_times"], [[0.0, 0.1, 0.2]])
    np.testing.assert_allclose(whole(frames[0], times=[2.0])["video_times"], [[2.0]])


def test_a_video_file_brings_its_frames_and_times(whole, tmp_path):
    """25 pictures a second for one second; four spread evenly lie in the middles of four quarters."""
    path = tmp_path / "clip.mp4"
    write_clip(path, frames=25, rate=25)
    out = whole(str(path), num_frames=4)
    np.testing.assert_allclose(out["video_times"], [[0.12, 0.36, 0.6, 0.84]], atol=0.021)
    assert out["pixel_values"].shape == (1, 4, 1, 96, 96)
    assert whole([path, str(path)], num_frames=4)["pixel_values"].shape == (2, 4, 1, 96, 96)
    assert whole(path, frame_rate=5.0)["video_times"].shape == (1, 5)
    assert whole(path.read_bytes(), num_frames=3)["video_times"].shape == (1, 3)


# ----- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "at least one frame"),
        (np.zeros((0, 4, 80, 80, 3), np.uint8), "no clips"),
        ([[]], "at least one frame"),
        (None, "got None"),
        (np.zeros((4,), np.uint8), "shape"),
        (np.zeros((2, 2, 2, 2, 2, 2), np.uint8), "shape"),
        (np.zeros((8, 8, 2), np.uint8), "channels"),
        (np.full((80, 80), np.nan), "nan"),
        (np.zeros((80, 80), complex), "complex"),
        ("gone.png", "gone.png"),
        ("gone.mp4", "gone.mp4"),
    ],
)
def test_bad_pictures_are_named(whole, images, message):
    with pytest.raises(ValueError, match=message):
        whole(images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sise": 3}, "sise"),
        ({"size": {"shortest_edge": 3}}, "size"),
        ({"size": 0}, "size"),
        ({"image_std": 0}, "image_std"),
        ({"image_mean": [0.1, 0.2]}, "image_mean"),
        ({"num_frames": 0}, "num_frames"),
        ({"frame_rate": -1}, "frame_rate"),
        ({"detect_every": 0}, "detect_every"),
        ({"min_face_size": 500}, "min_face_size"),
        ({"face_margin": -1}, "face_margin"),
        ({"do_resize": "yes"}, "do_resize"),
        ({"face_detector": "dlib"}, "face_detector"),
        ({"face_detector": "gone.onnx"}, "gone.onnx"),
    ],
)
def test_bad_settings_are_named_in_a_call(whole, settings, message):
    with pytest.raises(ValueError, match=message):
        whole(noise(80, 80), **settings)


def test_bad_settings_times_and_sizes(whole):
    with pytest.raises(ValueError, match="sise"):
        TriemoImageProcessor(sise=3)
    with pytest.raises(ValueError, match="needs weights"):
        TriemoImageProcessor(face_detector="mtcnn")(noise(80, 80))
    with pytest.raises(ValueError, match="no such file"):
        TriemoImageProcessor(face_detector_weights="gone.safetensors")
    frames = list(noise(2, 80, 80))
    for times, message in (([0.0], "match the frames"), ([0.0, np.nan], "finite"), (["a", "b"], "numbers")):
        with pytest.raises(ValueError, match=message):
            whole(frames, times=times)
    with pytest.raises(ValueError, match="one entry a clip"):
        whole([frames, frames], times=[[0.0, 1.0]])
    with pytest.raises(ValueError, match="one size"):
        whole([noise(80, 80), noise(90, 90)], do_resize=False)


# ----- copies and files ----------------------------------------------------------------------------------------------


def same(a: TriemoImageProcessor, b: TriemoImageProcessor) -> None:
    picture = data.astronaut()
    assert a.to_dict() == b.to_dict()
    np.testing.assert_array_equal(a(picture)["pixel_values"], b(picture)["pixel_values"])


def test_round_trip_with_the_detector(processor, tmp_path):
    changed = TriemoImageProcessor(face_detector_weights=WEIGHTS, face_margin=0.2, size=64, num_frames=8)
    changed.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [FACE_DETECTOR_FILE, "preprocessor_config.json"]
    same(changed, TriemoImageProcessor.from_pretrained(tmp_path))
    same(changed, TriemoImageProcessor.from_pretrained(tmp_path / "preprocessor_config.json"))
    loaded, unused = TriemoImageProcessor.from_pretrained(
        tmp_path, num_frames=4, hat="red", face_detector="mtcnn", return_unused_kwargs=True
    )
    assert loaded.num_frames == 4 and unused["hat"] == "red"
    assert loaded(data.astronaut())["video_attention_mask"].tolist() == [[1]]


def test_from_a_processors_folder(processor, tmp_path):
    """A processor keeps the settings in its own JSON: the folder has no preprocessor_config.json."""
    settings = TriemoImageProcessor(face_margin=0.3).to_dict()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    processor.save_face_detector(tmp_path)
    loaded = TriemoImageProcessor.from_pretrained(tmp_path, face_detector="mtcnn")
    assert loaded.face_margin == 0.3
    assert loaded(data.astronaut())["video_attention_mask"].tolist() == [[1]]


class VisionOnlyConfig(PretrainedConfig):
    model_type = "triemo-test-vision-only"


class VisionOnlyProcessor(ProcessorMixin):
    def __init__(self, image_processor=None):
        super().__init__(image_processor)


def test_through_the_auto_classes(processor, tmp_path):
    AutoImageProcessor.register(VisionOnlyConfig, slow_image_processor_class=TriemoImageProcessor, exist_ok=True)
    VisionOnlyProcessor(processor).save_pretrained(tmp_path)
    processor.save_face_detector(tmp_path)
    assert (tmp_path / "processor_config.json").is_file() and not (tmp_path / "preprocessor_config.json").exists()
    same(processor, AutoImageProcessor.from_pretrained(tmp_path))
    same(processor, VisionOnlyProcessor.from_pretrained(tmp_path).image_processor)


def test_as_remote_code(processor, tmp_path, monkeypatch):
    monkeypatch.setattr(TriemoImageProcessor, "_auto_class", "AutoImageProcessor")
    copy.copy(processor).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["auto_map"] == {"AutoImageProcessor": "image_processing_triemo.TriemoImageProcessor"}
    settings["image_processor_type"] = "NobodyRegisteredThis"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    remote = AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(remote).__module__.startswith("transformers_modules.")
    picture = data.astronaut()
    np.testing.assert_array_equal(remote(picture)["pixel_values"], processor(picture)["pixel_values"])


def test_settings_are_json_and_a_callable_is_not_written(tmp_path):
    processor = TriemoImageProcessor(
        face_detector=box_detector(0, 0, 9, 9),
        size=np.int64(32),
        image_mean=np.float32(0.5),
        face_margin=np.float64(0),
    )
    processor.save_pretrained(tmp_path)
    assert TriemoImageProcessor.from_pretrained(tmp_path).face_detector == "auto"
    assert not (tmp_path / FACE_DETECTOR_FILE).exists()
    assert "_detectors" not in processor.to_json_string()


def boxes_in_a_worker(processor: TriemoImageProcessor) -> list:
    torch.set_num_threads(1)
    return [box.tolist() for box in processor.detect_faces(data.astronaut())]


def test_copies_and_workers(processor):
    """Opencv's cascade cannot be pickled: the object that has used one still can."""
    pytest.importorskip("cv2")
    haar = TriemoImageProcessor(face_detector="haar")
    for original in (processor, haar):
        boxes = boxes_in_a_worker(original)
        same(original, copy.deepcopy(original))
        with multiprocessing.get_context("fork").Pool(1) as pool:
            np.testing.assert_allclose(pool.apply(boxes_in_a_worker, (original,)), boxes, atol=1e-3)


def test_outputs_move_like_a_pipelines(processor):
    """What the stock pipelines do with the output: half precision for pixels, the mask stays whole."""
    out = processor(images=Image.fromarray(data.astronaut()), return_tensors="pt").to(torch.float16)
    assert out["pixel_values"].dtype == torch.float16 and out["video_attention_mask"].dtype == torch.int64
