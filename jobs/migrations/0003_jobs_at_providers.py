from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("jobs", "0002_ended_jobs_stay_ended"),
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
