"""Pictures in a request's text: what cannot be one costs little to refuse."""

from __future__ import annotations

import base64
import time
import tracemalloc

import pytest

from jobs import pictures
from jobs.errors import InvalidRequest
from tests.factories import png


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(png()).decode(),
        base64.encodebytes(png()).decode().replace("\n", "\r\n\t "),
        "data:;base64," + base64.b64encode(png()).decode(),
        "DATA:image/png;name=a.png;BASE64," + base64.b64encode(png()).decode(),
    ],
)
def test_base64_is_read_however_it_is_wrapped(text: str) -> None:
    assert pictures.from_text("image", text).size == (96, 64)


@pytest.mark.parametrize(
    "text",
    [
        "data:" + ";a" * 5_000_000,
        "data:" + "a" * 10_000_000,
        "data:image/png" + ";a=b" * 1000 + ";base64,AAAA",
        "é" * 8_000_000,
        "a" * 10_000_000,
        "a" * 10_000_000 + "://",
        "a " * 5_000_000,
    ],
)
def test_what_is_no_picture_is_refused_at_once(text: str) -> None:
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(InvalidRequest) as caught:
        pictures.from_text("image", text)
    seconds = time.process_time() - began
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.field == "image"
    assert seconds < 0.2
    assert most < 4 * len(text) + 100_000
