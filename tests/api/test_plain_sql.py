"""Other programs on the same table: whatever plain SQL they write, products stay true and can be served."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest

from tests.api.conftest import Service, one_engine

INSERT = "INSERT INTO products (name, price_cents, stock_level) VALUES ('Oak desk', 12990, 12)"
FRESH = {"Cache_Control": "no-cache"}


def versions(service: Service) -> list[int]:
    return [version for (version,) in service.execute("SELECT version FROM products ORDER BY id")]


def test_one_statement_over_many_rows_adds_one_to_each_version(service: Service) -> None:
    service.add(*[("x", "1", i) for i in range(20)])
    service.execute("UPDATE products SET stock_level = stock_level + 1 WHERE id > 5")
    assert versions(service) == [1] * 5 + [2] * 15


def test_each_statement_of_a_transaction_adds_one_to_the_version(service: Service) -> None:
    service.execute(INSERT)

    def twice(execute: Any) -> None:
        execute("UPDATE products SET stock_level = 3")
        execute("UPDATE products SET stock_level = 3, version = 1")

    service.database.write(twice)
    assert versions(service) == [3]


def test_an_update_of_no_rows_and_one_rolled_back_change_no_version(service: Service) -> None:
    service.execute(INSERT)
    service.execute("UPDATE products SET stock_level = 3 WHERE id = 99")

    def broken(execute: Any) -> None:
        execute("UPDATE products SET stock_level = 3")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        service.database.write(broken)
    assert versions(service) == [1]


def test_an_upsert_that_changes_nothing_leaves_the_version(service: Service) -> None:
    service.execute(INSERT)
    again = INSERT.replace("(name", "(id, name").replace("VALUES (", "VALUES (1, ")
    service.execute(f"{again} ON CONFLICT (id) DO NOTHING")
    assert versions(service) == [1]


def test_a_patch_and_plain_sql_count_in_one_row_of_versions(service: Service) -> None:
    service.execute(INSERT)
    for expected in (2, 4, 6):
        assert service.patch(1, '{"stock_delta": 0}').json["version"] == expected
        service.execute("UPDATE products SET stock_level = stock_level")


def test_a_product_deleted_and_inserted_again_starts_at_version_1(service: Service) -> None:
    service.execute(INSERT)
    service.execute("UPDATE products SET stock_level = 3")
    service.execute("DELETE FROM products")
    service.execute(INSERT.replace("(name", "(id, name").replace("('Oak", "(1, 'Oak"))
    assert service.get("/products/1").json["version"] == 1


def test_names_count_in_characters_not_in_bytes(service: Service) -> None:
    insert = "INSERT INTO products (name, price_cents, stock_level) VALUES (:name, 1, 1)"
    service.execute(insert, name="😀" * 200)
    with pytest.raises(Exception, match=r"(?i)check"):
        service.execute(insert, name="😀" * 201)


@one_engine
def test_a_program_whose_triggers_are_recursive_can_change_a_product_again_and_again(service: Service) -> None:
    """PRAGMA recursive_triggers is what makes REPLACE fire delete triggers in SQLite, so it is in use."""
    service.execute(INSERT)
    connection = sqlite3.connect(service.url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("PRAGMA recursive_triggers = ON")
    for _ in range(3):
        connection.execute("UPDATE products SET stock_level = 3")
        connection.execute("UPDATE products SET name = 'New'")
    connection.close()
    assert versions(service) == [7]


@one_engine
@pytest.mark.parametrize("value", ["1700000000", "'garbage'", "'\"'"])
@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO products (id, name, price_cents, stock_level, updated_at) VALUES (2, 'x', 1, 1, {})",
        "UPDATE products SET version = version + 1, updated_at = {}",
    ],
)
def test_a_time_that_is_none_is_refused_or_put_right(service: Service, sql: str, value: str) -> None:
    service.execute(INSERT)
    try:
        service.execute(sql.format(value))
    except sqlite3.Error:
        return
    page = service.get("/products", **FRESH)
    assert page.status_code == 200
    assert [len(item["updated_at"]) for item in json.loads(page.text)["items"]] == [20] * len(page.json["items"])


@one_engine
@pytest.mark.parametrize("value", ["'x'", "1.5", "x'01'", "'1'"])
def test_a_version_is_an_integer_whoever_inserts_it(service: Service, value: str) -> None:
    """SQLite lets any type into a column unless a CHECK forbids it."""
    sql = f"INSERT INTO products (name, price_cents, stock_level, version) VALUES ('x', 1, 1, {value})"
    try:
        service.execute(sql)
    except sqlite3.Error:
        return
    assert type(json.loads(service.get("/products/1").text)["version"]) is int


@one_engine
def test_a_walk_by_name_gets_past_a_name_with_a_nul(service: Service) -> None:
    """PostgreSQL has no such names; SQLite may refuse them as well, or serve them."""
    for i in range(3):
        try:
            service.execute(
                f"INSERT INTO products (name, price_cents, stock_level) VALUES ('a' || char(0) || {i}, 1, 1)"
            )
        except sqlite3.Error:
            return
    first = service.get("/products", "sort=name&limit=1").json
    assert service.get("/products", f"sort=name&limit=1&cursor={first['next_cursor']}").status_code == 200


def test_times_are_told_in_utc_whatever_the_database_is_set_to(service: Service) -> None:
    if service.database.dialect == "postgresql":
        name = service.url.split("/")[3].partition("?")[0]
        service.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
        service.execute(f"ALTER DATABASE {name} SET datestyle = 'German'")
        service.execute(f"ALTER DATABASE {name} SET intervalstyle = 'postgres_verbose'")
        service.database.close()
    instant = "2026-07-01 23:30:00" + ("+00" if service.database.dialect == "postgresql" else "")
    service.execute(
        "INSERT INTO products (name, price_cents, stock_level, updated_at) VALUES ('x', 1, 1, :at)", at=instant
    )
    assert service.get("/products/1").json["updated_at"] == "2026-07-01T23:30:00Z"
