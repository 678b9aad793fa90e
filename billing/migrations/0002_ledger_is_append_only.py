"""The ledger's rules as triggers, so that a psql session obeys them too."""

from __future__ import annotations

from pathlib import Path

from django.db import migrations

HERE = Path(__file__).parent
NAME = "0002_ledger_is_append_only"


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_initial")]
    operations = [
        migrations.RunSQL(
            sql=[(HERE / f"{NAME}.sql").read_text()],
            reverse_sql=[(HERE / f"{NAME}.reverse.sql").read_text()],
        )
    ]
