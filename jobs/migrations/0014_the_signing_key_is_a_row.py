from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

from django.conf import settings
from django.db import migrations, models

import billing.secrets


def keep_the_key(apps: Any, _: Any) -> None:
    """Store the key that customers may have pinned: until now SECRETS_KEY gave it."""
    if not apps.get_model("jobs", "WebhookEvent").objects.exists():
        return
    last = settings.SECRETS_KEY.split(",")[-1].strip()
    seed = hmac.digest(last.encode(), b"zoetrope webhook v1a", hashlib.sha256)
    apps.get_model("jobs", "SigningKey").objects.get_or_create(
        name="webhooks", defaults={"seed": base64.b64encode(seed).decode()}
    )


class Migration(migrations.Migration):
    dependencies = [("jobs", "0013_incidents_are_told_each_at_its_time")]
    operations = [
        migrations.CreateModel(
            name="SigningKey",
            fields=[
                ("name", models.CharField(max_length=32, primary_key=True, serialize=False)),
                ("seed", billing.secrets.EncryptedField()),
            ],
        ),
        migrations.RunPython(keep_the_key, migrations.RunPython.noop),
    ]
