"""An id and a secret for clients of Akool: a key in another form, and what seals webhooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client

from billing import accounts, keys, operator_keys
from billing.errors import InvalidKey
from billing.models import Account, ApiKey
from inference.egress import Egress
from inference.providers.akool import Akool
from inference.providers.base import CallbackRefused, ProviderAccount
from jobs import context, deliveries, lifecycle
from jobs.models import Job, WebhookDelivery
from tests.factories import make_account, make_key
from tests.jobs.api.test_native import PICTURE
from tests.jobs.test_lifecycle import ARTIFACT, prepared
from tests.receivers import Receiver

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("s3_address", "redis_url")]

CREATE = "/api/open/v4/image2Video/createBySourcePrompt"
HOOK = "https://hooks.example.com/akool"


@pytest.fixture
def alice() -> Account:
    keys.forget()
    return make_account("alice", credits=1000)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    running = Receiver()
    world = dataclasses.replace(
        context.get(), egress=Egress(allow_hosts=[running.host])
    )
    monkeypatch.setattr(context, "get", lambda: world)
    yield running
    running.stop()


def post(path: str, body: Any, **headers: str) -> Any:
    return Client(raise_request_exception=False).post(
        path, body, content_type="application/json", headers=headers
    )


def make_pair(account: Account, mode: str = "test", **more: Any) -> dict[str, Any]:
    """Return a new key with its pair, as its owner makes it."""
    admin = make_key(account, mode)
    answer = post(
        "/v1/keys", {"client_pair": True, **more}, authorization=f"Bearer {admin}"
    )
    assert answer.status_code == 201, answer.content
    made: dict[str, Any] = answer.json()
    return made


def order(url: str = HOOK) -> dict[str, Any]:
    return {
        "image_url": PICTURE,
        "prompt": "waves",
        "negative_prompt": "",
        "resolution": "720p",
        "audio_type": 3,
        "video_length": 5,
        "webhookurl": url,
    }


def opened(body: bytes, pair: dict[str, Any]) -> str:
    """Return the id of the video it is about, as a client with this pair reads it."""
    account = ProviderAccount(
        name="theirs",
        base_url="https://x.example",
        credentials={name: pair[name] for name in ("client_id", "client_secret")},
    )
    return Akool().parse_callback(body, {}, account).provider_id or ""


# ------------------------------------------------------------------------ the pair


def test_a_pair_has_the_sizes_that_akools_clients_know_and_is_shown_once(
    alice: Account,
) -> None:
    made = make_pair(alice)
    assert (len(made["client_id"]), len(made["client_secret"])) == (16, 32)
    listed = Client().get(
        "/v1/keys", headers={"authorization": f"Bearer {make_key(alice)}"}
    )
    (row,) = [key for key in listed.json()["data"] if key["id"] == made["id"]]
    assert row["client_id"] == made["client_id"]
    assert made["client_secret"] not in listed.content.decode()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT k::text FROM billing_apikey k WHERE id = %s", [row["id"]]
        )
        stored = cursor.fetchone()[0]
    assert made["client_secret"] not in stored
    assert "fernet:" in stored


def test_a_key_without_a_pair_says_so(alice: Account) -> None:
    answer = post(
        "/v1/keys", {"name": "x"}, authorization=f"Bearer {make_key(alice)}"
    ).json()
    assert (answer["client_id"], answer["client_secret"]) == (None, None)


@pytest.mark.parametrize("given", ["yes", 1, None])
def test_a_pair_is_asked_for_with_true_or_false(alice: Account, given: object) -> None:
    answer = post(
        "/v1/keys",
        {"client_pair": given},
        authorization=f"Bearer {make_key(alice)}",
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "client_pair"


def test_another_system_makes_pairs_by_the_operator_api(alice: Account) -> None:
    olga = get_user_model().objects.create_superuser("olga")
    _, key = operator_keys.mint(olga, name="shop")
    answer = post(
        f"/operator/v1/accounts/{alice.pk}/keys",
        {"client_pair": True, "mode": "live"},
        authorization=f"Bearer {key}",
    )
    assert answer.status_code == 201, answer.content
    assert keys.authenticate(answer.json()["client_secret"]).account_id == alice.pk


def test_the_admin_shows_the_id_and_never_the_secret(
    alice: Account, client: Client
) -> None:
    made = make_pair(alice)
    client.force_login(
        get_user_model().objects.create_superuser("olga"),
        backend="django.contrib.auth.backends.ModelBackend",
    )
    page = client.get(f"/admin/billing/apikey/{made['id']}/change/").content.decode()
    assert made["client_id"] in page
    assert made["client_secret"] not in page


# ----------------------------------------------------------------------- signing in


def token(client_id: str, client_secret: str) -> Any:
    body = {"clientId": client_id, "clientSecret": client_secret}
    return post("/api/open/v3/getToken", body).json()


def test_the_pair_is_exchanged_for_a_token_that_works(alice: Account) -> None:
    made = make_pair(alice)
    told = token(made["client_id"], made["client_secret"])
    assert told["code"] == 1000
    quota = "/api/open/v3/faceswap/quota/info"
    for headers in (
        {"authorization": f"Bearer {told['token']}"},
        {"x-api-key": made["client_secret"]},
    ):
        assert Client().get(quota, headers=headers).json()["code"] == 1000


def test_a_key_and_its_own_id_are_still_a_pair(alice: Account) -> None:
    key = make_key(alice)
    assert token(key.split("_")[2], key) == {"code": 1000, "token": key}


def test_a_wrong_pair_opens_nothing(alice: Account) -> None:
    made, other = make_pair(alice), make_pair(alice)
    for client_id, secret in (
        (other["client_id"], made["client_secret"]),
        (made["client_id"], made["client_secret"][:-1] + "!"),
        (made["client_id"], "0" * 32),
        ("é" * 16, made["client_secret"]),
    ):
        assert token(client_id, secret)["code"] == 1101


def test_the_pair_has_the_rights_and_the_end_of_its_key(alice: Account) -> None:
    made = make_pair(alice, scopes=["jobs:read"])
    credential = keys.authenticate(made["client_secret"])
    assert (credential.key_id, credential.mode) == (made["id"], "test")
    assert credential.scopes == {"jobs:read"}
    keys.revoke(account_id=alice.pk, key_id=made["id"])
    with pytest.raises(InvalidKey):
        keys.authenticate(made["client_secret"])


def test_a_mistyped_secret_costs_no_question(
    alice: Account, django_assert_num_queries: Any
) -> None:
    secret = make_pair(alice)["client_secret"]
    wrong = ("0" if secret[0] != "0" else "1") + secret[1:]
    with django_assert_num_queries(0), pytest.raises(InvalidKey):
        keys.authenticate(wrong)


def test_a_deleted_accounts_secret_is_forgotten(alice: Account) -> None:
    made = make_pair(alice)
    accounts.anonymise(alice.pk)
    assert ApiKey.objects.get(pk=made["id"]).client_secret == ""
    with pytest.raises(InvalidKey):
        keys.authenticate(made["client_secret"])


# ------------------------------------------------------------------------- webhooks


def finished(pair: dict[str, Any], url: str) -> Job:
    answer = post(CREATE, order(url), **{"x-api-key": pair["client_secret"]}).json()
    assert answer["code"] == 1000, answer
    job = Job.objects.get(public_id=answer["data"]["_id"])
    lifecycle.succeed(prepared(job), ARTIFACT)
    return job


def test_the_end_of_a_job_is_told_sealed_with_the_pair(
    alice: Account, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pair(alice)
    pair = make_pair(alice)
    make_pair(alice)  # a newer one is not this key's own
    job = finished(pair, HOOK)
    WebhookDelivery.objects.update(url=receiver.url)
    assert deliveries.deliver_next()
    (call,) = receiver.calls
    assert opened(call.body, pair) == job.public_id
    with pytest.raises(CallbackRefused):
        opened(call.body, {**pair, "client_secret": "0123456789abcdef0123456789abcdef"})
    assert WebhookDelivery.objects.get().state == "delivered"


def test_after_the_key_was_replaced_the_new_pair_seals(
    alice: Account, receiver: Receiver
) -> None:
    old = make_pair(alice)
    finished(old, HOOK)
    new = make_pair(alice)
    make_pair(alice, "live")
    keys.revoke(account_id=alice.pk, key_id=old["id"])
    WebhookDelivery.objects.update(url=receiver.url)
    assert deliveries.deliver_next()
    assert opened(receiver.calls[0].body, new)


def test_a_webhook_that_nobody_could_open_is_refused_with_the_way_out(
    alice: Account,
) -> None:
    bob = make_account("bob", credits=100)
    make_pair(bob)
    for account in (alice, bob):
        key = make_key(account, "live")
        answer = post(CREATE, order(), **{"x-api-key": key}).json()
        assert answer["code"] == 1003
        assert answer["msg"].startswith("webhookurl")
        assert "client_pair" in answer["msg"]
    assert not Job.objects.exists()
    plain = {**order(), "webhookurl": ""}
    key = make_key(alice, "test")
    assert post(CREATE, plain, **{"x-api-key": key}).json()["code"] == 1000


def test_a_delivery_without_any_pair_left_says_so_and_breaks_nothing(
    alice: Account, receiver: Receiver
) -> None:
    finished(make_pair(alice), HOOK)
    ApiKey.objects.update(client_secret="")
    assert deliveries.deliver_next()
    assert not receiver.calls
    log = WebhookDelivery.objects.get().log
    assert "client pair" in log[0]["answer"]
