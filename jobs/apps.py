from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class JobsConfig(AppConfig):
    name = "jobs"
    verbose_name = "Jobs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        post_migrate.connect(_install_first_rows, sender=self)


def _install_first_rows(**_: Any) -> None:
    # The catalogue is code; its routes become rows as soon as there is a table for them.
    from jobs import effects, routing

    routing.install()
    effects.install()
