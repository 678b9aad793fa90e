"""The process's ``Context`` (storage, egress, folders, limits), made where it is wired.

``settings.CONTEXT_FACTORY`` names the function that builds it, so that this package
knows neither the settings' shape nor the environment.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from django.conf import settings
from django.utils.module_loading import import_string

if TYPE_CHECKING:
    from inference.contracts import Context


@cache
def get() -> Context:
    context: Context = import_string(settings.CONTEXT_FACTORY)()
    return context
