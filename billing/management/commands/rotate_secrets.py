"""Encrypts every stored secret anew with the first key of SECRETS_KEY."""

from __future__ import annotations

from django.apps import apps
from django.core.management.base import BaseCommand
from django.db import transaction

from billing.secrets import EncryptedField


class Command(BaseCommand):
    help = "Encrypt every stored secret anew with the first key of SECRETS_KEY."

    def handle(self, *args: object, **options: object) -> None:
        for model in apps.get_models():
            names = [
                field.attname
                for field in model._meta.concrete_fields
                if isinstance(field, EncryptedField)
            ]
            if not names:
                continue
            with transaction.atomic():
                rows = model._default_manager.select_for_update(no_key=True)
                count = 0
                for row in rows.iterator():
                    for name in names:
                        # reading decrypts it, saving encrypts with the first key
                        setattr(row, name, getattr(row, name))
                    row.save(update_fields=names)
                    count += 1
            self.stdout.write(f"{model._meta.label}: {count}")
