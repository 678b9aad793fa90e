"""Pictures behind a URL that cannot be used: failed, refunded, and the code says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from billing import ledger
from jobs.requests import Picture, PictureRules
from jobs.states import Status
from tests.factories import make_account, make_job
from tests.jobs.dialects import wires
from tests.jobs.finishing import FileServer, site, work, world

__all__ = ["site", "world"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

RULES = PictureRules(side_min=360, side_max=2000, formats=("JPEG", "PNG"))


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: wires.picture(800, 800, format="GIF"), "image_format_unsupported"),
        (lambda: wires.picture(800, 800, format="BMP"), "image_format_unsupported"),
        (lambda: wires.picture(63, 800), "image_size_invalid"),
        (lambda: wires.picture(359, 800), "image_size_invalid"),
        (lambda: wires.picture(8193, 64), "image_size_invalid"),
        (lambda: wires.picture() + bytes(10 * 2**20), "image_too_large"),
        (lambda: wires.picture(800, 800)[:200], "invalid_image"),
    ],
    ids=["gif", "bmp", "tiny", "small", "wide", "large", "damaged"],
)
def test_a_picture_that_cannot_be_used_fails_the_job_and_refunds_it(
    site: FileServer, make: Callable[[], bytes], code: str
) -> None:
    alice = make_account("alice", credits=100)
    url = site.put("given.png", make())
    job = work(make_job(alice, image=Picture(url=url), picture_rules=RULES))
    assert (job.status, job.error_code) == (Status.FAILED, code)
    left = ledger.balance(account_id=alice.pk, mode="live").available_millicredits
    assert left == 100_000
