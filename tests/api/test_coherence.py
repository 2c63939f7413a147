"""What others change, in whatever way, is seen by a process that has it cached: at once, or (PostgreSQL) soon."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import falcon.testing
import psycopg
import pytest
import requests

import inventory_api
from bench.coherence import SCENARIOS, Scenario, broken, report, run
from inventory_api import MAX_HEARD, DatabaseUnavailable, Representation, SQLiteDatabase, TTLCache, open_database
from tests.api.conftest import FakeClock, Service, running
from tests.conftest import new_database, new_server

only_sqlite = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
only_postgres = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)

READS = [
    ("/products/1", ""),
    ("/products/2", ""),
    ("/products/4", ""),  # is not there
    ("/products/9", ""),  # neither
    ("/products", "sort=price"),
    ("/products", "limit=2&include_total=true"),
    ("/products/search", "name=oak"),
    ("/products/search", "min_price=1&sort=-name"),
]
LISTENERS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'"


def eventually(holds: Callable[[], bool], seconds: float = 5) -> None:
    """Return once it holds. Notifications take milliseconds; a busy machine is given more."""
    expires = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < expires, "it does not come true"
        time.sleep(0.002)


@pytest.fixture
def follower(desks: Service) -> Service:
    """The service with three products, told of what others change."""
    desks.database.listen()
    eventually(lambda: desks.database.listening in (None, True))
    desks.get("/products/3")
    return desks


@pytest.fixture
def truth(follower: Service) -> Iterator[Service]:
    """Another process of the service, which caches nothing."""
    with contextlib.closing(open_database(follower.url)) as database:
        service = Service(follower.url, database, FakeClock())
        service.restart(cache_size=0)
        yield service


def warm(service: Service) -> None:
    for _ in range(2):
        answers = {service.get(path, query).headers["X-Cache"] for path, query in READS}
    assert answers == {"HIT"}


def tells(service: Service) -> list[tuple[int, Any]]:
    """What the routes answer, but for what is different in each problem."""
    answers = [service.get(path, query) for path, query in READS]
    return [(answer.status_code, answer.json if answer.status_code == 200 else None) for answer in answers]


def assert_seen(follower: Service, truth: Service) -> None:
    """The follower tells what is true now: on SQLite with the first answer."""
    expected = tells(truth)
    if follower.database.dialect == "sqlite":
        assert tells(follower) == expected
    else:
        eventually(lambda: tells(follower) == expected)


# ---------------------------------------------------------------- what others change

INSERT = "INSERT INTO products (name, price_cents, stock_level) VALUES ('New oak', 1, 1)"
CHANGES = {
    "an insert": INSERT,
    "an update": "UPDATE products SET stock_level = stock_level + 1 WHERE id = 1",
    "a new name": "UPDATE products SET name = 'Teak desk' WHERE id = 1",
    "a delete": "DELETE FROM products WHERE id = 1",
    "a delete of all": "DELETE FROM products",
    "a new id": "UPDATE products SET id = 9 WHERE id = 1",
    "an upsert": INSERT.replace("(name", "(id, name").replace("('", "(1, '")
    + " ON CONFLICT (id) DO UPDATE SET stock_level = 7",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_another_program_does_is_seen(follower: Service, truth: Service, change: str) -> None:
    warm(follower)
    before = tells(truth)
    follower.execute(CHANGES[change])
    assert tells(truth) != before
    assert_seen(follower, truth)


def test_a_swap_of_ids_is_seen(follower: Service, truth: Service) -> None:
    warm(follower)

    def swap(execute: Any) -> None:
        for old, new in ((1, 9), (2, 1), (9, 2)):
            execute(f"UPDATE products SET id = {new} WHERE id = {old}")

    truth.database.write(swap)
    assert_seen(follower, truth)


def test_a_load_is_seen(follower: Service, truth: Service) -> None:
    warm(follower)
    truth.load("id,name,price,stock_level", ["2,Oak,3.00,4", "9,Oak,0.50,1"])
    assert_seen(follower, truth)


@only_postgres
def test_a_truncate_is_seen(follower: Service, truth: Service) -> None:
    warm(follower)
    follower.execute("TRUNCATE products")
    assert_seen(follower, truth)


@only_postgres
@pytest.mark.parametrize("count", [99, 100, 101, 5000])
def test_one_statement_over_many_rows_is_seen(follower: Service, truth: Service, count: int) -> None:
    """The ids of a hundred fit into one notification; of more it says that there are more."""
    ids = f"generate_series({2**62}, {2**62 + count - 1}) AS i"
    follower.execute(
        f"INSERT INTO products (id, name, price_cents, stock_level) SELECT i, 'Oak', i % 100, 0 FROM {ids}"
    )
    follower.execute("UPDATE products SET stock_level = 5 WHERE id > 10 OR id = 1")
    assert_seen(follower, truth)


@only_sqlite
@pytest.mark.parametrize("count", [1, 999, 1001, 2500])
def test_many_changes_between_two_looks_are_seen(follower: Service, truth: Service, count: int) -> None:
    """The log keeps the last thousand; who looks after more finds that its place is gone."""
    warm(follower)

    def change(execute: Any) -> None:
        execute("UPDATE products SET stock_level = 77 WHERE id = 1")
        for _ in range(count):
            execute("UPDATE products SET stock_level = stock_level + 1 WHERE id = 2")

    truth.database.write(change)
    assert_seen(follower, truth)
    assert truth.execute("SELECT count(*) FROM product_changes")[0][0] <= 2000


@only_sqlite
def test_changes_past_a_lost_log_are_seen(follower: Service, truth: Service) -> None:
    warm(follower)
    for _ in range(3):
        follower.execute("DELETE FROM product_changes")
        follower.execute(CHANGES["an update"])
        assert_seen(follower, truth)


@only_sqlite
@pytest.mark.parametrize("more", [0, 1, 5])
def test_an_older_copy_restored_onto_the_live_file_is_seen(
    follower: Service, truth: Service, tmp_path: Path, more: int
) -> None:
    """Even if as many changes of the same product follow as were taken back: the log then looks as it did."""
    sell = "UPDATE products SET stock_level = stock_level - 1, version = version + 1, updated_at = CURRENT_TIMESTAMP"
    path = follower.url.removeprefix("sqlite:///")
    with (
        contextlib.closing(sqlite3.connect(path)) as live,
        contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as copy,
    ):
        live.backup(copy)
        follower.execute(f"{sell} WHERE id = 2 AND stock_level > 5 OR id = 1")
        follower.execute(f"{sell} WHERE id = 1")
        warm(follower)
        copy.backup(live)
    assert_seen(follower, truth)
    warm(follower)


@only_sqlite
def test_changes_after_a_restore_do_not_pass_for_those_it_took_back(
    follower: Service, truth: Service, tmp_path: Path
) -> None:
    """The log is then as long as it was, and ends with the same product."""
    sell = "UPDATE products SET {}, version = version + 1, updated_at = CURRENT_TIMESTAMP WHERE id = {}"
    path = follower.url.removeprefix("sqlite:///")
    with (
        contextlib.closing(sqlite3.connect(path)) as live,
        contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as copy,
    ):
        live.backup(copy)
        follower.execute(sell.format("price_cents = 1", 2))
        follower.execute(sell.format("price_cents = 1", 1))
        warm(follower)
        copy.backup(live)
    follower.execute(sell.format("price_cents = 3", 1))
    follower.execute(sell.format("price_cents = 4", 1))
    assert_seen(follower, truth)


@only_sqlite
@pytest.mark.parametrize("statement", ["VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)", "REINDEX", "ANALYZE"])
def test_housekeeping_by_another_program_hides_no_change(follower: Service, truth: Service, statement: str) -> None:
    warm(follower)
    with contextlib.closing(sqlite3.connect(follower.url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute(statement).fetchall()
        assert follower.get("/products/2").headers["X-Cache"] == "HIT"
        other.execute(CHANGES["an update"])
        other.execute(statement).fetchall()
        assert_seen(follower, truth)


def test_what_is_rolled_back_takes_nothing_from_the_cache(follower: Service, truth: Service) -> None:
    warm(follower)

    def fails(execute: Any) -> None:
        execute(CHANGES["a delete of all"])
        raise RuntimeError

    with pytest.raises(RuntimeError):
        truth.database.write(fails)
    assert follower.get("/products", "sort=price").headers["X-Cache"] == "HIT"
    follower.execute(CHANGES["an insert"])  # to be heard of after whatever had been told before
    assert_seen(follower, truth)
    assert follower.get("/products/1").headers["X-Cache"] == "HIT"


def test_a_change_of_one_product_leaves_the_others_cached(follower: Service) -> None:
    warm(follower)
    follower.execute(CHANGES["an update"])
    eventually(lambda: follower.get("/products", "sort=price").headers["X-Cache"] == "MISS")
    assert follower.get("/products/1").json["version"] == 2
    assert follower.get("/products/2").headers["X-Cache"] == "HIT"


@only_sqlite
def test_changes_of_other_tables_in_the_file_leave_the_cache_alone(follower: Service) -> None:
    warm(follower)
    follower.execute("CREATE TABLE notes (text TEXT)")
    follower.execute("INSERT INTO notes VALUES ('x')")
    assert follower.get("/products/1").headers["X-Cache"] == "HIT"
    assert follower.get("/products", "sort=price").headers["X-Cache"] == "HIT"


# ---------------------------------------------------------------- two processes, step by step


@contextlib.contextmanager
def slow_read(service: Service, path: str, query: str = "") -> Iterator[Callable[[], falcon.testing.Result]]:
    """A reader that has selected its rows, and waits with them until it is called, for its answer."""
    selected, go_on, read = threading.Event(), threading.Event(), service.database.read

    def paused(work: Callable[[Any], Any]) -> Any:
        setattr(service.database, "read", read)  # noqa: B010
        rows = read(work)
        selected.set()
        assert go_on.wait(20)
        return rows

    setattr(service.database, "read", paused)  # noqa: B010
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(service.get, path, query)
        assert selected.wait(20)

        def end() -> falcon.testing.Result:
            go_on.set()
            return reader.result(20)

        try:
            yield end
        finally:
            go_on.set()


def test_a_slow_reader_in_one_process_never_keeps_what_another_process_changed(
    follower: Service, truth: Service
) -> None:
    with slow_read(follower, "/products", "sort=price") as end:
        assert truth.patch(1, '{"price": 1}').status_code == 200
        assert end().json["items"][0]["id"] == 3  # it began before the write
    assert_seen(follower, truth)


def test_a_slow_reader_is_not_kept_if_others_were_told_of_the_change_meanwhile(
    follower: Service, truth: Service
) -> None:
    follower.get("/products", "sort=price")
    with slow_read(follower, "/products/1") as end:
        assert truth.patch(1, '{"price": 1}').status_code == 200
        eventually(lambda: follower.get("/products", "sort=price").json["items"][0]["id"] == 1)
        assert end().json["version"] == 1
    assert follower.get("/products/1").json["version"] == 2


def test_no_reader_joins_one_that_selected_before_another_process_wrote(follower: Service, truth: Service) -> None:
    with slow_read(follower, "/products/1") as end:
        assert truth.patch(1, '{"price": 1}').status_code == 200
        if follower.database.listening:
            eventually(follower.database.has_news)
        assert follower.get("/products/1").json["version"] == 2
        assert end().json["version"] == 1
    assert follower.get("/products/1").json["version"] == 2


@only_sqlite
def test_a_write_is_seen_elsewhere_before_its_own_process_has_forgotten_the_old(
    follower: Service, truth: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between COMMIT and invalidation: readers of both processes are told by the database itself."""
    warm(follower)
    seen = []
    write = follower.database.write

    def paused(work: Callable[[Any], Any]) -> Any:
        result = write(work)
        with ThreadPoolExecutor(1) as pool:
            seen.append(pool.submit(follower.get, "/products/1").result().json["version"])
        seen.append(truth.get("/products/1").json["version"])
        return result

    monkeypatch.setattr(follower.database, "write", paused)
    follower.patch(1, '{"price": 1}')
    assert seen == [2, 2]


def held(cache: TTLCache) -> bytes | None:
    found = cache.get("key")
    return found.representation.body if found and found.representation else None


NEW, OLD = Representation(b"new", '"2"'), Representation(b"old", '"1"')


def test_what_a_fresh_read_has_shown_is_not_taken_back_by_what_was_there() -> None:
    cache = TTLCache(10, 30)
    cache.load("key", lambda: OLD)

    def overtaken_by_a_change() -> Representation:
        cache.invalidate("another key")
        return NEW

    assert cache.load("key", overtaken_by_a_change, join=False).representation == NEW
    assert held(cache) != b"old"


def test_a_load_that_fails_takes_nothing_from_the_cache() -> None:
    cache = TTLCache(10, 30)
    cache.load("key", lambda: OLD)

    def away() -> Representation:
        raise DatabaseUnavailable("away")

    with pytest.raises(DatabaseUnavailable):
        cache.load("key", away, join=False)
    assert held(cache) == b"old"


def test_own_writes_are_seen_at_once_in_every_thread(follower: Service) -> None:
    arrived = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:

        def look(number: int) -> int:
            arrived.wait(20)
            path, query = READS[0] if number % 2 else READS[4]
            document = follower.get(path, query).json
            items = {item["id"]: item["version"] for item in document.get("items", [document])}
            return int(items[1])

        for version in range(1, 30):
            assert list(pool.map(look, range(4))) == [version] * 4
            assert follower.patch(1, '{"stock_delta": 1}').json["version"] == version + 1


# ---------------------------------------------------------------- looking at SQLite's file


@only_sqlite
def test_a_thread_that_has_read_nothing_for_long_can_still_look(follower: Service) -> None:
    """Its deadline was that of a request long past; thousands of looks at one statement add up to many steps."""
    clock = FakeClock()
    follower.database._timer = clock
    follower.get("/products/1", Cache_Control="no-cache")
    clock.tick(60)
    assert not any(follower.database.has_news() for _ in range(10_000))


@only_sqlite
def test_a_look_that_fails_is_made_again(follower: Service, truth: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    warm(follower)
    follower.execute(CHANGES["an update"])
    broken_connection = sqlite3.connect(":memory:", check_same_thread=False)
    broken_connection.set_progress_handler(lambda: True, 1)
    database = follower.database
    assert isinstance(database, SQLiteDatabase)
    database._connections.append(broken_connection)
    database._local.connection = broken_connection
    assert_seen(follower, truth)


@only_sqlite
def test_a_new_database_is_in_wal_mode_before_anyone_is_served(empty_url: str) -> None:
    with contextlib.closing(open_database(empty_url)) as database:
        inventory_api.make_schema(database, with_samples=False)
    with contextlib.closing(sqlite3.connect(empty_url.removeprefix("sqlite:///"))) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@only_sqlite
def test_a_file_out_of_wal_mode_that_is_being_written_to_is_read_all_the_same(follower: Service) -> None:
    follower.database.close()
    path = follower.url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN IMMEDIATE")
        other.execute(CHANGES["an update"])
        assert follower.get("/products/1").json["version"] == 1
        other.execute("COMMIT")
        assert follower.get("/products/1").json["version"] == 2


# ---------------------------------------------------------------- listening to PostgreSQL


@only_postgres
def test_a_listener_that_was_cut_off_comes_back_and_forgets_everything(
    follower: Service, truth: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm(follower)
    cut_off, go_on = threading.Event(), threading.Event()

    def wait_for_it(low: float, high: float) -> float:
        cut_off.set()
        assert go_on.wait(20)
        return 0.0

    monkeypatch.setattr(random, "uniform", wait_for_it)
    follower.execute(f"SELECT pg_terminate_backend(pid) FROM ({LISTENERS}) AS listeners")
    assert cut_off.wait(20)
    assert not follower.database.listening
    follower.execute(CHANGES["an update"])  # nobody hears of it
    assert follower.get("/products/1").json["version"] == 1
    go_on.set()
    eventually(lambda: bool(follower.database.listening))
    assert tells(follower) == tells(truth)
    follower.execute(CHANGES["an update"])
    assert_seen(follower, truth)


@only_postgres
@pytest.mark.parametrize("payload", ["hello", "1,", "1,2,x", "-", "١", "1e3", "9" * 5000])
def test_a_notification_that_is_none_of_ours_harms_nothing(follower: Service, truth: Service, payload: str) -> None:
    warm(follower)
    follower.execute(f"SELECT pg_notify('inventory_products', '{payload}')")
    follower.execute(CHANGES["an update"])
    eventually(follower.database.has_news)
    assert_seen(follower, truth)


@only_postgres
def test_news_that_nobody_reads_do_not_pile_up(follower: Service, truth: Service) -> None:
    warm(follower)
    many = f"generate_series(10, {10 + 3 * MAX_HEARD}) AS n"
    follower.execute(f"SELECT count(pg_notify('inventory_products', n::text)) FROM {many}")
    follower.execute(CHANGES["an update"])
    assert_seen(follower, truth)
    assert len(getattr(follower.database, "_heard")) <= MAX_HEARD  # noqa: B009


@only_postgres
def test_a_notification_that_cannot_be_decoded_does_not_end_the_listener(desks: Service) -> None:
    with contextlib.closing(open_database(f"{desks.url}&client_encoding=SQL_ASCII")) as database:
        service = Service(desks.url, database, FakeClock())
        database.listen()
        eventually(lambda: bool(database.listening))
        service.get("/products/1")
        desks.execute("NOTIFY inventory_products, '١'")
        desks.execute(CHANGES["an update"])
        eventually(lambda: bool(service.get("/products/1").json["version"] == 2))
        desks.execute(CHANGES["an update"])
        eventually(lambda: bool(service.get("/products/1").json["version"] == 3))


@pytest.mark.slow
def test_a_server_that_crashed_and_came_back_is_listened_to_again() -> None:
    with new_server() as server, contextlib.closing(open_database(server.url)) as database:
        inventory_api.make_schema(database, with_samples=True)
        service = Service(server.url, database, FakeClock())
        database.listen()
        eventually(lambda: bool(database.listening))
        service.get("/products/1")
        assert service.get("/products/1").headers["X-Cache"] == "HIT"
        server.crash()
        eventually(lambda: not database.listening)
        assert service.get("/products/1").headers["X-Cache"] == "HIT"
        assert service.get("/products/2").status_code == 503
        server.start()
        service.execute(CHANGES["an update"])
        eventually(lambda: bool(service.get("/products/1").json["version"] == 2), seconds=20)
        service.execute(CHANGES["an update"])
        eventually(lambda: bool(service.get("/products/1").json["version"] == 3))


@pytest.fixture
def two_schemas(postgres_server: str) -> Iterator[tuple[str, str]]:
    """The URLs of two schemas in one database, each to have its own inventory."""
    with new_database(postgres_server) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA a")
            connection.execute("CREATE SCHEMA b")
            connection.execute("CREATE EXTENSION pg_trgm")
        yield f"{url}&options=-csearch_path%3Da,public", f"{url}&options=-csearch_path%3Db,public"


def test_two_inventories_in_two_schemas_of_one_database_are_two(two_schemas: tuple[str, str]) -> None:
    with contextlib.ExitStack() as stack:
        services = []
        for url in two_schemas:
            database = stack.enter_context(contextlib.closing(open_database(url)))
            inventory_api.make_schema(database, with_samples=False)
            database.listen()
            services.append(Service(url, database, FakeClock()))
        a, b = services
        a.add(("Oak a", "1", 1))
        b.add(("Oak b", "1", 1))
        eventually(lambda: bool(a.database.listening and b.database.listening))
        assert [service.get("/products/1").json["name"] for service in services] == ["Oak a", "Oak b"]
        a.execute(CHANGES["an update"])
        eventually(lambda: a.get("/products/1").json["version"] == 2)
        assert b.get("/products/1").json["version"] == 1


@pytest.mark.slow
@only_postgres
@pytest.mark.parametrize("sync", ["notify", "ttl"])
def test_who_cannot_listen_need_not(url: str, tmp_path: Path, sync: str) -> None:
    def sessions() -> list[Any]:
        with psycopg.connect(url) as connection:
            return connection.execute(LISTENERS.encode()).fetchall()

    env = {"DATABASE_URL": url, "CACHE_SYNC": sync}
    with running(cwd=tmp_path, env=env) as (base, _):
        assert requests.get(f"{base}/products", timeout=5).status_code == 200
        assert requests.get(f"{base}/readyz", timeout=5).status_code == 200
        if sync == "notify":
            eventually(lambda: len(sessions()) == 1)
            eventually(
                lambda: 'inventory_listener_up{process="1"} 1' in requests.get(f"{base}/metrics", timeout=5).text
            )
        else:
            assert sessions() == []


# ---------------------------------------------------------------- real processes, all at once


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_no_read_of_two_processes_is_later_than_is_promised(
    scenario: Scenario, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    sqlite = scenario.engine == "sqlite"
    url = f"sqlite:///{tmp_path}/inventory.db" if sqlite else request.getfixturevalue("postgres_url")
    judge = run(scenario, url, writes=300, seconds=20)
    assert not broken(scenario, judge), report(scenario, judge, 0)
    assert min(judge.reads.values()) > 50
