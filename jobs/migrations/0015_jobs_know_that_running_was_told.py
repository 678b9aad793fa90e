from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("jobs", "0014_the_signing_key_is_a_row")]
    operations = [
        migrations.AddField(
            model_name="job",
            name="running_told_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
    ]
