from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0009_jobs_are_screened_and_reviewed'),
    ]

    operations = [
        # All accounts stand in one line: a customer's priority is among its own jobs.
        migrations.RemoveIndex(model_name='job', name='job_claimable'),
        migrations.AddIndex(
            model_name='job',
            index=models.Index(
                fields=['queue', 'ready_at'],
                name='job_claimable',
                condition=Q(
                    lease_until__isnull=True,
                    ready_at__isnull=False,
                    status__in=['queued', 'running'],
                ),
            ),
        ),
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
