"""Face detectors, the main face of a clip, and the geometry of the cut."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data

from triemo.processing.faces_triemo import (
    DEFAULT_FACE_MARGIN,
    HaarFaceDetector,
    crop_square,
    cut_crop,
    follow_main_face,
    locate_main_face,
    resolve_face_detector,
)
from triemo.processing.image_processing_triemo import TriemoImageProcessor
from triemo.processing.media_sources_triemo import media_limits
from triemo.processing.mtcnn_triemo import MtcnnFaceDetector, load_mtcnn_weights, non_maximum_suppression

WEIGHTS = Path(__file__).resolve().parents[2] / "checkpoints" / "triemo-small" / "face_detector.safetensors"
ASTRONAUT = [180, 62, 270, 176]  # hairline to chin and ear to ear, read off the picture


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return load_mtcnn_weights(WEIGHTS)


@pytest.fixture(scope="module")
def mtcnn(weights) -> MtcnnFaceDetector:
    return MtcnnFaceDetector(weights)


def iou(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


# ----- detectors -----------------------------------------------------------------------------------------------------


def test_mtcnn_finds_the_astronaut(mtcnn):
    (faces,) = mtcnn([data.astronaut()])
    assert faces.shape == (1, 5) and faces.dtype == np.float32
    assert iou(faces[0], ASTRONAUT) > 0.8
    assert faces[0, 4] > 0.99


@pytest.mark.parametrize("name", ["coffee", "chelsea", "rocket", "hubble_deep_field"])
def test_mtcnn_finds_no_face_where_there_is_none(mtcnn, name):
    assert mtcnn([getattr(data, name)()])[0].shape == (0, 5)


def test_mtcnn_tells_small_faces_from_other_patches(mtcnn):
    """The 100 faces and 100 non-faces of scikit-image's subset of Labeled Faces in the Wild, enlarged."""
    patches = (data.lfw_subset() * 255).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    frames = [np.repeat(np.pad(patch, 30, mode="edge")[..., None], 3, axis=2) for patch in patches]
    found = np.array([len(faces) > 0 for faces in mtcnn(frames)])
    assert found[:100].mean() >= 0.95
    assert found[100:].mean() <= 0.02


def test_mtcnn_boxes_are_in_pixels_of_the_frame_at_any_size(mtcnn):
    """Twice the picture, and the picture shifted: boxes follow (detection itself runs on a shrunk frame)."""
    picture = data.astronaut()
    double = picture.repeat(2, axis=0).repeat(2, axis=1)
    shifted = np.pad(picture, ((40, 0), (100, 0), (0, 0)), mode="edge")
    for frame, wanted in ((double, np.array(ASTRONAUT) * 2), (shifted, np.array(ASTRONAUT) + [100, 40, 100, 40])):
        assert iou(mtcnn([frame])[0][0], wanted) > 0.75


def test_mtcnn_gives_the_same_in_any_batch(mtcnn):
    picture = data.astronaut()
    frames = [picture, picture[:, ::-1], data.coffee(), picture[:300], *[picture] * 9]
    together = mtcnn(frames)
    for frame, faces in zip(frames, together, strict=True):
        np.testing.assert_allclose(faces, mtcnn([frame])[0], atol=0.02)


def test_mtcnn_takes_tiny_frames_and_draws_no_random_numbers(weights):
    before = torch.get_rng_state()
    found = MtcnnFaceDetector(weights)([np.zeros((5, 200, 3), np.uint8), np.zeros((1, 1, 3), np.uint8)])
    assert [len(faces) for faces in found] == [0, 0]
    assert torch.equal(before, torch.get_rng_state())


def test_suppression_against_a_plain_loop():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 40, (200, 2))], axis=1)
    scores, groups = rng.uniform(size=200), rng.integers(0, 3, 200)
    for inside, across in ((0.5, None), (0.4, 0.6)):
        kept: list[int] = []
        for i in sorted(range(200), key=lambda i: -scores[i]):
            limits = [inside if groups[i] == groups[j] else (2.0 if across is None else across) for j in kept]
            if all(iou(boxes[i], boxes[j]) <= limit for j, limit in zip(kept, limits, strict=True)):
                kept.append(i)
        got = non_maximum_suppression(boxes, scores, inside, groups=groups, threshold_across=across)
        assert got.tolist() == kept


def test_haar_finds_the_astronaut_and_agrees_with_mtcnn_on_the_crop(mtcnn):
    pytest.importorskip("cv2")
    picture = data.astronaut()
    (faces,) = HaarFaceDetector()([picture])
    best = faces[np.argmax(faces[:, 4])]
    crops = [crop_square(box, 512, 512, DEFAULT_FACE_MARGIN) for box in (best, mtcnn([picture])[0][0])]
    assert iou(*crops) > 0.6


def test_resolving(weights, tmp_path):
    assert resolve_face_detector(None) is None
    assert resolve_face_detector(iou) is iou
    assert isinstance(resolve_face_detector("auto", weights), MtcnnFaceDetector)
    assert isinstance(resolve_face_detector("auto"), HaarFaceDetector)
    with pytest.raises(ValueError, match="needs weights"):
        resolve_face_detector("mtcnn")
    with pytest.raises(ValueError, match="no such file"):
        resolve_face_detector(str(tmp_path / "yunet.onnx"))
    (tmp_path / "broken.onnx").write_bytes(b"not a network")
    with pytest.raises(ValueError, match="not a YuNet"):
        resolve_face_detector(tmp_path / "broken.onnx")
    with pytest.raises(ValueError, match="face_detector must be.*'dlib'"):
        resolve_face_detector("dlib")


def test_auto_without_weights_and_opencv_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ValueError, match="install opencv"):
        resolve_face_detector("auto")


def test_weights_that_are_none(weights, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_mtcnn_weights(tmp_path / "gone.safetensors")
    (tmp_path / "text").write_text("hello, this is no tensor file")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_mtcnn_weights(tmp_path / "text")
    save_file({"rnet.dense4.weight": torch.zeros(128, 100)}, tmp_path / "other")
    with pytest.raises(ValueError, match="does not hold MTCNN: pnet"):
        load_mtcnn_weights(tmp_path / "other")


# ----- the main face of a clip ---------------------------------------------------------------------------------------


def face(x: float, side: float = 20, score: float = 0.9, y: float = 30) -> list[float]:
    return [x, y, x + side, y + side, score]


def follow(*frames, looked_at=None, num_frames=None):
    detections = [np.array(faces, dtype=float).reshape(-1, 5) for faces in frames]
    looked_at = range(len(frames)) if looked_at is None else looked_at
    return follow_main_face(detections, looked_at, num_frames or len(frames))


def test_the_face_that_stays_beats_the_larger_one_that_passes():
    passer = face(70, side=30)
    boxes = follow([face(10)], [passer, face(10)], [face(10)], [face(10)])
    np.testing.assert_allclose(boxes, [[10, 30, 30, 50]] * 4)


def test_of_two_that_stay_the_larger_wins_whatever_their_order():
    small, large = face(10, side=20), face(60, side=30)
    boxes = follow([small, large], [large, small], [small, large])
    np.testing.assert_allclose(boxes, [[60, 30, 90, 60]] * 3)


def test_a_gap_is_filled_in_time_and_the_ends_are_not():
    """Missed in two frames between x = 10 and x = 22; nothing is known before and after."""
    boxes = follow([], [face(10)], [], [], [face(22)], [])
    assert np.isnan(boxes[[0, 5]]).all()
    np.testing.assert_allclose(boxes[1:5, 0], [10, 14, 18, 22])
    np.testing.assert_allclose(boxes[1:5, 2] - boxes[1:5, 0], 20)


def test_a_long_gap_stays_empty():
    boxes = follow([face(10)], [], [], [], [face(10)])
    assert np.isnan(boxes[1:4]).all() and not np.isnan(boxes[[0, 4]]).any()


def test_after_a_cut_the_face_seen_elsewhere_is_taken_but_not_a_speck():
    boxes = follow([face(10)], [face(10)], [face(80, side=18)], [face(80, side=18)])
    np.testing.assert_allclose(boxes[:, 0], [10, 10, 80, 80])
    boxes = follow([face(10)], [face(10)], [face(80, side=5)], [])
    assert np.isnan(boxes[2:]).all()


def test_jitter_is_averaged_and_movement_is_not():
    boxes = follow([face(10)], [face(12)], [face(10)])
    np.testing.assert_allclose(boxes[:, 0], [(2 * 10 + 12) / 3, (10 + 2 * 12 + 10) / 4, (2 * 10 + 12) / 3])
    boxes = follow([face(10)], [face(20)], [face(30)])
    np.testing.assert_allclose(boxes[:, 0], [10, 20, 30])


def test_detection_every_few_frames_asks_for_those_and_the_last():
    frames = [np.full((50, 100, 3), i, dtype=np.uint8) for i in range(6)]
    asked = []

    def detector(batch):
        asked.extend(int(frame[0, 0, 0]) for frame in batch)
        return [np.array([face(10 + 3 * int(frame[0, 0, 0]))]) for frame in batch]

    boxes = locate_main_face(detector, frames, detect_every=2)
    assert asked == [0, 2, 4, 5]
    np.testing.assert_allclose(boxes[2:4, 0], [16, 19], atol=1.0)
    assert not np.isnan(boxes).any()


def test_an_empty_frame_is_tried_again_with_a_border():
    """The border is half the longer side, 50 pixels; boxes come back in the frame's own pixels."""
    shapes = []

    def detector(batch):
        shapes.append([frame.shape for frame in batch])
        return [np.array([face(60, y=55)]) if frame.shape[0] > 80 else np.zeros((0, 5)) for frame in batch]

    boxes = locate_main_face(detector, [np.zeros((80, 100, 3), np.uint8)])
    assert shapes == [[(80, 100, 3)], [(180, 200, 3)]]
    np.testing.assert_allclose(boxes, [[10, 5, 30, 25]])


@pytest.mark.parametrize("answer", [[], [np.zeros((1, 4))], [np.full((1, 5), np.nan)]])
def test_a_detector_that_answers_nonsense_is_named(answer):
    with pytest.raises(ValueError, match="face_detector must return"):
        locate_main_face(lambda frames: answer, [np.zeros((80, 100, 3), np.uint8)])


# ----- the cut -------------------------------------------------------------------------------------------------------


def test_square_around_a_box():
    """Box 40 x 90 around (100, 100): side 1.5 x 60 = 90; an offset of 0.1 box heights lowers it by 9 pixels."""
    box = np.array([80, 55, 120, 145])
    np.testing.assert_allclose(crop_square(box, 400, 300, margin=0.5), [55, 55, 145, 145])
    np.testing.assert_allclose(crop_square(box, 400, 300, margin=0.5, vertical_offset=0.1), [55, 64, 145, 154])


def test_square_is_shifted_into_the_frame_and_reaches_over_it_if_larger():
    np.testing.assert_allclose(crop_square(np.array([-10, 270, 30, 310]), 400, 300, margin=0.0), [0, 260, 40, 300])
    # Side 80 in a frame 60 high: covers it all, from above its upper edge to its lower, and fits in width.
    np.testing.assert_allclose(crop_square(np.array([0, -30, 80, 50]), 400, 60, margin=0.0), [0, -20, 80, 60])


def test_cut_keeps_pixels_averages_them_and_repeats_the_border():
    frame = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    np.testing.assert_array_equal(cut_crop(frame, np.array([2, 3, 6, 7]), (4, 4)), frame[3:7, 2:6])
    over = cut_crop(frame, np.array([-2, -2, 2, 2]), (4, 4))
    np.testing.assert_array_equal(over, np.pad(frame[:2, :2], ((2, 0), (2, 0), (0, 0)), mode="edge"))
    # A chequerboard shrunk without antialiasing would stay black and white.
    board = np.repeat((np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    small = cut_crop(board, np.array([0, 0, 64, 64]), (8, 8))
    assert abs(small.astype(float) - 127.5).max() < 8


def test_cut_follows_a_box_between_pixels():
    """On a ramp of 2 levels a pixel, half a pixel to the right is one level more."""
    ramp = np.repeat(np.tile(np.arange(0, 200, 2, dtype=np.uint8), (100, 1))[..., None], 3, axis=2)
    at, half_on = (cut_crop(ramp, np.array([x, 20, x + 40, 60]), (40, 40)) for x in (20.0, 20.5))
    np.testing.assert_array_equal(half_on[:, 1:-1].astype(int) - at[:, 1:-1], 1)


# ----- what is read, and what is said of it --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor() -> TriemoImageProcessor:
    return TriemoImageProcessor(face_detector_weights=WEIGHTS)


def read(processor: TriemoImageProcessor, *pictures: np.ndarray | list, **options) -> tuple[list[list[int]], list]:
    found = processor(list(pictures) if len(pictures) > 1 else pictures[0], return_notes=True, **options)
    return found["video_attention_mask"].tolist(), found["notes"]


def test_several_faces_are_counted_and_the_one_that_was_read_is_named(processor):
    astronaut = data.astronaut()
    small = np.asarray(Image.fromarray(astronaut).resize((300, 300)))
    group = np.concatenate([astronaut, np.pad(small, ((0, 212), (0, 0), (0, 0)))], axis=1)
    mask, ((note,),) = read(processor, group)
    assert mask == [[1]]
    assert note.startswith("vision: 2 faces were found, and the one at [")
    box = [int(side) for side in note[note.index("[") + 1 : note.index("]")].split(",")]
    assert iou(box, ASTRONAUT) > 0.75
    assert read(processor, astronaut) == ([[1]], [[]])


def test_a_small_face_is_looked_for_again_at_a_larger_size(processor):
    """24 pixels of a 480-pixel copy are 5 %; here the face is 2.5 % of the picture's side."""
    face = np.asarray(Image.fromarray(data.astronaut()).resize((256, 256), Image.Resampling.LANCZOS))
    photo = np.full((1800, 1800, 3), 120, np.uint8)
    photo[700:956, 900:1156] = face
    (box,) = processor.detect_faces(photo)
    assert iou(box, np.array(ASTRONAUT) / 2 + [900, 700, 900, 700]) > 0.6
    assert read(processor, photo)[0] == [[1]]
    blank = np.full((1800, 1800, 3), 120, np.uint8)
    _, ((note,),) = read(processor, blank)
    assert "faces below 1.3 % of the picture's longer side are not looked for (raise detection_size)" in note


def test_a_picture_that_is_too_small_holds_no_face(processor):
    for side in (1, 12, 23):
        mask, ((note,),) = read(processor, np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
        assert mask == [[0]]
        assert note == (
            f"vision: no face was found: a picture of {side} x {side} pixels is too small for one (min_face_size=24)"
        )
    assert read(processor, np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8)) == ([[1]], [[]])


def test_a_still_without_a_face_is_read_whole_and_a_clip_is_not(processor):
    """Alone any still, beside other modalities one that looks like a face crop; never what is of one colour."""
    crop = np.asarray(Image.fromarray(data.coffee()).resize((100, 100)))
    scene = data.coffee()
    whole = ["vision: no face was found in the picture at any size, so it was read whole"]
    for still in (crop, scene):
        assert read(processor, still) == ([[1]], [whole])
    expected = processor(crop, face_detector=None)["pixel_values"]
    np.testing.assert_array_equal(processor(crop)["pixel_values"], expected)
    assert read(processor, [crop], [crop, crop])[0] == [[0, 0], [0, 0]]
    for choice, wanted in (("crop", [[1], [0]]), ("whole", [[1], [1]]), ("absent", [[0], [0]])):
        assert read(processor, [crop], [scene], without_face=[choice] * 2)[0] == wanted
    grey = np.full((100, 100, 3), 90, np.uint8)
    assert read(processor, grey)[0] == [[0]]


def test_aligned_crops_of_raf_db_are_all_read(processor):
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "raf_db" / "Image" / "aligned"
    if not folder.is_dir():
        pytest.skip("needs RAF-DB beside the checkout")
    crops = sorted(folder.glob("test_*"))[::100][:31]
    masks, notes = read(processor, *[[crop] for crop in crops], without_face=["crop"] * len(crops))
    assert len(crops) == 31 and masks == [[1]] * len(crops)
    assert 0 <= sum(bool(said) for said in notes) < 10


def test_thin_pictures_take_little_memory(processor):
    """A border of half the longer side around 20,000 x 1 would be 2.4 GB."""
    import tracemalloc

    thin = np.random.default_rng(0).integers(0, 256, (30, 20_000, 3), np.uint8)
    tracemalloc.start()
    try:
        with media_limits(aspect=1000):
            mask, _ = read(processor, [thin])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert mask == [[0]] and peak < 200e6
