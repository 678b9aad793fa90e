from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("jobs", "0017_endpoints_lose_their_old_secret")]
    operations = [
        migrations.AddIndex(
            model_name="webhookdelivery",
            index=models.Index(
                fields=["lane", "next_at"],
                name="delivery_of_lane",
                condition=models.Q(state="pending"),
            ),
        ),
    ]
