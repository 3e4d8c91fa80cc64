"""Take the README's picture of the page: `python -m triemo.serving.assets.make_screenshot`.

It needs gradio, selenium and a Chromium with its chromedriver (Debian: `apt install chromium chromium-driver`).
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ["find_browser", "main", "open_browser", "resize_window", "take_screenshot", "wait_until"]

ASSETS = Path(__file__).parent
WIDTH, HEIGHT = 1100, 800  # pixels of the window
COLOURS = 256  # enough for the page, and the file stays small
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> tuple[str, str] | None:
    """Paths of a Chromium and of its chromedriver, or None if either is missing."""
    browser = next(filter(None, map(shutil.which, _NAMES)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def open_browser() -> Iterator[Any]:
    """
    A headless Chromium with a synthetic camera and microphone, which logs its requests and errors.

    Raises:
        ValueError: there is none on this machine.
    """
    from selenium import webdriver

    found = find_browser()
    if found is None:
        raise ValueError("no Chromium with its chromedriver here (Debian: apt install chromium chromium-driver).")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "disable-background-networking",
        "use-fake-device-for-media-stream",
        "use-fake-ui-for-media-stream",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(found[1])) as browser:
        yield browser


def resize_window(browser: Any, width: int, height: int, mobile: bool = False) -> None:
    """The window's inner size in pixels; `mobile` lays the page out as a phone does."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def wait_until(browser: Any, condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What the condition returns as soon as it is true; selenium's TimeoutException after so many seconds."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, poll_frequency=0.1).until(lambda _: condition())


def take_screenshot(url: str, output: Path) -> None:
    """Press the page's example, and write what is shown then as a PNG of few colours."""
    with open_browser() as browser, tempfile.TemporaryDirectory() as folder:
        resize_window(browser, WIDTH, HEIGHT)
        browser.get(url)
        find = "return [...document.querySelectorAll('button')].find(b => b.innerText.trim() == 'Demo clip')"
        wait_until(browser, lambda: browser.execute_script(find)).click()
        ready = "return document.querySelector('.triemo-subsets') && document.querySelector('video')?.readyState > 2"
        wait_until(browser, lambda: browser.execute_script(ready))
        height = browser.execute_script("return document.querySelector('.gradio-container').scrollHeight")
        resize_window(browser, WIDTH, height)
        time.sleep(1)  # the result fades in
        shown = Path(folder) / "page.png"
        browser.save_screenshot(str(shown))
        partial = output.with_name(output.name + ".part")
        with Image.open(shown) as picture:
            picture.convert("RGB").quantize(COLOURS).save(partial, "PNG", optimize=True)
        partial.replace(output)


def main() -> None:
    """Command line: write the picture, by default over the one in the assets."""
    from triemo.serving.page.app import open_page
    from triemo.serving.reading import load_reader

    parser = argparse.ArgumentParser(description="Take a picture of the page with the demo clip's reading.")
    parser.add_argument("--model", help="checkpoint, by default the released one")
    parser.add_argument("--output", type=Path, default=ASSETS / "page.png", help="PNG to write")
    arguments = parser.parse_args()
    with open_page(load_reader(arguments.model, "cpu")) as url:
        take_screenshot(url, arguments.output)
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
