"""What is promised about reads and writes inside one process."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.api.conftest import Service

READS = [("/products/1", ""), ("/products", "limit=5"), ("/products/search", "name=oak")]


def shown_version(answer: Any) -> int:
    """The version of product 1 in a product or a page."""
    document = answer.json
    return int(document["version"] if "version" in document else document["items"][0]["version"])


def pause_first_read(service: Service, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Events: the next read has its rows but not yet its answer; it may go on."""
    selected, go_on = threading.Event(), threading.Event()
    read = service.database.read

    def paused(work: Callable[[Any], Any]) -> Any:
        monkeypatch.setattr(service.database, "read", read)
        result = read(work)
        selected.set()
        assert go_on.wait(20)
        return result

    monkeypatch.setattr(service.database, "read", paused)
    return selected, go_on


@pytest.mark.parametrize(("path", "query"), READS)
def test_a_slow_reader_never_puts_an_old_row_back(
    desks: Service, monkeypatch: pytest.MonkeyPatch, path: str, query: str
) -> None:
    selected, go_on = pause_first_read(desks, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(desks.get, path, query)
        assert selected.wait(20)
        assert desks.patch(1, '{"stock_delta": -1}').json["version"] == 2
        go_on.set()
        assert shown_version(slow.result()) == 1  # it began before the write: old, and not kept
    assert shown_version(desks.get(path, query)) == 2


@pytest.mark.parametrize(("path", "query"), READS)
def test_after_a_write_no_route_serves_the_older_version(desks: Service, path: str, query: str) -> None:
    for version in range(1, 4):
        for expected in ("MISS", "HIT"):
            answer = desks.get(path, query)
            assert (shown_version(answer), answer.headers["X-Cache"]) == (version, expected)
        desks.patch(1, '{"price": 1}')


def test_a_write_leaves_other_products_cached(desks: Service) -> None:
    desks.get("/products/2")
    desks.patch(1, '{"price": 1}')
    assert desks.get("/products/2").headers["X-Cache"] == "HIT"


def test_a_refused_write_leaves_the_cache_alone(desks: Service) -> None:
    desks.get("/products/1")
    desks.get("/products")
    assert desks.patch(1, '{"stock_delta": -1000}').status_code == 409
    assert desks.patch(1, '{"price": 1}', If_Match='"9"').status_code == 412
    assert desks.get("/products/1").headers["X-Cache"] == "HIT"
    assert desks.get("/products").headers["X-Cache"] == "HIT"


def test_no_cache_reads_the_database_and_refreshes_the_cache(desks: Service) -> None:
    desks.get("/products/1")
    desks.execute("UPDATE products SET stock_level = 5 WHERE id = 1")
    fresh = desks.get("/products/1", Cache_Control="max-age=0, No-Cache")
    assert (fresh.json["stock_level"], fresh.headers["X-Cache"]) == (5, "MISS")
    assert desks.get("/products/1").json["stock_level"] == 5
    assert desks.get("/products/1").headers["X-Cache"] == "HIT"


def test_what_other_programs_change_is_seen_when_the_entry_ends(desks: Service) -> None:
    assert desks.get("/products/4").status_code == 404
    absent = desks.get("/products/4")
    assert (absent.status_code, absent.headers["X-Cache"]) == (404, "HIT")
    desks.execute("INSERT INTO products (name, price_cents, stock_level) VALUES ('new', 1, 1)")
    desks.clock.tick(30)
    assert desks.get("/products/4").json["name"] == "new"


def test_readers_and_writers_at_once_never_see_an_older_version_than_was_acknowledged(desks: Service) -> None:
    desks.load("id,name,price,stock_level", [f"{i},Oak {i},1.00,1000" for i in range(1, 6)])
    acknowledged = {i: desks.get(f"/products/{i}").json["version"] for i in range(1, 6)}
    start = threading.Barrier(8)

    def write(seed: int) -> None:
        lottery = random.Random(seed)
        start.wait()
        for _ in range(40):
            id = lottery.randint(1, 5)
            version = desks.patch(id, '{"stock_delta": -1}').json["version"]
            acknowledged[id] = max(acknowledged[id], version)

    def read(seed: int) -> None:
        lottery = random.Random(seed)
        start.wait()
        for _ in range(120):
            path, query = lottery.choice(
                [("/products", ""), ("/products/search", "name=oak"), (f"/products/{seed % 5 + 1}", "")]
            )
            before = dict(acknowledged)
            document = desks.get(path, query, **({"Cache_Control": "no-cache"} if lottery.random() < 0.1 else {})).json
            for item in document.get("items", [document]):
                assert item["version"] >= before[item["id"]], (path, item, before)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(write, seed) for seed in range(3)] + [pool.submit(read, seed) for seed in range(5)]:
            done.result()
    stock = sum(item["stock_level"] for item in desks.get("/products", Cache_Control="no-cache").json["items"])
    assert stock == 5 * 1000 - 3 * 40  # each sale counted once


def test_of_many_writers_at_one_version_exactly_one_wins(desks: Service) -> None:
    start = threading.Barrier(6)

    def attempt(price: int) -> int:
        start.wait()
        return desks.patch(1, json.dumps({"price": price}), If_Match='"1"').status_code

    with ThreadPoolExecutor(6) as pool:
        statuses = sorted(pool.map(attempt, range(1, 7)))
    assert statuses == [200, 412, 412, 412, 412, 412]
    assert desks.get("/products/1").json["version"] == 2


def test_a_row_that_changed_under_a_refusal_is_tried_again(desks: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The read that follows an UPDATE which hit no row may already see a row that it would have hit."""
    import inventory_api

    seen = []

    def refuse(current: Any, change: Any, versions: Any) -> None:
        seen.append(current.stock_level)
        if len(seen) > 1:
            raise inventory_api.StockOutOfRange("still", current.stock_level)

    monkeypatch.setattr(inventory_api, "refuse", refuse)
    assert desks.patch(2, '{"stock_delta": -1}').status_code == 409
    assert len(seen) == 2
