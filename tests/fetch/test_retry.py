"""Transient errors: the day is tried again, later, and holds no worker meanwhile."""

import datetime as dt
import itertools
from concurrent.futures import Future

import pytest

from fetch_ads import BACKOFF, BACKOFF_MAX, Exit, Kind, Outcome, days_between

from .conftest import OK, World

DAY = dt.date(2023, 1, 2)
DAYS = days_between(dt.date(2023, 1, 1), dt.date(2023, 1, 31))
TIMEOUT = Outcome(Kind.TRANSIENT, 1.0, error="TimeoutError: slow")


def test_newest_days_are_called_first(world: World) -> None:
    world.run(DAYS, workers=1)
    assert [day for _, day in world.starts] == DAYS[::-1]


def test_no_more_calls_are_in_flight_than_workers(world: World) -> None:
    world.run(DAYS, workers=4)
    assert world.most_in_flight == 4
    assert world.now == 8.0  # 31 days by 4, a second each


def test_a_transient_error_is_tried_again_until_it_succeeds(world: World) -> None:
    world.answer = lambda day, now: (1.0, TIMEOUT if len(world.tries(day)) < 3 else OK)
    world.run([DAY])
    assert world.tally.retries == 3
    assert [outcome.kind for _, outcome in world.finished] == [Kind.DONE]
    assert world.finished[0][0].calls == 4


def test_tries_end_with_retries_and_the_day_has_failed(world: World) -> None:
    world.answer = lambda day, now: (1.0, TIMEOUT)
    world.run([DAY], retries=2)
    assert len(world.tries(DAY)) == 3
    assert [outcome.error for _, outcome in world.finished] == ["TimeoutError: slow"]


def test_backoff_doubles_up_to_its_limit(world: World) -> None:
    world.answer = lambda day, now: (1.0, TIMEOUT)
    world.run([DAY], retries=10)
    tries = world.tries(DAY)
    waits = [after - before - 1.0 for before, after in itertools.pairwise(tries)]
    assert waits == pytest.approx([min(BACKOFF * 2**n, BACKOFF_MAX) for n in range(10)])


def test_backoff_has_full_jitter(world: World) -> None:
    bounds: list[tuple[float, float]] = []
    world.answer = lambda day, now: (1.0, TIMEOUT)
    scheduler = world.run([], retries=1)
    scheduler.uniform = lambda low, high: bounds.append((low, high)) or low  # type: ignore[func-returns-value]
    scheduler.run([DAY], world.finished.extend)
    assert bounds == [(0, BACKOFF)]


def test_a_day_that_waits_holds_no_worker(world: World) -> None:
    world.answer = lambda day, now: (1.0, TIMEOUT if day == DAYS[-1] and not world.tries(day) else OK)
    world.run(DAYS[-4:], workers=1)
    assert [day for _, day in world.starts[:3]] == [DAYS[-1], DAYS[-2], DAYS[-3]]
    assert world.now == 5.0  # five calls, one after another: nobody waited


def test_other_errors_fail_their_day_and_no_other(world: World) -> None:
    bug = Outcome(Kind.FAILED, 1.0, error="KeyError: 'x'")
    world.answer = lambda day, now: (1.0, bug if day == DAY else OK)
    world.run(DAYS)
    assert len(world.finished) == 31
    assert [job.day for job, outcome in world.finished if outcome.error] == [DAY]
    assert len(world.tries(DAY)) == 1


def test_a_worker_that_dies_is_a_transient_error(world: World) -> None:
    class BrokenExecutor(RuntimeError):
        pass

    def submit(day: dt.date) -> Future[Outcome]:
        future = world.submit(day)
        if len(world.starts) == 1:
            del world.ends[future]
            future.set_exception(BrokenExecutor("gone"))
            world.ends[future] = (0.0, OK)
        return future

    scheduler = world.run([])
    scheduler.submit = submit
    scheduler.wait_first = lambda futures, seconds: set(futures)
    future: Future[Outcome] = Future()
    future.set_exception(BrokenExecutor("gone"))
    outcome = scheduler.outcome(future)
    assert isinstance(outcome, Outcome)
    assert outcome.kind is Kind.TRANSIENT


def test_trouble_with_the_folder_stops_the_run(world: World) -> None:
    full = Outcome(Kind.FOLDER, 1.0, error="data/days/x: No space left on device")
    world.answer = lambda day, now: (1.0, full)
    world.run(DAYS, workers=2)
    assert len(world.starts) == 2
    assert world.tally.stops == {Exit.FOLDER: full.error}
    assert world.finished == []
