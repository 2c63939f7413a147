"""Search, each way of finding rows for itself: the same tricky names, the same answers."""

from __future__ import annotations

import random
from typing import Any

import pytest

import inventory_api
from inventory_api import Finder, PageQuery, fold, merge
from tests.api.conftest import Service

ALPHABET = [
    *"abAB zZ  %_\\'\"*^()-:{}+&#=?/;,.[]|~`$@!<>",
    *"İıßẞΣσςÄäÉé\u0301\u0307ǅǆKÅΩﬁ東京😀👩\u200d\ua000\ua001\u00a0\u2028\u0085\ufeff\ue000\U0010ffff\t\n\rⅧⅷ①ª²отА",
    *("AND", "OR", "NOT", "NEAR", "i̇", "ΟΣ", "\\%", "\\_", "''", '""'),
]
SORTS = ["id", "price", "-price", "name", "-name"]
RANGES = [(None, None), (None, None), (0, 100), (1, 1), (100, 1999), (150, None), (None, 150), (0, 999_999_999)]
WAYS = ["walk", "trigrams", "range", "scan"]


def some_names(lottery: random.Random) -> list[str]:
    return ["".join(lottery.choices(ALPHABET, k=lottery.randint(1, 12))) for _ in range(400)]


def some_needle(lottery: random.Random, names: list[str]) -> str:
    """Mostly a piece of a name, often in another case."""
    if lottery.random() < 0.2:
        return "".join(lottery.choices(ALPHABET, k=lottery.randint(1, 4)))
    name = lottery.choice(names)
    at = lottery.randrange(len(name))
    piece = name[at : at + lottery.randint(1, 6)]
    return lottery.choice([piece, piece.upper(), piece.lower(), piece.swapcase()])


@pytest.mark.parametrize("way", WAYS)
def test_each_way_finds_what_folding_each_code_point_says(
    service: Service, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    lottery = random.Random(7)
    names = some_names(lottery)
    prices = [lottery.choice([0, 1, 100, 150, 1999, 999_999_999]) for _ in names]
    rows = [(i, i, name, fold(name), cents, 1) for i, (name, cents) in enumerate(zip(names, prices, strict=True), 1)]
    service.database.write(lambda execute: merge(service.database, execute, rows))
    if way != "walk":
        monkeypatch.setattr(inventory_api, "WALK", inventory_api.WALK.replace("LIMIT :budget", "LIMIT 0 * :budget"))
        monkeypatch.setattr(service.database, "ways", () if way == "scan" else (way,))
    for _ in range(150):
        needle, (low, high), sort = some_needle(lottery, names), lottery.choice(RANGES), lottery.choice(SORTS)
        query = PageQuery("", fold(needle), low, high, sort, limit=10)
        column = {"id": 0, "name": 2, "price": 4}[sort.lstrip("-")]
        matching = [row for row in rows if fold(needle) in row[3] and (low or 0) <= row[4] <= query.top_cents]
        matching.sort(key=lambda row: (row[column], row[0]), reverse=sort.startswith("-"))

        def work(execute: Any, query: PageQuery = query) -> tuple[list[int], int]:
            finder = Finder(service.database, execute, query)
            return [product.id for product in finder.rows()], finder.total()

        expected = [row[0] for row in matching[:11]], len(matching)
        assert service.database.read(work) == expected, (needle, low, high, sort)


@pytest.mark.parametrize("way", ["trigrams", "range", "scan"])
def test_each_way_is_the_way_that_is_named(service: Service, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Else the test above would go one way four times."""
    service.load("name,price,stock_level", (f"item {i},1.00,1" for i in range(50)))
    monkeypatch.setattr(inventory_api, "WALK", inventory_api.WALK.replace("LIMIT :budget", "LIMIT 0 * :budget"))
    monkeypatch.setattr(service.database, "ways", () if way == "scan" else (way,))
    statements: list[str] = []

    def work(execute: Any) -> int:
        def watched(sql: str, **parameters: Any) -> Any:
            statements.append(sql)
            return execute(sql, **parameters)

        return len(Finder(service.database, watched, PageQuery("", "item", 0, 500, "name", 10)).rows())

    assert service.database.read(work) == 11
    sorts, by_trigrams = "WITH found" in statements[-1], service.database.by_trigrams in statements[-1]
    assert (sorts, by_trigrams) == (way != "scan", way == "trigrams")


def test_what_other_programs_write_at_random_is_found_as_it_is(service: Service) -> None:
    """Names of ASCII letters, whoever wrote them last, and by which of the ways SQL has."""
    lottery = random.Random(11)
    service.restart(cache_size=0)
    model: dict[int, str] = {}

    def new_name() -> str:
        return "".join(lottery.choices("abAB %_'c", k=lottery.randint(3, 9)))

    def change(execute: Any) -> None:
        for _ in range(40):
            change_one(execute)

    def change_one(execute: Any) -> None:
        id, name = lottery.randint(1, 40), new_name()
        move_to = lottery.randint(1, 40)
        kind = lottery.choice(["insert", "update", "upsert", "delete", "move", "case"])
        if kind in ("insert", "upsert") and (kind == "upsert" or id not in model):
            execute(
                "INSERT INTO products (id, name, price_cents, stock_level) VALUES (:id, :name, 1, 1) "
                "ON CONFLICT (id) DO UPDATE SET name = excluded.name",
                id=id, name=name,
            )  # fmt: skip
            model[id] = name
        elif kind == "update" and id in model:
            execute("UPDATE products SET name = :name, stock_level = stock_level + 1 WHERE id = :id", id=id, name=name)
            model[id] = name
        elif kind == "case" and id in model:
            execute("UPDATE products SET name = upper(name) WHERE id = :id", id=id)
            model[id] = model[id].upper()
        elif kind == "move" and id in model and move_to not in model:
            execute("UPDATE products SET id = :to WHERE id = :id", id=id, to=move_to)
            model[move_to] = model.pop(id)
        elif kind == "delete":
            execute("DELETE FROM products WHERE id = :id", id=id)
            model.pop(id, None)

    for _ in range(8):
        service.database.write(change)
        for needle in ("abc", "ab ", "a%b", "b_a", "'c", "ba", "A B", "bab"):
            found = service.get("/products/search", "limit=200&name=" + needle.replace("%", "%25").replace(" ", "+"))
            expected = sorted(id for id, name in model.items() if needle.lower() in name.lower())
            assert [item["id"] for item in found.json["items"]] == expected, needle
    if service.database.dialect == "sqlite":  # the trigrams are those of the rows, no more and no fewer
        service.execute("INSERT INTO products_trigrams (products_trigrams, rank) VALUES ('integrity-check', 1)")


def test_a_change_that_was_rolled_back_is_not_found(service: Service) -> None:
    service.add(("Oak desk", "1", 1))

    def change(execute: Any) -> None:
        execute("UPDATE products SET name = 'Walnut bed'")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        service.database.write(change)
    names = ("oak desk", "walnut bed")
    found = [len(service.get("/products/search", f"name={name}".replace(" ", "+")).json["items"]) for name in names]
    assert found == [1, 0]
