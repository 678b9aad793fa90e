"""The OpenAPI document says what the API does; the pages show it from our own host."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
import yaml
from django.contrib.staticfiles import finders
from django.test import Client

from jobs.api import docs, shapes
from jobs.api.docs import document
from jobs.dialects import DIALECTS, load_dialect
from jobs.dialects.base import Operation
from tests.factories import make_account, make_key
from tests.jobs.api.test_native import PICTURE

NAMES = [name for name in DIALECTS if name != "native"]
PAGES = [
    "/docs",
    "/docs/api",
    "/docs/guide",
    "/docs/cookbook",
    *(f"/docs/{name}" for name in NAMES),
]


def get(path: str) -> Any:
    return Client(headers={"host": "localhost"}).get(path)


class TestDocument:
    def test_it_is_openapi_3_1_in_json_and_yaml(self) -> None:
        found = get("/schema")
        assert found["Content-Type"] == "application/json"
        assert found.json()["openapi"].startswith("3.1.")
        text = get("/schema?format=yaml")
        assert text["Content-Type"].startswith("application/yaml")
        assert (
            yaml.safe_load(text.content)["paths"].keys() == found.json()["paths"].keys()
        )

    def test_every_route_of_every_dialect_is_in_it(self) -> None:
        paths = document()["paths"]
        for name in DIALECTS:
            for route in load_dialect(name).routes:
                known = paths.get(route.path) or paths[route.path.rstrip("/")]
                assert route.method.lower() in known, route.path

    def test_every_answer_of_our_own_api_has_a_shape(self) -> None:
        for route in load_dialect("native").routes:
            if route.operation is not Operation.CONTENT:
                assert (route.method, route.path) in shapes.ANSWERS, route.path

    def test_every_reference_leads_somewhere(self) -> None:
        found = document()

        def walk(value: Any) -> None:
            if isinstance(value, dict):
                if isinstance(ref := value.get("$ref"), str):
                    place: Any = found
                    for part in ref.removeprefix("#/").split("/"):
                        place = place[part]
                for item in value.values():
                    walk(item)
            elif isinstance(value, list):
                for item in value:
                    walk(item)

        walk(found)

    def test_operation_ids_are_unique(self) -> None:
        ids = [
            operation["operationId"]
            for item in document()["paths"].values()
            for method, operation in item.items()
            if method in ("get", "post", "put", "patch", "delete")
        ]
        assert len(ids) == len(set(ids))

    def test_a_field_carries_its_rule(self) -> None:
        body = document()["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
        fields = body["application/json"]["schema"]["properties"]
        assert fields["frames"]["minimum"] == 1
        assert fields["shot_type"]["enum"] == ["single", "multi", None]
        assert body["application/json"]["schema"]["required"] == ["image"]
        picture = body["multipart/form-data"]["schema"]["properties"]["image"]
        assert picture["format"] == "binary"
        magicoal = document()["paths"]["/api/v1/magicoal/generate/i2v"]["post"]
        assert magicoal["tags"] == [load_dialect("magicoal").title]


def shape(name: str) -> jsonschema.Draft202012Validator:
    components = {"components": {"schemas": shapes.SHAPES}}
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", **components}
    )


@pytest.mark.django_db
@pytest.mark.usefixtures("redis_url")
class TestAnswers:
    """Real answers have the shapes the document promises."""

    @pytest.fixture
    def api(self) -> Client:
        key = make_key(make_account("alice", credits=100))
        return Client(headers={"Authorization": f"Bearer {key}", "host": "localhost"})

    def test_each_list_and_read_is_as_promised(self, api: Client) -> None:
        made = api.post("/v1/jobs", {"image": PICTURE}, content_type="application/json")
        shape("Job").validate(made.json())
        job = made.json()["id"]
        hook = api.post(
            "/v1/webhooks",
            {"url": "https://hooks.example.com/x"},
            content_type="application/json",
        ).json()
        for path in (
            *("/v1/jobs", f"/v1/jobs/{job}", "/v1/models", "/v1/models/motion"),
            *("/v1/balance", "/v1/ledger", "/v1/keys", "/v1/webhooks"),
            *("/v1/webhooks/keys", f"/v1/webhooks/{hook['id']}/deliveries"),
        ):
            template = path.replace(job, "{id}").replace(hook["id"], "{id}")
            template = template.replace("/motion", "/{name}")
            status, name = shapes.ANSWERS["GET", template]
            answer = api.get(path)
            assert answer.status_code == status, path
            shape(name).validate(answer.json())

    def test_each_refusal_is_a_problem(self, api: Client) -> None:
        for answer in (
            api.get("/v1/jobs/none"),
            api.post("/v1/jobs", {}, content_type="application/json"),
            api.post("/v1/jobs", "{", content_type="application/json"),
            Client().get("/v1/jobs"),
        ):
            assert answer.status_code >= 400
            assert answer["Content-Type"] == "application/problem+json"
            shape("Problem").validate(answer.json())


class TestPages:
    @pytest.mark.parametrize("path", PAGES)
    def test_a_page_needs_nothing_from_another_host(self, path: str) -> None:
        page = get(path)
        assert page.status_code == 200
        text = page.content.decode()
        loaded = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="([^"]+)"', text)
        assert loaded
        for address in loaded:
            if address.startswith("/static/"):
                assert finders.find(address.removeprefix("/static/")), address
            else:
                assert address.startswith("/"), address
        # Nothing runs inline, so the policy can forbid it.
        assert (
            "'unsafe-inline'" not in page["Content-Security-Policy"].split("style")[0]
        )
        assert not re.search(r"<script(?![^>]*\bsrc=)", text)

    def test_the_index_names_every_page(self) -> None:
        text = get("/docs").content.decode()
        assert all(
            f'href="/docs/{name}"' in text
            for name in [*NAMES, "guide", "cookbook", "api"]
        )

    @pytest.mark.parametrize("name", NAMES)
    def test_a_dialects_page_has_its_field_table(self, name: str) -> None:
        text = get(f"/docs/{name}").content.decode()
        assert "<table>" in text
        assert "&lt;!--" not in text
        routes = load_dialect(name).routes
        creates = [r for r in routes if r.operation is Operation.CREATE]
        fields = [field.name for route in creates for field in route.fields]
        missing = [field for field in fields if f"<code>{field}</code>" not in text]
        assert missing == []

    def test_an_unknown_page_is_not_found(self) -> None:
        assert get("/docs/nowhere").status_code == 404


def test_pages_nobody_wrote_are_not_remembered() -> None:
    docs._written.cache_clear()
    for number in range(50):
        assert get(f"/docs/nothing-{number}").status_code == 404
    assert get("/docs/guide").status_code == 200
    assert docs._written.cache_info().currsize == 1


@pytest.mark.parametrize(
    ("typed", "meant"), [("/", "/docs"), ("/docs/", "/docs"), ("/admin", "/admin/")]
)
def test_what_people_type_leads_to_the_page_they_mean(typed: str, meant: str) -> None:
    answer = Client().get(typed)
    assert (answer.status_code, answer["Location"]) == (302, meant)
    posted = Client(enforce_csrf_checks=True).post(typed)
    assert posted.status_code == 405
