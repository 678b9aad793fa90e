"""The operator's view of accounts and money.

The ledger is read-only here for everyone: credits move by actions that write a new
movement with actor and reason. Keys are shown without their secrets; a price is never
overwritten, saving one publishes a new version.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, cast

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import (
    Http404,
    HttpRequest,
    HttpResponseBase,
    StreamingHttpResponse,
)
from django.template.response import TemplateResponse
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import action

from billing import account_acts, accounts, exports, keys, operator_keys, prices
from billing.acting import Act, ActingAdmin, ReasonedAdmin
from billing.models import (
    Account,
    ApiKey,
    CreditGrant,
    Entry,
    Hold,
    HoldSlice,
    Member,
    OperatorKey,
    Plan,
    PriceRow,
    Purchase,
    Transfer,
    Wallet,
)

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser
    from django.db.models import QuerySet
    from django.forms import ModelForm


def _credits(millicredits: int | None) -> str:
    return "" if millicredits is None else f"{millicredits / 1000:,.3f}"


class ReadOnly:
    """Nobody adds, changes or deletes: these rows are written by the ledger alone."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class NoDelete:
    """What money hangs on is disabled, revoked or superseded, never deleted."""

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class WalletInline(ReadOnly, TabularInline):
    model = Wallet
    fields = readonly_fields = (
        "mode",
        "available_credits",
        "held_credits",
        "debt_credits",
        "frozen",
    )
    extra = 0
    can_delete = False
    show_change_link = True

    @admin.display(description="available")
    def available_credits(self, wallet: Wallet) -> str:
        return _credits(wallet.available)

    @admin.display(description="held")
    def held_credits(self, wallet: Wallet) -> str:
        return _credits(wallet.held)

    @admin.display(description="debt")
    def debt_credits(self, wallet: Wallet) -> str:
        return _credits(wallet.debt)


class MemberInline(TabularInline):
    model = Member
    extra = 0
    autocomplete_fields = ("user",)


@admin.register(Account)
class AccountAdmin(NoDelete, ReasonedAdmin):
    list_display = (
        "name",
        "reference",
        "plan",
        "is_active",
        "live_credits",
        "created_at",
    )
    list_filter = ("plan", "is_active")
    list_select_related = ("plan",)
    search_fields = ("name", "id", "reference")
    readonly_fields = ("id", "created_at", "deleted_at")
    inlines = (WalletInline, MemberInline)
    acts: ClassVar[Sequence[Act]] = account_acts.ACTS
    actions_detail = ("statement",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Account]:
        live = Wallet.objects.filter(account=models.OuterRef("pk"), mode="live")
        return (
            super()
            .get_queryset(request)
            .annotate(live=models.Subquery(live.values("available")))
        )

    @admin.display(description="live credits", ordering="live")
    def live_credits(self, account: Account) -> str:
        return _credits(getattr(account, "live", None))

    def save_model(
        self, request: HttpRequest, obj: Account, form: ModelForm[Account], change: bool
    ) -> None:
        super().save_model(request, obj, form, change)
        accounts.open_wallets(obj)
        # The plan and the caps travel with remembered keys.
        keys.forget()

    @action(description="Statement", url_path="statement", icon="table_view")
    def statement(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """Ask for a wallet and a period, then send the movements as CSV."""
        account = self.get_object(request, object_id)
        if account is None:
            raise Http404
        if not self.has_view_permission(request, account):
            raise PermissionDenied
        asked = "mode" in request.GET
        form = account_acts.StatementForm(request.GET if asked else None)
        if asked and form.is_valid():
            return _statement_file(account, form)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Statement of {account}",
            "opts": self.opts,
            "form": form,
        }
        return TemplateResponse(request, "billing/statement.html", context)


def _statement_file(
    account: Account, form: account_acts.StatementForm
) -> HttpResponseBase:
    start, end = form.cleaned_data["start"], form.cleaned_data["end"]
    mode = form.cleaned_data["mode"]
    lines = exports.statement_csv(
        account_id=account.pk,
        mode=mode,
        start=datetime.combine(start, time(), UTC),
        # the last day counts whole
        end=datetime.combine(end, time(), UTC) + timedelta(days=1),
    )
    name = f"statement-{account.pk}-{mode}-{start}-{end}.csv"
    response = StreamingHttpResponse(lines, content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


@admin.register(ApiKey)
class ApiKeyAdmin(NoDelete, ReasonedAdmin):
    list_display = (
        "__str__",
        "account",
        "name",
        "mode",
        "last_used_at",
        "expires_at",
        "revoked_at",
    )
    list_filter = ("mode", ("revoked_at", admin.EmptyFieldListFilter))
    list_select_related = ("account",)
    search_fields = ("id", "client_id", "name", "account__name")
    fields = (
        "id",
        "client_id",
        "account",
        "mode",
        "name",
        "scopes",
        "requests_per_minute",
        "daily_spend_cap_millicredits",
        "expires_at",
        "created_at",
        "last_used_at",
        "revoked_at",
    )
    readonly_fields = (
        "id",
        "client_id",
        "account",
        "mode",
        "created_at",
        "last_used_at",
        "revoked_at",
    )
    acts = (account_acts.REVOKE_KEY,)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Keys are made where their owner sees them: the API or createaccount."""
        return False

    def save_model(
        self, request: HttpRequest, obj: ApiKey, form: ModelForm[ApiKey], change: bool
    ) -> None:
        super().save_model(request, obj, form, change)
        keys.forget()


@admin.register(OperatorKey)
class OperatorKeyAdmin(NoDelete, ActingAdmin):
    list_display = (
        "__str__",
        "user",
        "name",
        "created_at",
        "expires_at",
        "revoked_at",
    )
    list_select_related = ("user",)
    search_fields = ("id", "name", "user__username")
    fields = ("id", "user", "name", "expires_at", "created_at", "revoked_at")
    readonly_fields = ("id", "user", "created_at", "revoked_at")
    acts = (account_acts.REVOKE_OPERATOR_KEY,)

    def get_fields(
        self, request: HttpRequest, obj: OperatorKey | None = None
    ) -> tuple[str, ...]:
        return self.fields if obj else ("name", "expires_at")

    def save_model(
        self,
        request: HttpRequest,
        obj: OperatorKey,
        form: ModelForm[OperatorKey],
        change: bool,
    ) -> None:
        """Make the key in the name of whoever asks, and show it this once."""
        if change:
            super().save_model(request, obj, form, change)
            return
        made, plaintext = operator_keys.mint(
            cast("AbstractBaseUser", request.user),
            name=obj.name,
            expires_at=obj.expires_at,
        )
        obj.pk, obj.user_id = made.pk, made.user_id
        self.message_user(
            request, f"Keep this key, it is shown once: {plaintext}", messages.WARNING
        )


@admin.register(Plan)
class PlanAdmin(ReasonedAdmin):
    list_display = (
        "code",
        "name",
        "max_running",
        "requests_per_minute",
        "premium_allowed",
        "long_allowed",
        "file_retention_days",
    )
    search_fields = ("code", "name")


@admin.register(PriceRow)
class PriceRowAdmin(NoDelete, ReasonedAdmin):
    list_display = (
        "model",
        "operation",
        "resolution",
        "seconds",
        "credits",
        "unit",
        "unit_size",
        "version",
        "effective_from",
    )
    list_filter = ("operation", "unit", "version", "model")
    search_fields = ("model",)
    fields = (
        "model",
        "operation",
        "resolution",
        "seconds",
        "options",
        "is_surcharge",
        "unit",
        "unit_size",
        "prorata",
        "amount_millicredits",
        "version",
        "effective_from",
    )
    #: What makes the row the row; the rest may change in a new version.
    identity = ("model", "operation", "version")

    @admin.display(description="credits", ordering="amount_millicredits")
    def credits(self, row: PriceRow) -> str:
        return _credits(row.amount_millicredits)

    def get_readonly_fields(
        self, request: HttpRequest, obj: PriceRow | None = None
    ) -> tuple[str, ...]:
        return self.identity if obj else ("version",)

    def save_model(
        self,
        request: HttpRequest,
        obj: PriceRow,
        form: ModelForm[PriceRow],
        change: bool,
    ) -> None:
        """Publish the edit as the next version of this model's prices."""
        start = obj.effective_from if "effective_from" in form.changed_data else None
        if change:
            edited = {name: form.cleaned_data[name] for name in form.changed_data}
            for ours in ("effective_from", "reason"):
                edited.pop(ours, None)
            published = prices.reprice(
                PriceRow.objects.get(pk=obj.pk), effective_from=start, **edited
            )
        else:
            published = prices.add(prices.as_price(obj), effective_from=start)
            obj.pk = published[-1].pk
        self.message_user(
            request,
            f"Published as version {published[0].version}; "
            "what was accepted before keeps its price.",
            messages.SUCCESS,
        )
        published[0].refresh_from_db(fields=["effective_from"])
        if (later := prices.superseding(published[0])) is not None:
            self.message_user(
                request,
                f"Version {later.version} replaces it on "
                f"{later.effective_from:%Y-%m-%d %H:%M} UTC and knows nothing of it.",
                messages.WARNING,
            )


@admin.register(Wallet)
class WalletAdmin(ReadOnly, ActingAdmin):
    acts = account_acts.WALLET_ACTS
    list_display = ("account", "mode", "available_credits", "held_credits", "frozen")
    list_filter = ("mode", "frozen")
    list_select_related = ("account",)
    search_fields = ("account__name",)

    @admin.display(description="available", ordering="available")
    def available_credits(self, wallet: Wallet) -> str:
        return _credits(wallet.available)

    @admin.display(description="held", ordering="held")
    def held_credits(self, wallet: Wallet) -> str:
        return _credits(wallet.held)


@admin.register(CreditGrant)
class CreditGrantAdmin(ReadOnly, ModelAdmin):
    list_display = (
        "reference",
        "wallet",
        "source",
        "credits",
        "left",
        "expires_at",
        "created_at",
    )
    list_filter = ("source", "wallet__mode")
    list_select_related = ("wallet__account",)
    search_fields = ("reference", "wallet__account__name")

    @admin.display(description="credits", ordering="amount")
    def credits(self, grant: CreditGrant) -> str:
        return _credits(grant.amount)

    @admin.display(description="left", ordering="remaining")
    def left(self, grant: CreditGrant) -> str:
        return _credits(grant.remaining)


@admin.register(Purchase)
class PurchaseAdmin(ReadOnly, ActingAdmin):
    acts = (account_acts.TAKE_BACK,)
    list_display = (
        "payment_id",
        "grant",
        "paid_amount",
        "paid_currency",
        "created_at",
        "taken_back_at",
    )
    list_select_related = ("grant",)
    search_fields = ("payment_id",)


class EntryInline(ReadOnly, TabularInline):
    model = Entry
    fields = readonly_fields = ("book", "credits")
    extra = 0
    can_delete = False

    @admin.display(description="credits")
    def credits(self, entry: Entry) -> str:
        return _credits(entry.amount)


@admin.register(Transfer)
class TransferAdmin(ReadOnly, ModelAdmin):
    list_display = (
        "id",
        "created_at",
        "wallet",
        "kind",
        "reference",
        "available_credits",
        "actor",
        "reason",
    )
    list_filter = ("kind", "wallet__mode")
    list_select_related = ("wallet__account",)
    search_fields = ("reference", "wallet__account__name", "actor")
    inlines = (EntryInline,)
    show_full_result_count = False

    @admin.display(description="available after")
    def available_credits(self, transfer: Transfer) -> str:
        return _credits(transfer.available_after)


@admin.register(Entry)
class EntryAdmin(ReadOnly, ModelAdmin):
    list_display = ("id", "transfer", "wallet", "book", "credits")
    list_filter = ("book",)
    list_select_related = ("transfer__wallet__account",)
    search_fields = ("transfer__reference",)
    show_full_result_count = False

    @admin.display(description="wallet")
    def wallet(self, entry: Entry) -> str:
        return str(entry.transfer.wallet)

    @admin.display(description="credits", ordering="amount")
    def credits(self, entry: Entry) -> str:
        return _credits(entry.amount)


class HoldSliceInline(ReadOnly, TabularInline):
    model = HoldSlice
    fields = readonly_fields = ("seq", "grant", "amount", "returned", "reissued")
    extra = 0
    can_delete = False


@admin.register(Hold)
class HoldAdmin(ReadOnly, ModelAdmin):
    list_display = ("reference", "wallet", "state", "credits", "earned", "created_at")
    list_filter = ("state", "wallet__mode")
    list_select_related = ("wallet__account",)
    search_fields = ("reference", "wallet__account__name")
    inlines = (HoldSliceInline,)
    show_full_result_count = False

    @admin.display(description="held", ordering="amount")
    def credits(self, hold: Hold) -> str:
        return _credits(hold.amount)

    @admin.display(description="captured less refunds")
    def earned(self, hold: Hold) -> str:
        return _credits(hold.captured - hold.refunded)
