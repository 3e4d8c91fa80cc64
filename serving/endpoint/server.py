"""The endpoint on a machine of one's own: `python -m triemo.serving.endpoint.server FOLDER --port 8080`.

POST takes what `EndpointHandler` takes, as JSON. It answers 200 with the scores, 400 with `{"error": message}` for bad
input, 411 or 413 for a request without a length or of too many bytes, 408 for one that does not arrive, and 503 with
`Retry-After` when it is busy. GET answers 200 once the model is loaded.
"""

import argparse
import ctypes
import json
import signal
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Model and pipelines, which a published folder names itself, are registered for those that were not published.
import triemo.modeling
import triemo.processing  # noqa: F401
from triemo.serving.endpoint.handler import BusyError, EndpointHandler, Limits
from triemo.serving.reading import checkpoint_folder
from triemo.training.common import default_model

__all__ = ["EndpointServer", "main", "most_body_bytes", "parse_arguments"]

IDLE_SECONDS = 10.0  # without a byte from the client
BODY_SECONDS = 30.0  # until the whole request is here, however slowly it drips
_M_ARENA_MAX = -8  # of malloc.h
DISCARD_SECONDS = 5.0  # for what is left of a request that was answered early


class EndpointServer(ThreadingHTTPServer):
    """
    Args:
        handler: answers the requests.
        host: address to listen at.
        port: 0 for a free one.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: EndpointHandler, host: str = "127.0.0.1", port: int = 0) -> None:
        self.handler = handler
        super().__init__((host, port), _Service)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.server_address[:2]
        return f"http://{host}:{port}"


class _Service(BaseHTTPRequestHandler):
    server: EndpointServer
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        self._answer(200, {"status": "ok"})

    def do_POST(self) -> None:
        self.close_connection = True
        self._unread = int(self.headers["Content-Length"]) if self._states_length() else 0
        headers: dict[str, str] = {}
        try:
            # A place first: bodies that wait would fill the memory.
            with self.server.handler.admitted() as deadline:
                answer = self.server.handler.answer(self._body(deadline), deadline)
            status = 200
        except _RefusedError as error:
            status, answer = error.status, {"error": str(error)}
        except ValueError as error:
            status, answer = 400, {"error": str(error)}
        except BusyError as error:
            status, answer, headers = error.status_code, {"error": str(error)}, error.headers
        except ConnectionError:
            return  # the client is gone
        self._answer(status, answer, headers)
        self._discard()

    def _states_length(self) -> bool:
        return self.headers.get("Content-Length", "").isdecimal()

    def _body(self, deadline: float) -> Any:
        most = most_body_bytes(self.server.handler.limits)
        if not self._states_length():
            raise _RefusedError(411, "the request must state its Content-Length.")
        if self._unread > most:
            raise _RefusedError(413, f"a request may have {most} bytes, got {self._unread}.")
        deadline = min(deadline, time.monotonic() + BODY_SECONDS)
        content = bytearray()
        while self._unread:
            if time.monotonic() > deadline:
                raise _RefusedError(408, f"the request did not arrive within {BODY_SECONDS:g} seconds.")
            try:
                content += self._chunk()
            except TimeoutError as error:
                self._unread = 0
                raise _RefusedError(408, f"nothing came for {IDLE_SECONDS:g} seconds.") from error
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the request is no JSON: {error}.") from error

    def _chunk(self) -> bytes:
        chunk = self.rfile.read1(min(1 << 16, self._unread))
        if not chunk:
            raise ConnectionAbortedError
        self._unread -= len(chunk)
        return chunk

    def _discard(self) -> None:
        """A client that still sends would see its connection reset in place of the answer."""
        until = time.monotonic() + DISCARD_SECONDS
        with suppress(OSError):  # it is gone, or sends nothing
            self.connection.settimeout(1.0)
            while self._unread and time.monotonic() < until:
                self._chunk()

    def _answer(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(answer).encode()
        with suppress(OSError):  # the client is gone
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: what people send is theirs."""


class _RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def most_body_bytes(limits: Limits) -> int:
    """Of a request in JSON: its media in base64, broken into lines, and its texts with every character escaped."""
    return limits.media_bytes * 3 // 2 + max(limits.inputs, limits.turns) * (limits.characters * 12 + 1000) + 10_000


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line: `model`, `host`, `port`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=default_model(), help="folder or Hub id of a checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; by default this machine alone")
    parser.add_argument("--port", type=int, default=8080)
    return parser.parse_args(arguments)


def main() -> None:
    """Answer requests until interrupted."""
    given = parse_arguments()
    _share_memory_pools()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C
    handler = EndpointHandler(str(checkpoint_folder(given.model)))
    with EndpointServer(handler, given.host, given.port) as server, suppress(KeyboardInterrupt):
        print(f"Triemo: {server.url} (Ctrl+C stops it)", flush=True)
        server.serve_forever()


def _share_memory_pools() -> None:
    """
    Keeps glibc from giving every thread that serves a connection a memory pool of its own, which grows to what the
    largest request needed and is never given back. Other C libraries have no such pools, and no `mallopt`.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        set_option(_M_ARENA_MAX, 2)


if __name__ == "__main__":
    main()
