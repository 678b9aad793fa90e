"""Makes `up` and `demo` known to Django, and settles what each process needs at once."""

from __future__ import annotations

from importlib import import_module

from django.apps import AppConfig
from django.conf import settings
from django.contrib.admin import apps as django_admin

from inference import egress


class AdminConfig(django_admin.AdminConfig):
    """Django's admin on our own site."""

    default = False  # "project" stands for the one below
    default_site = "project.operators.OperatorSite"


class ProjectConfig(AppConfig):
    name = "project"
    default = True
    label = "project"
    verbose_name = "Zoetrope"

    def ready(self) -> None:
        # Whoever rings a bell asks for the current app; without this import that would
        # be an empty one, which looks for a broker of its own.
        import_module("project.celery")
        import_module("project.proxies")  # its check must run before it serves
        # Before the first request: URLs are judged while it is read.
        egress.configure(settings.EGRESS_ALLOW_HOSTS)
