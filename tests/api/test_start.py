"""What the program does at start to the database that it is given."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from inventory_api import make_schema, open_database
from tests.api.conftest import PROGRAM, running

Run = Callable[..., "subprocess.CompletedProcess[str]"]
OTHERS = """
CREATE TABLE {} (id INTEGER PRIMARY KEY, price REAL);
INSERT INTO {} VALUES (1, 9.5);
"""


def without_privileges(command: list[str]) -> list[str]:
    """Root, too, is held to the permissions of files."""
    return ["setpriv", "--bounding-set=-dac_override", *command] if os.getuid() == 0 else command


def rows(url: str, sql: str) -> list[tuple[object, ...]]:
    database = open_database(url)
    try:
        return database.read(lambda execute: execute(sql))
    finally:
        database.close()


@pytest.mark.slow
@pytest.mark.parametrize("with_schema", [True, False])
@pytest.mark.parametrize("folder_mode", [0o755, 0o555])
def test_a_file_that_cannot_be_written_stops_the_program(tmp_path: Path, with_schema: bool, folder_mode: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "inventory.db"
    path.touch()
    if with_schema:
        database = open_database(f"sqlite:///{path}")
        make_schema(database, with_samples=False)
        database.close()
    path.chmod(0o444)
    folder.chmod(folder_mode)
    command = [sys.executable, str(PROGRAM), "--port", "0", "--database-url", f"sqlite:///{path}"]
    process = subprocess.Popen(
        without_privileges(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == ""  # where it serves instead, it says so here
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=20)
        folder.chmod(0o755)
    assert (process.returncode, len(errors.splitlines()), "readonly" in errors) == (1, 1, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["products", "Products", "PRODUCTS"])
def test_a_foreign_table_stops_the_program_which_names_what_is_missing(
    run_program: Run, tmp_path: Path, name: str
) -> None:
    """In SQLite a table's name is the same in any case."""
    connection = sqlite3.connect(tmp_path / "theirs.db")
    connection.executescript(OTHERS.format(name, name))
    before = list(connection.iterdump())
    for arguments in ([], ["--load", "products.csv"]):
        (tmp_path / "products.csv").write_text("name,price,stock_level\nx,1,1\n")
        result = run_program(*arguments, "--database-url", "sqlite:///theirs.db")
        assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
        assert "products.price_cents" in result.stderr
        assert "products.stock_level" in result.stderr
        assert "products.id" not in result.stderr
    assert list(connection.iterdump()) == before
    connection.close()


@pytest.mark.slow
def test_a_foreign_file_keeps_its_journal_mode(run_program: Run, tmp_path: Path) -> None:
    """WAL would stay in the file, for programs that may not be able to use it."""
    connection = sqlite3.connect(tmp_path / "theirs.db")
    connection.executescript(OTHERS.format("products", "products"))
    connection.close()
    before = (tmp_path / "theirs.db").read_bytes()
    assert run_program("--database-url", "sqlite:///theirs.db").returncode == 1
    assert (tmp_path / "theirs.db").read_bytes() == before


@pytest.mark.slow
def test_a_file_without_the_table_gets_it_beside_the_tables_that_it_has(run_program: Run, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "shared.db")
    connection.executescript(OTHERS.format("customers", "customers"))
    connection.close()
    (tmp_path / "products.csv").write_text("name,price,stock_level\nx,1,1\n")
    assert run_program("--load", "products.csv", "--database-url", "sqlite:///shared.db").returncode == 0
    assert rows(f"sqlite:///{tmp_path}/shared.db", "SELECT id, price FROM customers") == [(1, 9.5)]


@pytest.mark.slow
def test_eight_servers_started_at_once_make_the_samples_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(running(cwd=tmp_path))
    found = rows(
        f"sqlite:///{tmp_path}/inventory.db", "SELECT count(*), count(DISTINCT id), max(version) FROM products"
    )
    assert found == [(1000, 1000, 1)]


@pytest.mark.slow
def test_the_samples_that_were_sold_are_not_made_again(tmp_path: Path) -> None:
    with running(cwd=tmp_path):
        pass
    database = open_database(f"sqlite:///{tmp_path}/inventory.db")
    database.write(lambda execute: execute("DELETE FROM products"))
    database.close()
    with running(cwd=tmp_path):
        pass
    assert rows(f"sqlite:///{tmp_path}/inventory.db", "SELECT count(*) FROM products") == [(0,)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flag", "variable"])
def test_the_default_database_gets_no_samples_once_it_is_named(tmp_path: Path, how: str) -> None:
    url = "sqlite:///inventory.db"
    arguments, env = (["--database-url", url], {}) if how == "flag" else ([], {"DATABASE_URL": url})
    with running(*arguments, cwd=tmp_path, env=env):
        pass
    assert rows(f"sqlite:///{tmp_path}/inventory.db", "SELECT count(*) FROM products") == [(0,)]


def test_a_start_that_fails_half_way_leaves_nothing(empty_url: str) -> None:
    database = open_database(empty_url)
    database.write(lambda execute: execute("CREATE TABLE theirs (a INTEGER)"))
    database.write(lambda execute: execute("CREATE INDEX products_by_name ON theirs (a)"))
    with pytest.raises(Exception, match=r"(?i)cannot serve|already exists"):
        make_schema(database, with_samples=True)
    with pytest.raises(Exception, match=r"(?i)cannot serve|no such table|does not exist"):
        database.read(lambda execute: execute("SELECT count(*) FROM products"))
    database.write(lambda execute: execute("DROP TABLE theirs"))
    make_schema(database, with_samples=True)
    assert database.read(lambda execute: execute("SELECT count(*) FROM products")) == [(1000,)]
    database.close()


def test_products_in_a_schema_that_is_not_searched_are_no_obstacle(postgres_url: str) -> None:
    database = open_database(postgres_url)
    database.write(lambda execute: execute("CREATE SCHEMA elsewhere"))
    database.write(lambda execute: execute("CREATE TABLE elsewhere.products (id INTEGER)"))
    make_schema(database, with_samples=True)
    assert database.read(lambda execute: execute("SELECT count(*) FROM products")) == [(1000,)]
    database.close()
