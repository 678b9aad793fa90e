"""The web process: `granian --interface asginl project.asgi:application`."""

from __future__ import annotations

import os

import django
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection

from billing.errors import InvalidKey
from project.door import Door
from project.handler import Handler

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
django.setup(set_prefix=False)

from billing import keys  # noqa: E402 - needs the apps to be loaded


def _is_good(key: str) -> bool:
    """Say whether this is a key of ours; not, while nobody can be asked."""
    try:
        keys.authenticate(key)
    except (InvalidKey, OperationalError, InterfaceError):
        return False
    else:
        return True
    finally:
        connection.close()  # the thread is not a request's: nobody else would


application = Door(
    Handler(),
    limit_bytes=settings.DATA_UPLOAD_MAX_MEMORY_SIZE,
    stranger_bytes=settings.STRANGER_BODY_BYTES,
    room_bytes=settings.BODIES_BYTES,
    is_well_formed=keys.is_well_formed,
    is_good=_is_good,
)
