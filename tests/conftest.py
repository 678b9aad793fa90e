"""Fixtures for every test: the real services, started only when a test asks for one.

`db` or `transactional_db` (pytest-django's) bring Postgres and Redis, `s3` brings the
bucket, `photo` a real picture.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from django.conf import settings as django_settings
from django.db import connections
from pytest_django import DjangoDbBlocker
from xdist.scheduler import LoadScopeScheduling

from tests import services, stack
from tests.stack import LiveStack, PhotoServer

PHOTOS = Path(__file__).parent / "photos"

# The same examples on each run, however slow the machine; more with
# --hypothesis-profile=deep.
hypothesis.settings.register_profile(
    "fast", max_examples=50, derandomize=True, deadline=None
)
hypothesis.settings.register_profile("deep", max_examples=1000, deadline=None)
hypothesis.settings.load_profile("fast")


def pytest_configure(config: pytest.Config) -> None:
    services.claim_home()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        services.stop()


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """The address of the run's Postgres server (not of the test database in it)."""
    url = services.wait_for("postgres")["DATABASE_URL"]
    from project.settings import database_settings

    own = connections.databases["default"]
    for name, value in database_settings(url).items():
        if name != "NAME":
            own[name] = value
    return url


@pytest.fixture(scope="session")
def redis_url() -> str:
    """The run's Redis, also as the broker of the Celery app in this process."""
    url = services.wait_for("redis")["REDIS_URL"]
    os.environ["REDIS_URL"] = url
    django_settings.REDIS_URL = django_settings.CELERY_BROKER_URL = url
    from project.celery import app

    app.conf.update(broker_url=url)
    return url


@pytest.fixture(scope="session")
def s3_address() -> dict[str, str]:
    """The run's S3, with its key; the bucket exists, each process has its own prefix."""
    address = services.wait_for("s3")
    os.environ.update(address)
    for name, value in address.items():
        setattr(django_settings, name, value)
    django_settings.S3_PUBLIC_ENDPOINT_URL = address["S3_ENDPOINT_URL"]
    from jobs import context

    # A test before this one may have made a context that knows no storage yet.
    context.get.cache_clear()
    return address


@pytest.fixture
def s3(s3_address: dict[str, str]) -> str:
    """The bucket, for a test that stores files; gives the prefix of this process."""
    return django_settings.S3_PREFIX


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    postgres_url: str,
    redis_url: str,
    django_db_modify_db_settings_parallel_suffix: None,
) -> None:
    """Point Django at the run's Postgres before the test database is made."""


@pytest.fixture(scope="session")
def django_db_setup(
    django_db_setup: None, django_db_blocker: DjangoDbBlocker
) -> Iterator[None]:
    """Make the flush after a transactional test leave what the migrations left.

    The ledger's triggers refuse TRUNCATE, and the flush would take plans and prices
    too; so it runs as a replica does, without triggers, and puts the first rows back.
    """
    database = connections["default"]
    with django_db_blocker.unblock(), database.cursor() as cursor:
        cursor.execute("CREATE SCHEMA first_rows")
        tables = []
        for table in database.introspection.django_table_names(only_existing=True):
            cursor.execute(f'SELECT true FROM "{table}" LIMIT 1')
            if cursor.fetchone():
                cursor.execute(f'CREATE TABLE first_rows."{table}" AS TABLE "{table}"')
                tables.append(table)
    with pytest.MonkeyPatch.context() as patch:
        plain = database.ops.sql_flush
        patch.setattr(
            database.ops,
            "sql_flush",
            lambda *args, **kwargs: [
                "SET LOCAL session_replication_role = replica",
                *plain(*args, **kwargs),
                *(f'INSERT INTO "{t}" SELECT * FROM first_rows."{t}"' for t in tables),
            ],
        )
        yield


@pytest.fixture
def photo() -> bytes:
    """A real photo: NASA's portrait of Eileen Collins, 512 x 512 JPEG."""
    return (PHOTOS / "astronaut.jpg").read_bytes()


@pytest.fixture(scope="session")
def photo_server() -> Iterator[PhotoServer]:
    """The test photos under a loopback URL that the live stack may fetch from."""
    server = PhotoServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def live_stack(
    photo_server: PhotoServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveStack]:
    """The whole stack as users run it. Each xdist worker has its own.

    Receivers and fakes on loopback may be called: any port of 127.0.0.1.
    """
    running = stack.start(
        tmp_path_factory.mktemp("stack"),
        EGRESS_ALLOW_HOSTS=photo_server.host,
    )
    yield running
    running.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "live_stack" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(240))


#: Their files start processes of their own; the rest is dealt out test by test.
WHOLE_FILES = ("tests/stories/", "tests/faults/", "tests/project/test_up.py")


class Dealer(LoadScopeScheduling):
    """Gives each xdist worker whole files of stories and faults, and single tests.

    Each worker has a stack of its own. (xdist's `loadgroup` would be the usual way; with
    pytest 9.2 xdist 3.8 no longer sees its groups.)
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file.startswith(WHOLE_FILES) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Dealer:
    return Dealer(config, log)
