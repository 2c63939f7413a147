"""What a page costs: as much deep inside equal values as at the start, counted in steps or rows, not in time."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import inventory_api
from inventory_api import Database, Finder, PageQuery, Position, make_schema, merge, open_database
from tests.conftest import new_database

ROWS = 20_000
SORTS = ["id", "price", "-price", "name", "-name"]
LIMIT = 20
MOST = 40 * (LIMIT + 1)  # steps or rows: some for each row of the page, however many rows there are
DEEP = {"id": None, "price": 1999, "name": "same name"}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def alike(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """20,000 products of one price and one name."""

    def filled(url: str) -> Database:
        database = open_database(url)
        make_schema(database, with_samples=False)
        rows = ((i, i, "same name", "same name", 1999, 1) for i in range(1, ROWS + 1))
        database.write(lambda execute: merge(database, execute, rows))
        database.read(lambda execute: execute(database.after_load))
        return database

    if request.param == "sqlite":
        database = filled(f"sqlite:///{tmp_path_factory.mktemp('alike')}/alike.db")
        yield database
        database.close()
    else:
        with new_database(request.getfixturevalue("postgres_server")) as url:
            database = filled(url)
            yield database
            database.close()


def cost(database: Database, query: PageQuery, monkeypatch: pytest.MonkeyPatch) -> int:
    """The steps of SQLite's virtual machine, or the rows that PostgreSQL's plan touched, for the rows of a page."""
    return (sqlite_steps if database.dialect == "sqlite" else postgres_rows)(database, query, monkeypatch)


def sqlite_steps(database: Database, query: PageQuery, monkeypatch: pytest.MonkeyPatch) -> int:
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def counting(connection: sqlite3.Connection) -> Any:
        connection.set_progress_handler(count, 1)
        return executor(connection)

    executor: Callable[[Any], Any] = database._executor
    with monkeypatch.context() as patch:
        patch.setattr(database, "_executor", counting)
        database.read(lambda execute: Finder(database, execute, query).rows())
    return steps


def postgres_rows(database: Database, query: PageQuery, monkeypatch: pytest.MonkeyPatch) -> int:
    touched = 0

    def visit(node: dict[str, Any]) -> None:
        nonlocal touched
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        touched += (node["Actual Rows"] + removed) * node["Actual Loops"] if "Scan" in node["Node Type"] else 0
        for child in node.get("Plans", ()):
            visit(child)

    def work(execute: Any) -> None:
        def explained(sql: str, **parameters: Any) -> Any:
            ((plan,),) = execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", **parameters)
            visit((plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"])
            return execute(sql, **parameters)

        Finder(database, explained, query).rows()

    database.read(work)
    return touched


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("forward", [True, False])
def test_a_page_deep_inside_equal_values_costs_what_any_page_does(
    alike: Database, monkeypatch: pytest.MonkeyPatch, sort: str, forward: bool
) -> None:
    deep = Position(forward, False, DEEP[sort.lstrip("-")], ROWS // 2)
    for start in (None, deep, deep._replace(inclusive=True)):
        assert cost(alike, PageQuery("", sort=sort, limit=LIMIT, start=start), monkeypatch) <= MOST, start


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize(("name", "low", "high"), [("me na", None, None), (None, 1999, 1999), ("sa", None, 5000)])
def test_a_page_of_a_search_that_finds_enough_costs_the_same_anywhere(
    alike: Database, monkeypatch: pytest.MonkeyPatch, sort: str, name: str | None, low: int | None, high: int | None
) -> None:
    deep = Position(True, False, DEEP[sort.lstrip("-")], ROWS // 2)
    for start in (None, deep, deep._replace(forward=False)):
        query = PageQuery("", name, low, high, sort, LIMIT, start=start)
        assert cost(alike, query, monkeypatch) <= 2 * MOST, start


def test_a_rare_name_costs_what_it_finds_not_what_there_is(alike: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_api, "WALK", inventory_api.WALK.replace("LIMIT :budget", "LIMIT 0 * :budget"))
    for sort in SORTS:
        assert cost(alike, PageQuery("", "absent", sort=sort), monkeypatch) <= MOST, sort


def test_a_scan_would_be_counted(alike: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cost(alike, PageQuery("", "zz", sort="name"), monkeypatch) >= ROWS
