"""`python -m project.alive NAME`: exit 0 while that process does its work.

For the health checks of containers and the like, which ask often: so it has no Django,
whose start takes six times the processor time, and imports psycopg only to ask Postgres.
A worker is alive while Postgres hears from it; of pollers and housekeepers one works, so
either is alive while somebody holds its lock; web answers, and Flower asks for its
password.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Final

#: Workers report every 10 s; longer silence is an incident.
SILENT_SECONDS: Final = 60.0
ASK_SECONDS: Final = 10
#: jobs.leading.LOCKS
LOCKS: Final = {"poller": 7_263_002, "housekeeper": 7_263_001}
#: port variable, its default, path, and the status that shows that all is well
PAGES: Final = {
    "web": ("PORT", "8000", "/healthz", 200),
    "flower": ("FLOWER_PORT", "5555", "/", 401),
}

# A host with several GPUs runs gpu-0, gpu-1, …: the most silent one decides.
_SILENCE = """
SELECT extract(epoch FROM now() - min(seen_at)) FROM jobs_worker
 WHERE split_part(name, '@', 2) = %(host)s
   AND (split_part(name, '@', 1) = %(label)s
        OR %(label)s = 'gpu' AND starts_with(name, 'gpu-'))
"""
_HOLDER = """
SELECT min(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
   AND objid = %(lock)s
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def what_is_wrong(name: str) -> str:
    """Return why that process of this host does not work; nothing when it does."""
    if name in PAGES:
        return _page(*PAGES[name])
    if name in LOCKS:
        found, wrong = _ask(_HOLDER, lock=LOCKS[name])
        return wrong or ("nobody holds its lock" if found is None else "")
    label = name.removeprefix("worker-")
    silent, wrong = _ask(_SILENCE, host=socket.gethostname(), label=label)
    if wrong or silent is None:
        return wrong or "it has not reported yet, or has left"
    return "" if silent <= SILENT_SECONDS else f"silent for {silent:.0f} s"


def _page(variable: str, default: str, path: str, expected: int) -> str:
    address = ("127.0.0.1", int(os.environ.get(variable) or default))
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection(address, timeout=ASK_SECONDS) as connection:
            connection.sendall(request.encode())
            words = connection.recv(64).decode("latin-1").split()
    except OSError as error:
        return f"{path}: {error}"
    status = words[1] if len(words) > 1 else "nothing"
    return "" if status == str(expected) else f"{path} answers {status}"


def _ask(query: str, **facts: str | int) -> tuple[float | None, str]:
    """Return the one number Postgres answers with, and what went wrong instead."""
    import psycopg

    try:
        with psycopg.connect(
            os.environ["DATABASE_URL"], connect_timeout=ASK_SECONDS
        ) as connection:
            row = connection.execute(query, facts).fetchone()
    except psycopg.Error as error:
        return None, f"Postgres: {error}"
    return (None if row is None or row[0] is None else float(row[0])), ""


if __name__ == "__main__":
    sys.exit(what_is_wrong(sys.argv[1]) or 0)
