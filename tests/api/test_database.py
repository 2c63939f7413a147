"""The edge to the database: lost, locked, slow, frozen, full; and what the client is told."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

import inventory_api
from inventory_api import Database, open_database
from tests.api.conftest import Service, running

only_sqlite = pytest.mark.parametrize("engine", ["sqlite"])
only_postgres = pytest.mark.parametrize("engine", ["postgresql"])


def end_connections(service: Service) -> None:
    """As a restart of the server does."""
    service.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def assert_unavailable(result: Any) -> None:
    assert (result.status_code, result.headers["Retry-After"]) == (503, "1")
    assert result.headers["Content-Type"] == "application/problem+json"
    assert not any(
        word in result.text.lower() for word in ("sqlite", "psycopg", "postgres", "select", "update", "traceback")
    )


@only_postgres
def test_a_read_on_a_lost_connection_succeeds_on_a_new_one(desks: Service) -> None:
    end_connections(desks)
    assert desks.get("/products/1").status_code == 200


@only_postgres
def test_a_write_on_a_lost_connection_is_applied_once(desks: Service) -> None:
    end_connections(desks)
    assert desks.patch(1, '{"stock_delta": -1}').json["stock_level"] == 11


@only_postgres
def test_a_connection_lost_before_commit_runs_again_and_is_applied_once(desks: Service) -> None:
    runs = []

    def work(execute: Any) -> None:
        execute("UPDATE products SET stock_level = stock_level - 1 WHERE id = 1")
        runs.append(1)
        if len(runs) == 1:
            end_connections(desks)
            execute("SELECT 1")

    desks.database.write(work)
    assert len(runs) == 2
    assert desks.execute("SELECT stock_level FROM products WHERE id = 1") == [(11,)]


@only_postgres
def test_a_connection_lost_at_commit_is_told_and_not_repeated(desks: Service) -> None:
    runs = []

    def work(execute: Any) -> None:
        execute("UPDATE products SET stock_level = stock_level - 1 WHERE id = 1")
        runs.append(1)
        end_connections(desks)

    with pytest.raises(inventory_api.DatabaseUnavailable, match="not confirmed"):
        desks.database.write(work)
    assert len(runs) == 1
    assert desks.get("/products/1", Cache_Control="no-cache").status_code == 200


def test_a_write_that_was_not_confirmed_invalidates(desks: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    desks.get("/products/1")
    write = desks.database.write

    def unconfirmed(work: Callable[[Any], Any]) -> Any:
        write(work)
        raise inventory_api.DatabaseUnavailable("not confirmed")

    monkeypatch.setattr(desks.database, "write", unconfirmed)
    assert_unavailable(desks.patch(1, '{"stock_delta": -1}'))
    assert desks.get("/products/1").json["stock_level"] == 11


def test_an_exception_rolls_the_transaction_back_and_frees_the_connection(desks: Service) -> None:
    def work(execute: Any) -> None:
        execute("UPDATE products SET stock_level = 0")
        raise KeyError

    with pytest.raises(KeyError):
        desks.database.write(work)
    assert desks.patch(1, '{"stock_delta": -1}').json["stock_level"] == 11


def endless(dialect: str) -> str:
    if dialect == "postgresql":
        return "SELECT pg_sleep(60)"
    return "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def test_a_query_past_the_deadline_is_cut_and_the_connection_serves_again(url: str) -> None:
    database = open_database(url, deadline=0.2)
    with pytest.raises(inventory_api.DatabaseUnavailable, match=r"longer than 0\.2 s"):
        database.read(lambda execute: execute(endless(database.dialect)))
    assert database.read(lambda execute: execute("SELECT 1")) == [(1,)]
    database.close()


def test_statements_of_one_request_share_one_deadline(url: str) -> None:
    database = open_database(url, deadline=0.4)

    def work(execute: Any) -> None:
        for _ in range(100):
            if database.dialect == "postgresql":
                execute("SELECT pg_sleep(0.1)")
            else:
                execute(
                    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300000)"
                    " SELECT count(*) FROM n"
                )

    with pytest.raises(inventory_api.DatabaseUnavailable, match="longer than"):
        database.read(work)
    database.close()


def test_a_database_that_is_away_is_told_while_the_cache_goes_on(
    desks: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    desks.get("/products/1")

    def away(self: Database) -> Any:
        raise self.driver_errors[0]("connection refused, password=secret")

    connect = type(desks.database)._connect
    monkeypatch.setattr(type(desks.database), "_connect", away)
    desks.database.close()
    file = Path(desks.url.removeprefix("sqlite:///"))
    if desks.database.dialect == "sqlite":  # while the file is there, others may be writing to it
        file.rename(file.with_suffix(".away"))
    assert desks.get("/products/1").headers["X-Cache"] == "HIT"
    for answer in (
        desks.get("/products/2"),
        desks.get("/products"),
        desks.patch(1, '{"price": 1}'),
        desks.get("/readyz"),
    ):
        assert_unavailable(answer)
        assert "secret" not in answer.text
    assert desks.get("/healthz").status_code == 200
    monkeypatch.setattr(type(desks.database), "_connect", connect)
    if desks.database.dialect == "sqlite":
        file.with_suffix(".away").rename(file)
    assert desks.get("/products/2").status_code == desks.get("/readyz").status_code == 200


def test_a_rule_of_another_program_is_a_500_that_says_nothing(desks: Service) -> None:
    if desks.database.dialect == "sqlite":
        desks.execute("CREATE TRIGGER stop BEFORE UPDATE ON products BEGIN SELECT RAISE(ABORT, 'secret rule'); END")
    else:
        desks.execute("ALTER TABLE products ADD CONSTRAINT secret_rule CHECK (price_cents <> 100)")
    result = desks.patch(1, '{"price": 1}')
    assert result.status_code == 500
    assert "secret" not in result.text
    assert desks.get("/products/1").json["version"] == 1


@pytest.mark.slow
@only_sqlite
def test_a_locked_sqlite_is_told_in_time_and_still_read(desks: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_api, "LOCK_TIMEOUT", 0.3)
    desks.database.close()
    with contextlib.closing(sqlite3.connect(desks.url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert_unavailable(desks.patch(1, '{"price": 2}'))
        assert desks.get("/products/1").status_code == 200
        other.execute("ROLLBACK")
    assert desks.patch(1, '{"price": 2}').json["price"] == "2.00"


@pytest.mark.slow
@only_postgres
def test_a_frozen_server_is_told_in_time(desks: Service) -> None:
    database = open_database(desks.url, deadline=0.5)
    ((pid,),) = database.read(lambda execute: execute("SELECT pg_backend_pid()"))
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(inventory_api.DatabaseUnavailable):
            database.write(lambda execute: execute("SELECT 1"))
        assert time.monotonic() - began < 5
    finally:
        os.kill(pid, signal.SIGCONT)
    assert database.read(lambda execute: execute("SELECT 1")) == [(1,)]
    database.close()


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_acknowledged(small_disk: Path) -> None:
    database = open_database(f"sqlite:///{small_disk}/inventory.db")
    inventory_api.make_schema(database, with_samples=False)
    insert = "INSERT INTO products (name, price_cents, stock_level) VALUES (:name, 1, 1)"
    acknowledged = 0

    def fill() -> None:
        nonlocal acknowledged
        while True:
            database.write(lambda execute: execute(insert, name="x" * 200))
            acknowledged += 1

    with contextlib.closing(database):
        with pytest.raises(inventory_api.DatabaseUnavailable):
            fill()
        ((count,),) = database.read(lambda execute: execute("SELECT count(*) FROM products"))
        assert count == acknowledged > 10


def test_what_is_acknowledged_is_durable_by_the_settings_in_force(service: Service) -> None:
    if service.database.dialect == "sqlite":
        assert service.database.read(lambda execute: execute("PRAGMA synchronous")) == [(2,)]
        assert service.database.read(lambda execute: execute("PRAGMA journal_mode")) == [("wal",)]
    else:
        name = psycopg.conninfo.conninfo_to_dict(service.url)["dbname"]
        service.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        service.database.close()
        assert service.database.read(lambda execute: execute("SHOW synchronous_commit")) == [("on",)]


def test_every_thread_has_its_own_connection_and_all_are_closed(service: Service) -> None:
    threads = [threading.Thread(target=service.get, args=("/readyz",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(service.database._connections) == 3
    service.database.close()
    assert service.database._connections == []


@pytest.mark.slow
def test_a_killed_server_has_lost_no_acknowledged_write(tmp_path: Path) -> None:
    for _ in range(3):
        with running(cwd=tmp_path, env={"RATE_LIMIT": "0"}, stop=signal.SIGKILL) as (base, process):
            stock = requests.get(f"{base}/products/1", timeout=5).json()["stock_level"]
            killer = threading.Timer(0.4, process.kill)
            killer.start()
            acknowledged = 0
            with (
                contextlib.suppress(requests.ConnectionError, requests.exceptions.ChunkedEncodingError),
                requests.Session() as session,
            ):
                while session.patch(f"{base}/products/1", json={"stock_delta": 1}, timeout=5).status_code == 200:
                    acknowledged += 1
            killer.join()
        with contextlib.closing(sqlite3.connect(tmp_path / "inventory.db")) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            ((found,),) = database.execute("SELECT stock_level FROM products WHERE id = 1").fetchall()
        assert acknowledged > 0
        assert found - stock in (acknowledged, acknowledged + 1)  # one may have been committed but not answered


@only_sqlite
def test_a_file_that_is_deleted_takes_no_more_writes(desks: Service) -> None:
    path = Path(desks.url.removeprefix("sqlite:///"))
    assert desks.patch(1, '{"price": 2}').status_code == 200
    for file in path.parent.glob("inventory.db*"):
        file.unlink()
    assert_unavailable(desks.patch(1, '{"price": 3}'))
    assert not path.exists()


@only_sqlite
def test_a_file_put_in_the_place_of_another_is_the_database_from_then_on(desks: Service, tmp_path: Path) -> None:
    path = Path(desks.url.removeprefix("sqlite:///"))
    with (
        contextlib.closing(sqlite3.connect(path)) as source,
        contextlib.closing(sqlite3.connect(tmp_path / "copy")) as copy,
    ):
        source.backup(copy)
    assert desks.patch(1, '{"price": 2}').status_code == 200
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    (tmp_path / "copy").rename(path)
    assert desks.patch(2, '{"price": 3}').json["version"] == 2
    assert desks.get("/products/1").json["version"] == 1


def test_a_right_that_is_revoked_or_a_table_that_is_gone_is_told_as_unavailable(desks: Service) -> None:
    desks.execute("ALTER TABLE products RENAME TO elsewhere")
    assert_unavailable(desks.patch(1, '{"price": 2}'))
    assert_unavailable(desks.get("/products/2"))
    desks.execute("ALTER TABLE elsewhere RENAME TO products")
    assert desks.patch(1, '{"price": 2}').status_code == 200
