"""Rate limits: one brake for all workers, and an end to patience."""

import datetime as dt
import itertools
import math

import pytest

from fetch_ads import Exit, Kind, Outcome, days_between

from .conftest import EPOCH, OK, World

DAYS = days_between(dt.date(2021, 1, 1), dt.date(2023, 1, 1))  # 731
JANUARY = DAYS[-31:]


def limited(asked: float | None) -> Outcome:
    return Outcome(Kind.RATE_LIMIT, 0.01, error="rate limited", retry_after=asked)


class Bucket:
    """An API that allows so many calls a second, and a small burst."""

    def __init__(self, world: World, rate: float, burst: float, delay: bool = True, latency: float = 0.05) -> None:
        self.world, self.rate, self.burst, self.delay, self.latency = world, rate, burst, delay, latency
        self.tokens, self.then, self.refused, self.calls = burst, 0.0, 0, 0

    def __call__(self, day: dt.date, now: float) -> tuple[float, Outcome]:
        self.tokens = min(self.burst, self.tokens + (now - self.then) * self.rate)
        self.then, self.calls = now, self.calls + 1
        if self.tokens >= 1:
            self.tokens -= 1
            return self.latency, OK
        self.refused += 1
        return 0.005, limited((1 - self.tokens) / self.rate if self.delay else None)


@pytest.mark.parametrize("delay", [True, False], ids=["with retry_after", "without"])
@pytest.mark.parametrize("rate", [10, 20, 50])
def test_the_pace_finds_the_limit(world: World, rate: float, delay: bool) -> None:
    api = world.answer = Bucket(world, rate, 5, delay)
    world.run(DAYS, workers=16)
    assert len(world.finished) == 731
    assert world.now <= 1.15 * 731 / rate
    assert api.refused <= api.calls / 20


def test_nothing_starts_before_retry_after(world: World) -> None:
    world.answer = lambda day, now: (0.1, limited(7.0) if now < 7.0 else OK)
    world.run(JANUARY, workers=4)
    assert {at for at, _ in world.starts if at < 7.0} == {0.0}
    assert len(world.finished) == 31


def test_after_a_refusal_calls_start_one_by_one(world: World) -> None:
    world.answer = lambda day, now: (0.1, limited(1.0) if now < 1.0 else OK)
    world.run(JANUARY, workers=16)
    later = [at for at, _ in world.starts if at >= 1.0]
    assert len(later) == len(set(later))


def test_without_a_delay_the_pause_doubles(world: World) -> None:
    world.answer = lambda day, now: (0.01, limited(None) if len(world.starts) < 6 else OK)
    world.run(JANUARY[:1], workers=1)
    starts = [at for at, _ in world.starts]
    waits = [after - before for before, after in itertools.pairwise(starts)]
    assert all(after >= 1.8 * before for before, after in itertools.pairwise(waits))


def test_a_rate_limit_uses_up_no_retries(world: World) -> None:
    world.answer = lambda day, now: (0.1, limited(0.5) if len(world.starts) < 20 else OK)
    world.run(JANUARY[:1], workers=1, retries=0)
    assert [outcome.kind for _, outcome in world.finished] == [Kind.DONE]
    assert world.tally.retries == 0
    assert world.tally.rate_limits == 20


def test_refusals_of_one_event_slow_down_once(world: World) -> None:
    world.answer = lambda day, now: (0.1, limited(1.0) if now == 0 else OK)
    scheduler = world.run(JANUARY, workers=16)
    assert scheduler.brake.rate >= scheduler.brake.GUESS


def test_a_delay_beyond_max_wait_stops_and_says_when_to_resume(world: World) -> None:
    world.answer = lambda day, now: (1.0, limited(3600.0) if len(world.starts) == 3 else OK)
    world.run(JANUARY, workers=4, max_wait=300)
    assert list(world.tally.stops) == [Exit.QUOTA]
    assert world.tally.resume == EPOCH + dt.timedelta(seconds=3601)
    assert len(world.finished) == 3  # those in flight were kept
    assert len(world.starts) == 4


def test_a_delay_of_max_wait_is_waited_for(world: World) -> None:
    world.answer = lambda day, now: (1.0, limited(300.0) if now < 300 else OK)
    world.run(JANUARY, workers=4, max_wait=300)
    assert len(world.finished) == 31


def test_no_success_for_max_wait_stops(world: World) -> None:
    world.answer = lambda day, now: (0.01, limited(None))
    world.run(JANUARY, workers=4, max_wait=300)
    assert list(world.tally.stops) == [Exit.QUOTA]
    assert 300 <= world.now < 420
    assert world.finished == []


def test_an_endless_delay_is_no_crash(world: World) -> None:
    world.answer = lambda day, now: (0.01, limited(math.inf))
    world.run(JANUARY)
    assert Exit.QUOTA in world.tally.stops


def test_time_braked_is_counted(world: World) -> None:
    world.answer = lambda day, now: (0.1, limited(10.0) if now == 0 else OK)
    world.run(JANUARY[:1])
    assert world.tally.braked == pytest.approx(10.0)
