"""A call is over once its rows are read; its place is free while they are brought to the disk."""

import datetime as dt
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from fetch_ads import BATCH, Exit, Kind, Outcome, call_day, days_between, store_day

from .conftest import World

DAY = dt.date(2023, 1, 2)
DAYS = days_between(dt.date(2023, 1, 1), dt.date(2023, 1, 8))


class Later:
    """Stores when it is told to."""

    def __init__(self) -> None:
        self.asked: tuple[Any, ...] | None = None
        self.stored: Future[Outcome] = Future()

    def __call__(self, *work: Any) -> Future[Outcome]:
        self.asked = work
        return self.stored


@pytest.mark.parametrize("rows", [0, 1, BATCH - 1])
def test_a_batch_or_less_is_left_to_be_stored_later(tmp_path: Path, rows: int) -> None:
    later, path = Later(), tmp_path / "x.tmp"
    assert call_day(lambda day: [{"n": n} for n in range(rows)], DAY, str(path), later) is later.stored
    assert not path.exists()
    assert later.asked
    outcome = store_day(*later.asked)
    assert (outcome.kind, outcome.rows, outcome.bytes) == (Kind.DONE, rows, path.stat().st_size)


def test_more_is_written_while_it_comes(tmp_path: Path) -> None:
    later, path = Later(), tmp_path / "x.tmp"
    outcome = call_day(lambda day: ({"n": n} for n in range(BATCH * 2)), DAY, str(path), later)
    assert isinstance(outcome, Outcome)
    assert (outcome.kind, outcome.rows, later.asked) == (Kind.DONE, BATCH * 2, None)


def test_what_breaks_before_a_batch_is_full_is_a_failed_call(tmp_path: Path) -> None:
    def fetch(day: dt.date) -> Any:
        yield {"n": 1}
        raise TimeoutError("slow")

    later = Later()
    outcome = call_day(fetch, DAY, str(tmp_path / "x.tmp"), later)
    assert isinstance(outcome, Outcome)
    assert (outcome.kind, later.asked, [*tmp_path.iterdir()]) == (Kind.TRANSIENT, None, [])


def test_the_next_call_does_not_wait_until_a_day_is_stored(world: World) -> None:
    world.storing = 0.9
    world.run(DAYS, workers=2)
    assert [at for at, _ in world.starts] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(world.finished) == len(DAYS)
    assert world.now == pytest.approx(4.9)


def test_calls_wait_for_a_disk_that_is_slower_than_they_are(world: World) -> None:
    world.storing = 3.0
    world.run(DAYS, workers=2)
    assert [at for at, _ in world.starts] == [0, 0, 1, 1, 4, 4, 5, 5]


def test_what_is_being_stored_when_the_run_is_stopped_is_kept(world: World) -> None:
    world.storing = 2.0

    def answer(day: dt.date, now: float) -> tuple[float, Outcome]:
        if now >= 1.0:
            world.tally.stops[Exit.INTERRUPTED] = "SIGINT"
        return 1.0, Outcome(Kind.DONE, 1.0)

    world.answer = answer
    world.run(DAYS, workers=1)
    assert [job.day for job, _ in world.finished] == [day for _, day in world.starts]
    assert len(world.finished) < len(DAYS)
