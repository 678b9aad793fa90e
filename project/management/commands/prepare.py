"""`manage.py prepare`: bring database and bucket up to this release, then end.

To be run before the processes of a release start. It waits for both services; run
again, or on several machines at once, it does no harm.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from secrets import token_hex
from typing import Any, Final

import psycopg
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import Error as DatabaseError
from django.db import connection

from inference.errors import StorageUnavailable
from inference.storage import ObjectMissing, Storage
from project import wiring

#: Beside the housekeeper's, the poller's and the alarms' advisory locks.
LOCK: Final = 7_263_004
AGAIN_SECONDS: Final = 1.0


class Command(BaseCommand):
    help = "Wait for Postgres and S3, migrate, make the bucket."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--wait", type=float, default=120.0, help="seconds to wait for each service"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        seconds: float = options["wait"]
        self._wait("Postgres", reach_postgres, seconds)
        with one_at_a_time():
            call_command("migrate", interactive=False, stdout=self.stdout)
        storage = wiring.context().storage
        self._wait("S3", lambda: prepare_bucket(storage), seconds)
        self.stdout.write("database and bucket are ready")

    def _wait(self, name: str, reach: Callable[[], None], seconds: float) -> None:
        self.stdout.write(f"waiting for {name}")
        self.stdout.flush()
        deadline = time.monotonic() + seconds
        while True:
            try:
                return reach()
            except (DatabaseError, psycopg.Error, StorageUnavailable) as error:
                if time.monotonic() > deadline:
                    raise CommandError(
                        f"{name} was not ready after {seconds:.0f} s: {error}"
                    ) from error
            time.sleep(AGAIN_SECONDS)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        try:
            yield
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])


def reach_postgres() -> None:
    connection.close()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def prepare_bucket(storage: Storage) -> None:
    """Make the bucket unless it is there, and show that it takes a file."""
    try:
        storage.check()
    except ObjectMissing:
        storage.make_bucket()
    key = f".ready-{token_hex(8)}"
    storage.put_bytes(key, b"ready")
    storage.delete([key])
