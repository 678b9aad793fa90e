"""Wire fields: of the right type, or refused by name."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given

from jobs.dialects import fields
from jobs.errors import InvalidRequest, MalformedBody, UnsupportedOption
from tests.jobs.dialects.wires import anything, as_base64, picture, refused

COUNT = fields.integer("count", low=1, high=10, default=3)
SHARE = fields.number("share", low=0.0, high=1.0)
ODD = fields.integer("odd", low=1, high=99, odd=True)
SWITCH = fields.boolean("switch", default=True)
SHARPNESS = fields.choice("sharpness", ("480P", "720P"), any_case=True)
NAME = fields.text("name", longest=5, required=True)
LINK = fields.url("link")
SEED = fields.seed("seed", random=-1)
READERS = (COUNT, SHARE, ODD, SWITCH, SHARPNESS, NAME, LINK, SEED)


@pytest.mark.parametrize(
    ("reader", "value", "read"),
    [
        (COUNT, 7, 7),
        (COUNT, "7", 7),
        (COUNT, 7.0, 7),
        (COUNT, None, 3),
        (SHARE, 1, 1.0),
        (SHARE, "0.25", 0.25),
        (ODD, 81, 81),
        (SWITCH, False, False),
        (SWITCH, "False", False),
        (SWITCH, None, True),
        (SHARPNESS, "720p", "720P"),
        (NAME, "", ""),
        (LINK, " https://example.com/a ", "https://example.com/a"),
        (LINK, "", None),
        (SEED, 2**31, 0),
        (SEED, 9_999_999_999, 9_999_999_999 % 2**31),
        (SEED, -1, None),
    ],
)
def test_a_value_is_read_as_its_type(
    reader: fields.Reader[Any], value: object, read: object
) -> None:
    found = reader.find({reader.name: value})
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("reader", "value"),
    [
        (COUNT, True),
        (COUNT, 7.5),
        (COUNT, math.nan),
        (COUNT, math.inf),
        (COUNT, 0),
        (COUNT, 11),
        (COUNT, "٣"),
        (COUNT, "7.0"),
        (COUNT, "9" * 30),
        (COUNT, [7]),
        (SHARE, True),
        (SHARE, math.nan),
        (SHARE, "nan"),
        (SHARE, 10**400),
        (SHARE, 1.5),
        (ODD, 80),
        (SWITCH, 1),
        (SWITCH, "yes"),
        (SHARPNESS, "1080P"),
        (SHARPNESS, 720),
        (NAME, 5),
        (NAME, "abcdef"),
        (NAME, None),
        (LINK, "file:///etc/passwd"),
        (LINK, "http://127.0.0.1/"),
        (LINK, 5),
        (SEED, -2),
        (SEED, 2**63),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(
    reader: fields.Reader[Any], value: object
) -> None:
    assert refused(lambda: reader.find({reader.name: value})).field == reader.name


@given(anything)
def test_any_value_is_read_or_refused(value: object) -> None:
    for reader in READERS:
        with suppress(InvalidRequest):
            reader.find({reader.name: value})


def test_a_dotted_name_walks_into_objects() -> None:
    seed = fields.integer("parameters.seed")
    assert seed.find({"parameters": {"seed": 4}}) == 4
    assert seed.find({"parameters": None}) is None
    assert refused(lambda: seed.find({"parameters": []})).field == "parameters"


def test_an_absent_required_field_is_told_apart() -> None:
    assert refused(lambda: NAME.take({})).code == fields.MISSING
    assert refused(lambda: SHARE.take({})).code == fields.MISSING


def test_a_body_is_an_object_or_nothing() -> None:
    assert fields.object_of(None) == {}
    with pytest.raises(MalformedBody):
        fields.object_of([1])


def test_a_refusal_from_the_catalogue_names_the_wire_field() -> None:
    reader = fields.integer("num_frames", canonical="frames seconds")
    with (
        pytest.raises(UnsupportedOption) as caught,
        fields.wire_names((reader,), audio__url="audio_url"),
    ):
        raise UnsupportedOption("frames", "motion", ["other"])
    assert caught.value.field == "num_frames"
    assert "'num_frames'" in caught.value.message


def test_the_documentation_row_says_what_the_reader_does() -> None:
    row = COUNT.row
    assert (row.name, row.type, row.rule, row.default) == (
        "count",
        "integer",
        "1 to 10",
        "3",
    )
    assert SWITCH.row.default == "true"
    assert NAME.row.required


def test_https_and_formats_are_demanded_where_an_api_does() -> None:
    from jobs.requests import PictureRules

    rules = PictureRules(formats=("JPEG",))
    strict = fields.picture("image", rules=rules, https_only=True)
    assert strict.find({"image": "https://example.com/a.jpg"}) is not None
    assert (
        "https"
        in refused(lambda: strict.find({"image": "http://example.com/a"})).message
    )
    png = as_base64(picture(64, 64))
    assert (
        refused(lambda: strict.find({"image": png})).code == "image_format_unsupported"
    )
