"""A customer's webhook receiver on loopback, with scripted manners."""

from __future__ import annotations

import http.server
import threading
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)


class Receiver:
    """Answers POSTs as told: ``say(status)`` next, by default 200. Keeps every call.

    ``hang_seconds`` waits before answering, ``answer`` is the body sent back.
    """

    def __init__(self) -> None:
        self.calls: list[Received] = []
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}
        self.hang_seconds = 0.0
        self.answer = b"ok"
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers.get("content-length", 0))
                body = self.rfile.read(size)
                sent = {name.lower(): text for name, text in self.headers.items()}
                outer.calls.append(Received(self.path, sent, body))
                time.sleep(outer.hang_seconds)
                status = outer.statuses.pop(0) if outer.statuses else 200
                self.send_response(status)
                self.send_header("content-length", str(len(outer.answer)))
                for name, text in outer.headers.items():
                    self.send_header(name, text)
                self.end_headers()
                try:
                    self.wfile.write(outer.answer)
                except ConnectionError:
                    return

            def log_message(self, *_: Any) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/hook"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
