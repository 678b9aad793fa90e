"""What billing refuses, and why.

BillingError
├── InvalidKey                 no usable API key; never says which check failed
├── MissingScope               a good key without the right to do this
├── UnknownAccount
├── UnknownPlan
├── UnknownKey                 this account has no such API key
├── BadRequest                 a field of a key or ledger request, and what is wrong
├── TooManyRequests            a rate limit; says when to come back
├── NoPrice                    the price book has no row for this
├── SecretUnreadable           no configured SECRETS_KEY opens this token
└── LedgerError
    ├── InsufficientCredits
    ├── SpendCapReached
    ├── WalletFrozen
    ├── UnknownHold            nothing was held under this reference
    ├── AlreadySettled         captured or released before, and not the same way
    ├── AmountTooLarge         captures, refunds or takes back more than there is
    ├── ReferenceReused        a reference was used before for another amount
    └── LedgerBroken           the books disagree with themselves; nothing was written
"""

from __future__ import annotations


class BillingError(Exception):
    """Something billing refuses; the caller words it for its customer."""


class InvalidKey(BillingError):
    """No usable API key was presented. Every cause looks alike from outside."""

    def __init__(self) -> None:
        super().__init__("A valid API key is required.")


class MissingScope(BillingError):
    def __init__(self, scope: str) -> None:
        self.scope = scope
        super().__init__(f"This API key lacks the scope {scope}.")


class UnknownAccount(BillingError):
    """No account has this id or name."""


class UnknownPlan(BillingError):
    """No plan has this code."""


class UnknownKey(BillingError):
    """The account has no API key with this id."""


class BadRequest(BillingError):
    """``field`` of the request cannot be used because of ``reason``."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")


class TooManyRequests(BillingError):
    """A rate limit was reached; ``retry_after`` is in whole seconds, at least 1."""

    def __init__(self, *, limit: int, retry_after: int) -> None:
        self.limit = limit
        self.retry_after = retry_after
        super().__init__(f"Rate limit exceeded. Retry after {retry_after} seconds.")


class NoPrice(BillingError):
    """The price book has no row for what was asked."""


class SecretUnreadable(BillingError):
    """The token was made with a key that is no longer configured, or altered."""


class LedgerError(BillingError):
    """A movement of credits that was refused; nothing was moved."""


class InsufficientCredits(LedgerError):
    def __init__(
        self, *, required_millicredits: int, available_millicredits: int
    ) -> None:
        self.required_millicredits = required_millicredits
        self.available_millicredits = available_millicredits
        super().__init__(
            f"{required_millicredits / 1000:g} credits are required, "
            f"{available_millicredits / 1000:g} are available."
        )


class SpendCapReached(LedgerError):
    """The daily cap of the account or the key (``owner``) leaves too little today."""

    def __init__(
        self,
        *,
        owner: str,
        cap_millicredits: int,
        spent_millicredits: int,
        required_millicredits: int,
    ) -> None:
        self.owner = owner
        self.cap_millicredits = cap_millicredits
        self.spent_millicredits = spent_millicredits
        self.required_millicredits = required_millicredits
        super().__init__(
            f"The {owner}'s daily spend cap of {cap_millicredits / 1000:g} credits "
            f"is reached: {spent_millicredits / 1000:g} spent since midnight UTC, "
            f"{required_millicredits / 1000:g} more required."
        )


class WalletFrozen(LedgerError):
    """An operator or the verifier froze the wallet; running work still settles."""

    def __init__(self) -> None:
        super().__init__("This wallet is frozen; please contact the operator.")


class UnknownHold(LedgerError):
    """Nothing was ever held in this wallet under the reference."""


class AlreadySettled(LedgerError):
    """The hold was captured or released before, and not the way asked now."""


class AmountTooLarge(LedgerError):
    """More is asked back or captured than was held, captured or granted."""


class ReferenceReused(LedgerError):
    """The reference already names another movement."""


class LedgerBroken(LedgerError):
    """The wallet and its grants or holds disagree. Freeze it and look."""
