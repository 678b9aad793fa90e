"""How the operators' pages look: Unfold's configuration, kept apart from the settings."""

from __future__ import annotations

from typing import Any

from django.templatetags.static import static
from django.urls import reverse_lazy

# Zoetrope's teal, from light to dark.
_PRIMARY = {
    "50": "oklch(98.4% .014 180.72)",
    "100": "oklch(95.3% .051 180.801)",
    "200": "oklch(91% .096 180.426)",
    "300": "oklch(85.5% .138 181.071)",
    "400": "oklch(77.7% .152 181.912)",
    "500": "oklch(70.4% .14 182.503)",
    "600": "oklch(52% .104 184.704)",
    "700": "oklch(46% .09 186.391)",
    "800": "oklch(43.7% .078 188.216)",
    "900": "oklch(38.6% .063 188.416)",
    "950": "oklch(27.7% .046 192.524)",
}


def _item(title: str, icon: str, name: str) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{name}")}


def _list(title: str, icon: str, model: str) -> dict[str, Any]:
    return _item(title, icon, f"{model}_changelist")


UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "Zoetrope",
    "SITE_HEADER": "Zoetrope",
    "SITE_SYMBOL": "motion_mode",
    "SITE_URL": "/docs",
    "SITE_FAVICONS": [
        {
            "rel": "icon",
            "type": "image/svg+xml",
            "href": lambda request: static("zoetrope/icon.svg"),
        }
    ],
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "COLORS": {"primary": _PRIMARY},
    "STYLES": [lambda request: static("zoetrope/admin.css")],
    "LOGIN": {"form": "project.operators.LoginForm"},
    "DASHBOARD_CALLBACK": "jobs.admin.dashboard.context",
    "ACCOUNT": {
        "navigation": [
            {"title": "Second factor", "link": reverse_lazy("admin:second_factor")},
        ]
    },
    "SIDEBAR": {
        "show_search": True,
        "show_all_applications": False,
        "navigation": [
            {
                "items": [
                    _item("Dashboard", "space_dashboard", "index"),
                    _list("Incidents", "emergency_home", "jobs_incident"),
                ]
            },
            {
                "title": "Videos",
                "separator": True,
                "items": [
                    _list("Jobs", "movie", "jobs_job"),
                    _list("Webhook endpoints", "webhook", "jobs_webhookendpoint"),
                    _list("Webhook deliveries", "outbox", "jobs_webhookdelivery"),
                    _list("Deletions", "delete_history", "jobs_deletionrecord"),
                ],
            },
            {
                "title": "Customers and money",
                "separator": True,
                "items": [
                    _list("Accounts", "apartment", "billing_account"),
                    _list("API keys", "key", "billing_apikey"),
                    _list("Wallets", "account_balance_wallet", "billing_wallet"),
                    _list("Ledger", "receipt_long", "billing_transfer"),
                    _list("Holds", "hourglass", "billing_hold"),
                    _list("Grants", "redeem", "billing_creditgrant"),
                    _list("Purchases", "shopping_cart", "billing_purchase"),
                    _list("Plans", "layers", "billing_plan"),
                    _list("Prices", "sell", "billing_pricerow"),
                ],
            },
            {
                "title": "Making",
                "separator": True,
                "items": [
                    _list("Routes", "alt_route", "jobs_route"),
                    _list("Model aliases", "label", "jobs_modelalias"),
                    _list("Effects", "auto_awesome", "jobs_effect"),
                    _list("LoRAs", "tune", "jobs_lora"),
                    _list("Provider accounts", "hub", "jobs_provideraccount"),
                    _list("Workers", "memory", "jobs_worker"),
                    _item("Margin", "query_stats", "jobs_margin"),
                ],
            },
            {
                "title": "Operators",
                "separator": True,
                "items": [
                    _list("Users", "person", "auth_user"),
                    _list("Groups", "group", "auth_group"),
                    _list("Operator keys", "vpn_key", "billing_operatorkey"),
                    _list("Second factors", "phonelink_lock", "otp_totp_totpdevice"),
                    _list("Failed sign-ins", "lock_person", "axes_accessattempt"),
                    _list("Audit", "history", "admin_logentry"),
                ],
            },
        ],
    },
}
