"""The schema: what other programs may do with plain SQL, and what happens at start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from inventory_api import PRODUCT_COLUMNS, BadSchema, make_schema, open_database
from tests.api.conftest import PROGRAM, Service

Run = Callable[..., "subprocess.CompletedProcess[str]"]
PLAIN_INSERT = "INSERT INTO products (name, price_cents, stock_level) VALUES ('Oak desk', 12990, 12)"


def version(service: Service) -> int:
    ((found,),) = service.execute("SELECT version FROM products")
    return int(found)


def test_a_plain_insert_of_three_columns_makes_a_product(service: Service) -> None:
    service.execute(PLAIN_INSERT)
    product = service.get("/products/1").json
    assert product == {**product, "id": 1, "name": "Oak desk", "price": "129.90", "stock_level": 12, "version": 1}
    assert len(product["updated_at"]) == len("2026-11-22T10:00:00Z")


@pytest.mark.parametrize(
    "change",
    ["stock_level = 3", "stock_level = stock_level", "version = 1", "version = 500", "version = version", "name = 'x'",
     "version = version + 1", "id = 9", "price_cents = 1, version = 40", "updated_at = updated_at"],
)  # fmt: skip
def test_every_change_by_plain_sql_adds_one_to_the_version(service: Service, change: str) -> None:
    service.execute(PLAIN_INSERT)
    for expected in (2, 3):
        service.execute(f"UPDATE products SET {change}")
        assert version(service) == expected


def test_an_upsert_by_plain_sql_adds_one_to_the_version(service: Service) -> None:
    service.execute(PLAIN_INSERT)
    upsert = PLAIN_INSERT.replace("(name", "(id, name").replace("('Oak", "(1, 'Oak")
    service.execute(f"{upsert} ON CONFLICT (id) DO UPDATE SET price_cents = 5, version = 1")
    assert version(service) == 2


def test_a_change_by_plain_sql_moves_updated_at(service: Service) -> None:
    service.execute(PLAIN_INSERT)
    service.execute("UPDATE products SET updated_at = '2001-02-03 04:05:06', stock_level = 3")
    service.execute("UPDATE products SET stock_level = 4")
    assert service.get("/products/1").json["updated_at"][:2] == "20"
    assert service.get("/products/1").json["updated_at"][:4] != "2001"


@pytest.mark.parametrize(
    "values",
    ["('', 1, 1)", "(NULL, 1, 1)", "('x', -1, 1)", "('x', 1000000000, 1)", "('x', 1, -1)", "('x', 1, 2147483648)",
     "('x', NULL, 1)", "('x', 'abc', 1)"],
)  # fmt: skip
def test_a_plain_insert_out_of_range_is_refused(service: Service, values: str) -> None:
    with pytest.raises(Exception, match=r"(?i)constraint|range|invalid"):
        service.execute(f"INSERT INTO products (name, price_cents, stock_level) VALUES {values}")
    assert service.execute("SELECT count(*) FROM products") == [(0,)]


def test_sqlite_refuses_a_fraction_of_a_cent(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/x.db")
    make_schema(database, with_samples=False)
    with pytest.raises(Exception, match="CHECK"):
        database.write(lambda execute: execute(PLAIN_INSERT.replace("12990", "1.5")))
    database.close()


def test_a_foreign_table_is_left_alone_and_what_it_lacks_is_named(empty_url: str) -> None:
    database = open_database(empty_url)
    database.write(lambda execute: execute("CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, price REAL)"))
    with pytest.raises(BadSchema, match=r"products\.price_cents.*products\.stock_level"):
        make_schema(database, with_samples=True)
    assert database.read(lambda execute: execute("SELECT count(*) FROM products")) == [(0,)]
    database.close()


@pytest.mark.parametrize("dropped", ["INDEX products_by_price", "TRIGGER products_version"])
def test_a_missing_index_or_trigger_is_named(service: Service, dropped: str) -> None:
    suffix = " ON products" if service.database.dialect == "postgresql" and "TRIGGER" in dropped else ""
    service.execute(f"DROP {dropped}{suffix}")
    with pytest.raises(BadSchema, match=dropped.split()[1]):
        make_schema(service.database, with_samples=False)


def test_a_second_start_changes_nothing(service: Service) -> None:
    service.add(("a", "1", 1))
    make_schema(service.database, with_samples=True)
    assert service.execute("SELECT count(*) FROM products") == [(1,)]


def test_the_columns_are_those_of_the_table(service: Service) -> None:
    assert service.execute(f"SELECT {', '.join(PRODUCT_COLUMNS)} FROM products") == []


@pytest.mark.slow
def test_eight_starts_at_once_make_one_schema(empty_url: str, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("name,price,stock_level\nx,1,1\n")
    command = [sys.executable, str(PROGRAM), "--load", "one.csv", "--database-url", empty_url]
    started = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for process in started:
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out.startswith("loaded 1 products"), errors) == (0, True, "")
    database = open_database(empty_url)
    assert database.read(lambda execute: execute("SELECT count(*) FROM products")) == [(8,)]
    database.close()


@pytest.mark.slow
def test_a_database_that_cannot_be_written_is_told_at_start(run_program: Run, postgres_url: str) -> None:
    database = open_database(postgres_url)
    name = postgres_url.split("/")[3].partition("?")[0]
    database.read(lambda execute: execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    database.close()
    result = run_program("--database-url", postgres_url)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert "read-only" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite:////nowhere/at/all.db", "unable to open"),
        ("postgresql://nobody:secret@127.0.0.1:1/none", "refused"),
        ("sqlite:///notes.txt", "not a database"),
    ],
)
def test_a_database_that_cannot_be_reached_is_told_in_one_line(
    run_program: Run, tmp_path: Path, url: str, reason: str
) -> None:
    (tmp_path / "notes.txt").write_text("not a database at all, but long enough to be looked at " * 50)
    result = run_program("--database-url", url)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1), result.stderr
    assert reason in result.stderr
    assert "secret" not in result.stderr
