"""The Celery app: a doorbell, never the truth (Postgres is).

`celery -A project.celery worker` finds its tasks in `jobs.tasks`. Every option is a
`CELERY_…` line in `project.settings`.
"""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

app = Celery("zoetrope")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
app.steps["worker"].add("project.waking:WakingStep")
