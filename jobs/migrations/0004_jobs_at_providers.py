from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("jobs", "0003_deletions_and_ends"),
    ]

    operations = [
        migrations.RemoveIndex(model_name="job", name="job_to_poll"),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(
                    ("provider_account__isnull", False), ("status", "running")
                ),
                fields=["provider_account", "next_poll_at"],
                name="job_at_provider",
            ),
        ),
    ]
