"""A published checkpoint's handler, loaded as the Hub's inference service does it, and servers on loopback."""

import importlib.util
import json
import shutil
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from triemo.serving.endpoint.server import EndpointServer
from triemo.training.publish.folder import assemble_hub_folder

HANDLER = Path(__file__).resolve().parent.parent.parent / "serving" / "endpoint" / "handler.py"


def publish(checkpoint: Path, folder: Path) -> Path:
    """The Hub folder with its handler. Frames of up to 128 pixels count as faces, so that no detector runs."""
    assemble_hub_folder(checkpoint, folder)
    shutil.copyfile(HANDLER, folder / "handler.py")
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"]["assume_cropped_below"] = 128
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder


def load_handler(folder: Path, name: str = "handler.EndpointHandler") -> Any:
    """The module `handler.py` of a folder, by its path, as the service imports it."""
    spec = importlib.util.spec_from_file_location(name, folder / "handler.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def serve(handler: Any) -> Iterator[str]:
    """The URL of a handler's server while the context lasts."""
    with EndpointServer(handler) as server, running(server) as url:
        yield url


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://{server.server_address[0]}:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()


def post(url: str, request: Any) -> tuple[int, Any]:
    """Status and JSON of an answer; bytes are sent as they are."""
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    sent = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(sent, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
