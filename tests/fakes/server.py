"""A small threaded HTTP/1.1 server that can also behave badly on purpose.

``Hangup`` closes the connection without an answer; a ``Reply`` may stream bytes that
are made while they are sent, so that gigabytes cost no memory.
"""

from __future__ import annotations

import contextlib
import email.parser
import email.policy
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


class Hangup(Exception):
    """Close the connection; the caller never hears back."""


@dataclass(frozen=True)
class FormFile:
    filename: str
    media_type: str
    data: bytes


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""

    def json(self) -> dict[str, Any]:
        """Return the body if it is a JSON object, else an empty one."""
        try:
            value = json.loads(self.body or b"{}")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def form(self) -> tuple[dict[str, str], dict[str, FormFile]]:
        """Return the text fields and the files of a multipart body."""
        head = f"Content-Type: {self.headers.get('content-type', '')}\r\n\r\n"
        parser = email.parser.BytesParser(policy=email.policy.HTTP)
        fields: dict[str, str] = {}
        files: dict[str, FormFile] = {}
        for part in parser.parsebytes(head.encode() + self.body).walk():
            disposition = part["content-disposition"]
            if disposition is None:
                continue
            name = disposition.params["name"]
            data = part.get_payload(decode=True) or b""
            assert isinstance(data, bytes)
            if "filename" in disposition.params:
                files[name] = FormFile(
                    disposition.params["filename"], part.get_content_type(), data
                )
            else:
                fields[name] = data.decode()
        return fields, files


@dataclass
class Reply:
    """``body``: a JSON value, or bytes; or ``stream`` yields ``length`` bytes."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    stream: Iterator[bytes] | None = None
    length: int | None = None

    def encoded(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body).encode()


Handle = Callable[[Request], Reply]


class Server:
    """Serves ``handle`` on loopback from its own thread until ``stop``."""

    def __init__(self, handle: Handle, *, port: int = 0) -> None:
        self._http = _Threaded(("127.0.0.1", port), _handler(handle))
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.02,), name="fake", daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.close_connections()
        self._http.server_close()
        self._thread.join(5)


class _Threaded(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        with self._lock:
            still_open = list(self._open)
        for connection in still_open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients of this server go away in the middle on purpose."""


def _handler(handle: Handle) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def _any(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            address = urlsplit(self.path)
            request = Request(
                self.command,
                address.path,
                dict(parse_qsl(address.query, keep_blank_values=True)),
                {name.lower(): value for name, value in self.headers.items()},
                self.rfile.read(length),
            )
            try:
                self._send(handle(request))
            except Hangup:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

        def __getattr__(self, name: str) -> Callable[[], None]:
            if name.startswith("do_"):
                return self._any
            raise AttributeError(name)

        def _send(self, reply: Reply) -> None:
            body = b"" if reply.stream else reply.encoded()
            length = reply.length if reply.stream else len(body)
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            if length is None:
                self.send_header("Connection", "close")
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(length))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body)
            self.wfile.flush()
            for chunk in reply.stream or ():
                self.wfile.write(chunk)
                self.wfile.flush()

        def log_message(self, *args: Any) -> None:
            """Stay quiet; the service keeps its own list of calls."""

    return Handler


def drip(data: bytes, *, every_seconds: float) -> Iterator[bytes]:
    """Yield ``data`` byte by byte, slowly."""
    for index in range(len(data)):
        time.sleep(every_seconds)
        yield data[index : index + 1]
