from __future__ import annotations

from typing import Any

import django.db.models.deletion
from django.db import migrations, models

import billing.secrets


def carry_over(apps: Any, _: Any) -> None:
    former = apps.get_model("jobs", "FormerSecret")
    endpoints = apps.get_model("jobs", "WebhookEndpoint")
    for endpoint in endpoints.objects.exclude(old_secret="").exclude(old_secret_until=None):
        former.objects.create(
            endpoint=endpoint, secret=endpoint.old_secret, until=endpoint.old_secret_until
        )


class Migration(migrations.Migration):
    dependencies = [("jobs", "0015_jobs_know_that_running_was_told")]
    operations = [
        migrations.CreateModel(
            name="FormerSecret",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("secret", billing.secrets.EncryptedField()),
                ("until", models.DateTimeField()),
                ("endpoint", models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="former_secrets", to="jobs.webhookendpoint")),
            ],
            options={"ordering": ["-id"]},
        ),
        migrations.RunPython(carry_over, migrations.RunPython.noop),
    ]
