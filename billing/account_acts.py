"""What an operator does to accounts, keys and wallets, each with a reason."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any
from uuid import uuid4

from django import forms
from django.utils import timezone
from unfold.widgets import (
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminSingleDateWidget,
)

from billing import accounts, keys, ledger, operator_keys
from billing.acting import Act, Deed, ReasonForm, Refused
from billing.errors import BillingError
from billing.models import (
    Account,
    ApiKey,
    CreditGrant,
    Mode,
    OperatorKey,
    Purchase,
    Wallet,
)

MODES = [(Mode.LIVE.value, "live"), (Mode.TEST.value, "test")]


class GrantForm(ReasonForm):
    """``reference`` is drawn with the form: sending it twice gives once."""

    credits = forms.DecimalField(
        min_value=0,
        max_value=10**9,
        decimal_places=3,
        widget=UnfoldAdminDecimalFieldWidget(),
    )
    mode = forms.ChoiceField(choices=MODES, widget=UnfoldAdminSelectWidget())
    source = forms.ChoiceField(
        choices=[
            (CreditGrant.Source.GOODWILL.value, "goodwill: we make good"),
            (CreditGrant.Source.PROMOTION.value, "promotion"),
        ],
        widget=UnfoldAdminSelectWidget(),
    )
    days = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=3650,
        widget=UnfoldAdminIntegerFieldWidget(),
        help_text="How long they live; empty: for good.",
    )
    reference = forms.CharField(max_length=64, widget=forms.HiddenInput())
    field_order = ("credits", "mode", "source", "days", "reason", "reference")

    def clean_credits(self) -> Any:
        credits = self.cleaned_data["credits"]
        if not credits:
            raise forms.ValidationError("Nothing is not a gift.")
        return credits


class StatementForm(forms.Form):
    """Which wallet, and from which day to which, both counted (UTC)."""

    mode = forms.ChoiceField(choices=MODES, widget=UnfoldAdminSelectWidget())
    start = forms.DateField(widget=UnfoldAdminSingleDateWidget(), label="From")
    end = forms.DateField(widget=UnfoldAdminSingleDateWidget(), label="To")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        today = timezone.now().date()
        self.fields["start"].initial = today.replace(day=1)
        self.fields["end"].initial = today

    def clean(self) -> dict[str, Any]:
        asked = super().clean() or self.cleaned_data
        start, end = asked.get("start"), asked.get("end")
        if start and end and start > end:
            self.add_error("end", "Must not be before the first day.")
        if end == date.max:
            self.add_error("end", "Is too late.")
        return asked


def _grant(account: Account, deed: Deed) -> str:
    if account.deleted_at is not None:
        raise Refused("The account was deleted.")
    values = deed.values
    amount = int(values["credits"] * 1000)
    days = values["days"]
    given = ledger.grant(
        account_id=account.pk,
        mode=values["mode"],
        reference=f"by-hand:{values['reference']}",
        amount_millicredits=amount,
        source=values["source"],
        expires_at=timezone.now() + timedelta(days=days) if days else None,
        actor=deed.actor,
        reason=deed.reason,
    )
    return f"{given.amount / 1000:g} {values['mode']} credits given."


def _disable(account: Account, deed: Deed) -> str:
    accounts.change_account(account.pk, is_active=False)
    return "disabled; its keys stop within seconds."


def _enable(account: Account, deed: Deed) -> str:
    if account.deleted_at is not None:
        raise Refused("The account was deleted.")
    accounts.change_account(account.pk, is_active=True)
    return "enabled."


def _revoke(key: ApiKey, deed: Deed) -> str:
    keys.revoke(account_id=key.account_id, key_id=key.pk)
    return "revoked."


def _revoke_operator(key: OperatorKey, deed: Deed) -> str:
    operator_keys.revoke(key.pk)
    return "revoked."


def _freeze(wallet: Wallet, deed: Deed) -> str:
    ledger.freeze(account_id=wallet.account_id, mode=wallet.mode)
    return "frozen: no new holds."


def _thaw(wallet: Wallet, deed: Deed) -> str:
    if ledger.check(account_id=wallet.account_id):
        raise Refused("Its books do not add up; see check_ledger.")
    ledger.freeze(account_id=wallet.account_id, mode=wallet.mode, frozen=False)
    return "thawed."


def _take_back(paid: Purchase, deed: Deed) -> str:
    if paid.taken_back_at is not None:
        raise Refused("This payment was taken back before.")
    wallet = paid.grant.wallet
    ledger.take_back(
        account_id=wallet.account_id,
        mode=wallet.mode,
        payment_id=paid.payment_id,
        actor=deed.actor,
        reason=deed.reason,
    )
    return "taken back; what was already spent is now the wallet's debt."


GRANT = Act(
    name="grant",
    label="Give credits",
    explains="Credits for nothing, given at once. For a payment, use the operator API.",
    run=_grant,
    form=GrantForm,
    icon="add_card",
    permission="billing.add_creditgrant",
    in_bulk=False,
    refusals=(BillingError,),
    initial=lambda _: {"reference": str(uuid4())},
    fits=lambda account: account.deleted_at is None,
)
DISABLE = Act(
    name="disable",
    label="Disable",
    explains="All its keys stop working within seconds. What is in the making ends.",
    run=_disable,
    icon="block",
    is_dangerous=True,
    refusals=(BillingError,),
    fits=lambda account: account.is_active,
)
ENABLE = Act(
    name="enable",
    label="Enable",
    explains="Its keys work again.",
    run=_enable,
    icon="check_circle",
    refusals=(BillingError,),
    fits=lambda account: not account.is_active and account.deleted_at is None,
)
ACTS = (GRANT, DISABLE, ENABLE)

REVOKE_KEY = Act(
    name="revoke",
    label="Revoke",
    explains="The key stops for good, everywhere within seconds.",
    run=_revoke,
    icon="key_off",
    is_dangerous=True,
    refusals=(BillingError,),
    fits=lambda key: key.revoked_at is None,
)
REVOKE_OPERATOR_KEY = Act(
    name="revoke",
    label="Revoke",
    explains="The key stops for good, at once.",
    run=_revoke_operator,
    icon="key_off",
    is_dangerous=True,
    refusals=(BillingError,),
    fits=lambda key: key.revoked_at is None,
)
TAKE_BACK = Act(
    name="take_back",
    label="Take back",
    explains="The money went back to the customer (a chargeback): what is left of its "
    "credits goes, and what was spent becomes a debt that other credits repay.",
    run=_take_back,
    icon="undo",
    is_dangerous=True,
    permission="billing.add_creditgrant",
    in_bulk=False,
    refusals=(BillingError,),
    fits=lambda paid: paid.taken_back_at is None,
)
WALLET_ACTS = (
    Act(
        name="freeze",
        label="Freeze",
        explains="No new jobs are paid from this wallet; what runs still settles.",
        run=_freeze,
        icon="ac_unit",
        is_dangerous=True,
        refusals=(BillingError,),
        fits=lambda wallet: not wallet.frozen,
    ),
    Act(
        name="thaw",
        label="Thaw",
        explains="The wallet pays again. Refused while its books do not add up.",
        run=_thaw,
        icon="sunny",
        refusals=(BillingError,),
        fits=lambda wallet: wallet.frozen,
    ),
)
