"""The OpenAPI document of the dialects' routes, generated from their tables.

drf-spectacular describes the DRF views (the operator's API); ``add_dialects`` is its
hook that adds what the tables say, so a new field or route documents itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from jobs.api.shapes import ANSWERS, SHAPES, Schema, ref
from jobs.dialects import DIALECTS, load_dialect
from jobs.dialects.base import CREATING, Dialect, Field, Operation, Route

_PARAM = re.compile(r"\{(\w+)\}")
_PAID = (
    *(Operation.CREATE, Operation.CREATE_MANY, Operation.REMIX, Operation.ADD_AUDIO),
    Operation.QUOTE,
)
#: What a form or a query string carries in place of a number or a truth value.
_INTEGER_TEXT = r"^\s*[+-]?[0-9]{1,19}(\.0+)?\s*$"
_NUMBER_TEXT = r"^\s*[+-]?([0-9]{1,19}(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?\s*$"
_TRUTH_TEXT = r"^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|0|1)$"
_EXAMPLES: Final[Mapping[tuple[str, str], Any]] = {
    ("POST", "/v1/jobs"): {
        "model": "motion",
        "image": "https://upload.wikimedia.org/wikipedia/commons/d/d0/Astronaut.jpg",
        "prompt": "slow push in, then pan left",
        "resolution": "720p",
        "seconds": 5,
        "metadata": {"order": "1234"},
    },
    ("POST", "/v1/quotes"): {
        "model": "motion",
        "image": "https://upload.wikimedia.org/wikipedia/commons/d/d0/Astronaut.jpg",
        "seconds": 5,
    },
    ("POST", "/v1/keys"): {"name": "backend", "scopes": ["jobs:write", "jobs:read"]},
    ("POST", "/v1/webhooks"): {
        "url": "https://hooks.example.com/zoetrope",
        "events": ["job.succeeded", "job.failed"],
    },
}
#: Statuses of our own API's refusals, by what a route does.
_ALWAYS: Final = (400, 401, 403, 422, 429, 503)
_WORDS: Final[Mapping[int, str]] = {
    400: "The request could not be read.",
    401: "No usable API key; every cause looks alike.",
    402: "Too few credits, or a spend cap is reached.",
    403: "The key or the plan does not allow it.",
    404: "Unknown, or somebody else's.",
    408: "The body came too slowly.",
    409: "Not in this state, or the first call with this key is still running.",
    413: "The body is too large.",
    415: "Send application/json or multipart/form-data.",
    422: "A field is wrong; `errors` names it.",
    429: "Too many requests; see Retry-After.",
    501: "Not served here.",
    503: "A part of ours is away; see Retry-After.",
}


def add_dialects(
    result: dict[str, Any], generator: Any, request: Any, public: bool
) -> dict[str, Any]:
    """Add every dialect's paths to the document (a drf-spectacular hook)."""
    components = result.setdefault("components", {})
    components.setdefault("schemas", {}).update(SHAPES)
    components.setdefault("securitySchemes", {})["apiKey"] = {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "zoe_live_… or zoe_test_…",
    }
    components["responses"] = {
        f"Refused{status}": _refusal(status, text) for status, text in _WORDS.items()
    }
    paths = result.setdefault("paths", {})
    tags = result.setdefault("tags", [])
    for name in DIALECTS:
        dialect = load_dialect(name)
        tags.append({"name": dialect.title, "description": _about(dialect)})
        for route in dialect.routes:
            if route.path.endswith("/") and route.path.rstrip("/") in paths:
                continue  # the same call, also answered with a slash at its end
            item = paths.setdefault(route.path, {})
            item[route.method.lower()] = _operation(dialect, route)
    return result


def _about(dialect: Dialect) -> str:
    if dialect.name == "native":
        return "Our own API. Recipes: [the guide](/docs/guide)."
    return f"Works with that service's clients: [what differs](/docs/{dialect.name})."


def _operation(dialect: Dialect, route: Route) -> dict[str, Any]:
    words: dict[str, Any] = {
        "operationId": _id(dialect, route),
        "summary": route.summary or route.operation.value.replace("_", " "),
        "tags": [dialect.title],
        "parameters": [*_path_parameters(route), *_parameters(dialect, route)],
        "responses": _responses(dialect, route),
    }
    words["security"] = [] if route.scope is None else [{"apiKey": []}]
    if route.scope is not None:
        words["description"] = f"Needs the scope `{route.scope}`."
    body = _body(dialect, route)
    if body is not None:
        words["requestBody"] = body
    return words


def _id(dialect: Dialect, route: Route) -> str:
    path = re.sub(r"\W+", "_", route.path).strip("_")
    return f"{dialect.name}_{route.method.lower()}_{path}"


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1},
        }
        for name in _PARAM.findall(route.path)
    ]


def _parameters(dialect: Dialect, route: Route) -> list[dict[str, Any]]:
    found = []
    if route.method == "GET":
        for field in route.fields:
            # In a query everything is a text; a number's text counts as the number.
            schema = {**field.schema, "type": _types(field)[0]}
            found.append(
                {
                    "name": field.name,
                    "in": "query",
                    "required": field.required,
                    "schema": schema,
                    "description": _words(field),
                }
            )
    if route.operation in CREATING:
        found.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "schema": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 255,
                    "pattern": "^[ -~]+$",
                },
                "description": "The same key and body gets the first answer again, "
                f"for 24 hours{_without(route)}; another body is refused.",
            }
        )
    return found


def _without(route: Route) -> str:
    named = " and ".join(f"`{name}`" for name in route.shown_once)
    return f" ({named} null)" if named else ""


def _body(dialect: Dialect, route: Route) -> dict[str, Any] | None:
    if route.method == "GET" or not route.fields:
        return None
    schema = _nested(route.fields)
    is_required = any(field.required for field in route.fields)
    if dialect.name == "native":
        schema["additionalProperties"] = False
    if not is_required:
        schema["type"] = ["object", "null"]
    kinds = {"application/json": {"schema": schema}}
    if (example := _EXAMPLES.get((route.method, route.path))) is not None:
        kinds["application/json"]["example"] = example
    files = [field.name for field in route.fields if "file" in field.type]
    if files:
        form = {**schema, "properties": dict(schema["properties"])}
        for name in files:
            form["properties"][name] = {
                "type": "string",
                "format": "binary",
                "description": schema["properties"][name].get("description", ""),
            }
        kinds["multipart/form-data"] = {"schema": form}
    return {"required": is_required, "content": kinds}


def _nested(fields: tuple[Field, ...]) -> Schema:
    """Return an object of the fields; dots in a name walk into objects."""
    root: Schema = {"type": "object", "properties": {}}
    for field in fields:
        *parents, leaf = field.name.split(".")
        place = root
        for parent in parents:
            place = place["properties"].setdefault(
                parent, {"type": "object", "properties": {}}
            )
            place.setdefault("properties", {})
        place["properties"][leaf] = _property(field)
        if field.required:
            place.setdefault("required", []).append(leaf)
            for depth, parent in enumerate(parents):
                above = root
                for name in parents[:depth]:
                    above = above["properties"][name]
                needed = above.setdefault("required", [])
                if parent not in needed:
                    needed.append(parent)
    return root


def _property(field: Field) -> Schema:
    schema: Schema = dict(field.schema)
    if "anyOf" not in schema:
        types = _types(field)
        if not field.required:
            types.append("null")
        schema["type"] = types if len(types) > 1 else types[0]
        if "enum" in schema:
            values = list(schema["enum"])
            schema["enum"] = [
                *values,
                *(str(v) for v in values if isinstance(v, int)),
                *([] if field.required else [None]),
            ]
        elif types[0] in _PATTERNS and "string" in types:
            schema["pattern"] = _PATTERNS[types[0]]
        if types[0] == "array" and "items" not in schema:
            schema["items"] = {}
    elif not field.required:
        schema["anyOf"] = [*schema["anyOf"], {"type": "null"}]
    schema["description"] = _words(field)
    return schema


_PATTERNS: Final = {
    "integer": _INTEGER_TEXT,
    "number": _NUMBER_TEXT,
    "boolean": _TRUTH_TEXT,
}


def _types(field: Field) -> list[str]:
    """Return the JSON types a field may have; a number may come as its text."""
    first = field.type.split()[0].removesuffix("s")
    if first in ("integer", "number", "boolean"):
        return [first, "string"]
    if first in ("array", "object", "string"):
        others = [w for w in ("object", "array") if w in field.type and w != first]
        return [first, *others]
    return ["string"]


def _words(field: Field) -> str:
    parts = [field.meaning, field.rule and f"Rule: {field.rule}."]
    if field.default not in ("", "-"):
        parts.append(f"Default: {field.default}.")
    return " ".join(filter(None, parts))


# ------------------------------------------------------------------- the answers


def _responses(dialect: Dialect, route: Route) -> dict[str, Any]:
    if dialect.name != "native":
        return {
            "default": {
                "description": f"As {dialect.title} documents it.",
                "content": {"application/json": {"schema": {}}},
            }
        }
    found: dict[str, Any] = {}
    if route.operation is Operation.CONTENT:
        found["200"] = {
            "description": "The file.",
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in ("video/mp4", "image/jpeg", "image/webp")
            },
        }
    else:
        status, name = ANSWERS[route.method, route.path]
        found[str(status)] = {
            "description": route.summary,
            "headers": _rate_headers(),
            "content": {"application/json": {"schema": ref(name)}},
        }
        if links := _links(dialect, route):
            found[str(status)]["links"] = links
    statuses = set(_ALWAYS)
    if "{" in route.path:
        statuses |= {404, 409}
    if any(field.name == "cursor" for field in route.fields):
        statuses.add(404)
    if route.method != "GET":
        statuses |= {408, 409, 413, 415}
    if route.operation in _PAID:
        statuses.add(402)
    for status in sorted(statuses):
        found[str(status)] = {"$ref": f"#/components/responses/Refused{status}"}
    return found


def _links(dialect: Dialect, route: Route) -> dict[str, Any]:
    """Say which calls take the id of what this call has made."""
    if route.method != "POST" or "{" in route.path:
        return {}
    start = f"{route.path}/{{id}}"
    return {
        _id(dialect, other): {
            "operationId": _id(dialect, other),
            "parameters": {"id": "$response.body#/id"},
        }
        for other in dialect.routes
        if other.path == start or other.path.startswith(f"{start}/")
    }


def _refusal(status: int, text: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "description": text,
        "content": {"application/problem+json": {"schema": ref("Problem")}},
    }
    if status in (429, 503):
        found["headers"] = {
            "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}
        }
    return found


def _rate_headers() -> dict[str, Any]:
    words = {
        "X-RateLimit-Limit": "Requests a minute.",
        "X-RateLimit-Remaining": "Left now.",
        "X-RateLimit-Reset": "Unix time at which all are back.",
    }
    return {
        name: {"schema": {"type": "integer"}, "description": text}
        for name, text in words.items()
    }
