from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0009_jobs_are_screened_and_reviewed'),
    ]

    operations = [
        migrations.AddIndex(
            model_name='job',
            index=models.Index(
                fields=['queue', 'ready_at'],
                name='job_collectable',
                condition=Q(
                    step='collect',
                    status__in=['queued', 'running'],
                    lease_until__isnull=True,
                    ready_at__isnull=False,
                ),
            ),
        ),
    ]
