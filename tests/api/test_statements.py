"""Query plans of whatever the program says to the database, overheard, so that no new statement escapes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.conftest import Service

Said = dict[str, dict[str, Any]]
SORTS = ["id", "price", "-price", "name", "-name"]
FULL_SCAN = re.compile(
    r"SEARCH products\b(?! USING)|Seq Scan on products\b"
    r"|SCAN products\b(?! VIRTUAL| USING (?:COVERING )?INDEX products_by_(?:price|name))"
)


@pytest.fixture
def said(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Said]:
    """Each statement that the program executes from here on, with the parameters that it last had."""
    service.load("name,price,stock_level", (f"item {i} {'rare' * (i % 500 == 0)},{i % 9}.99,5" for i in range(3000)))
    service.database.read(lambda execute: execute(service.database.after_load))
    heard: Said = {}
    executor = service.database._executor

    def overheard(connection: Any) -> Any:
        execute = executor(connection)

        def listening(sql: str, **parameters: Any) -> Any:
            heard[sql] = parameters
            return execute(sql, **parameters)

        return listening

    service.restart(cache_size=0)
    monkeypatch.setattr(service.database, "_executor", overheard)
    yield heard
    monkeypatch.undo()


def plans(service: Service, said: Said) -> dict[str, str]:
    """The engine's words on how it would do each statement. A table of 3,000 rows is to be seen as a large one."""
    executor = service.database._executor
    found = {}
    sqlite = service.database.dialect == "sqlite"
    for sql, parameters in list(said.items()):
        if re.match(r"\s*(SELECT|WITH|UPDATE)\b", sql) and "products" in sql:

            def explain(connection: Any, sql: str = sql, parameters: dict[str, Any] = parameters) -> list[Any]:
                if not sqlite:
                    connection.execute("SET enable_seqscan = off")
                rows = executor(connection)(f"EXPLAIN {'QUERY PLAN ' if sqlite else ''}{sql}", **parameters)
                return [str(row[-1]) for row in rows]

            found[sql] = "\n".join(service.database._run(explain))
    return found


def test_no_statement_behind_any_route_reads_the_whole_table(service: Service, said: Said) -> None:
    service.get("/readyz")
    service.get("/products/7")
    for body in ('{"price": 5}', '{"stock_level": 5}', '{"stock_delta": 1}', '{"stock_delta": -100}'):
        service.patch(7, body)
        service.patch(7, body, If_Match='"1", "2"')
    searches = ["name=rare", "name=item", "name=absent", "min_price=1", "max_price=0.5", "name=tem&max_price=8",
                "name=rare&min_price=1&max_price=2"]  # fmt: skip
    pages = [("/products", ""), *(("/products/search", f"{search}&") for search in searches)]
    for path, parameters in pages:
        for sort in SORTS:
            query = f"{parameters}sort={sort}&limit=2&include_total=true"
            first = service.get(path, query).json
            if first["next_cursor"]:
                second = service.get(path, f"{query}&cursor={first['next_cursor']}").json
                service.get(path, f"{query}&cursor={second['prev_cursor']}")
    found = plans(service, said)
    assert len(found) > 30
    assert any("UPDATE" in sql for sql in found)
    for sql, plan in found.items():
        assert not FULL_SCAN.search(plan), f"{sql}\n{plan}"


def test_a_scan_would_be_seen(service: Service, said: Said) -> None:
    service.database.read(lambda execute: execute("SELECT sum(stock_level) FROM products"))
    ((_, plan),) = plans(service, said).items()
    assert FULL_SCAN.search(plan)
