from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0012_earlier_attempts_carry_their_cost'),
    ]

    operations = [
        migrations.RemoveIndex(
            model_name='job',
            name='job_claimable',
        ),
        migrations.AddIndex(
            model_name='job',
            index=models.Index(condition=models.Q(('lease_until__isnull', True), ('ready_at__isnull', False), ('status__in', ['queued', 'running'])), fields=['queue', 'ready_at'], name='job_claimable'),
        ),
    ]
