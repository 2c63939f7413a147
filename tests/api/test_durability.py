"""What was acknowledged is there after the worst, and each thread's connection is set to see to it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import falcon.testing
import pytest
import requests

import inventory_api
from bench import api_crash
from inventory_api import DatabaseUnavailable, Execute, Turn, in_turn, open_database
from tests.api.conftest import Service, running, until

only_sqlite = pytest.mark.parametrize("engine", ["sqlite"])
only_postgres = pytest.mark.parametrize("engine", ["postgresql"])

Patches = Callable[..., list[falcon.testing.Result]]
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


@pytest.fixture
def together(desks: Service, monkeypatch: pytest.MonkeyPatch) -> Patches:
    """Has many clients send a PATCH while another program keeps SQLite's lock, so that all but one wait for one."""
    batches = []

    def write(turns: list[Turn]) -> Callable[[Execute], list[Any]]:
        batches.append(len(turns))
        return in_turn(turns)

    def patch_all(*patches: tuple[int, str]) -> list[falcon.testing.Result]:
        with contextlib.closing(sqlite3.connect(desks.url.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with ThreadPoolExecutor(len(patches)) as pool:
                waiting = [pool.submit(desks.patch, id, body) for id, body in patches]
                until(lambda: len(desks.database._turns) == len(patches))  # type: ignore[attr-defined]
                other.execute("COMMIT")
                answers = [answer.result(20) for answer in waiting]
        assert batches == [len(patches) - 1]
        return answers

    monkeypatch.setattr(inventory_api, "in_turn", write)
    return patch_all


@only_sqlite
def test_changes_that_wait_for_each_other_share_a_transaction(desks: Service, together: Patches) -> None:
    answers = together(*[(1, '{"stock_delta": -2}')] * 6)
    assert sorted((answer.json["version"], answer.json["stock_level"]) for answer in answers) == [
        (version, 14 - 2 * version) for version in range(2, 8)
    ]
    assert desks.get("/products/1").json["stock_level"] == 0


@only_sqlite
def test_a_refusal_undoes_none_of_the_changes_it_waited_with(desks: Service, together: Patches) -> None:
    answers = together(
        *[(2, '{"price": 1}'), (1, '{"stock_delta": -20}'), (9, '{"price": 1}'), (3, '{"price": 1}')] * 2
    )
    assert Counter(answer.status_code for answer in answers) == {200: 4, 409: 2, 404: 2}
    found = desks.get("/products").json["items"]
    assert [(item["version"], item["price"]) for item in found] == [(1, "129.90"), (3, "1.00"), (3, "1.00")]


@only_sqlite
@pytest.mark.parametrize("how", ["ABORT", "ROLLBACK"])
def test_an_error_spoils_no_change_but_its_own(desks: Service, together: Patches, how: str) -> None:
    rule = f"BEFORE UPDATE ON products WHEN NEW.id = 2 BEGIN SELECT RAISE({how}, 'a rule of another program'); END"
    desks.execute(f"CREATE TRIGGER rule {rule}")
    answers = together(*[(1, '{"price": 1}'), (2, '{"price": 1}'), (3, '{"price": 1}')] * 2)
    assert [answer.status_code for answer in answers] == [200, 500, 200] * 2
    assert [item["version"] for item in desks.get("/products").json["items"]] == [3, 1, 3]


@only_sqlite
def test_what_shares_a_commit_that_fails_is_not_tried_again(
    desks: Service, together: Patches, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = inventory_api.Database.write

    def commit_unanswered(database: inventory_api.Database, work: Callable[[Execute], Any]) -> Any:
        result = write(database, work)
        if isinstance(result, list):
            raise DatabaseUnavailable("the change was not confirmed")
        return result

    monkeypatch.setattr(inventory_api.Database, "write", commit_unanswered)
    answers = together(*[(1, '{"stock_delta": -1}')] * 3)
    assert Counter(answer.status_code for answer in answers) == {200: 1, 503: 2}
    assert desks.get("/products/1").json["stock_level"] == 12 - 3


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
