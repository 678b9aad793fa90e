"""Runs management commands one after another, as `manage.py` would each on its own.

Reads a JSON line ``[[name, *arguments], stdin]`` for each and answers with one:
``[exit code, what it printed]``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback

import django
from django.core.management import CommandError, call_command
from django.db import connections


def main() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
    django.setup()
    answers, orders = sys.stdout, sys.stdin
    for order in orders:
        (name, *arguments), given = json.loads(order)
        sys.stdin = io.StringIO(given)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = run(name, arguments)
        # The server may be another one by the next call.
        connections.close_all()
        print(json.dumps([code, printed.getvalue()]), file=answers, flush=True)


def run(name: str, arguments: list[str]) -> int:
    try:
        call_command(name, *arguments)
    except CommandError as error:
        print(f"CommandError: {error}")  # noqa: T201 - what the command says
        return error.returncode
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except Exception:  # whatever it is, the test that asked shall see it
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
