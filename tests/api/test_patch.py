"""PATCH: what comes in, what goes out, and in which order it is looked at."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from inventory_api import parse_if_match
from tests.api.conftest import Service, one_engine


def errors(result: Any) -> set[str]:
    assert result.status_code == 422, result.text
    return {error["field"] for error in result.json["errors"] if error["message"]}


def test_price_and_stock_change_and_the_answer_is_the_row_as_it_stays(desks: Service) -> None:
    changed = desks.patch(1, '{"price": "7.5", "stock_level": 3}')
    assert (changed.status_code, changed.headers["ETag"]) == (200, '"2"')
    assert changed.json == {
        **changed.json,
        "id": 1,
        "name": "Oak desk",
        "price": "7.50",
        "stock_level": 3,
        "version": 2,
    }
    assert desks.get("/products/1", Cache_Control="no-cache").json == changed.json
    again = desks.patch(1, '{"stock_delta": -3}')  # within the same second
    assert (again.json["stock_level"], again.json["price"], again.json["version"]) == (0, "7.50", 3)
    assert desks.get("/products/1", Cache_Control="no-cache").json == again.json


@pytest.mark.parametrize(
    "body", ['{"price": "129.90"}', '{"stock_delta": 0}', '{"stock_level": 12}', '{"stock_level": -0}']
)
def test_an_update_to_equal_values_counts(desks: Service, body: str) -> None:
    assert desks.patch(1, body).json["version"] == 2


@pytest.mark.parametrize(
    "media_type", ["application/merge-patch+json", "APPLICATION/JSON", 'application/json; charset="UTF-8"']
)
@one_engine
def test_media_types_that_are_taken(desks: Service, media_type: str) -> None:
    assert desks.patch(1, '{"price": 1}', Content_Type=media_type).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/json; charset=latin-1"},
        {"Content_Type": "application/json; charset="},
        {"Content_Type": "application/json-patch+json"},
        {"Content_Type": "application/json, application/json"},
        {"Content_Type": ""},
        {"Content_Encoding": "gzip"},
    ],
)
@one_engine
def test_other_media_types_charsets_and_codings_are_a_415(desks: Service, headers: dict[str, str]) -> None:
    result = desks.patch(1, '{"price": 1}', **headers)
    assert result.status_code == 415
    assert result.headers["Accept-Patch"] == "application/json, application/merge-patch+json"


@pytest.mark.parametrize(
    "body",
    [
        "",
        " ",
        "{",
        '{"price": 1,}',
        '{"price": 1} x',
        '{"price": 01}',
        '{"price": .5}',
        '{"price": 1.}',
        '{"price": +1}',
        '{"price": NaN}',
        '{"price": Infinity}',
        '{"price": -Infinity}',
        '{"price": 1, "price": 1}',
        '{"price": 1, "x": {"a": 1, "a": 1}}',
        "{'price': 1}",
        "[1]",
        '"x"',
        "1",
        "null",
        "\ufeff{}",
        b'{"price": "\xff"}',
        b"\xff\xfe",
        '{"price": "a\nb"}',
        "[" * 8000,
        '{"a":' * 2500 + "1" + "}" * 2500,
        '{"price": "\\x"}',
    ],
)
@one_engine
def test_malformed_json_is_a_400(desks: Service, body: str | bytes) -> None:
    result = desks.patch(1, body)
    assert (result.status_code, result.json["status"]) == (400, 400)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ("{}", {""}),
        ('{"price": null}', {"price"}),
        ('{"price": true}', {"price"}),
        ('{"price": [1]}', {"price"}),
        ('{"price": {}}', {"price"}),
        ('{"price": "1,00"}', {"price"}),
        ('{"stock_level": "5"}', {"stock_level"}),
        ('{"stock_level": 5.0}', {"stock_level"}),
        ('{"stock_level": 1e2}', {"stock_level"}),
        ('{"stock_level": true}', {"stock_level"}),
        ('{"stock_level": -1}', {"stock_level"}),
        ('{"stock_level": 2147483648}', {"stock_level"}),
        ('{"stock_level": %s}' % ("9" * 9000), {"stock_level"}),
        ('{"stock_delta": 2147483648}', {"stock_delta"}),
        ('{"stock_delta": -2147483648}', {"stock_delta"}),
        ('{"stock_delta": null}', {"stock_delta"}),
        ('{"stock_level": 1, "stock_delta": 1}', {"stock_delta"}),
        (
            '{"name": "x", "id": 1, "version": 1, "updated_at": "x", "colour": 1}',
            {"name", "id", "version", "updated_at", "colour"},
        ),
        ('{"price": -1, "stock_level": "x", "stock_delta": 0.5, "a": 1}', {"price", "stock_level", "stock_delta", "a"}),
        ('{"\\ud800": 1}', {"\ud800"}),
        ('{"price": "\\ud800"}', {"price"}),
        ('{"": 1}', {""}),
    ],
)
@one_engine
def test_wrong_fields_are_a_422_that_names_them_all(desks: Service, body: str, fields: set[str]) -> None:
    assert errors(desks.patch(1, body)) == fields
    assert desks.get("/products/1").json["version"] == 1


@pytest.mark.parametrize(
    ("id", "delta", "stock"), [(2, -1, 0), (1, -13, 12), (3, 1, 2147483647), (3, 2147483647, 2147483647)]
)
def test_a_delta_that_leaves_the_range_is_a_409_with_the_stock_as_it_is(
    desks: Service, id: int, delta: int, stock: int
) -> None:
    result = desks.patch(id, json.dumps({"stock_delta": delta, "price": 1}))
    assert (result.status_code, result.json["stock_level"]) == (409, stock)
    assert desks.get(f"/products/{id}", Cache_Control="no-cache").json["version"] == 1


def test_deltas_reach_both_ends_of_the_range(desks: Service) -> None:
    assert desks.patch(3, '{"stock_delta": -2147483647}').json["stock_level"] == 0
    assert desks.patch(3, '{"stock_delta": 2147483647}').json["stock_level"] == 2147483647


def test_deltas_at_once_are_all_counted(desks: Service) -> None:
    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(lambda _: desks.patch(2, '{"stock_delta": 1}').status_code, range(60)))
    assert statuses == [200] * 60
    product = desks.get("/products/2").json
    assert (product["stock_level"], product["version"]) == (60, 61)


@pytest.mark.parametrize("header", ['"1"', "*", '"9", "1"', '"7","1" , "8"', 'W/"1", "1"', ' "1" ', ',"1",'])
def test_if_match_lets_a_version_through_that_it_names(desks: Service, header: str) -> None:
    assert desks.patch(1, '{"price": 1}', If_Match=header).status_code == 200


@pytest.mark.parametrize(
    "header",
    ['"2"', 'W/"1"', "1", '"1', '"1" "2"', '"01"', '"+1"', '"1 "', '"x"', '""', "", "W/*", '*, "1"', '"9"*400', '"1"x'],
)
def test_if_match_that_does_not_name_the_version_or_is_malformed_is_a_412(desks: Service, header: str) -> None:
    result = desks.patch(1, '{"price": 1}', If_Match=header)
    assert (result.status_code, result.headers["ETag"]) == (412, '"1"')
    assert desks.get("/products/1").json["version"] == 1


def test_a_version_of_many_digits_is_no_version() -> None:
    assert parse_if_match(f'"{"9" * 5000}"') == frozenset()


@pytest.mark.parametrize("id", ["99", "9223372036854775807", "9223372036854775808", "9" * 5000])
def test_no_such_product_is_a_404_however_big_the_id(desks: Service, id: str) -> None:
    assert desks.patch(id, '{"price": 1}').status_code == 404
    assert desks.patch(id, '{"price": 1}', If_Match='"1"').status_code == 404
    assert desks.get(f"/products/{id}").status_code == 404


@pytest.mark.parametrize(
    "id", ["abc", "007", "0", "-0", "-1", "1_0", "+5", "1.0", "%20", "1%20", "%D9%A1", "1%0A", "1e2", "%FF"]
)
@one_engine
def test_what_is_no_id_is_a_400(desks: Service, id: str) -> None:
    assert desks.get(f"/products/{id}").status_code == 400
    assert desks.patch(id, "{").status_code == 400


@one_engine
def test_checks_come_in_the_order_of_the_contract(desks: Service) -> None:
    """Each request is wrong in every way from its own check on; the first check tells."""
    desks.restart(api_key="key", rate_limit=1.0, rate_burst=5)
    big, wrong = "x" * 20_000, {"Content_Type": "text/plain"}
    key = {"Authorization": "Bearer key"}

    def status(path: str, body: str, **headers: str) -> int:
        desks.clock.tick(5)
        return desks.request("PATCH", path, body=body, **headers).status_code

    json_type = {"Content_Type": "application/json"}
    assert status("/nowhere", big, **wrong) == 404
    assert status("/products", big, **wrong) == 405
    assert status("/products/abc", big, **wrong) == 401
    assert desks.request("PATCH", "/products/abc", body=big, **wrong).status_code == 429
    assert status("/products/abc", big, **wrong, **key) == 400
    assert status("/products/1", big, **wrong, **key) == 415
    assert status("/products/1", big, **json_type, **key) == 413
    assert status("/products/1", "{", **json_type, **key) == 400
    assert status("/products/99", '{"price": -1}', **json_type, **key) == 422
    assert status("/products/99", '{"stock_delta": -99}', If_Match='"7"', **json_type, **key) == 404
    assert status("/products/1", '{"stock_delta": -99}', If_Match='"7"', **json_type, **key) == 412
    assert status("/products/1", '{"stock_delta": -99}', If_Match='"1"', **json_type, **key) == 409
    assert status("/products/1", '{"stock_delta": -9}', If_Match='"1"', **json_type, **key) == 200


@one_engine
def test_sixteen_kibibytes_are_taken_and_one_byte_more_is_not(desks: Service) -> None:
    body = '{"price": 1}'
    assert desks.patch(1, body + " " * (16 * 1024 - len(body))).status_code == 200
    assert desks.patch(1, body + " " * (16 * 1024 - len(body) + 1)).status_code == 413


@one_engine
def test_a_parameter_is_refused_on_a_change_too(desks: Service) -> None:
    result = desks.request("PATCH", "/products/1", "force=1", '{"price": 1}', Content_Type="application/json")
    assert (result.status_code, "'force'" in result.json["detail"]) == (400, True)
