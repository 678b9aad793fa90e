"""Makes `manage.py up` and `manage.py demo` known to Django."""

from __future__ import annotations

from django.apps import AppConfig


class ProjectConfig(AppConfig):
    name = "project"
    label = "project"
    verbose_name = "Zoetrope"
