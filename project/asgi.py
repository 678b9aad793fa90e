"""The web process: `granian --interface asginl project.asgi:application`."""

from __future__ import annotations

import os

from django.conf import settings
from django.core.asgi import get_asgi_application

from project.door import Door

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

_django = get_asgi_application()

from billing.keys import is_well_formed  # noqa: E402 - needs the apps to be loaded

application = Door(
    _django,
    limit_bytes=settings.DATA_UPLOAD_MAX_MEMORY_SIZE,
    stranger_bytes=settings.STRANGER_BODY_BYTES,
    is_known=is_well_formed,
)
