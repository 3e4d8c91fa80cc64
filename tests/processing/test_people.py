"""People in a recording: who is followed, who is read, and what is said of the others. Detectors are made up here."""

import numpy as np
import pytest
from tiny_checkpoint import tiny_processor

from triemo.processing.people_triemo import FaceTracks, Frame, checked_people, overlap
from triemo.processing.pictures_triemo import DEFAULT_IMAGE_SETTINGS
from triemo.processing.recordings_triemo import Piece
from triemo.processing.windows_triemo import WindowCutter, window_plan

HEIGHT, WIDTH, RATE = 120, 160, 4.0
LEFT, RIGHT = (20.0, 40.0, 60.0, 80.0), (100.0, 40.0, 140.0, 80.0)


def boxes(*faces: tuple[float, float, float, float]) -> np.ndarray:
    return np.array([[*face, 0.9] for face in faces]).reshape(-1, 5)


def tracks(found) -> FaceTracks:
    """`found`: seconds to boxes; a frame tells its time by its level, in quarters of a second."""
    settings = {**DEFAULT_IMAGE_SETTINGS, "face_detector": lambda frames: [found(frame) for frame in frames]}
    return FaceTracks(settings, lambda settings: settings["face_detector"], RATE)


def picture(quarter: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), quarter, np.uint8)


def frames(seconds: float, draw=picture) -> list[Frame]:
    return [Frame((quarter + 0.5) / RATE, draw(quarter)) for quarter in range(round(seconds * RATE))]


def windows_of(faces: FaceTracks, shown: list[Frame], people="main") -> list:
    cutter = WindowCutter(window_plan(), 16000, ["picture"], faces=faces, people=people)
    return [w for frame in shown for w in cutter.push(Piece("picture", frame.seconds, None, frame.pixels))] + (
        cutter.push(Piece("picture", len(shown) / RATE)) + cutter.finish()
    )


def at_second(frame: np.ndarray) -> float:
    return float(frame[0, 0, 0]) / RATE


def test_a_face_moves_and_leaves():
    """Between two looks its box is in proportion; after it has gone there is none, and who comes later is another."""
    faces = tracks(
        lambda frame: (
            boxes(tuple(np.array(LEFT) + [4 * at_second(frame), 0] * 2)) if at_second(frame) < 4 else
            boxes() if at_second(frame) < 9 else boxes(RIGHT)
        )
    )  # fmt: skip
    shown = frames(13)
    windows = windows_of(faces, shown)
    assert [(w.start, w.end) for w in windows] == [(0, 4), (4, 8), (8, 13)]
    first = windows[0]
    (person,) = first.people
    assert person["id"] == 1 and person["read"] and person["times"][0] == pytest.approx(0.125)
    known = ~np.isnan(first.boxes).any(axis=1)
    moved = np.array([frame.seconds - 0.125 for frame in first.frames]) * 4
    np.testing.assert_allclose(first.boxes[known][:, 0], LEFT[0] + moved[known], atol=1e-9)
    assert known[:13].all()
    assert windows[1].people == [] and np.isnan(windows[1].boxes).all()
    assert [person["id"] for person in windows[2].people] == [2]


def talking(quarter: int, who: tuple) -> np.ndarray:
    """The lower half of one face flickers."""
    pixels = picture(quarter)
    x0, y0, x1, y1 = map(int, who)
    pixels[(y0 + y1) // 2 : y1, x0:x1] = 200 if quarter % 2 else 20
    return pixels


def test_who_moves_the_mouth_is_read():
    """Two people talk in turn: each window reads the one who speaks, and says that the other was left out."""
    faces = tracks(lambda frame: boxes(LEFT, RIGHT))
    shown = frames(8, lambda quarter: talking(quarter, LEFT if quarter < 16 else RIGHT))
    one, two = windows_of(faces, shown)
    read = [[person["box"] for person in window.people if person["read"]] for window in (one, two)]
    assert read == [[[20, 40, 60, 80]], [[100, 40, 140, 80]]]
    assert {person["id"] for person in one.people} == {person["id"] for person in two.people} == {1, 2}
    assert "vision: 2 people were seen and 1 read; the others are left out (people='all')" in one.notes


def test_everyone_or_one_by_box():
    everyone = windows_of(tracks(lambda frame: boxes(LEFT, RIGHT)), frames(8), people="all")
    assert [(w.start, w.people[0]["id"]) for w in everyone] == [(0, 1), (0, 2), (4, 1), (4, 2)]
    chosen = windows_of(tracks(lambda frame: boxes(LEFT, RIGHT)), frames(8), people=(95, 35, 140, 85))
    for window in chosen:
        assert [person["id"] for person in window.people if person["read"]] == [2]
        np.testing.assert_allclose(window.boxes, np.tile(RIGHT, (16, 1)))


def test_a_picture_on_its_side_is_turned():
    """Only where nothing is found as it is; all later frames are turned too."""
    faces = tracks(lambda frame: boxes((30, 60, 70, 100)) if frame.shape[0] > frame.shape[1] else boxes())
    (window,) = windows_of(faces, frames(4))
    assert all(frame.pixels.shape[:2] == (WIDTH, HEIGHT) for frame in window.frames)
    assert len(window.people) == 1
    assert any("lies on its side and was turned by 90 degrees" in note for note in window.notes)


def test_windows_of_the_processor_crop_the_face_that_is_read():
    """Pixels come from the box, grey where the face is and not beside it."""

    def drawn(quarter: int) -> np.ndarray:
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        pixels[40:80, 100:140] = 200
        return pixels

    processor = tiny_processor(face_detector=lambda frames: [boxes(RIGHT) for _ in frames], face_margin=0.0)
    clip = np.stack([drawn(0)] * 200)  # 8 s at 25 Hz
    found = list(processor.windows(videos=clip))
    assert [(window.start, window.end) for window, _ in found] == [(0, 4), (4, 8)]
    for window, tensors in found:
        assert tensors["pixel_values"].shape[:2] == (1, 4) and bool(tensors["video_attention_mask"].all())
        level = (200 / 255 - 0.5) / 0.25
        assert float((tensors["pixel_values"] - level).abs().mean()) < 0.02
        assert window.people[0]["box"] == [100, 40, 140, 80]


def test_wrong_people_are_refused():
    for wrong in ("both", (1, 2, 3), (5, 5, 1, 1), None):
        with pytest.raises(ValueError, match="people must be 'main', 'all' or a box"):
            checked_people(wrong)
    assert checked_people([1, 2, 3, 4]) == (1.0, 2.0, 3.0, 4.0)
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
