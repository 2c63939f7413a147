"""The cache by itself: time to live, order, bounds, leases, single flight."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import inventory_api
from inventory_api import Answer, Loader, Representation, TTLCache
from tests.api.conftest import FakeClock


def body(text: str) -> Representation:
    return Representation(text.encode(), f'"{text}"')


def give(text: str | None) -> Callable[[], Representation | None]:
    return lambda: None if text is None else body(text)


class Cache(TTLCache):
    def fetch(self, key: object, load: Loader, volatile: bool = False, fresh: bool = False) -> Answer:
        """A read as the inventory makes it."""
        answer = None if fresh else self.get(key)
        return answer or self.load(key, load, volatile, join=not fresh)


def held(cache: Cache, key: object) -> str | None:
    """What the cache answers by itself; «loaded» where it has to load."""
    found = cache.fetch(key, give("loaded"))
    return found.representation and found.representation.body.decode()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cache(clock: FakeClock) -> Cache:
    return Cache(3, 30, clock)


def test_a_second_read_is_a_hit(cache: Cache) -> None:
    assert cache.fetch("a", give("1")) == (body("1"), False)
    assert cache.fetch("a", give("2")) == (body("1"), True)


def test_an_entry_ends_with_its_time_to_live(cache: Cache, clock: FakeClock) -> None:
    cache.fetch("a", give("1"))
    clock.tick(29.9)
    assert held(cache, "a") == "1"
    clock.tick(0.1)
    assert held(cache, "a") == "loaded"


def test_a_hit_does_not_lengthen_the_time_to_live(cache: Cache, clock: FakeClock) -> None:
    cache.fetch("a", give("1"))
    for _ in range(3):
        clock.tick(10)
        last = held(cache, "a")
    assert last == "loaded"


def test_the_least_recently_used_goes_first(cache: Cache) -> None:
    for key in "abc":
        cache.fetch(key, give(key))
    held(cache, "a")
    cache.fetch("d", give("d"))
    assert [held(cache, key) for key in "acd"] == ["a", "c", "d"]
    assert held(cache, "b") == "loaded"


def test_bytes_are_bounded_too(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    monkeypatch.setattr(inventory_api, "CACHE_BYTES", 20_000)
    cache = Cache(1000, 30, clock)
    for key in "abc":
        cache.fetch(key, give(key * 3000))
    assert held(cache, "a") == "loaded"
    assert held(cache, "c") == "c" * 3000
    cache.fetch("huge", give("x" * 20_000))
    assert held(cache, "huge") == "loaded"


def test_bytes_are_given_back(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    monkeypatch.setattr(inventory_api, "CACHE_BYTES", 20_000)
    cache = Cache(1000, 30, clock)
    for turn in range(20):
        cache.fetch("a", give("x" * 5000))
        cache.invalidate("a")
        cache.fetch(("b", turn), give("y" * 3000))
    cache.fetch("c", give("z" * 3000))
    assert held(cache, "c") == "z" * 3000
    assert held(cache, ("b", 19)) == "y" * 3000


def test_what_does_not_exist_is_remembered_too(cache: Cache) -> None:
    assert cache.fetch("a", give(None)) == (None, False)
    assert cache.fetch("a", give("1")) == (None, True)
    cache.invalidate("a")
    assert held(cache, "a") == "loaded"


def test_a_scan_of_absent_keys_evicts_no_more_than_one_that_is_in_use(cache: Cache) -> None:
    for key in "abc":
        cache.fetch(key, give(key))
    for absent in range(100):
        cache.fetch(absent, give(None))
    assert [held(cache, key) for key in "bc"] == ["b", "c"]


def test_invalidation_forgets_the_key_and_all_that_is_volatile(cache: Cache) -> None:
    cache.fetch("a", give("1"))
    cache.fetch("b", give("2"))
    cache.fetch("page", give("3"), volatile=True)
    cache.invalidate("a")
    assert [held(cache, key) for key in ("a", "b", "page")] == ["loaded", "2", "loaded"]


@pytest.mark.parametrize("invalidated", ["a", "b"])
@pytest.mark.parametrize("volatile", [False, True])
def test_a_fill_that_raced_with_an_invalidation_is_answered_but_not_kept(
    cache: Cache, invalidated: str, volatile: bool
) -> None:
    def slow() -> Representation:
        cache.invalidate(invalidated)  # as a writer does between this reader's SELECT and its fill
        return body("old")

    assert cache.fetch("a", slow, volatile).representation == body("old")
    assert held(cache, "a") == "loaded"


def test_concurrent_misses_of_a_key_load_once(cache: Cache) -> None:
    loads, release = [], threading.Event()

    def slow() -> Representation:
        loads.append(1)
        assert release.wait(10)
        return body("1")

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(cache.fetch, "a", slow) for _ in range(8)]
        while len(cache._flights) < 1 or sum(thread.is_alive() for thread in threading.enumerate()) < 9:
            pass
        release.set()
        answers = [future.result() for future in waiting]
    assert {answer.representation for answer in answers} == {body("1")}
    assert len(loads) == 1


def in_flight(cache: Cache, key: str) -> tuple[threading.Event, threading.Thread, list[Representation | None]]:
    """A load of `key` that has begun in another thread and ends when the event is set."""
    begun, release, got = threading.Event(), threading.Event(), list[Representation | None]()

    def slow() -> Representation:
        begun.set()
        assert release.wait(10)
        return body("old")

    thread = threading.Thread(target=lambda: got.append(cache.fetch(key, slow).representation))
    thread.start()
    assert begun.wait(10)
    return release, thread, got


@pytest.mark.parametrize("invalidated", ["a", "b"])
def test_who_comes_after_an_invalidation_does_not_join_an_older_load(cache: Cache, invalidated: str) -> None:
    release, thread, got = in_flight(cache, "a")
    cache.invalidate(invalidated)
    assert cache.fetch("a", give("new")) == (body("new"), False)
    release.set()
    thread.join()
    assert got == [body("old")]
    assert held(cache, "a") == "new"  # the older load did not put its row back


def test_a_fresh_read_neither_takes_an_entry_nor_joins_a_load(cache: Cache) -> None:
    release, thread, _ = in_flight(cache, "a")
    assert cache.fetch("a", give("new"), fresh=True) == (body("new"), False)
    release.set()
    thread.join()
    assert cache.fetch("a", give("newer"), fresh=True) == (body("newer"), False)
    assert held(cache, "a") == "newer"


def test_a_load_that_fails_is_told_to_all_who_wait_and_not_kept(cache: Cache) -> None:
    def fail() -> Representation:
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        cache.fetch("a", fail)
    assert held(cache, "a") == "loaded"


class Writers:
    """What other writers did: products changed, None where nobody knows which."""

    def __init__(self) -> None:
        self.changed: list[int] | None = []

    def any(self) -> bool:
        return self.changed != []

    def take(self) -> list[int] | None:
        changed, self.changed = self.changed, []
        return changed


@pytest.fixture
def writers() -> Writers:
    return Writers()


@pytest.fixture
def shared(clock: FakeClock, writers: Writers) -> Cache:
    """A cache of a database that others write to."""
    cache = Cache(10, 30, clock, writers.any, writers.take)
    for key in (1, 2):
        cache.fetch(key, give(str(key)))
    cache.fetch("page", give("page"), volatile=True)
    return cache


def test_what_other_writers_change_is_forgotten_and_so_are_the_pages(shared: Cache, writers: Writers) -> None:
    writers.changed = [1, 5]
    assert [held(shared, key) for key in (1, 2, "page")] == ["loaded", "2", "loaded"]


def test_where_nobody_knows_what_was_changed_all_is_forgotten(shared: Cache, writers: Writers) -> None:
    writers.changed = None
    assert [held(shared, key) for key in (1, 2, "page")] == ["loaded", "loaded", "loaded"]


def test_another_writer_during_a_load_keeps_its_result_out(shared: Cache, writers: Writers) -> None:
    def slow() -> Representation:
        writers.changed = [3]
        return body("old")

    shared.fetch(3, slow)
    assert held(shared, 3) == "loaded"


def test_what_others_changed_is_looked_at_with_an_own_change_too(shared: Cache, writers: Writers) -> None:
    writers.changed = [1]
    shared.invalidate(2)
    assert [held(shared, key) for key in (1, 2)] == ["loaded", "loaded"]


def test_it_counts_what_it_does(clock: FakeClock) -> None:
    cache = Cache(2, 30, clock)
    for key in "aabcc":
        cache.fetch(key, give(key))
    cache.fetch("d", lambda: cache.invalidate("c") or body("d"))  # type: ignore[func-returns-value]
    assert cache.counts == {"hits": 2, "misses": 4, "evictions": 1, "invalidations": 1, "refused_fills": 1}


@pytest.mark.parametrize(("size", "ttl"), [(0, 30), (3, 0)])
def test_size_or_time_zero_turn_it_off(size: int, ttl: float) -> None:
    cache = Cache(size, ttl)
    cache.fetch("a", give("1"))
    assert cache.fetch("a", give("2")) == (body("2"), False)
    assert cache._bytes == 0
