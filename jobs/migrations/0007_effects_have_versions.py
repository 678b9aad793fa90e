from __future__ import annotations

import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("jobs", "0006_loras_have_names")]
    operations = [
        migrations.CreateModel(
            name="Effect",
            fields=[
                ("code", models.SlugField(max_length=64, primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=100)),
                ("description", models.CharField(blank=True, max_length=300)),
                ("is_enabled", models.BooleanField(default=True)),
                ("rank", models.PositiveSmallIntegerField(default=100)),
                ("plans", models.JSONField(blank=True, default=list, help_text="plan codes; empty: every plan")),
                ("for_models", models.JSONField(blank=True, default=list, help_text="public models; empty: every model")),
                ("logo_key", models.CharField(blank=True, max_length=300)),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={"ordering": ["rank", "code"]},
        ),
        migrations.CreateModel(
            name="EffectVersion",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("version", models.PositiveIntegerField()),
                ("prompt", models.TextField()),
                ("negative_prompt", models.TextField(blank=True)),
                ("parameters", models.JSONField(blank=True, default=dict)),
                ("loras", models.JSONField(blank=True, default=list)),
                ("preview_key", models.CharField(blank=True, max_length=300)),
                ("poster_key", models.CharField(blank=True, max_length=300)),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("effect", models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="versions", to="jobs.effect")),
            ],
            options={"ordering": ["effect", "-version"]},
        ),
        migrations.AddConstraint(
            model_name="effectversion",
            constraint=models.UniqueConstraint(
                fields=["effect", "version"],
                name="one_template_per_effect_and_version",
            ),
        ),
        migrations.AddField(
            model_name="worker",
            name="safety",
            field=models.CharField(blank=True, max_length=12),
        ),
    ]
