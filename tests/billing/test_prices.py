"""What each model costs, and how the price book grows."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st

from billing import prices
from billing.errors import BadRequest, NoPrice
from billing.models import PriceRow
from billing.prices import Price, Usage, quote
from inference.catalogue import MODELS


def credits(usage: Usage) -> float:
    return prices.quote_now(usage).amount_millicredits / 1000


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (Usage("motion", seconds=1, resolution="480p"), 1),
        (Usage("motion", seconds=5, resolution="4k"), 1),
        (Usage("motion", seconds=Fraction(81, 16), resolution="720p"), 1),
        (Usage("motion", seconds=6, resolution="720p"), 2),
        (Usage("motion", seconds=15, resolution="1080p"), 3),
        (Usage("wan2.1-i2v", resolution="480p", frames=81), 20),
        (Usage("wan2.1-i2v", resolution="720p", frames=81), 40),
        (Usage("wan2.2-i2v", resolution="480p", frames=81), 50),
        (Usage("wan2.2-i2v", resolution="480p", frames=161), 99.383),
        (Usage("wan2.2-i2v", resolution="480p", frames=17), 10.494),
        (Usage("wan2.2-ti2v-5b", resolution="720p", frames=121), 30),
        (Usage("wan2.6-i2v", resolution="720p", seconds=5), 50),
        (Usage("wan2.6-i2v", resolution="1080p", seconds=15), 225),
        (Usage("wan2.7-i2v", resolution="1080p", seconds=2), 30),
        (Usage("wan2.5-i2v-preview", resolution="480p", seconds=10), 50),
        (Usage("alibaba/wan-2-7-i2v", resolution="1080p", seconds=10), 150),
        (Usage("akool-i2v", resolution="720p", seconds=5), 20),
        (Usage("akool-i2v", resolution="1080p", seconds=5), 25),
        (Usage("akool-i2v", resolution="4k", seconds=5), 30),
        (Usage("akool-i2v", resolution="720p", seconds=10), 40),
        (Usage("akool-i2v", resolution="1080p", seconds=Fraction(240, 24)), 50),
        (Usage("akool-i2v", resolution="4k", seconds=10, premium=True), 60),
        (Usage("akool-i2v", operation="audio", resolution="720p", seconds=5), 5),
        (Usage("akool-i2v", operation="audio", resolution="4k", seconds=10), 10),
    ],
)
def test_each_model_costs_what_its_page_says(usage: Usage, expected: float) -> None:
    assert credits(usage) == expected


@pytest.mark.django_db
@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_every_public_model_has_a_price_for_all_it_offers(model: Any) -> None:
    for tier in model.tiers:
        for frames in (model.frames_min, model.frames_default, model.frames_max):
            for operation in PriceRow.Operation.values:
                usage = Usage(
                    model.name,
                    operation=operation,
                    resolution=tier,
                    seconds=Fraction(frames, model.fps),
                    frames=frames,
                )
                assert credits(usage) > 0


@pytest.mark.django_db
@pytest.mark.parametrize(
    "usage",
    [
        Usage("no-such-model", seconds=5),
        Usage("akool-i2v", resolution="480p", seconds=5),
        Usage("akool-i2v", resolution="720p", seconds=7),
        Usage("wan2.6-i2v", resolution="720p", seconds=0),
        Usage("wan2.2-i2v", resolution="480p", frames=0),
    ],
)
def test_what_has_no_price_is_refused(usage: Usage) -> None:
    with pytest.raises(NoPrice):
        prices.quote_now(usage)


def price(amount: int = 1000, **case: Any) -> Price:
    return Price("m", "video", amount, version=1, **case)


def test_the_narrowest_row_that_fits_is_charged() -> None:
    rows = [
        price(1),
        price(2, resolution="720p"),
        price(3, seconds=Decimal(5)),
        price(4, resolution="720p", seconds=Decimal(5)),
        price(5, options={"premium": True}),
    ]
    assert quote(Usage("m"), rows).amount_millicredits == 1
    assert quote(Usage("m", resolution="720p"), rows).amount_millicredits == 2
    assert quote(Usage("m", seconds=5), rows).amount_millicredits == 3
    usage = Usage("m", seconds=5, resolution="720p")
    assert quote(usage, rows).amount_millicredits == 4
    assert quote(Usage("m", premium=True), rows).amount_millicredits == 5


def test_surcharges_come_on_top_and_each_line_says_what_for() -> None:
    rows = [
        price(10_000, unit="second", prorata=True),
        price(5000, options={"upscale": "4k"}, is_surcharge=True),
    ]
    plain = quote(Usage("m", seconds=5), rows)
    upscaled = quote(Usage("m", seconds=5, options={"upscale": "4k"}), rows)
    assert plain.amount_millicredits == 50_000
    assert upscaled.amount_millicredits == 55_000
    assert [line.description for line in upscaled.lines] == [
        "m video: 5 x s",
        "m video upscale",
    ]
    assert sum(line.amount_millicredits for line in upscaled.lines) == 55_000


def test_a_surcharge_alone_is_no_price() -> None:
    with pytest.raises(NoPrice):
        quote(Usage("m"), [price(is_surcharge=True)])


@given(
    unit=st.sampled_from(["second", "frame", "block"]),
    unit_size=st.integers(1, 100),
    prorata=st.booleans(),
    amount=st.integers(0, 10**7),
    frames=st.integers(1, 1000),
    more=st.integers(0, 1000),
)
def test_more_never_costs_less(
    unit: str, unit_size: int, prorata: bool, amount: int, frames: int, more: int
) -> None:
    row = price(amount, unit=unit, unit_size=unit_size, prorata=prorata)

    def cost(count: int) -> int:
        usage = Usage("m", seconds=Fraction(count, 16), frames=count)
        return quote(usage, [row]).amount_millicredits

    assert 0 <= cost(frames) <= cost(frames + more)


# --- The book -------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_new_version_replaces_all_rows_of_its_model_and_no_other() -> None:
    before = credits(Usage("wan2.1-i2v", resolution="720p", frames=81))
    prices.publish([price(7000, resolution="480p")])
    prices.publish([Price("akool-i2v", "video", 9000, version=0)])
    prices.forget()
    quoted = prices.quote_now(Usage("akool-i2v", resolution="720p", seconds=7))
    assert (quoted.amount_millicredits, quoted.price_version) == (9000, 3)
    assert credits(Usage("wan2.1-i2v", resolution="720p", frames=81)) == before
    assert PriceRow.objects.filter(model="akool-i2v", version=1).count() == 7


@pytest.mark.django_db
def test_a_price_takes_effect_on_its_day() -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    row = PriceRow.objects.get(model="wan2.1-i2v", resolution="480p")
    prices.reprice(row, amount_millicredits=99_000, effective_from=tomorrow)
    prices.forget()
    assert credits(Usage("wan2.1-i2v", resolution="480p", frames=81)) == 20


@pytest.mark.django_db
def test_a_price_set_for_a_day_comes_though_others_were_published_since() -> None:
    usage = Usage("wan2.1-i2v", resolution="480p", frames=81)
    row = PriceRow.objects.get(model="wan2.1-i2v", resolution="480p")
    soon = datetime.now(UTC) + timedelta(milliseconds=400)
    prices.reprice(row, amount_millicredits=99_000, effective_from=soon)
    prices.reprice(row, amount_millicredits=21_000)
    prices.forget()
    assert credits(usage) == 21
    while datetime.now(UTC) < soon + timedelta(milliseconds=20):
        time.sleep(0.05)
    prices.forget()
    assert credits(usage) == 99


@pytest.mark.django_db
def test_a_price_set_for_a_day_that_has_passed_counts_from_now() -> None:
    row = PriceRow.objects.get(model="wan2.1-i2v", resolution="480p")
    long_ago = datetime.now(UTC) - timedelta(days=365)
    prices.reprice(row, amount_millicredits=21_000, effective_from=long_ago)
    prices.forget()
    assert credits(Usage("wan2.1-i2v", resolution="480p", frames=81)) == 21


@pytest.mark.django_db
def test_repricing_a_row_of_an_old_version_brings_no_old_price_back() -> None:
    small = PriceRow.objects.get(model="wan2.1-i2v", resolution="480p")
    large = PriceRow.objects.get(model="wan2.1-i2v", resolution="720p")
    prices.reprice(small, amount_millicredits=25_000)
    prices.reprice(large, amount_millicredits=45_000)  # opened before the other's save
    prices.forget()
    assert credits(Usage("wan2.1-i2v", resolution="480p", frames=81)) == 25
    assert credits(Usage("wan2.1-i2v", resolution="720p", frames=81)) == 45


@pytest.mark.django_db(transaction=True)
def test_operators_who_reprice_at_once_lose_no_change() -> None:
    rows = list(PriceRow.objects.filter(model="akool-i2v", operation="video"))
    start = threading.Barrier(len(rows))

    def reprice(row: PriceRow) -> None:
        try:
            start.wait(20)
            prices.reprice(row, amount_millicredits=row.amount_millicredits + 7000)
        finally:
            connection.close()

    with ThreadPoolExecutor(len(rows)) as pool:
        list(pool.map(reprice, rows))
    for row in rows:
        usage = Usage("akool-i2v", resolution=row.resolution, seconds=row.seconds or 0)
        prices.forget()
        assert credits(usage) * 1000 == row.amount_millicredits + 7000


@pytest.mark.django_db
def test_repricing_one_row_keeps_its_siblings() -> None:
    row = PriceRow.objects.get(model="wan2.1-i2v", resolution="480p")
    published = prices.reprice(row, amount_millicredits=25_000)
    prices.forget()
    assert {row.version for row in published} == {2}
    assert credits(Usage("wan2.1-i2v", resolution="480p", frames=81)) == 25
    assert credits(Usage("wan2.1-i2v", resolution="720p", frames=81)) == 40
    row.refresh_from_db()
    assert row.amount_millicredits == 20_000


@pytest.mark.django_db
def test_a_version_prices_one_model_only() -> None:
    with pytest.raises(BadRequest):
        prices.publish([price(), Price("other", "video", 1, version=0)])


@pytest.mark.django_db
def test_a_quote_asks_the_database_once_in_a_while(
    django_assert_num_queries: Any,
) -> None:
    with django_assert_num_queries(1):
        for _ in range(3):
            credits(Usage("motion", seconds=5))
