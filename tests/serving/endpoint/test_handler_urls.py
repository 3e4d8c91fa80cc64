"""URLs in endpoint requests: off by default; where allowed, never to an address that is not public."""

import base64
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from endpoint_service import running

from triemo.serving.endpoint import handler as module

PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1%1",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:807f:fffe",
    "::7f00:1",
    "::8.8.8.8",
    "::ffff:0:8.8.8.8",
    "fec0::1",
    "5f00::1",
    "3fff::1",
    "2001:db8::1",
    "4000::1",
    "192.0.0.192",
    "192.0.0.9",
    "192.88.99.1",
]
PUBLIC = ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8"]
CONTENT = bytes(range(256)) * 40


class Service(BaseHTTPRequestHandler):
    """/file, /redirect?<url>, /loop, /missing, /long (without a length), /short (less than announced), /slow,
    /slowlong (both)."""

    seen: list[str] = []

    def do_GET(self) -> None:
        self.seen.append(self.path)
        path, _, query = self.path.partition("?")
        if path == "/redirect":
            self.send_response(302)
            self.send_header("Location", query)
            self.end_headers()
        elif path == "/loop":
            self.send_response(301)
            self.send_header("Location", "/loop")
            self.end_headers()
        elif path == "/missing":
            self.send_error(404)
        else:
            self.send_response(200)
            if path not in ("/long", "/slowlong"):
                self.send_header("Content-Length", str(len(CONTENT) + (path == "/short")))
            self.end_headers()
            try:
                for start in range(0, len(CONTENT), 512):
                    self.wfile.write(CONTENT[start : start + 512])
                    time.sleep(0.2 if path.startswith("/slow") else 0)
            except OSError:
                self.close_connection = True  # the client hung up

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A service at 127.0.0.1, the one address that counts as public here."""
    monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1")
    Service.seen.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server, running(server) as address:
        yield address


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address):
    assert not module.is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address):
    assert module.is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0"]
)
def test_no_connection_is_tried_to_this_machine(host, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("connected"))
    with pytest.raises(ValueError, match="audio: the URL (does not lead to a public address|cannot be read)"):
        module.fetch_url(f"http://{host}:8000/x", "audio", 100)


def test_every_address_of_a_name_must_be_public(monkeypatch):
    def resolve(*addresses):
        entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: entries)

    connected = []
    monkeypatch.setattr(socket, "create_connection", lambda to, timeout: connected.append(to) or fail())

    def fail():
        raise ConnectionRefusedError

    for addresses in (["10.0.0.1"], ["8.8.8.8", "10.0.0.1"], []):
        resolve(*addresses)
        with pytest.raises(ValueError, match="does not lead to a public address"):
            module.fetch_url("http://name.example/x", "audio", 100)
    assert connected == []
    resolve("8.8.8.8")
    with pytest.raises(ValueError, match="cannot be read"):
        module.fetch_url("http://name.example/x", "audio", 100)
    assert connected == [("8.8.8.8", 80)]  # the address that was checked, not the name once more


def test_download(url):
    assert module.fetch_url(f"{url}/file?a=b", "audio", len(CONTENT)) == CONTENT
    assert module.fetch_url(f"{url}/long", "audio", len(CONTENT)) == CONTENT
    assert module.fetch_url(f"{url}/redirect?/file", "audio", len(CONTENT)) == CONTENT
    assert Service.seen == ["/file?a=b", "/long", "/redirect?/file", "/file"]
    for path in ("/file", "/long"):
        with pytest.raises(ValueError, match="audio: .*than the limit"):
            module.fetch_url(url + path, "audio", len(CONTENT) - 1)
    with pytest.raises(ValueError, match="audio: .*status 404"):
        module.fetch_url(f"{url}/missing", "audio", 100)
    with pytest.raises(ValueError, match="audio: .*broke off"):
        module.fetch_url(f"{url}/short", "audio", 2 * len(CONTENT))
    with pytest.raises(ValueError, match="more than 4 redirects"):
        module.fetch_url(f"{url}/loop", "audio", 100)
    assert Service.seen.count("/loop") == 5


@pytest.mark.parametrize("target", ["http://127.0.0.2:{port}/file", "http://[::1]:{port}/file", "//169.254.169.254/"])
def test_redirects_are_checked_too(url, target):
    target = target.format(port=url.rpartition(":")[2])
    with pytest.raises(ValueError, match="does not lead to a public address"):
        module.fetch_url(f"{url}/redirect?{target}", "audio", 10_000)
    assert len(Service.seen) == 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x"])
def test_other_schemes_are_refused(url, target):
    for asked in (target, f"{url}/redirect?{target}", "http://", "http://127.0.0.1:99999/", "http://[x/"):
        with pytest.raises(ValueError, match="expected an http or https URL"):
            module.fetch_url(asked, "audio", 100)


@pytest.mark.parametrize("path", ["/slow", "/slowlong", "/redirect?/slowlong"])
def test_a_slow_answer_is_given_up(url, path):
    """Also one that states no length: cut off by the timer, it would count as whole."""
    started = time.monotonic()
    with pytest.raises(ValueError, match="audio: .*(took (more than|too long)|cannot be read)"):
        module.fetch_url(f"{url}{path}", "audio", 10**6, seconds=0.5)
    assert time.monotonic() - started < 3
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for timer in timers:
        timer.join(2)  # one that was cancelled may still be on its way out
    assert not [timer for timer in timers if timer.is_alive()]


def test_certificates_are_checked(url):
    """A server without TLS stands for one whose certificate is not good."""
    with pytest.raises(ValueError, match="cannot be read"):
        module.fetch_url(url.replace("http", "https"), "audio", 100)
    context = ssl.create_default_context()
    assert context.check_hostname and context.verify_mode == ssl.CERT_REQUIRED


def test_urls_are_off_by_default(tiny_checkpoint, reader, url, clips, monkeypatch):
    import triemo.processing  # noqa: F401  registers the pipeline, which a published folder names itself

    request = {"inputs": {"audio": f"{url}/file"}}
    monkeypatch.delenv("TRIEMO_ALLOW_URLS", raising=False)
    with pytest.raises(ValueError, match="URLs are switched off"):
        module.EndpointHandler(str(tiny_checkpoint))(request)
    assert Service.seen == []
    monkeypatch.setenv("TRIEMO_ALLOW_URLS", "1")
    sound = (clips / "sound.wav").read_bytes()
    monkeypatch.setitem(Service.do_GET.__globals__, "CONTENT", sound)
    handler = module.EndpointHandler(str(tiny_checkpoint))
    expected = handler({"inputs": {"audio": base64.b64encode(sound).decode()}})
    assert handler(request) == expected
    with pytest.raises(ValueError, match="inputs.audio: the URL does not lead to a public address"):
        handler({"inputs": {"audio": "http://10.0.0.1/x"}})
