from __future__ import annotations

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("jobs", "0016_endpoints_have_former_secrets")]
    operations = [
        migrations.RemoveField(model_name="webhookendpoint", name="old_secret"),
        migrations.RemoveField(model_name="webhookendpoint", name="old_secret_until"),
    ]
