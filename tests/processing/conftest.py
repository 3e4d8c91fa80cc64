"""Media files made once for all tests of this folder."""

import http.server
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from media_files import sine, write_clip, write_sound  # noqa: E402


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clip.mp4 (2 s, 25 Hz, stereo), silent.mp4 (no sound track), one.mp4 and sound.wav."""
    folder = tmp_path_factory.mktemp("media")
    write_clip(folder / "clip.mp4", sound=sine(2, 48000, channels=2))
    write_clip(folder / "silent.mp4")
    write_clip(folder / "one.mp4", frames=1)
    write_sound(folder / "sound.wav", sine(1, 16000), 16000)
    return folder


@pytest.fixture
def media_url(media: Path) -> Iterator[str]:
    """The address of a local server that serves the folder `media`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(media))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
