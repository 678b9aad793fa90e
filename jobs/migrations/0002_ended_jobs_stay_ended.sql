-- Terminal rows never change: nobody, a psql session included, reopens a job or
-- rewrites how it ended. What may still happen to one is a refund and file deletion.
CREATE FUNCTION jobs_refuse_change_after_the_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status IS DISTINCT FROM OLD.status OR NEW.fence IS DISTINCT FROM OLD.fence
       OR NEW.step IS DISTINCT FROM OLD.step OR NEW.output IS DISTINCT FROM OLD.output
       OR NEW.charged_millicredits IS DISTINCT FROM OLD.charged_millicredits
       OR NEW.finished_at IS DISTINCT FROM OLD.finished_at THEN
        RAISE EXCEPTION 'job % has ended as % and cannot change', OLD.id, OLD.status
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER jobs_ended_jobs_stay_ended BEFORE UPDATE ON jobs_job
    FOR EACH ROW WHEN (OLD.status IN ('succeeded', 'failed', 'canceled'))
    EXECUTE FUNCTION jobs_refuse_change_after_the_end();

-- Pictures do not compress; do not try.
ALTER TABLE jobs_jobupload ALTER COLUMN data SET STORAGE EXTERNAL;

-- Rows are updated several times in their life: leave room for that on their page.
ALTER TABLE jobs_job SET (fillfactor = 70);
