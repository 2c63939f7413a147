"""Readers and writers of one process at the same time, step by step and in crowds, on both engines."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import falcon.testing
import pytest

from inventory_api import DatabaseUnavailable
from tests.api.conftest import Service, until

READS = [("/products/1", ""), ("/products", "sort=price"), ("/products/search", "name=oak")]
reads = pytest.mark.parametrize(("path", "query"), READS)


def versions(answer: falcon.testing.Result) -> dict[int, int]:
    """The version of each product that a product's or a page's document shows."""
    return {item["id"]: item["version"] for item in answer.json.get("items", [answer.json])}


class SlowReads:
    """Reads that have their rows, and wait for a sign before they are put into the cache."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self.service = service
        self.count = 0
        self.paused = True
        self._go_on = threading.Event()
        self._selected = threading.Semaphore(0)
        self._pool = ThreadPoolExecutor(16)
        self._read = service.database.read
        monkeypatch.setattr(service.database, "read", self._slow)

    def _slow(self, work: Callable[[Any], Any]) -> Any:
        paused, self.count = self.paused, self.count + 1
        rows = self._read(work)
        if paused:
            self._selected.release()
            assert self._go_on.wait(20)
        return rows

    def begin(self, path: str, query: str = "", **headers: str) -> Future[falcon.testing.Result]:
        """A reader that has selected its rows and goes no further; those that follow are not held up."""
        reader = self._pool.submit(self.service.get, path, query, **headers)
        assert self._selected.acquire(timeout=20)
        self.paused = False
        return reader

    def go_on(self) -> None:
        self._go_on.set()


@reads
def test_a_reader_after_a_write_does_not_join_one_that_selected_before_it(
    desks: Service, monkeypatch: pytest.MonkeyPatch, path: str, query: str
) -> None:
    slow = SlowReads(desks, monkeypatch)
    early = slow.begin(path, query)
    assert desks.patch(1, '{"stock_delta": -1}').json["version"] == 2
    assert versions(desks.get(path, query))[1] == 2  # while the slow one still waits
    slow.go_on()
    assert versions(early.result(20))[1] == 1
    assert versions(desks.get(path, query))[1] == 2


@reads
def test_a_no_cache_reader_does_not_join_one_that_selected_before_another_programs_change(
    desks: Service, monkeypatch: pytest.MonkeyPatch, path: str, query: str
) -> None:
    slow = SlowReads(desks, monkeypatch)
    slow.begin(path, query)
    desks.execute("UPDATE products SET stock_level = 1 WHERE id = 1")
    assert versions(desks.get(path, query, Cache_Control="no-cache"))[1] == 2
    slow.go_on()


@reads
def test_what_a_no_cache_reader_has_seen_is_not_taken_back_by_a_slower_one(
    desks: Service, monkeypatch: pytest.MonkeyPatch, path: str, query: str
) -> None:
    slow = SlowReads(desks, monkeypatch)
    early = slow.begin(path, query)
    desks.execute("UPDATE products SET stock_level = 1 WHERE id = 1")
    assert versions(desks.get(path, query, Cache_Control="no-cache"))[1] == 2
    slow.go_on()
    early.result(20)
    assert versions(desks.get(path, query))[1] == 2


def test_a_page_that_raced_with_a_write_to_a_product_it_does_not_show_is_not_kept(
    desks: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowReads(desks, monkeypatch)
    early = slow.begin("/products", "sort=price&limit=1")  # the café table
    assert desks.patch(1, '{"price": 1}').status_code == 200  # is now the cheapest
    slow.go_on()
    assert list(versions(early.result(20))) == [3]
    assert list(versions(desks.get("/products", "sort=price&limit=1"))) == [1]


def test_a_404_that_raced_with_a_write_is_not_kept(desks: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowReads(desks, monkeypatch)
    early = slow.begin("/products/4")
    desks.execute("INSERT INTO products (name, price_cents, stock_level) VALUES ('new', 1, 1)")
    assert desks.patch(4, '{"price": 2}').status_code == 200
    slow.go_on()
    assert early.result(20).status_code == 404
    assert desks.get("/products/4").json["price"] == "2.00"


@reads
def test_many_who_miss_at_once_make_one_query(
    desks: Service, monkeypatch: pytest.MonkeyPatch, path: str, query: str
) -> None:
    slow = SlowReads(desks, monkeypatch)
    first = slow.begin(path, query)
    with ThreadPoolExecutor(5) as pool:
        others = [pool.submit(desks.get, path, query) for _ in range(5)]
        until(lambda: 'cache_misses_total{process="1"} 6\n' in desks.get("/metrics").text)
        slow.go_on()
        texts = {reader.result(20).text for reader in [first, *others]}
    assert (len(texts), slow.count) == (1, 1)


def test_a_read_that_fails_is_not_remembered(desks: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    read = desks.database.read

    def away(work: Callable[[Any], Any]) -> Any:
        monkeypatch.setattr(desks.database, "read", read)
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(desks.database, "read", away)
    assert desks.get("/products/1").status_code == 503
    assert desks.get("/products/1").status_code == 200


def test_a_remembered_404_ends_with_a_no_cache_read(desks: Service) -> None:
    desks.get("/products/4")
    desks.execute("INSERT INTO products (name, price_cents, stock_level) VALUES ('new', 1, 1)")
    if desks.database.dialect == "postgresql":
        assert desks.get("/products/4").status_code == 404  # within the time to live, while nobody listens
    assert desks.get("/products/4", Cache_Control="no-cache").status_code == 200
    assert desks.get("/products/4").status_code == 200


def test_a_remembered_404_ends_with_a_patch_of_what_another_program_inserted(desks: Service) -> None:
    desks.get("/products/4")
    desks.execute("INSERT INTO products (name, price_cents, stock_level) VALUES ('new', 1, 1)")
    assert desks.patch(4, '{"stock_delta": 1}').json["stock_level"] == 2
    assert desks.get("/products/4").json["stock_level"] == 2


@reads
def test_no_cache_reads_the_database_on_every_route(desks: Service, path: str, query: str) -> None:
    desks.get(path, query)
    desks.execute("UPDATE products SET stock_level = 1 WHERE id = 1")
    for _ in range(2):
        fresh = desks.get(path, query, Cache_Control="no-cache")
        assert (versions(fresh)[1], fresh.headers["X-Cache"]) == (2, "MISS")


@reads
def test_a_validator_from_before_a_write_no_longer_holds(desks: Service, path: str, query: str) -> None:
    old = desks.get(path, query).headers["ETag"]
    assert desks.get(path, query, If_None_Match=old).status_code == 304
    desks.patch(1, '{"stock_delta": -1}')
    new = desks.get(path, query, If_None_Match=old)
    assert new.status_code == 200
    assert desks.get(path, query, If_None_Match=new.headers["ETag"]).status_code == 304
    assert desks.request("HEAD", path, query).headers["ETag"] == new.headers["ETag"]


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work(0)` to `work(count - 1)` give, each in its own thread, begun together."""
    start = threading.Barrier(count)

    def one(number: int) -> Any:
        start.wait(20)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_deltas_from_many_threads_add_up(desks: Service) -> None:
    def sell_and_return(number: int) -> list[int]:
        return [desks.patch(2, f'{{"stock_delta": {delta}}}').status_code for delta in (5, -2, 1)]

    assert at_once(8, sell_and_return) == [[200, 200, 200]] * 8
    product = desks.get("/products/2").json
    assert (product["stock_level"], product["version"]) == (8 * 4, 1 + 8 * 3)


def test_no_more_is_sold_than_there_is(desks: Service) -> None:
    def buy(number: int) -> list[int]:
        return [desks.patch(1, '{"stock_delta": -1}').status_code for _ in range(3)]

    sold = Counter(status for statuses in at_once(8, buy) for status in statuses)
    assert sold == {200: 12, 409: 12}
    assert desks.get("/products/1").json["stock_level"] == 0


def test_deltas_and_another_programs_changes_add_up(desks: Service) -> None:
    def change(number: int) -> None:
        for _ in range(5):
            if number % 2:
                desks.execute("UPDATE products SET stock_level = stock_level + 1 WHERE id = 2")
            else:
                assert desks.patch(2, '{"stock_delta": 1}').status_code == 200

    at_once(4, change)
    product = desks.get("/products/2", Cache_Control="no-cache").json
    assert (product["stock_level"], product["version"]) == (20, 21)


def test_every_version_has_exactly_one_winner(desks: Service) -> None:
    def race(number: int) -> list[int]:
        won = []
        while (version := desks.get("/products/1").json["version"]) < 15:
            result = desks.patch(1, json.dumps({"price": number}), If_Match=f'"{version}"')
            assert result.status_code in (200, 412), result.text
            if result.status_code == 200:
                won.append(result.json["version"])
            else:
                assert int(result.headers["ETag"].strip('"')) > version
        return won

    winners = at_once(5, race)
    assert sorted(version for won in winners for version in won) == list(range(2, 16))


def test_no_reader_sees_a_version_go_back_on_any_route(desks: Service) -> None:
    """Each reader keeps to its own route: what it was shown once it is never shown older."""
    acknowledged, lock, writing = dict.fromkeys((1, 2, 3), 1), threading.Lock(), [0, 1]

    def write(number: int) -> None:
        try:
            for turn in range(40):
                id = 1 + (number + turn) % 3
                version = desks.patch(id, f'{{"price": {turn}}}').json["version"]
                with lock:
                    acknowledged[id] = max(acknowledged[id], version)
        finally:
            writing.remove(number)

    def read(number: int) -> None:
        path, query = [*READS, ("/products/2", "")][number % 4]
        seen = dict.fromkeys((1, 2, 3), 0)
        while writing:
            least = {id: max(seen[id], acknowledged[id]) for id in seen}
            for id, version in versions(desks.get(path, query)).items():
                assert version >= least[id], (path, id)
                seen[id] = version

    at_once(7, lambda number: write(number) if number < 2 else read(number))
    stored = dict(desks.execute("SELECT id, version FROM products"))
    assert stored == acknowledged
    assert sum(stored.values()) == 3 + 80
