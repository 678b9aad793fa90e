"""Makes the commands `up` and `demo` known to Django, and our Celery app the current one."""

from __future__ import annotations

from importlib import import_module

from django.apps import AppConfig


class ProjectConfig(AppConfig):
    name = "project"
    label = "project"
    verbose_name = "Zoetrope"

    def ready(self) -> None:
        # Whoever rings a bell asks for the current app; without this import that would
        # be an empty one, which looks for a broker of its own.
        import_module("project.celery")
