"""An operator's hands on the running stack: what the admin does outside its own process."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from inference.media.probe import probe
from tests.stack import LiveStack

pytestmark = pytest.mark.stories


class Operator:
    """Somebody at /admin/ with a browser."""

    def __init__(self, stack: LiveStack) -> None:
        name = f"olga-{time.monotonic_ns()}"
        once = stack.manage("createoperator", name).strip().splitlines()[-1]
        self.http = httpx.Client(
            base_url=stack.base_url,
            timeout=150,
            trust_env=False,
            follow_redirects=True,
            headers={"Referer": stack.base_url},
        )
        own = "correct horse battery staple"
        self.send("/admin/login/", username=name, password=once, next="/admin/")
        self.send(
            "/admin/password_change/",
            old_password=once,
            new_password1=own,
            new_password2=own,
        )

    def send(self, path: str, **form: str) -> str:
        """Fill in the page's form as a browser would; return the page that follows."""
        page = self.http.get(path).raise_for_status().text
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        assert token is not None, page
        answer = self.http.post(path, data={"csrfmiddlewaretoken": token[1], **form})
        return html.unescape(answer.raise_for_status().text)


@pytest.fixture
def olga(live_stack: LiveStack) -> Iterator[Operator]:
    made = Operator(live_stack)
    yield made
    made.http.close()


def test_the_preview_button_makes_a_video_that_customers_are_shown(
    live_stack: LiveStack, olga: Operator, tmp_path: Path
) -> None:
    page = olga.send("/admin/jobs/effect/dutch-spin/render/", reason="there is none")
    assert "dutch-spin v1: rendered" in page
    shown = re.search(r'<video src="([^"]+)"', page)
    assert shown is not None
    clip = tmp_path / "preview.mp4"
    clip.write_bytes(httpx.get(shown[1], trust_env=False).raise_for_status().content)
    assert probe(clip).seconds == 3.0
    with live_stack.client(live_stack.key()) as client:
        listed = client.get("/v1/effects?limit=100").json()["data"]
    (effect,) = [e for e in listed if e["code"] == "dutch-spin"]
    assert effect["preview_url"].partition("?")[0] == shown[1].partition("?")[0]
    assert effect["logo_url"]
    said = live_stack.sql(
        "SELECT change_message FROM django_admin_log WHERE object_id = 'dutch-spin'"
    )
    assert "there is none" in said[0][0]
