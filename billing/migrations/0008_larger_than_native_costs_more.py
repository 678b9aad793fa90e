"""Surcharges for clips enlarged beyond what their model renders.

Our choice, made to be edited: 3 credits for 720p, 5 for 1080p, 10 for 4k, per begun 5 s. A price
beside the first ones, so it counts where nobody has published newer ones.
"""

from __future__ import annotations

from django.db import migrations

CREDITS = {"720p": 3, "1080p": 5, "4k": 10}
MODELS = ("wan2.1-i2v", "wan2.1-flf2v", "wan2.2-i2v", "wan2.2-ti2v-5b")


def sow(apps, schema_editor):
    PriceRow = apps.get_model("billing", "PriceRow")
    PriceRow.objects.bulk_create(
        [
            PriceRow(
                version=1,
                model=model,
                operation="video",
                options={"upscaled": tier},
                is_surcharge=True,
                unit="block",
                unit_size=5,
                amount_millicredits=credits * 1000,
            )
            for model in MODELS
            for tier, credits in CREDITS.items()
        ],
        ignore_conflicts=True,
    )


class Migration(migrations.Migration):
    dependencies = [("billing", "0007_plans_have_a_safety_policy")]
    operations = [migrations.RunPython(sow, migrations.RunPython.noop)]
