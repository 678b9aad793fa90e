"""The floor: what one API call sends to Postgres, sent by a bare Django view.

The statements are recorded from a real call in the benchmark's own process and replayed
here with a new job id each time: no key, no dialect, no checks, no log. Granian serves
it with the same settings as the platform (`benchmarks.floor:application`).
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

RECORD = "BENCH_RECORD"
_TRANSACTION = ("SAVEPOINT", "RELEASE", "BEGIN", "COMMIT", "SET ")


@dataclass
class Record:
    """The statements of one call, its job's id and the size of its answer."""

    job: UUID
    statements: list[tuple[str, Any]]
    answer: Any
    status: int


@contextmanager
def recording() -> Iterator[list[tuple[str, Any]]]:
    """Collect what is sent to Postgres meanwhile, in this process."""
    from django.db import connection

    found: list[tuple[str, Any]] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if not sql.startswith(_TRANSACTION):
            found.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        yield found


def keep(path: Path, records: Mapping[str, Record]) -> None:
    path.write_bytes(pickle.dumps(dict(records)))
    os.environ[RECORD] = str(path)


def _with_id(value: Any, old: UUID, new: UUID) -> Any:
    """Return the parameter with the recorded job's id, in any form, replaced."""
    if isinstance(value, UUID):
        return new if value == old else value
    if isinstance(value, str):
        return value.replace(str(old), str(new))
    return value


def _views() -> tuple[list[Any], dict[str, Record]]:
    from django.urls import path

    records: dict[str, Record] = pickle.loads(  # our own file
        Path(os.environ[RECORD]).read_bytes()
    )
    return [path(name, _view(record)) for name, record in records.items()], records


def _view(record: Record) -> Callable[[Any], Any]:
    from django.db import connection, transaction
    from django.http import JsonResponse
    from django.views.decorators.csrf import csrf_exempt
    from psycopg import Cursor

    def send(sql: str, params: Any) -> None:
        if isinstance(params, Mapping):
            # The ledger's own way, which lets statements stay prepared.
            from django.db.backends.utils import CursorWrapper

            connection.ensure_connection()
            raw = connection.connection
            if raw.prepare_threshold is None:
                raw.prepare_threshold = 5
            with CursorWrapper(Cursor(raw), connection) as cursor:
                cursor.execute(sql, params)
                cursor.fetchall()
            return
        with connection.cursor() as cursor:
            cursor.execute(sql, params)
            if cursor.description:
                cursor.fetchall()

    @csrf_exempt
    def view(request: Any) -> Any:
        new = uuid4()
        if request.body:
            json.loads(request.body)
        is_write = request.method == "POST"
        job = new if is_write else record.job
        with transaction.atomic() if is_write else _nothing():
            for sql, params in record.statements:
                if isinstance(params, Mapping):
                    named = {
                        name: _with_id(value, record.job, job)
                        for name, value in params.items()
                    }
                    send(sql, named)
                else:
                    send(sql, [_with_id(v, record.job, job) for v in params or ()])
        return JsonResponse(record.answer, status=record.status, safe=False)

    return view


@contextmanager
def _nothing() -> Iterator[None]:
    yield


if RECORD in os.environ and os.environ.get("BENCH_FLOOR"):
    from django.conf import settings
    from django.core.asgi import get_asgi_application

    application = get_asgi_application()
    urlpatterns, _ = _views()
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = []
    application.load_middleware(is_async=True)
