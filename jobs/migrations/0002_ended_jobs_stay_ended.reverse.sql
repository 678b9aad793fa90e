DROP TRIGGER jobs_ended_jobs_stay_ended ON jobs_job;
DROP FUNCTION jobs_refuse_change_after_the_end();
ALTER TABLE jobs_jobupload ALTER COLUMN data SET STORAGE EXTENDED;
ALTER TABLE jobs_job RESET (fillfactor);
