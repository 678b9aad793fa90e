from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0006_operators_and_references")]
    operations = [
        migrations.AddField(
            model_name="account",
            name="is_trusted",
            field=models.BooleanField(default=False),
        ),
        migrations.AddField(
            model_name="plan",
            name="safety_policy",
            field=models.CharField(
                choices=[("block", "Block"), ("flag", "Flag"), ("off", "Off")],
                default="block",
                max_length=5,
            ),
        ),
    ]
