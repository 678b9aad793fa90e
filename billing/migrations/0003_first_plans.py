"""The plans as first installed; the operator edits the rows."""

from __future__ import annotations

from django.db import migrations

PLANS = [
    {
        "code": "free",
        "name": "Free",
        "max_running": 1,
        "requests_per_minute": 60,
        "monthly_videos": {"magicoal": 5},
        "premium_allowed": False,
        "long_allowed": False,
        "file_retention_days": 7,
        "running_cancels_per_day": 5,
    },
    {
        "code": "pro",
        "name": "Pro",
        "max_running": 5,
        "requests_per_minute": 600,
        "monthly_videos": {},
        "premium_allowed": True,
        "long_allowed": True,
        "file_retention_days": 30,
        "running_cancels_per_day": 20,
    },
    {
        "code": "enterprise",
        "name": "Enterprise",
        "max_running": 50,
        "requests_per_minute": 6000,
        "monthly_videos": {},
        "premium_allowed": True,
        "long_allowed": True,
        "file_retention_days": 90,
        "running_cancels_per_day": 200,
    },
]


def sow(apps, schema_editor):
    Plan = apps.get_model("billing", "Plan")
    Plan.objects.bulk_create([Plan(**plan) for plan in PLANS], ignore_conflicts=True)


class Migration(migrations.Migration):
    dependencies = [("billing", "0002_ledger_is_append_only")]
    operations = [migrations.RunPython(sow, migrations.RunPython.noop)]
