"""The operator API's calls. Each reads, calls billing or counts jobs, and writes down who
did what: the key's operator, in the same history as the admin's.
"""

from __future__ import annotations

import json
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, cast
from uuid import UUID

from django.contrib.admin.models import ADDITION, CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import IntegrityError, transaction
from django.utils import timezone
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import status
from rest_framework.exceptions import NotFound
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from billing import accounts, keys, ledger
from billing.serializers import key_data, new_key_data
from jobs import idempotency
from jobs.dialects.base import WireRequest, WireResponse
from jobs.operator import serializers as wire
from jobs.operator import usage
from jobs.operator.door import OperatorView, Unacceptable

if TYPE_CHECKING:
    from billing.accounts import Account
    from billing.ledger import Purchase
    from billing.operator_keys import OperatorKey

DAYS_DEFAULT = 30
DAYS_MAX = 366


def _refusals(*statuses: int) -> dict[Any, Any]:
    words = {
        400: "The body is no JSON.",
        401: "No usable operator key; every cause looks alike.",
        403: "The operator this key acts for lacks the right.",
        404: "There is no such account, key or payment.",
        409: "It is in the way of what was done before.",
        415: "Send application/json.",
        422: "A field is wrong; `errors` names it.",
        429: "Too many requests of this key, or bad keys from there; see Retry-After.",
        503: "A part of ours is away; see Retry-After.",
    }
    return {
        (code, "application/problem+json"): OpenApiResponse(wire.Problem, words[code])
        for code in (401, 403, *statuses, 429, 503)
    }


def _read(serializer: Any, data: Any) -> dict[str, Any]:
    given = serializer(data=data)
    given.is_valid(raise_exception=True)
    return dict(given.validated_data)


def _query(serializer: Any, request: Request) -> dict[str, Any]:
    return _read(serializer, {k: v[0] for k, v in request.query_params.lists()})


def _write_down(
    request: Request, account: Account, flag: int, what: str, reason: str = ""
) -> None:
    """Add to the account's history, as the admin does for people."""
    told = f"{what} Reason: {reason}" if reason else what
    LogEntry.objects.create(
        user_id=cast("OperatorKey", request.auth).user_id,
        content_type=ContentType.objects.get_for_model(account),
        object_id=str(account.pk),
        object_repr=str(account)[:200],
        action_flag=flag,
        change_message=f"{told} (by {request.auth})",
    )


def _actor(request: Request) -> str:
    return f"{request.user.get_username()} by {request.auth}"


# ---------------------------------------------------------------------------- accounts


class Accounts(OperatorView):
    rights: ClassVar = {"GET": "billing.view_account", "POST": "billing.add_account"}

    @extend_schema(
        operation_id="operator_accounts_list",
        summary="List accounts",
        tags=["Operator API"],
        parameters=[wire.PageQuery],
        responses={200: wire.AccountPage, **_refusals(422)},
    )
    def get(self, request: Request) -> Response:
        asked = _query(wire.PageQuery, request)
        found = accounts.list_accounts(
            reference=asked.get("reference"),
            after=asked.get("cursor"),
            limit=asked["limit"] + 1,
        )
        page, has_more = found[: asked["limit"]], len(found) > asked["limit"]
        return Response(
            {
                "object": "list",
                "data": [account_out(account) for account in page],
                "has_more": has_more,
                "next_cursor": page[-1].pk if has_more else None,
            }
        )

    @extend_schema(
        operation_id="operator_accounts_create",
        summary="Open an account",
        description="With a `reference` of your own, repeating the call returns the "
        "account it made (200 instead of 201).",
        tags=["Operator API"],
        request=wire.NewAccount,
        responses={
            200: wire.AccountOut,
            201: wire.AccountOut,
            **_refusals(400, 415, 422),
        },
    )
    def post(self, request: Request) -> Response:
        asked = _read(wire.NewAccount, request.data)
        reference = asked.get("reference")
        if reference is not None:
            known = accounts.list_accounts(reference=reference, limit=1)
            if known:
                return Response(account_out(known[0]))
        try:
            with transaction.atomic():
                made = accounts.open_account(
                    asked["name"], plan=asked["plan"], reference=reference
                )
                _write_down(request, made, ADDITION, "Added.")
        except IntegrityError:
            # The same reference came twice at once; the other call made it.
            [made] = accounts.list_accounts(reference=reference, limit=1)
            return Response(account_out(made))
        answer = account_out(accounts.get_account(made.pk))
        return Response(answer, status=status.HTTP_201_CREATED)


class OneAccount(OperatorView):
    rights: ClassVar = {
        "GET": "billing.view_account",
        "PATCH": "billing.change_account",
    }

    @extend_schema(
        operation_id="operator_accounts_read",
        summary="Read an account",
        tags=["Operator API"],
        responses={200: wire.AccountOut, **_refusals(404)},
    )
    def get(self, request: Request, account_id: UUID) -> Response:
        return Response(account_out(accounts.get_account(account_id)))

    @extend_schema(
        operation_id="operator_accounts_change",
        summary="Change plan, limits or name; disable or enable",
        tags=["Operator API"],
        request=wire.AccountChange,
        responses={200: wire.AccountOut, **_refusals(400, 404, 409, 415, 422)},
    )
    def patch(self, request: Request, account_id: UUID) -> Response:
        asked = _read(wire.AccountChange, request.data)
        reason = asked.pop("reason")
        changes = {_COLUMNS.get(name, name): value for name, value in asked.items()}
        account = accounts.get_account(account_id)
        if account.deleted_at is not None:
            raise Unacceptable({"is_active": ["The account was deleted."]})
        if changes:
            with transaction.atomic():
                account = accounts.change_account(account_id, **changes)
                told = ", ".join(f"{name} = {value}" for name, value in asked.items())
                _write_down(request, account, CHANGE, f"{told}.", reason)
        return Response(account_out(account))


_COLUMNS = {
    "low_balance_threshold_credits": "low_balance_threshold_millicredits",
    "daily_spend_cap_credits": "daily_spend_cap_millicredits",
}


def account_out(account: Account) -> dict[str, Any]:
    """Return an account as the operator API shows it."""

    def balance(mode: str) -> dict[str, Any]:
        money = ledger.balance(account_id=account.pk, mode=mode)
        return {
            "available_credits": money.available_millicredits / 1000,
            "held_credits": money.held_millicredits / 1000,
            "debt_credits": money.debt_millicredits / 1000,
            "is_frozen": money.frozen,
        }

    def credits(millicredits: int | None) -> float | None:
        return None if millicredits is None else millicredits / 1000

    return {
        "id": account.pk,
        "object": "account",
        "name": account.name,
        "reference": account.reference,
        "plan": account.plan_id,
        "is_active": account.is_active,
        "low_balance_threshold_credits": credits(
            account.low_balance_threshold_millicredits
        ),
        "daily_spend_cap_credits": credits(account.daily_spend_cap_millicredits),
        "created_at": account.created_at,
        "deleted_at": account.deleted_at,
        "live": balance("live"),
        "test": balance("test"),
    }


# ------------------------------------------------------------------------------ grants


class Grants(OperatorView):
    rights: ClassVar = {"POST": "billing.add_creditgrant"}

    @extend_schema(
        operation_id="operator_grants_create",
        summary="Credit a payment",
        description="Once per `payment_id` over all accounts: repeating the call "
        "returns the first grant (200 instead of 201), another amount or account is "
        "refused (409).",
        tags=["Operator API"],
        request=wire.NewGrant,
        responses={
            200: wire.GrantOut,
            201: wire.GrantOut,
            **_refusals(400, 404, 409, 415, 422),
        },
    )
    def post(self, request: Request, account_id: UUID) -> Response:
        asked = _read(wire.NewGrant, request.data)
        account = accounts.get_account(account_id)
        with transaction.atomic():
            # Asked under the lock, so that of two at once one is the first.
            ledger.lock_wallet(account_id=account_id, mode=asked["mode"])
            is_new = ledger.purchase_of(asked["payment_id"]) is None
            if is_new and account.deleted_at is not None:
                raise Unacceptable({"account_id": ["The account was deleted."]})
            ledger.purchase(
                account_id=account_id,
                mode=asked["mode"],
                payment_id=asked["payment_id"],
                amount_millicredits=asked["credits"],
                expires_at=asked.get("expires_at"),
                paid_amount=asked.get("paid_amount"),
                paid_currency=asked.get("paid_currency", ""),
                actor=_actor(request)[:200],
                reason=asked["reason"],
            )
            if is_new:
                credits = asked["credits"] / 1000
                told = f"{credits:g} credits for payment {asked['payment_id']}."
                _write_down(request, account, CHANGE, told, asked["reason"])
        return Response(
            _grant_out(asked["payment_id"]),
            status=status.HTTP_201_CREATED if is_new else status.HTTP_200_OK,
        )


class TakenBack(OperatorView):
    rights: ClassVar = {"POST": "billing.add_creditgrant"}

    @extend_schema(
        operation_id="operator_grants_take_back",
        summary="Undo a payment that went back",
        description="What is left of its credits goes; what was spent becomes a debt "
        "that other credits repay, now and later. Twice is once.",
        tags=["Operator API"],
        request=wire.TakeBack,
        responses={200: wire.GrantOut, **_refusals(400, 404, 415, 422)},
    )
    def post(self, request: Request, account_id: UUID, payment_id: str) -> Response:
        asked = _read(wire.TakeBack, request.data)
        account = accounts.get_account(account_id)
        mode = _paid(account_id, payment_id).grant.wallet.mode
        with transaction.atomic():
            ledger.lock_wallet(account_id=account_id, mode=mode)
            paid = _paid(account_id, payment_id)
            ledger.take_back(
                account_id=account_id,
                mode=mode,
                payment_id=payment_id,
                actor=_actor(request)[:200],
                reason=asked["reason"],
            )
            if paid.taken_back_at is None:
                told = f"Payment {payment_id} taken back."
                _write_down(request, account, CHANGE, told, asked["reason"])
        return Response(_grant_out(payment_id))


def _paid(account_id: UUID, payment_id: str) -> Purchase:
    paid = ledger.purchase_of(payment_id)
    if paid is None or paid.grant.wallet.account_id != account_id:
        raise NotFound
    return paid


def _grant_out(payment_id: str) -> dict[str, Any]:
    paid = ledger.purchase_of(payment_id)
    assert paid is not None
    return {
        "object": "grant",
        "payment_id": paid.payment_id,
        "account_id": paid.grant.wallet.account_id,
        "mode": paid.grant.wallet.mode,
        "credits": paid.grant.amount / 1000,
        "remaining_credits": paid.grant.remaining / 1000,
        "expires_at": paid.grant.expires_at,
        "created_at": paid.created_at,
        "taken_back_at": paid.taken_back_at,
    }


# -------------------------------------------------------------------------------- keys


class Keys(OperatorView):
    rights: ClassVar = {"GET": "billing.view_apikey", "POST": "billing.add_apikey"}

    @extend_schema(
        operation_id="operator_keys_list",
        summary="List an account's API keys",
        tags=["Operator API"],
        responses={200: wire.KeyList, **_refusals(404)},
    )
    def get(self, request: Request, account_id: UUID) -> Response:
        accounts.get_account(account_id)
        rows = keys.keys_of(account_id)
        return Response({"object": "list", "data": [key_data(row) for row in rows]})

    @extend_schema(
        operation_id="operator_keys_create",
        summary="Issue an API key",
        tags=["Operator API"],
        description="With an `Idempotency-Key`, repeating the call within 24 hours "
        "returns the key it issued, `key` and `client_secret` null.",
        parameters=[wire.IDEMPOTENCY_KEY],
        request=wire.NewKey,
        responses={201: wire.NewKeyOut, **_refusals(400, 404, 409, 415, 422)},
    )
    def post(self, request: Request, account_id: UUID) -> Response:
        asked = _read(wire.NewKey, request.data)
        account = accounts.get_account(account_id)
        if account.deleted_at is not None:
            raise Unacceptable({"account_id": ["The account was deleted."]})

        def issue() -> WireResponse:
            row, plaintext = keys.create_key(
                account_id=account_id,
                mode=asked["mode"],
                scopes=asked["scopes"],
                name=asked["name"],
                expires_at=asked.get("expires_at"),
                daily_spend_cap_millicredits=asked.get("daily_spend_cap_credits"),
                with_pair=asked["client_pair"],
            )
            _write_down(request, account, CHANGE, f"Issued key {row}.")
            body = JSONRenderer().render(new_key_data(row, plaintext))
            return WireResponse(status.HTTP_201_CREATED, json.loads(body))

        with transaction.atomic():
            answer = idempotency.once(
                account_id=account_id,
                mode=asked["mode"],
                key=request.headers.get("Idempotency-Key"),
                wire=WireRequest("POST", request.path, body=request.data),
                create=issue,
                shown_once=("key", "client_secret"),
            )
        return Response(answer.body, answer.status, headers=dict(answer.headers))


class OneKey(OperatorView):
    rights: ClassVar = {"DELETE": "billing.change_apikey"}

    @extend_schema(
        operation_id="operator_keys_revoke",
        summary="Revoke an API key",
        description="It stops for good, everywhere within seconds. Twice is once.",
        tags=["Operator API"],
        responses={200: wire.KeyOut, **_refusals(404)},
    )
    def delete(self, request: Request, account_id: UUID, key_id: str) -> Response:
        account = accounts.get_account(account_id)
        with transaction.atomic():
            row = keys.revoke(account_id=account_id, key_id=key_id)
            _write_down(request, account, CHANGE, f"Revoked key {row}.")
        return Response(key_data(row))


# ------------------------------------------------------------------------------- usage


class AccountUsage(OperatorView):
    rights: ClassVar = {"GET": "jobs.view_job"}

    @extend_schema(
        operation_id="operator_account_usage",
        summary="Read an account's usage by day and model",
        tags=["Operator API"],
        parameters=[wire.UsageQuery],
        responses={200: wire.Usage, **_refusals(404, 422)},
    )
    def get(self, request: Request, account_id: UUID) -> Response:
        accounts.get_account(account_id)
        return Response(_usage(request, account_id))


class AllUsage(OperatorView):
    rights: ClassVar = {"GET": "jobs.view_job"}

    @extend_schema(
        operation_id="operator_usage",
        summary="Read every account's usage by day and model",
        tags=["Operator API"],
        parameters=[wire.UsageQuery],
        responses={200: wire.Usage, **_refusals(422)},
    )
    def get(self, request: Request) -> Response:
        return Response(_usage(request, None))


def _usage(request: Request, account_id: UUID | None) -> dict[str, Any]:
    asked = _query(wire.UsageQuery, request)
    until: date = asked.get("until") or timezone.now().date()
    if until == date.max:
        raise Unacceptable({"until": ["Is too late."]})
    since: date = asked.get("since") or max(
        until - timedelta(days=min(DAYS_DEFAULT - 1, (until - date.min).days)), date.min
    )
    if since > until:
        raise Unacceptable({"since": ["Must not be after until."]})
    if (until - since).days > DAYS_MAX:
        raise Unacceptable({"since": [f"At most {DAYS_MAX} days at once."]})
    rows = usage.by_day(
        since=since, until=until, mode=asked["mode"], account_id=account_id
    )
    return {
        "object": "usage",
        "since": since,
        "until": until,
        "mode": asked["mode"],
        "data": rows,
    }
