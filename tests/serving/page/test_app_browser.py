"""The demo page in a real browser, headless: what a visitor does, on a phone too, and what becomes of their files."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

REQUIRED = os.environ.get("TRIEMO_REQUIRE_BROWSER") == "1"  # as in CI, where skipping would be a gap nobody sees
if not REQUIRED:
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'triemo[demo]'")
    pytest.importorskip("selenium", reason="needs selenium: pip install 'triemo[dev]'")

from selenium.webdriver.common.by import By  # noqa: E402

from triemo.serving.assets.make_screenshot import (  # noqa: E402
    find_browser,
    open_browser,
    resize_window,
    take_screenshot,
    wait_until,
)
from triemo.serving.page.app import open_page  # noqa: E402

PHONE = (390, 844)
DESKTOP = (1280, 900)
SENTENCE = "oh wow you really came !"
PARTS = 8  # of a recording, each 0.2 s or longer
COUNT_RECORDED = """
    window.recordedParts = 0;
    const start = MediaRecorder.prototype.start;
    MediaRecorder.prototype.start = function (...options) {
        this.addEventListener("dataavailable", (event) => { window.recordedParts += event.data.size > 0 });
        return start.apply(this, options);
    };
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if find_browser() is None:
        give_up = pytest.fail if REQUIRED else pytest.skip
        give_up("no Chromium with its chromedriver here (Debian: apt install chromium chromium-driver)")
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def url(reader: Any) -> Iterator[str]:
    with open_page(reader) as address:
        yield address


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Callable[[tuple[int, int]], Any]]:
    """Opens the page in a window of so many pixels; afterwards nothing may have been asked of another machine."""
    browser.get_log("performance"), browser.get_log("browser")

    def open_in(size: tuple[int, int]) -> Any:
        resize_window(browser, *size, mobile=size == PHONE)
        browser.get(url)
        wait_until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "textarea"))
        return browser

    yield open_in
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and [one for one in asked if not one.startswith((url, "data:", "blob:", "about:"))] == []
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


def press(browser: Any, label: str) -> None:
    """Presses the button of that name, once it can be pressed."""
    buttons = [b for b in browser.find_elements(By.TAG_NAME, "button") if b.text.strip() == label]
    assert buttons, f"no button {label!r}"
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", buttons[0])
    wait_until(browser, buttons[0].is_enabled)
    buttons[0].click()


def result(browser: Any, sign: str) -> str:
    """The result's text, once it has an element that matches `sign`."""
    wait_until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, f"#triemo-result {sign}"))
    return browser.find_element(By.ID, "triemo-result").text


def upload(browser: Any, place: int, file: Path) -> None:
    """Hands a file to the first (video) or second (voice) upload, and waits until the page has it."""
    if place == 1:
        browser.find_elements(By.CSS_SELECTOR, "button[aria-label*='pload']")[-1].click()
    inputs = browser.find_elements(By.CSS_SELECTOR, "input[type=file]")
    inputs[place].send_keys(str(file))
    wait_until(browser, lambda: files_of_visitors() and "Uploading" not in browser.page_source)


def files_of_visitors() -> list[Path]:
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    return [path for path in folder.rglob("*") if path.is_file()]


def overflow(browser: Any) -> int:
    """Pixels by which the page is wider than its window."""
    return browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")


def test_type_a_sentence(visit, reader):
    page = visit(DESKTOP)
    text = page.find_element(By.TAG_NAME, "body").text
    assert "expression, not inner feeling" in text and "Nothing is stored" in text and "No analytics" in text
    page.find_element(By.TAG_NAME, "textarea").send_keys(SENTENCE)
    press(page, "Read")
    shown = result(page, ".triemo-lead")
    best = reader({"text": SENTENCE})[0]
    assert shown.startswith(f"{best['label']} {100 * best['score']:.1f} %")
    assert "Read from words." in shown and all(label in shown for label in reader.model.config.label2id)


def test_upload_the_clip_on_a_phone(visit, reader, assets):
    page = visit(PHONE)
    assert overflow(page) <= 0
    upload(page, 0, assets / "demo.mp4")
    page.find_element(By.TAG_NAME, "textarea").send_keys(SENTENCE)
    press(page, "Read")
    shown = result(page, ".triemo-subsets")
    best = reader({"video": str(assets / "demo.mp4"), "text": SENTENCE})[0]
    assert shown.startswith(f"{best['label']} {100 * best['score']:.1f} %")
    assert len(page.find_elements(By.CSS_SELECTOR, ".triemo-subsets thead th")) == 7
    assert len(page.find_elements(By.CSS_SELECTOR, ".triemo-subsets tbody tr")) == 7
    assert f"What makes it {best['label']}" in shown
    faces = page.find_elements(By.CSS_SELECTOR, ".triemo-faces img")
    assert len(faces) == 4 and all(page.execute_script("return arguments[0].naturalWidth", face) for face in faces)
    assert overflow(page) <= 0
    # Nothing sticks out of the result either, where it could be cut off instead of scrolled to.
    edge = page.find_element(By.ID, "triemo-result").rect
    for element in page.find_elements(By.CSS_SELECTOR, "#triemo-result :is(table, td, th, img, .triemo-bar)"):
        assert element.rect["x"] + element.rect["width"] <= edge["x"] + edge["width"] + 1
    # No name of a column reaches into the next one.
    for cell in page.find_elements(By.CSS_SELECTOR, ".triemo-subsets th"):
        assert page.execute_script("return arguments[0].scrollWidth - arguments[0].clientWidth", cell) <= 1


def test_examples_and_clear(visit, url):
    page = visit(PHONE)
    press(page, "Demo clip")
    assert "Read from words, voice, face (4 of 4 frames)." in result(page, ".triemo-subsets")
    press(page, "Clear")
    result(page, ".triemo-empty")
    assert page.find_element(By.TAG_NAME, "textarea").get_attribute("value") == ""
    press(page, "Words alone")
    assert "Read from words." in result(page, ".triemo-lead")


def test_what_cannot_be_read_is_said(visit, clips):
    page = visit(DESKTOP)
    press(page, "Read")
    assert "Nothing to read yet" in result(page, ".triemo-problem")
    upload(page, 1, clips / "sound.wav")
    press(page, "Read")
    assert "Read from voice." in result(page, ".triemo-lead")


def test_record_from_camera_and_microphone(visit):
    """What the browser's own recorder writes is read; the synthetic camera shows no face."""
    page = visit(DESKTOP)
    page.find_element(By.CSS_SELECTOR, "[aria-label='Capture from camera']").click()
    wait_until(page, lambda: "Access Webcam" in page.find_element(By.TAG_NAME, "body").text)
    press(page, "Click to Access Webcam")
    wait_until(page, lambda: page.find_elements(By.CSS_SELECTOR, "[aria-label='start recording']"))
    page.execute_script(COUNT_RECORDED)
    page.find_element(By.CSS_SELECTOR, "[aria-label='start recording']").click()
    # The page keeps what the recorder has handed out by the time of the click, which on a busy machine may be nothing.
    wait_until(page, lambda: page.execute_script("return window.recordedParts") >= PARTS)
    press(page, "Stop")
    # The file is on the server before the page has its name.
    wait_until(page, lambda: page.find_elements(By.CSS_SELECTOR, "video[src*='/file=']"))
    assert files_of_visitors()
    press(page, "Read")
    shown = result(page, ".triemo-lead, .triemo-problem")
    assert "No face was found" in shown and "Read from voice." in shown, shown


def test_files_go_when_they_are_removed_or_the_page_is_closed(visit, browser, clips, assets):
    page = visit(DESKTOP)
    wait_until(page, lambda: not files_of_visitors(), 20)  # of the visits before
    upload(page, 0, assets / "demo.mp4")
    assert [path.name for path in files_of_visitors()] == ["demo.mp4"]
    press(page, "Clear")
    wait_until(page, lambda: not files_of_visitors(), 20)
    upload(page, 0, assets / "demo.mp4")
    press(page, "Read")
    result(page, ".triemo-lead")
    assert len(files_of_visitors()) == 1  # as long as the page shows it
    browser.get("about:blank")
    wait_until(browser, lambda: not files_of_visitors(), 20)


def test_the_screenshot(browser, url, tmp_path):
    take_screenshot(url, tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width == 1100 and picture.height > 800
        assert len(picture.convert("RGB").getcolors(1000)) > 50  # not a blank page
    assert (tmp_path / "page.png").stat().st_size < 200_000
