"""The operator API's paths."""

from __future__ import annotations

from django.urls import URLPattern, path, re_path

from jobs import segments
from jobs.operator import views
from jobs.operator.door import unknown

segments.register()
urlpatterns: list[URLPattern] = [
    path("accounts", views.Accounts.as_view()),
    path("accounts/<uuid:account_id>", views.OneAccount.as_view()),
    path("accounts/<uuid:account_id>/grants", views.Grants.as_view()),
    path(
        "accounts/<uuid:account_id>/grants/<segments:payment_id>/take-back",
        views.TakenBack.as_view(),
    ),
    path("accounts/<uuid:account_id>/keys", views.Keys.as_view()),
    path("accounts/<uuid:account_id>/keys/<segment:key_id>", views.OneKey.as_view()),
    path("accounts/<uuid:account_id>/usage", views.AccountUsage.as_view()),
    path("usage", views.AllUsage.as_view()),
    # Last: whatever no other path serves.
    re_path(r"", unknown),
]
