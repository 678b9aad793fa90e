"""Give attempts of before what margin is counted from now.

Who made them, as far as their job or its model's routes still say, and on the attempt
that made the video all of its job's seconds of work, at the rate of its route today.
"""

from django.db import migrations

BILLS = """
UPDATE jobs_attempt tried
   SET provider = coalesce(
           CASE WHEN tried.route = job.route ->> 'name' THEN job.route ->> 'runner' END,
           (SELECT runner FROM jobs_route route
             WHERE route.model = job.model AND route.name = tried.route), ''),
       provider_account_id =
           CASE WHEN tried.route = job.route ->> 'name' THEN job.provider_account_id END
  FROM jobs_job job
 WHERE job.id = tried.job_id AND tried.step = 'submit' AND tried.outcome = 'ok'
   AND tried.provider = ''
"""

SECONDS = """
UPDATE jobs_attempt tried
   SET provider = coalesce(job.route ->> 'runner', ''),
       work_seconds = job.work_seconds,
       second_microdollars = coalesce(
           (SELECT gpu_second_microdollars FROM jobs_route route
             WHERE route.id = (job.route ->> 'id')::bigint), 0)
  FROM (SELECT DISTINCT ON (job_id) id, job_id FROM jobs_attempt
         WHERE step IN ('generate', 'finish') AND outcome = 'ok'
         ORDER BY job_id, step = 'generate' DESC, fence DESC) made
  JOIN jobs_job job ON job.id = made.job_id
 WHERE made.id = tried.id AND job.work_seconds > 0 AND tried.work_seconds = 0
"""


class Migration(migrations.Migration):
    dependencies = [("jobs", "0011_attempts_carry_their_cost")]

    operations = [
        migrations.RunSQL(BILLS, migrations.RunSQL.noop),
        migrations.RunSQL(SECONDS, migrations.RunSQL.noop),
    ]
