"""Walks over pages: there and back, among others' changes, by links alone, and cursors that nobody was given."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from inventory_api import MAX_CENTS, MAX_ID, BadInput, PageQuery, Position, cursor_at, parse_page
from tests.api.conftest import Service

SORTS = ["id", "price", "-price", "name", "-name"]
NAMES = ["desk", "Desk", "désk", "Zebra", "zebra", "a b", "a_b", "ab", "\U0001f600", "\uffee", "%", "Ω"]
BASE64URL = string.ascii_letters + string.digits + "-_"
LINK = re.compile(r'<([^>]*)>; rel="(\w+)"')


@pytest.fixture
def shop(service: Service) -> Service:
    """60 products with many equal prices and names; nothing is cached, since others change them as well."""
    service.add(*[(NAMES[i % len(NAMES)], f"{(i * 7) % 5}.50", i) for i in range(60)])
    service.restart(cache_size=0)
    return service


def keys(service: Service, sort: str) -> list[tuple[Any, int]]:
    """What a sort goes by, (value, id) of all products, in its order."""
    rows = service.execute("SELECT id, name, price_cents FROM products")
    column = {"id": 0, "name": 1, "price": 2}[sort.lstrip("-")]
    return sorted(((row[column], row[0]) for row in rows), reverse=sort.startswith("-"))


def page(service: Service, query: str, cursor: str | None = None, path: str = "/products") -> dict[str, Any]:
    result = service.get(path, query + (f"&cursor={cursor}" if cursor else ""))
    assert result.status_code == 200, result.text
    body: dict[str, Any] = result.json
    return body


def ids(found: dict[str, Any]) -> list[int]:
    return [item["id"] for item in found["items"]]


@pytest.mark.parametrize("sort", SORTS)
def test_turning_back_gives_the_page_before_and_turning_again_the_page_after(shop: Service, sort: str) -> None:
    query = f"sort={sort}&limit=7"
    here = page(shop, query)
    while here["next_cursor"]:
        after = page(shop, query, here["next_cursor"])
        back = page(shop, query, after["prev_cursor"])
        assert ids(back) == ids(here)
        assert ids(page(shop, query, back["next_cursor"])) == ids(after)
        here = after


@pytest.mark.parametrize("sort", SORTS)
def test_a_walk_there_and_back_among_changes_meets_whom_nobody_touched_once_in_order(shop: Service, sort: str) -> None:
    lottery = random.Random(sort)
    order = [id for _, id in keys(shop, sort) if id % 3 == 0]
    query = f"sort={sort}&limit=4"

    def walk(here: dict[str, Any], along: str) -> Iterator[dict[str, Any]]:
        while here[along]:
            shop.execute("DELETE FROM products WHERE id = :id", id=lottery.choice([i for i in range(60) if i % 3]))
            shop.add((lottery.choice(NAMES), f"{lottery.randrange(5)}.50", 1))
            here = page(shop, query, here[along])
            yield here

    first = page(shop, query)
    there = [first, *walk(first, "next_cursor")]
    back = list(walk(there[-1], "prev_cursor"))[::-1]
    for pages in (there, [*back, there[-1]]):
        met = [id for here in pages for id in ids(here)]
        assert [id for id in met if id in set(order)] == order
        assert len(met) == len(set(met))


@pytest.mark.parametrize("sort", SORTS)
def test_what_is_inserted_ahead_of_a_walk_is_met_and_what_is_inserted_behind_it_is_not(
    shop: Service, sort: str
) -> None:
    first = page(shop, f"sort={sort}&limit=30")
    shop.execute(
        "INSERT INTO products (id, name, price_cents, stock_level) "
        "VALUES (1000, :low, 0, 1), (1001, :high, 999999999, 1)",
        low="!", high="\U0010fffd",
    )  # fmt: skip
    rest = ids(page(shop, f"sort={sort}&limit=200", first["next_cursor"]))
    ahead = {"id": {1000, 1001}, "price": {1001}, "name": {1001}}.get(sort, {1000})
    assert {id for id in rest if id >= 1000} == ahead


def test_limit_and_total_may_change_along_a_walk(shop: Service) -> None:
    cursor = page(shop, "sort=price&limit=3")["next_cursor"]
    after = page(shop, "include_total=true&limit=200&sort=price", cursor)
    assert (len(after["items"]), after["total"]) == (57, 60)


def test_the_sort_that_is_the_default_may_be_named(shop: Service) -> None:
    cursor = page(shop, "limit=3")["next_cursor"]
    assert ids(page(shop, "sort=id&limit=2", cursor)) == [4, 5]


def test_an_empty_page_has_one_link_which_leads_back(shop: Service) -> None:
    cursor = page(shop, "limit=58")["next_cursor"]
    shop.execute("DELETE FROM products WHERE id > 58")
    past = shop.get("/products", f"limit=58&cursor={cursor}")
    ((target, relation),) = LINK.findall(past.headers["Link"])
    path, _, query = target.partition("?")
    assert (relation, ids(shop.get(path, query).json)[-1]) == ("prev", 58)


@pytest.mark.parametrize("sort", SORTS)
def test_links_alone_lead_through_a_search_and_back(service: Service, sort: str) -> None:
    needle = "%&+#=?/\\\"' É<>;,"
    service.add(*[(f"{needle} {i % 4}", f"{i % 5}.00", i) for i in range(20)], ("other", "1.00", 1))
    parameters = f"name={quote(needle, safe='')}&max_price=3.5&sort={sort}&limit=3&include_total=true"
    pages, target = [], f"/products/search?{parameters}"
    relations: dict[str, str] = {}
    for relation in ("next", "prev"):
        while target:
            path, _, query = target.partition("?")
            assert path == "/products/search"
            result = service.get(path, query)
            assert (result.status_code, result.json["total"]) == (200, 16)
            pages.append(ids(result.json))
            relations = {name: where for where, name in LINK.findall(result.headers.get("Link", ""))}
            target = relations.get(relation, "")
        target = relations.get("prev", "")
    there, back = pages[:6], pages[6:]
    assert [id for part in there for id in part] == [id for _, id in keys(service, sort) if id <= 20 and id % 5 != 0]
    assert back == there[4::-1]


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("name", ["desk", "désk 😀"])
def test_a_cursor_with_any_character_flipped_to_any_other_is_refused(sort: str, name: str) -> None:
    value = {"id": None, "price": 1250, "name": name}[sort.lstrip("-")]
    cursor = cursor_at(Position(True, False, value, 77), PageQuery("/products", sort=sort))
    assert parse_page("/products", f"sort={sort}&cursor={cursor}").start == Position(True, False, value, 77)
    for at, character in enumerate(cursor):
        for other in BASE64URL.replace(character, ""):
            with pytest.raises(BadInput, match="'cursor'"):
                parse_page("/products", f"sort={sort}&cursor={cursor[:at]}{other}{cursor[at + 1 :]}")


@pytest.mark.parametrize(
    ("sort", "position"),
    [
        ("id", (True, False, None, 0)),
        ("id", (True, False, None, -1)),
        ("id", (True, False, None, MAX_ID + 1)),
        ("id", (True, False, None, 10**400)),
        ("id", (True, False, None, 1.0)),
        ("id", (True, False, None, True)),
        ("id", (True, False, None, None)),
        ("id", (True, False, 5, 1)),
        ("id", (1, 0, None, 1)),
        ("id", (None, None, None, 1)),
        ("price", (True, False, None, 1)),
        ("price", (True, False, "5", 1)),
        ("price", (True, False, 5.0, 1)),
        ("price", (True, False, float("nan"), 1)),
        ("price", (True, False, True, 1)),
        ("price", (True, False, -1, 1)),
        ("price", (True, False, MAX_CENTS + 1, 1)),
        ("price", (True, False, 10**400, 1)),
        ("name", (True, False, None, 1)),
        ("name", (True, False, 5, 1)),
        ("name", (True, False, "a\0b", 1)),
        ("name", (True, False, "\ud800", 1)),
        ("name", (True, False, ["a"], 1)),
    ],
)
def test_a_cursor_that_was_forged_is_refused_whatever_it_holds(sort: str, position: tuple[Any, ...]) -> None:
    """Its digest is right: anybody can compute it."""
    query = PageQuery("/products", sort=sort)
    with pytest.raises(BadInput, match="'cursor'"):
        parse_page("/products", f"sort={sort}&cursor={cursor_at(Position(*position), query)}")


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("inclusive", [True, False])
def test_a_forged_cursor_anywhere_gives_the_rows_on_its_side(
    shop: Service, sort: str, forward: bool, inclusive: bool
) -> None:
    query = PageQuery("/products", sort=sort)
    low, within, high = {"id": (1, 31, MAX_ID), "price": (0, 250, MAX_CENTS), "name": ("", "desk", "\U0010ffff" * 200)}[
        sort.lstrip("-")
    ]
    up = forward != sort.startswith("-")
    for value, id in ((low, 1), (within, 31), (high, MAX_ID)):
        cursor = cursor_at(Position(forward, inclusive, None if sort == "id" else value, id), query)  # type: ignore[arg-type]
        at = (value, id)
        there = [key for key in keys(shop, sort) if (key > at if up else key < at) or (inclusive and key == at)]
        assert ids(page(shop, f"sort={sort}&limit=200", cursor)) == [id for _, id in there], at


def test_a_name_of_two_hundred_characters_of_four_bytes_has_its_cursor(service: Service) -> None:
    service.add(*[("😀" * 200, "1", i) for i in range(3)])
    first = page(service, "sort=-name&limit=1")
    assert ids(first) == [3]
    assert ids(page(service, "sort=-name&limit=5", first["next_cursor"])) == [2, 1]
