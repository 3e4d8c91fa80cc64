"""A published checkpoint's handler, loaded and served as the Hub's inference service does it."""

import importlib.util
import json
import shutil
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

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
def serve(answer: Callable[[dict], Any]) -> Iterator[str]:
    """The service's convention over HTTP: POST JSON; 200 with the answer, 400 with {"error"} if it raises."""

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, body = 200, None
            try:
                body = answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            except Exception as error:
                status, body = 400, {"error": str(error)}
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    with running(Service) as url:
        yield url


@contextmanager
def running(service: type[BaseHTTPRequestHandler], host: str = "127.0.0.1") -> Iterator[str]:
    server = ThreadingHTTPServer((host, 0), service)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def post(url: str, request: Any) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    sent = urllib.request.Request(url, json.dumps(request).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(sent, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
