"""Loads of the cache that run at once: who joins whom, whose result is kept, what a load holds up."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

import inventory_api
from inventory_api import Answer, Representation
from tests.api.conftest import FakeClock
from tests.api.test_cache import Cache, Writers, body, held


class Crowd:
    """Threads that ask one cache; it counts whoever joined or began a load."""

    def __init__(self, size: int = 100, ttl: float = 30) -> None:
        self.writers = Writers()
        self.loads = 0
        self.clock = FakeClock()
        self.cache = Cache(size, ttl, self.clock, self.writers.any, self.writers.take)
        self.pool = ThreadPoolExecutor(16)
        self.release = threading.Event()

    def await_misses(self, count: int) -> None:
        give_up = time.monotonic() + 10
        while self.cache.counts["misses"] < count:
            assert time.monotonic() < give_up
            time.sleep(0.0001)

    def begin(self, key: object, result: Representation | Exception | None, fresh: bool = False) -> Future[Answer]:
        """One more thread that asks; a load that it has to make waits until release is set."""
        release = self.release

        def load() -> Representation | None:
            self.loads += 1
            assert release.wait(10)
            if isinstance(result, Exception):
                raise result
            return result

        before = self.cache.counts["misses"]
        future = self.pool.submit(self.cache.fetch, key, load, fresh=fresh)
        self.await_misses(before + 1)
        return future

    def next_release(self) -> threading.Event:
        """The event of the loads so far; later ones wait for one of their own."""
        release, self.release = self.release, threading.Event()
        return release


def test_all_who_miss_one_key_at_once_share_one_load() -> None:
    crowd = Crowd()
    waiting = [crowd.begin("a", body("1")) for _ in range(12)]
    crowd.release.set()
    assert [future.result(10) for future in waiting] == [Answer(body("1"), cached=False)] * 12
    assert crowd.loads == 1


def test_an_absent_thing_is_looked_up_once_for_all_who_miss_it() -> None:
    crowd = Crowd()
    waiting = [crowd.begin("a", None) for _ in range(6)]
    crowd.release.set()
    assert {future.result(10) for future in waiting} == {Answer(None, cached=False)}
    assert crowd.loads == 1


def test_a_failure_reaches_all_who_wait_and_the_next_one_loads_again() -> None:
    crowd = Crowd()
    waiting = [crowd.begin("a", OSError("away")) for _ in range(6)]
    crowd.release.set()
    assert [str(future.exception(10)) for future in waiting] == ["away"] * 6
    assert crowd.loads == 1
    assert held(crowd.cache, "a") == "loaded"


def test_a_load_holds_up_no_other_key() -> None:
    crowd = Crowd()
    slow = crowd.begin("a", body("1"))
    assert held(crowd.cache, "b") == "loaded"
    assert held(crowd.cache, "b") == "loaded"
    crowd.cache.invalidate("c")
    assert not slow.done()
    crowd.release.set()
    assert slow.result(10).representation == body("1")


def test_a_load_holds_up_no_hit_of_its_own_key() -> None:
    crowd = Crowd()
    crowd.cache.fetch("a", lambda: body("1"))
    slow = crowd.begin("a", body("2"), fresh=True)
    assert held(crowd.cache, "a") == "1"
    crowd.release.set()
    assert slow.result(10).representation == body("2")


def test_no_one_joins_a_load_that_began_before_another_writer_was_at_work() -> None:
    crowd = Crowd()
    slow = crowd.begin("a", body("old"))
    crowd.writers.changed = None
    assert crowd.cache.fetch("a", lambda: body("new")) == Answer(body("new"), cached=False)
    crowd.release.set()
    assert slow.result(10).representation == body("old")
    assert held(crowd.cache, "a") == "new"


def test_those_who_come_after_an_invalidation_share_a_load_of_their_own() -> None:
    crowd = Crowd()
    slow = crowd.begin("a", body("old"))
    first = crowd.next_release()
    crowd.cache.invalidate("a")
    late = [crowd.begin("a", body("new")) for _ in range(5)]
    first.set()
    assert slow.result(10).representation == body("old")
    crowd.release.set()
    assert {future.result(10).representation for future in late} == {body("new")}
    assert crowd.loads == 2
    assert held(crowd.cache, "a") == "new"


def test_no_fresh_read_joins_another_fresh_read() -> None:
    crowd = Crowd()
    waiting = [crowd.begin("a", body(str(i)), fresh=True) for i in range(4)]
    crowd.release.set()
    assert {future.result(10).representation for future in waiting} == {body(str(i)) for i in range(4)}


def test_a_load_that_a_fresh_read_overtook_does_not_put_its_older_result_back() -> None:
    crowd = Crowd()
    slow = crowd.begin("a", body("old"))
    assert crowd.cache.fetch("a", lambda: body("new"), fresh=True).representation == body("new")
    crowd.release.set()
    assert slow.result(10).representation == body("old")
    assert held(crowd.cache, "a") == "new"


def test_a_cache_that_is_off_makes_everyone_load_for_himself() -> None:
    crowd = Crowd(size=0)
    waiting = [crowd.begin("a", body(str(i))) for i in range(4)]
    crowd.release.set()
    assert {future.result(10).representation for future in waiting} == {body(str(i)) for i in range(4)}


def test_another_writer_ends_every_entry_whatever_its_kind() -> None:
    crowd = Crowd()
    crowd.cache.fetch("product", lambda: body("1"))
    crowd.cache.fetch("absent", lambda: None)
    crowd.cache.fetch("page", lambda: body("1"), volatile=True)
    crowd.writers.changed = None
    assert [held(crowd.cache, key) for key in ("product", "absent", "page")] == ["loaded"] * 3


def test_an_invalidation_ends_every_page_and_no_other_product() -> None:
    crowd = Crowd()
    for page in range(3):
        crowd.cache.fetch(("page", page), lambda: body("1"), volatile=True)
    crowd.cache.fetch("product", lambda: body("1"))
    crowd.cache.invalidate("never seen")
    assert [held(crowd.cache, ("page", page)) for page in range(3)] == ["loaded"] * 3
    assert held(crowd.cache, "product") == "1"


def test_what_another_program_inserted_is_found_when_its_absence_has_been_remembered_for_the_time_to_live() -> None:
    crowd = Crowd(ttl=5)
    crowd.cache.fetch("a", lambda: None)
    crowd.clock.tick(4.9)
    assert held(crowd.cache, "a") is None
    crowd.clock.tick(0.1)
    assert held(crowd.cache, "a") == "loaded"


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_scan_of_absent_keys_does_not_crowd_out_what_exists_however_often_it_asks(times: int) -> None:
    crowd = Crowd(size=10)
    for key in range(10):
        crowd.cache.fetch(key, lambda: body("live"))
    for absent in range(1000, 1100):
        for _ in range(times):
            crowd.cache.fetch(absent, lambda: None)
    assert [held(crowd.cache, key) for key in range(1, 10)] == ["live"] * 9


def test_absent_keys_are_remembered_up_to_the_size() -> None:
    crowd = Crowd(size=10)
    for absent in range(100):
        crowd.cache.fetch(absent, lambda: None)
    assert sum(crowd.cache.fetch(absent, lambda: None).cached for absent in range(100)) <= 10


def test_entries_are_never_more_than_the_size() -> None:
    crowd = Crowd(size=10)
    for key in range(100):
        crowd.cache.fetch(key, lambda: body("live"), volatile=key % 2 == 0)
    hits = [key for key in range(100) if crowd.cache.fetch(key, lambda: body("live"), fresh=False).cached]
    assert len(hits) <= 10


def test_a_long_key_counts_as_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_api, "CACHE_BYTES", 100_000)
    crowd = Crowd(size=1000)
    for number in range(20):
        crowd.cache.fetch(f"{number}" + "x" * 20_000, lambda: body("small"))
    assert held(crowd.cache, "0" + "x" * 20_000) == "loaded"
