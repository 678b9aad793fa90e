"""A load generator that costs little: keep-alive connections and requests made ahead.

On a machine of two cores a full HTTP client would be most of what is measured.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What a run came to; seconds of each answered request, in order of arrival."""

    seconds: float = 0.0
    took: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        return len(self.took) / self.seconds

    def quantile(self, share: float) -> float:
        ordered = sorted(self.took)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

    @property
    def line(self) -> str:
        p50, p99 = (1000 * self.quantile(share) for share in (0.5, 0.99))
        return f"{self.rate:7.1f}/s  p50 {p50:6.1f} ms  p99 {p99:6.1f} ms"


def request(
    method: str, path: str, *, key: str, body: object = None, **headers: str
) -> bytes:
    """Return an HTTP/1.1 request ready to send."""
    payload = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {key}",
        f"Content-Length: {len(payload)}",
        *(["Content-Type: application/json"] if payload else []),
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + payload


def run(port: int, lanes: Sequence[Iterator[bytes]], *, seconds: float) -> Outcome:
    """Send each lane's requests one after another, all lanes at once."""
    return asyncio.run(_run(port, lanes, seconds))


async def _run(port: int, lanes: Sequence[Iterator[bytes]], seconds: float) -> Outcome:
    outcome = Outcome()
    began = time.perf_counter()
    await asyncio.gather(
        *(_lane(port, lane, began + seconds, outcome) for lane in lanes)
    )
    outcome.seconds = time.perf_counter() - began
    return outcome


async def _lane(
    port: int, requests: Iterator[bytes], until: float, outcome: Outcome
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for message in requests:
            began = time.perf_counter()
            if began >= until:
                return
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_length(head))
            outcome.took.append(time.perf_counter() - began)
            outcome.statuses[int(head[9:12])] += 1
    finally:
        writer.close()
        await writer.wait_closed()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def middle(values: Sequence[float]) -> float:
    return statistics.median(values)
