"""Query plans: at some size, every statement that the program runs is served by an index."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inventory_api import (
    SELECT_PRODUCT,
    UPDATE_PRODUCT,
    Database,
    Finder,
    PageQuery,
    Position,
    make_schema,
    merge,
    open_database,
)
from tests.conftest import new_database

ROWS = 20_000


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """20,000 products, half of them at one price."""

    def fill(url: str) -> Iterator[Database]:
        database = open_database(url)
        make_schema(database, with_samples=False)
        rows = [(i, i, f"item {i}", f"item {i}", 1999 if i % 2 else i, i % 9) for i in range(1, ROWS + 1)]
        database.write(lambda execute: merge(database, execute, rows))
        database.read(lambda execute: execute(database.after_load))
        if (
            database.dialect == "postgresql"
        ):  # 20,000 rows are few enough to prefer a scan where an index would serve as well
            database.read(lambda execute: execute("SET enable_seqscan = off"))
        yield database
        database.close()

    if request.param == "sqlite":
        yield from fill(f"sqlite:///{tmp_path_factory.mktemp('plans')}/plans.db")
    else:
        with new_database(request.getfixturevalue("postgres_server")) as url:
            yield from fill(url)


def plans(database: Database, work: Callable[[Any], object]) -> list[str]:
    """The plan of each statement that `work` runs, in the engine's own words."""
    said: list[str] = []

    def run(execute: Any) -> None:
        def explaining(sql: str, **parameters: Any) -> Any:
            if database.dialect == "sqlite":
                said.append("\n".join(row[3] for row in execute(f"EXPLAIN QUERY PLAN {sql}", **parameters)))
            else:
                said.append("\n".join(row[0] for row in execute(f"EXPLAIN {sql}", **parameters)))
            return execute(sql, **parameters)

        work(explaining)

    database.read(run)
    assert said
    return said


def scans_the_table(plan: str) -> bool:
    """Whether a plan reads the table from one end to the other, not by an index and not bounded by one."""
    return bool(re.search(r"SCAN products(?! USING| VIRTUAL|_)|Seq Scan on products", plan))


def pages() -> Iterator[PageQuery]:
    for sort in ("id", "price", "-price", "name", "-name"):
        value = {"id": None, "price": 1999, "name": "item 5000"}[sort.lstrip("-")]
        for start in (None, Position(True, False, value, 5001), Position(False, True, value, 5001)):
            for name in (None, "item 77", "tem", "zzz", "zz", "m"):
                for low, high in ((None, None), (1999, 1999), (500, 510), (0, 900_000)):
                    yield PageQuery("", name, low, high, sort, 20, start=start)


def test_a_scan_of_the_table_would_be_seen(filled: Database) -> None:
    sql = "SELECT stock_level FROM products WHERE stock_level = :n"
    assert any(map(scans_the_table, plans(filled, lambda execute: execute(sql, n=4))))


def test_no_page_and_no_total_scans_the_table(filled: Database) -> None:
    for query in pages():

        def work(execute: Any, query: PageQuery = query) -> None:
            finder = Finder(filled, execute, query)
            finder.rows()
            finder.total()

        for plan in plans(filled, work):
            assert not scans_the_table(plan), (query, plan)


def test_a_product_is_read_and_changed_by_its_key(filled: Database) -> None:
    change = {"id": 7, "versions": ",1,", "price_cents": None, "stock_level": None, "stock_delta": 1}
    for sql, parameters in ((SELECT_PRODUCT, {"id": 7}), (UPDATE_PRODUCT, change)):

        def work(execute: Any, sql: str = sql, parameters: dict[str, Any] = parameters) -> None:
            execute(sql, **parameters)

        (plan,) = plans(filled, work)
        assert re.search(r"USING INTEGER PRIMARY KEY \(rowid=\?\)|using products_pkey", plan), plan


@pytest.mark.parametrize("sort", ["price", "-price", "name", "-name"])
def test_a_page_deep_inside_equal_values_seeks_by_both_columns(filled: Database, sort: str) -> None:
    column, value = ("price_cents", 1999) if "price" in sort else ("name", "item 5000")
    query = PageQuery("", sort=sort, limit=20, start=Position(True, False, value, 15_001))
    (plan,) = plans(filled, lambda execute: Finder(filled, execute, query).rows())
    assert re.search(rf"\({column},seq\)[<>]|ROW\({column}, id\) [<>]", plan), plan
    assert "TEMP B-TREE" not in plan
    assert "Sort" not in plan


@pytest.mark.parametrize("filled", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("forward", "seek"), [(True, ">"), (False, "<")])
def test_a_page_by_id_of_a_name_begins_in_the_middle_of_the_trigrams_and_sorts_nothing(
    filled: Database, forward: bool, seek: str
) -> None:
    query = PageQuery("/products/search", name="item", start=Position(forward, False, None, ROWS // 2))
    (plan,) = plans(filled, lambda execute: Finder(filled, execute, query).rows())
    assert re.search(f"^SCAN products_trigrams VIRTUAL TABLE INDEX [0-9]+:M[0-9]{seek}\n", plan), plan
    assert "TEMP B-TREE" not in plan
