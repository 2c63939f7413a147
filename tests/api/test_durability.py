"""What was acknowledged is there after the worst, and each thread's connection is set to see to it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from bench import api_crash
from inventory_api import open_database
from tests.api.conftest import Service, running

only_sqlite = pytest.mark.parametrize("engine", ["sqlite"])
only_postgres = pytest.mark.parametrize("engine", ["postgresql"])

SETTING = {"sqlite": ("PRAGMA synchronous", (2,)), "postgresql": ("SHOW synchronous_commit", ("on",))}


def test_every_threads_connection_commits_for_good(service: Service) -> None:
    question, answer = SETTING[service.database.dialect]
    arrived = threading.Barrier(3)

    def ask(number: int) -> list[tuple[object, ...]]:
        arrived.wait(20)
        return service.database.read(lambda execute: execute(question))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, range(3))) == [[answer]] * 3


@only_postgres
@pytest.mark.parametrize("level", ["ROLE postgres", "DATABASE", "the URL"])
def test_no_default_of_the_server_makes_commits_late(service: Service, level: str) -> None:
    url, ((name,),) = service.url, service.execute("SELECT current_database()")
    if level == "the URL":
        url += "&options=-c%20synchronous_commit%3Doff"
    elif level == "DATABASE":
        service.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    else:
        service.execute(f"ALTER {level} IN DATABASE {name} SET synchronous_commit = off")
    with contextlib.closing(open_database(url)) as database:
        assert database.read(lambda execute: execute("SHOW synchronous_commit")) == [("on",)]


@only_sqlite
def test_a_file_that_another_program_took_out_of_wal_mode_is_put_back(desks: Service) -> None:
    desks.database.close()
    with contextlib.closing(sqlite3.connect(desks.url.removeprefix("sqlite:///"))) as other:
        assert other.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    assert desks.patch(1, '{"price": 1}').status_code == 200
    assert desks.database.read(lambda execute: execute("PRAGMA journal_mode")) == [("wal",)]


@pytest.mark.slow
def test_of_many_clients_of_a_killed_server_none_has_lost_an_acknowledged_change(tmp_path: Path) -> None:
    acknowledged = dict.fromkeys(range(1, 7), 1)  # the version of each client's own product

    def sell(base: str, id: int, busy: threading.Semaphore) -> None:
        with contextlib.suppress(requests.ConnectionError), requests.Session() as session:
            while (answer := session.patch(f"{base}/products/{id}", json={"price": id}, timeout=10)).ok:
                acknowledged[id] = answer.json()["version"]
                busy.release()

    for _ in range(3):
        busy = threading.Semaphore(0)
        with running(cwd=tmp_path, env={"RATE_LIMIT": "0"}) as (base, process), ThreadPoolExecutor(6) as pool:
            clients = [pool.submit(sell, base, id, busy) for id in acknowledged]
            for _ in range(60):
                assert busy.acquire(timeout=20)
            process.kill()
            for client in clients:
                client.result(20)
        with contextlib.closing(sqlite3.connect(tmp_path / "inventory.db")) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            database.execute("INSERT INTO products_trigrams (products_trigrams, rank) VALUES ('integrity-check', 1)")
            found = dict(database.execute("SELECT id, version FROM products WHERE id <= 6").fetchall())
        for id, version in acknowledged.items():
            assert found[id] in (version, version + 1)  # one may have been committed but not answered
        acknowledged = found


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_what_was_acknowledged_before_a_kill_is_there_once_and_a_load_whole_or_not_at_all(engine: str) -> None:
    with api_crash.new_database(engine) as database:
        outcome = api_crash.run(database, kills=3)
    assert not outcome.wrong, outcome
    assert outcome.acknowledged
