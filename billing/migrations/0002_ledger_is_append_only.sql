-- The money rules that hold for everybody, a psql session included.

CREATE FUNCTION billing_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = 'Correct a movement with a new one; change a price with a new version.';
END
$$;

-- Transfers, entries and price rows never change.
CREATE TRIGGER transfer_never_changes BEFORE UPDATE OR DELETE ON billing_transfer
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER transfer_never_truncated BEFORE TRUNCATE ON billing_transfer
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER entry_never_changes BEFORE UPDATE OR DELETE ON billing_entry
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER entry_never_truncated BEFORE TRUNCATE ON billing_entry
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER price_never_changes BEFORE UPDATE OR DELETE ON billing_pricerow
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER price_never_truncated BEFORE TRUNCATE ON billing_pricerow
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();

-- Wallets, grants, holds and slices change as credits move, but never vanish.
CREATE TRIGGER wallet_never_deleted BEFORE DELETE ON billing_wallet
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER wallet_never_truncated BEFORE TRUNCATE ON billing_wallet
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER grant_never_deleted BEFORE DELETE ON billing_creditgrant
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER grant_never_truncated BEFORE TRUNCATE ON billing_creditgrant
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER hold_never_deleted BEFORE DELETE ON billing_hold
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER hold_never_truncated BEFORE TRUNCATE ON billing_hold
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER slice_never_deleted BEFORE DELETE ON billing_holdslice
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER slice_never_truncated BEFORE TRUNCATE ON billing_holdslice
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();

-- A settled hold stays settled: what was captured is never released, nor the reverse.
CREATE FUNCTION billing_refuse_unsettling() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'hold % is % and stays so', OLD.reference, OLD.state
        USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER hold_settles_once BEFORE UPDATE ON billing_hold
    FOR EACH ROW WHEN (
        OLD.state <> 'open' AND (OLD.state, OLD.captured, OLD.amount)
                            IS DISTINCT FROM (NEW.state, NEW.captured, NEW.amount))
    EXECUTE FUNCTION billing_refuse_unsettling();

-- Each statement that writes entries writes whole transfers: stricter than a deferred
-- check at commit, and one query for all the legs instead of one for each.
CREATE FUNCTION billing_require_zero_sum() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    unbalanced record;
BEGIN
    SELECT transfer_id, sum(amount) AS total INTO unbalanced
    FROM written GROUP BY transfer_id HAVING sum(amount) <> 0 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the entries of transfer % sum to %, not zero',
            unbalanced.transfer_id, unbalanced.total
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER entries_sum_to_zero AFTER INSERT ON billing_entry
    REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION billing_require_zero_sum();
