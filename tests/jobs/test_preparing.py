"""Pictures behind a URL that cannot be used: failed, refunded, and the code says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from billing import ledger
from inference.geometry import SIDE_MAX, Size
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


@pytest.mark.parametrize(("wide", "high"), [(64, 6000), (6000, 64)])
def test_a_fetched_picture_too_long_for_any_file_fails_the_job_and_refunds_it(
    site: FileServer, wide: int, high: int
) -> None:
    alice = make_account("alice", credits=100)
    url = site.put("given.png", wires.picture(wide, high))
    job = work(make_job(alice, image=Picture(url=url), tier="1080p"))
    assert (job.status, job.error_code) == (Status.FAILED, "image_size_invalid")
    assert "lower resolution" in job.error_message
    left = ledger.balance(account_id=alice.pk, mode="live").available_millicredits
    assert left == 100_000


def test_the_longest_side_that_is_accepted_can_be_made() -> None:
    alice = make_account("alice", credits=100)
    job = make_job(alice, size=Size(64, SIDE_MAX), seconds=1, fps=8)
    assert work(job).status == Status.SUCCEEDED, job.error_detail
    assert (job.output["width"], job.output["height"]) == (64, SIDE_MAX)
