"""The database refuses, breaks or goes away under the running app: what clients are told, and what goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import falcon.testing
import psycopg
import pytest

from inventory_api import make_schema, open_database
from tests.api.conftest import FakeClock, Service
from tests.conftest import PostgresServer, new_server

only_sqlite = pytest.mark.parametrize("engine", ["sqlite"])
only_postgres = pytest.mark.parametrize("engine", ["postgresql"])

LEAKS = ("sqlite", "psycopg", "postgres", "products (", "select", "update ", "traceback", ".py", "secret", "trigger")


def assert_problem(result: falcon.testing.Result, status: int) -> None:
    """A whole problem document that tells nothing of the database or the code."""
    assert result.status_code == status, result.text
    assert result.headers["Content-Type"] == "application/problem+json"
    assert result.headers["Cache-Control"] == "no-store"
    assert result.json["status"] == status
    assert result.json["request_id"] == result.headers["X-Request-ID"]
    assert not [word for word in LEAKS if word in (result.json["title"] + result.json["detail"]).lower()]
    assert ("Retry-After" in result.headers) == (status == 503)
    if status == 503:
        assert int(result.headers["Retry-After"]) > 0


@pytest.fixture
def hasty(url: str) -> Iterator[Service]:
    """The service with three products and a deadline of half a second."""
    database = open_database(url, deadline=0.5)
    service = Service(url, database, FakeClock())
    service.add(("Oak desk", "129.90", 12), ("Pine desk", "80", 0), ("Café table", "12.50", 7))
    yield service
    database.close()


@contextlib.contextmanager
def another_program(service: Service) -> Iterator[Any]:
    """A connection with its transactions in its own hands, and no patience for locks."""
    if service.database.dialect == "sqlite":
        path = service.url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
            yield connection
    else:
        with psycopg.connect(service.url, autocommit=True, options="-c lock_timeout=100ms") as connection:
            yield connection


def lock_product_1(other: Any, service: Service) -> None:
    other.execute("BEGIN IMMEDIATE" if service.database.dialect == "sqlite" else "BEGIN")
    other.execute("UPDATE products SET stock_level = 5 WHERE id = 1")


# ---------------------------------------------------------------- refused


def forbid(service: Service, how: str) -> None:
    """A rule of another program, by which no price may be 1.00."""
    if service.database.dialect == "sqlite":
        service.execute(
            "CREATE TRIGGER stop BEFORE UPDATE ON products WHEN NEW.price_cents = 100"
            f" BEGIN SELECT RAISE({how}, 'secret rule'); END"
        )
    elif how == "check":
        service.execute("ALTER TABLE products ADD CONSTRAINT secret_rule CHECK (price_cents <> 100)")
    else:
        service.execute(
            "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF NEW.price_cents = 100 THEN RAISE EXCEPTION 'secret rule'; END IF; RETURN NEW; END $$"
        )
        timing = {"raise": "TRIGGER stop BEFORE", "deferred": "CONSTRAINT TRIGGER stop AFTER"}[how]
        late = "DEFERRABLE INITIALLY DEFERRED" if how == "deferred" else ""
        service.execute(f"CREATE {timing} UPDATE ON products {late} FOR EACH ROW EXECUTE FUNCTION stop()")


@pytest.mark.parametrize(
    ("engine", "how"),
    [
        ("sqlite", "ABORT"),
        ("sqlite", "FAIL"),
        ("sqlite", "ROLLBACK"),
        ("postgresql", "check"),
        ("postgresql", "raise"),
        ("postgresql", "deferred"),
    ],
    indirect=["engine"],
)
def test_a_change_that_another_programs_rule_forbids_is_a_500_and_the_next_change_is_made(
    desks: Service, how: str
) -> None:
    forbid(desks, how)
    desks.get("/products/1")
    assert_problem(desks.patch(1, '{"price": 1}'), 500)
    assert desks.get("/products/1").json["version"] == 1
    assert desks.patch(1, '{"price": 2}').json["version"] == 2


def test_no_answer_leaves_a_transaction_open(desks: Service) -> None:
    forbid(desks, "ABORT" if desks.database.dialect == "sqlite" else "raise")
    answers = [
        desks.patch(1, '{"stock_delta": 1}'),
        desks.patch(9, '{"stock_delta": 1}'),
        desks.patch(1, '{"stock_delta": -100}'),
        desks.patch(1, '{"stock_delta": 1}', If_Match='"9"'),
        desks.patch(1, '{"price": 1}'),
        desks.get("/products/1"),
        desks.get("/products/search", "name=desk&include_total=true"),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 409, 412, 500, 200, 200]
    with another_program(desks) as other:
        lock_product_1(other, desks)
        other.execute("COMMIT")
        if desks.database.dialect == "postgresql":
            assert other.execute(
                "SELECT state FROM pg_stat_activity"
                " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchall() == [("idle",)]


@pytest.mark.parametrize("body", ['{"price": 1}', '{"stock_delta": -100}'], ids=["would be made", "would be refused"])
def test_a_database_that_became_read_only_refuses_changes_and_is_still_read(
    desks: Service, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    connect = desks.database._connect

    def read_only() -> Any:
        connection = connect()
        sqlite = desks.database.dialect == "sqlite"
        connection.execute("PRAGMA query_only = ON" if sqlite else "SET default_transaction_read_only = on")
        return connection

    monkeypatch.setattr(desks.database, "_connect", read_only)
    desks.database.close()
    assert_problem(desks.patch(1, body), 503)
    assert desks.get("/products/1").json["version"] == 1
    assert desks.get("/products").status_code == desks.get("/readyz").status_code == 200
    monkeypatch.setattr(desks.database, "_connect", connect)
    desks.database.close()
    assert desks.patch(1, '{"price": 1}').status_code == 200


# ---------------------------------------------------------------- locked and slow


@only_postgres
def test_a_row_that_another_program_holds_is_told_in_time_and_still_read(hasty: Service) -> None:
    with another_program(hasty) as other:
        lock_product_1(other, hasty)
        assert_problem(hasty.patch(1, '{"price": 2}'), 503)
        assert hasty.get("/products/1", Cache_Control="no-cache").json["version"] == 1
        assert hasty.patch(2, '{"price": 2}').status_code == 200
        other.execute("ROLLBACK")
    assert hasty.patch(1, '{"price": 3}').json["version"] == 2


@only_postgres
def test_a_table_that_another_program_holds_is_told_in_time_and_what_is_cached_is_served(hasty: Service) -> None:
    hasty.get("/products/1")
    with another_program(hasty) as other:
        other.execute("BEGIN")
        other.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
        assert_problem(hasty.get("/products/2"), 503)
        assert hasty.get("/products/1").headers["X-Cache"] == "HIT"
        assert hasty.get("/healthz").status_code == 200
        other.execute("COMMIT")
    assert hasty.get("/products/2").status_code == 200


@only_postgres
def test_a_change_that_waits_for_another_program_is_made_upon_what_that_one_committed(desks: Service) -> None:
    with another_program(desks) as other, ThreadPoolExecutor(1) as pool:
        lock_product_1(other, desks)  # sets the stock to 5
        change = pool.submit(desks.patch, 1, '{"stock_delta": -1}')
        await_lock_waiter(desks)
        other.execute("COMMIT")
        assert (change.result(20).json["stock_level"], change.result().json["version"]) == (4, 3)


@only_postgres
def test_if_match_holds_for_the_row_as_it_is_when_its_lock_is_given(desks: Service) -> None:
    with another_program(desks) as other, ThreadPoolExecutor(1) as pool:
        lock_product_1(other, desks)
        change = pool.submit(desks.patch, 1, '{"price": 1}', If_Match='"1"')
        await_lock_waiter(desks)
        other.execute("COMMIT")
        assert (change.result(20).status_code, change.result().headers["ETag"]) == (412, '"2"')


def await_lock_waiter(service: Service) -> int:
    """The process id of the one that waits for a lock in this database, once there is one."""
    waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    deadline = time.monotonic() + 10
    while not (found := service.execute(waiting)):
        assert time.monotonic() < deadline
    return int(found[0][0])


def test_a_page_slower_than_the_deadline_is_told_and_the_next_is_served(hasty: Service) -> None:
    execute, endless = (
        hasty.database._executor,
        {
            "postgresql": "SELECT pg_sleep(60)",
            "sqlite": "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        },
    )
    patch = pytest.MonkeyPatch()
    patch.setattr(
        hasty.database,
        "_executor",
        lambda connection: lambda sql, **values: execute(connection)(endless[hasty.database.dialect]),
    )
    began = time.monotonic()
    for path, query in (("/products", ""), ("/products/search", "name=oak"), ("/readyz", "")):
        assert_problem(hasty.get(path, query), 503)
    assert time.monotonic() - began < 6
    patch.undo()
    assert hasty.get("/products").status_code == 200


@pytest.mark.slow
@only_sqlite
def test_a_lock_that_another_program_keeps_is_told_within_10_s_while_reads_go_on(desks: Service) -> None:
    with another_program(desks) as other, ThreadPoolExecutor(3) as pool:
        lock_product_1(other, desks)
        began = time.monotonic()
        writers = [pool.submit(desks.patch, id, '{"price": 2}') for id in (1, 2, 3)]
        for _ in range(20):
            assert desks.get("/products/1", Cache_Control="no-cache").json["version"] == 1
        assert desks.get("/products", Cache_Control="no-cache").status_code == desks.get("/readyz").status_code == 200
        for writer in writers:
            assert_problem(writer.result(20), 503)
        assert time.monotonic() - began < 10
        other.execute("ROLLBACK")
    assert desks.patch(1, '{"price": 2}').json["version"] == 2


# ---------------------------------------------------------------- lost in mid-way


@only_postgres
def test_a_change_whose_connection_is_lost_while_it_waits_is_made_once(desks: Service) -> None:
    with another_program(desks) as other, ThreadPoolExecutor(1) as pool:
        lock_product_1(other, desks)  # sets the stock to 5
        change = pool.submit(desks.patch, 1, '{"stock_delta": -1}')
        other.execute("SELECT pg_terminate_backend(%s)", (await_lock_waiter(desks),))
        other.execute("COMMIT")
        assert change.result(20).json["stock_level"] == 4
    assert desks.get("/products/1").json["version"] == 3


@only_postgres
def test_a_connection_lost_at_commit_is_a_503_that_repeats_nothing_and_forgets_what_was_cached(desks: Service) -> None:
    desks.execute("CREATE SEQUENCE commits")
    desks.execute(
        "CREATE FUNCTION end_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM nextval('commits'), pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
    )
    desks.execute(
        "CREATE CONSTRAINT TRIGGER end_it AFTER UPDATE ON products DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION end_it()"
    )
    for path in ("/products/1", "/products"):
        desks.get(path)
    assert_problem(desks.patch(1, '{"stock_delta": -1}'), 503)
    assert desks.execute("SELECT last_value FROM commits") == [(1,)]
    for path in ("/products/1", "/products"):
        assert desks.get(path).headers["X-Cache"] == "MISS"


@only_postgres
def test_every_threads_lost_connection_is_replaced(desks: Service) -> None:
    arrived = threading.Barrier(4)

    def read(number: int) -> int:
        arrived.wait(20)
        return desks.get("/products/1", Cache_Control="no-cache").status_code

    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            assert list(pool.map(read, range(4))) == [200] * 4
            desks.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert list(pool.map(read, range(4))) == [200] * 4
    assert len(desks.database._connections) == 5  # with this thread's; the lost ones are let go


@only_postgres
def test_close_ends_every_session_at_the_server(desks: Service) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda id: desks.get(f"/products/{id}"), (1, 2, 3)))
    desks.database.close()
    with another_program(desks) as other:
        sessions = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        deadline = time.monotonic() + 10
        while other.execute(sessions).fetchall():
            assert time.monotonic() < deadline


# ---------------------------------------------------------------- away


@only_sqlite
def test_a_file_that_was_moved_away_is_not_made_anew_and_is_served_when_it_is_back(desks: Service) -> None:
    path = Path(desks.url.removeprefix("sqlite:///"))
    desks.get("/products/1")
    desks.database.close()
    path.rename(path.with_suffix(".away"))
    assert desks.get("/products/1").headers["X-Cache"] == "HIT"
    for answer in (desks.get("/products/2"), desks.patch(2, '{"price": 1}'), desks.get("/readyz")):
        assert_problem(answer, 503)
    assert not path.exists()
    path.with_suffix(".away").rename(path)
    assert desks.patch(2, '{"price": 1}').json["version"] == 2
    assert desks.get("/readyz").status_code == 200


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that a test may stop, crash and freeze."""
    with new_server() as server:
        yield server


@pytest.fixture
def stoppable(own_server: PostgresServer) -> Iterator[Service]:
    """The service over that server, with two products."""
    database = open_database(own_server.url)
    make_schema(database, with_samples=False)
    service = Service(own_server.url, database, FakeClock())
    service.add(("Oak desk", "129.90", 0), ("Pine desk", "80", 0))
    yield service
    database.close()
    with psycopg.connect(own_server.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


def assert_away_and_back(service: Service, bring_back: Any) -> None:
    """With product 1 in the cache and the database away: what is answered; and that it resumes by itself."""
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        refused = [
            pool.submit(service.get, "/products/2"),
            pool.submit(service.get, "/products"),
            pool.submit(service.patch, 2, '{"price": 1}'),
            pool.submit(service.get, "/readyz"),
        ]
        assert service.get("/products/1").headers["X-Cache"] == "HIT"
        assert service.get("/healthz").status_code == 200
        for answer in refused:
            assert_problem(answer.result(30), 503)
        assert time.monotonic() - began < 10
        service.clock.tick(30)
        assert_problem(service.get("/products/1"), 503)
        bring_back()
        assert service.get("/readyz").status_code == 200
        assert service.get("/products/1").status_code == 200
        assert service.patch(2, '{"stock_delta": 1}').json["stock_level"] == 1


@pytest.mark.slow
def test_while_the_server_is_stopped_the_cache_goes_on_and_all_resumes_when_it_is_back(
    own_server: PostgresServer, stoppable: Service
) -> None:
    stoppable.get("/products/1")
    own_server.crash()
    try:
        assert_away_and_back(stoppable, own_server.start)
    except BaseException:
        with contextlib.suppress(subprocess.CalledProcessError):
            own_server.start()
        raise


@pytest.mark.slow
def test_while_the_server_is_frozen_the_cache_goes_on_and_all_resumes_when_it_thaws(
    own_server: PostgresServer, stoppable: Service
) -> None:
    stoppable.get("/products/1")
    postmaster = int(Path(own_server.data, "postmaster.pid").read_text().split()[0])
    backends = [pid for (pid,) in stoppable.execute("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()")]

    def thaw() -> None:
        for pid in (postmaster, *backends):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    for pid in (postmaster, *backends):
        os.kill(pid, signal.SIGSTOP)
    try:
        assert_away_and_back(stoppable, thaw)
    finally:
        thaw()


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_crash_of_a_server_that_commits_late_by_default(
    own_server: PostgresServer, stoppable: Service
) -> None:
    stoppable.execute("ALTER ROLE postgres SET synchronous_commit = off")
    try:
        stoppable.database.close()  # and begin new sessions
        for _ in range(20):
            stock = stoppable.patch(1, '{"stock_delta": 1}').json["stock_level"]
        own_server.crash()
        own_server.start()
        assert stoppable.get("/products/1").json["stock_level"] == stock == 20
    finally:
        stoppable.execute("ALTER ROLE postgres RESET synchronous_commit")


@pytest.mark.slow
def test_a_full_disk_refuses_changes_is_still_read_and_resumes_when_there_is_room(small_disk: Path) -> None:
    url = f"sqlite:///{small_disk}/inventory.db"
    with contextlib.closing(open_database(url)) as database:
        make_schema(database, with_samples=False)
        service = Service(url, database, FakeClock())
        service.add(("Oak desk", "129.90", 0))
        ballast = small_disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"x" * 512):
                pass
        acknowledged = 0
        while (answer := service.patch(1, '{"stock_delta": 1}')).status_code == 200:
            acknowledged += 1
        assert_problem(answer, 503)
        for _ in range(3):
            fresh = service.get("/products/1", Cache_Control="no-cache")
            assert fresh.json["stock_level"] == acknowledged
        assert service.get("/products").status_code == 200
        ballast.unlink()
        assert service.patch(1, '{"stock_delta": 1}').json["stock_level"] == acknowledged + 1
