"""The web process: `granian --interface asginl project.asgi:application`."""

from __future__ import annotations

import os

import django
from django.conf import settings

from project.door import Door
from project.handler import Handler

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
django.setup(set_prefix=False)

from billing.keys import is_well_formed  # noqa: E402 - needs the apps to be loaded

application = Door(
    Handler(),
    limit_bytes=settings.DATA_UPLOAD_MAX_MEMORY_SIZE,
    stranger_bytes=settings.STRANGER_BODY_BYTES,
    is_known=is_well_formed,
)
