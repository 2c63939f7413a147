"""PATCH: every row of the contract's table, and the order in which it is checked."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from inventory_api import parse_if_match
from tests.api.conftest import Service, one_engine

MAXIMUM = 2147483647
LIMIT = 16 * 1024  # bytes of a body


def fields(answered: Any) -> list[str]:
    return sorted(error["field"] for error in answered.json["errors"])


def padded(body: str, size: int) -> str:
    return body + " " * (size - len(body))


# ---------------------------------------------------------------- what a change does


@pytest.mark.parametrize(
    ("body", "price", "stock"),
    [
        ('{"price": 1.5}', "1.50", 12),
        ('{"stock_level": 3}', "129.90", 3),
        ('{"stock_delta": -12}', "129.90", 0),
        ('{"price": "0", "stock_delta": 1}', "0.00", 13),
        ('{"price": 9999999.99, "stock_level": 2147483647}', "9999999.99", MAXIMUM),
    ],
)
def test_the_answer_of_a_change_is_what_a_later_read_gives(desks: Service, body: str, price: str, stock: int) -> None:
    changed = desks.patch(1, body)
    assert changed.status_code == 200
    assert (changed.json["price"], changed.json["stock_level"], changed.json["version"]) == (price, stock, 2)
    read = desks.get("/products/1", Cache_Control="no-cache")
    assert (read.json, read.headers["etag"]) == (changed.json, changed.headers["etag"])
    assert desks.execute("SELECT version FROM products WHERE id = 1") == [(2,)]


def test_a_change_to_equal_values_counts(desks: Service) -> None:
    assert desks.patch(1, '{"price": 129.9, "stock_level": 12}').json["version"] == 2
    assert desks.patch(1, '{"stock_delta": 0}').json["version"] == 3


def test_a_change_leaves_other_products_alone(desks: Service) -> None:
    desks.patch(1, '{"price": 1}')
    assert [desks.get(f"/products/{id}").json["version"] for id in (1, 2, 3)] == [2, 1, 1]


def test_concurrent_sales_never_lose_one(desks: Service) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: desks.patch(3, '{"stock_delta": -1}'), range(80)))
    assert {answered.status_code for answered in answers} == {200}
    assert sorted(answered.json["stock_level"] for answered in answers) == list(range(MAXIMUM - 80, MAXIMUM))
    assert desks.get("/products/3").json["version"] == 81


def test_of_many_who_want_the_last_ones_no_more_are_served_than_there_are(desks: Service) -> None:
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: desks.patch(1, '{"stock_delta": -1}').status_code, range(30)))
    assert (statuses.count(200), statuses.count(409)) == (12, 18)
    assert desks.get("/products/1").json["stock_level"] == 0


def test_of_many_who_change_one_version_only_one_succeeds(desks: Service) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: desks.patch(1, f'{{"price": {n}}}', If_Match='"1"'), range(16)))
    statuses = [answered.status_code for answered in answers]
    assert (statuses.count(200), statuses.count(412)) == (1, 15)
    assert desks.get("/products/1").json["price"] == f"{statuses.index(200)}.00"


# ---------------------------------------------------------------- 400: not JSON

NOT_JSON: list[str | bytes] = [
    "", " ", "null", "true", "[]", '"price"', "1", "[{}]", "{", "}", "{}{}", '{"price": 1}x', '{"price": 1,}',
    '{"price" 1}',
    "{'price': 1}", "{price: 1}", '{"price": 1} // cheap', '{"price": "1\n"}', '{"price": "\\x41"}', '{"price": tru}',
    '{"price": NaN}', '{"price": Infinity}', '{"price": -Infinity}', '{"x": [NaN]}', '{"price": nan}',
    '{"price": 1, "price": 1}', '{"price": 1, "pric\\u0065": 2}', '{"x": {"a": 1, "a": 1}}',
    '{"x": [{"a": 1, "a": 2}]}',
    '{"price": 1}\0', "\0", '{"a\0": 1}', '\ufeff{"price": 1}', b'{"x": "\xff"}', b'{"x": "\xc3"}',
    b'{"x": "\xed\xa0\x80"}',
    b'{"x": "\xc0\xaf"}', b'{"\xff": 1}', '{"price": 1}'.encode("utf-16"), '{"price": 1}'.encode("utf-32"), "\u00a0{}",
    "[" * LIMIT, '{"a":' * 3000, '{"x": ' + "[" * 8000 + "]" * 8000 + "}",
]  # fmt: skip


@one_engine
@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: ascii(body)[:40])
def test_a_body_that_is_not_a_json_object_is_refused(desks: Service, body: str | bytes) -> None:
    refused = desks.patch(1, body)
    assert refused.status_code == 400, refused.text
    assert desks.get("/products/1").json["version"] == 1


# ---------------------------------------------------------------- 422: fields


@one_engine
@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ('{"price": true}', ["price"]),
        ('{"price": null}', ["price"]),
        ('{"price": []}', ["price"]),
        ('{"price": {"amount": 1}}', ["price"]),
        ('{"price": "\\ud800"}', ["price"]),
        ('{"price": "\\u0000"}', ["price"]),
        ('{"stock_level": null}', ["stock_level"]),
        ('{"stock_level": -1}', ["stock_level"]),
        ('{"stock_delta": 2147483648}', ["stock_delta"]),
        ('{"stock_delta": -2147483648}', ["stock_delta"]),
        ('{"id": 1}', ["id"]),
        ('{"name": "Lamp"}', ["name"]),
        ('{"version": 2}', ["version"]),
        ('{"updated_at": "2026-11-22T10:00:00Z"}', ["updated_at"]),
        ('{"price_cents": 5}', ["price_cents"]),
        ('{"Price": 5}', ["Price"]),
        ('{"": 5}', [""]),
        ('{"caf\\u00e9": 5}', ["café"]),
        ('{"\\u0000": 5}', ["\0"]),
        ('{"\\ud800": 5}', ["\ud800"]),
        ('{"\\ud83e\\ude91": 5}', ["🪑"]),
        ('{"price": 5, "colour": "red"}', ["colour"]),
        ('{"price": 1.005, "stock_level": 1.5, "name": 1, "id": 1, "x": 1}', ["id", "name", "price", "stock_level",
        "x"]),
        ('{"price": null, "stock_delta": "1", "version": null}', ["price", "stock_delta", "version"]),
    ],
    ids=lambda value: ascii(value)[:50],
)  # fmt: skip
def test_all_wrong_fields_are_told_at_once(desks: Service, body: str, wrong: list[str]) -> None:
    refused = desks.patch(1, body)
    assert refused.status_code == 422, refused.text
    assert fields(refused) == wrong
    assert all(error["message"] for error in refused.json["errors"])
    assert desks.get("/products/1").json["version"] == 1


@one_engine
def test_a_body_that_changes_nothing_is_refused(desks: Service) -> None:
    refused = desks.patch(1, "{}")
    assert (refused.status_code, len(refused.json["errors"])) == (422, 1)


@one_engine
def test_a_level_and_a_delta_exclude_each_other(desks: Service) -> None:
    refused = desks.patch(1, '{"stock_level": 5, "stock_delta": 1}')
    assert refused.status_code == 422
    assert set(fields(refused)) <= {"stock_level", "stock_delta"}
    assert desks.get("/products/1").json["stock_level"] == 12


@one_engine
def test_a_level_and_a_delta_together_hide_no_other_error(desks: Service) -> None:
    refused = desks.patch(1, '{"stock_level": 5, "stock_delta": 1, "price": -1, "name": "x"}')
    assert {"price", "name"} < set(fields(refused))


@one_engine
def test_a_body_full_of_unknown_fields_gets_an_answer(desks: Service) -> None:
    refused = desks.patch(1, json.dumps({f"f{n}": n for n in range(1000)}))
    assert (refused.status_code, len(refused.json["errors"])) == (422, 1000)


# ---------------------------------------------------------------- 413, 415


@one_engine
def test_a_body_of_exactly_16_kib_is_read(desks: Service) -> None:
    assert desks.patch(1, padded('{"price": 1}', LIMIT)).status_code == 200


@one_engine
@pytest.mark.parametrize("size", [LIMIT + 1, 2 * LIMIT, 1024 * 1024 - 1])
def test_a_body_over_16_kib_is_refused(desks: Service, size: int) -> None:
    refused = desks.patch(1, padded('{"price": 1}', size))
    assert refused.status_code == 413
    assert desks.get("/products/1").json["version"] == 1


@one_engine
@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "application/merge-patch+json",
        "Application/JSON",
        "application/json;charset=utf-8",
        'application/json; charset="UTF-8"',
        "application/merge-patch+json; Charset=Utf-8",
        "application/json ; profile=x",
    ],
)
def test_json_in_utf_8_is_accepted(desks: Service, media_type: str) -> None:
    assert desks.patch(1, '{"price": 1}', Content_Type=media_type).status_code == 200


@one_engine
@pytest.mark.parametrize(
    "media_type",
    ["", "text/plain", "text/json", "application/x-www-form-urlencoded", "application/json-patch+json",
     "application/jsonx",
     "application/vnd.api+json", "*/*", "application/*", "json", "application/json, text/plain",
     "application/json; charset=latin-1",
     "application/json; charset=utf-16", "application/json; charset=",
     "application/merge-patch+json; charset=us-ascii"],
)  # fmt: skip
def test_any_other_media_type_or_charset_is_refused(desks: Service, media_type: str) -> None:
    refused = desks.patch(1, '{"price": 1}', Content_Type=media_type)
    assert refused.status_code == 415
    accepted = {kind.strip() for kind in refused.headers["accept-patch"].split(",")}
    assert accepted == {"application/json", "application/merge-patch+json"}


@one_engine
def test_a_body_without_a_media_type_is_refused(desks: Service) -> None:
    assert desks.request("PATCH", "/products/1", body='{"price": 1}').status_code == 415


@one_engine
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "identity, gzip"])
def test_a_coded_body_is_refused(desks: Service, coding: str) -> None:
    assert desks.patch(1, '{"price": 1}', Content_Encoding=coding).status_code == 415


# ---------------------------------------------------------------- 409, 412


@pytest.mark.parametrize(
    ("id", "delta", "level"), [(1, -13, 12), (2, -1, 0), (3, 1, MAXIMUM), (1, -MAXIMUM, 12), (3, MAXIMUM, MAXIMUM)]
)
def test_a_delta_out_of_range_is_a_conflict_that_tells_the_stock(
    desks: Service, id: int, delta: int, level: int
) -> None:
    refused = desks.patch(id, f'{{"stock_delta": {delta}, "price": 5}}')
    assert (refused.status_code, refused.json["stock_level"]) == (409, level)
    unchanged = desks.get(f"/products/{id}").json
    assert (unchanged["stock_level"], unchanged["version"], unchanged["price"] == "5.00") == (level, 1, False)


@pytest.mark.parametrize(
    "header", ['"1"', '"7", "1"', '"1","2"', "*", 'W/"1", "1"', ',"1",,', ' "1" ', '"a,b", "1"', '"x" , "1"']
)
def test_a_matching_if_match_lets_a_change_pass(desks: Service, header: str) -> None:
    assert desks.patch(1, '{"price": 1}', If_Match=header).status_code == 200


@one_engine
@pytest.mark.parametrize(
    "header",
    ['"2"', '"11"', '"21"', '"12"', '"0"', 'W/"1"', 'w/"1"', '"01"', '"+1"', '"1 "', '""', "1", "'1'", '"1', '1"',
     '"1" "1"', '"1"; x',
     '*, "1"', '"1", *', "**",
     "", ",", '"%"', '"_"', '"1,1"', '",1,"', '"-1"', '"1.0"', '"' + "9" * 18 + '"', '"' + "9" * 30 + '"',
     '"' + "1" * 5000 + '"',
     '"\xe9"', ", " * 5000 + '"2"'],
    ids=lambda header: ascii(header)[:30],
)  # fmt: skip
def test_any_other_if_match_fails_with_the_current_etag(desks: Service, header: str) -> None:
    refused = desks.patch(1, '{"price": 1}', If_Match=header)
    assert (refused.status_code, refused.headers["etag"]) == (412, '"1"')
    assert desks.get("/products/1").json["price"] == "129.90"


def test_the_etag_of_a_change_opens_the_next_one(desks: Service) -> None:
    first = desks.patch(1, '{"stock_delta": -1}', If_Match=desks.get("/products/1").headers["etag"])
    second = desks.patch(1, '{"stock_delta": -1}', If_Match=first.headers["etag"])
    assert (second.status_code, second.headers["etag"]) == (200, '"3"')


def test_a_change_by_plain_sql_makes_the_old_etag_fail(desks: Service) -> None:
    assert desks.get("/products/1").headers["etag"] == '"1"'
    desks.execute("UPDATE products SET stock_level = 5 WHERE id = 1")
    refused = desks.patch(1, '{"price": 1}', If_Match='"1"')
    assert (refused.status_code, refused.headers["etag"]) == (412, '"2"')


@pytest.mark.parametrize(
    "header", [",", " ", ", " * 50_000, '"1"' + ", " * 50_000 + "x", '"a",' * 20_000 + "x", '"' * 50_001]
)
def test_a_long_malformed_if_match_is_read_in_no_time(header: str) -> None:
    assert parse_if_match(header) == frozenset()


# ---------------------------------------------------------------- the order of checks

BAD_JSON, BAD_FIELD, GOOD = "{", '{"price": -1}', '{"stock_delta": -13}'
BIG = padded("{", LIMIT + 1)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/products/abc/x", BIG, {}, 404),
        ("/products/abc", BIG, {"Content_Type": "text/plain", "If_Match": "x"}, 401),
        ("/products/abc", BIG, {"Content_Type": "text/plain", "If_Match": "x", "Authorization": "Bearer key"}, 400),
        ("/products/9", BIG, {"Content_Type": "text/plain", "If_Match": "x", "Authorization": "Bearer key"}, 415),
        ("/products/9", BIG, {"If_Match": "x", "Authorization": "Bearer key"}, 413),
        ("/products/9", BAD_JSON, {"If_Match": "x", "Authorization": "Bearer key"}, 400),
        ("/products/9", BAD_FIELD, {"If_Match": "x", "Authorization": "Bearer key"}, 422),
        ("/products/9", GOOD, {"If_Match": "x", "Authorization": "Bearer key"}, 404),
        ("/products/1", GOOD, {"If_Match": "x", "Authorization": "Bearer key"}, 412),
        ("/products/1", GOOD, {"If_Match": '"1"', "Authorization": "Bearer key"}, 409),
    ],
)
def test_of_several_errors_the_first_in_order_is_told(
    desks: Service, path: str, body: str, headers: dict[str, str], status: int
) -> None:
    desks.restart(api_key="key")
    sent = {"Content_Type": "application/json", **headers}
    assert desks.request("PATCH", path, body=body, **sent).status_code == status


@one_engine
def test_the_rate_limit_comes_before_the_key_and_after_the_path(desks: Service) -> None:
    desks.restart(api_key="key", rate_limit=1.0, rate_burst=5)
    assert [desks.patch("abc", BIG).status_code for _ in range(2)] == [401, 429]
    assert desks.request("PATCH", "/nowhere").status_code == 404
    assert desks.request("PATCH", "/products").status_code == 405
