"""A payment stays credited once: without its row another account could claim it."""

from __future__ import annotations

from django.db import migrations

KEEP = """
CREATE TRIGGER purchase_never_deleted BEFORE DELETE ON billing_purchase
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER purchase_never_truncated BEFORE TRUNCATE ON billing_purchase
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
"""
LET_GO = """
DROP TRIGGER purchase_never_truncated ON billing_purchase;
DROP TRIGGER purchase_never_deleted ON billing_purchase;
"""


class Migration(migrations.Migration):
    dependencies = [("billing", "0010_keys_have_client_pairs")]
    operations = [migrations.RunSQL(sql=KEEP, reverse_sql=LET_GO)]
