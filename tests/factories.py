"""Typed makers of what tests need: one call says what the test is about."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from billing import accounts, keys, ledger
from billing.keys import Credential
from billing.models import Account
from inference.catalogue import MODELS
from jobs import intake
from jobs.models import Job
from jobs.requests import JobRequest, Picture


def make_account(
    name: str = "alice", *, plan: str = "pro", credits: int = 0
) -> Account:
    account = accounts.open_account(name, plan=plan)
    if credits:
        ledger.grant(
            account_id=account.pk,
            mode="live",
            amount_millicredits=credits * 1000,
            reference=f"grant:{name}",
        )
    return account


def make_key(account: Account, mode: str = "live", *scopes: str) -> str:
    _, key = keys.mint(account, mode, scopes or keys.SCOPES)
    return key


def credential(account: Account, mode: str = "live") -> Credential:
    return keys.authenticate(make_key(account, mode))


def png(width: int = 96, height: int = 64, color: str = "teal") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def make_request(model: str = "motion", **options: Any) -> JobRequest:
    options.setdefault("image", Picture(data=png(), size=(96, 64)))
    return JobRequest.build(MODELS[model], **options)


def make_job(
    account: Account, *, mode: str = "live", model: str = "motion", **options: Any
) -> Job:
    """Return an accepted job of the account, its price held."""
    return intake.submit(
        make_request(model, **options),
        credential=credential(account, mode),
        dialect="native",
    )
