"""Calls that do not come back."""

import datetime as dt
import subprocess
import threading

import pytest

from fetch_ads import Exit, Kind, Outcome, Threads, days_between

from .conftest import OK, Command, World

DAYS = days_between(dt.date(2023, 1, 1), dt.date(2023, 1, 31))
NEVER = 1e9


def test_a_call_past_its_deadline_is_tried_again(world: World) -> None:
    world.answer = lambda day, now: (1.0, OK) if world.tries(day) else (NEVER, OK)
    world.run(DAYS[:1], timeout=30.0)
    assert world.tries(DAYS[0])[1] >= 30.0
    assert [outcome.kind for _, outcome in world.finished] == [Kind.DONE]


def test_calls_that_hang_do_not_keep_others_from_starting(world: World) -> None:
    world.answer = lambda day, now: (NEVER if day in DAYS[-2:] else 1.0, OK)
    world.run(DAYS, workers=2, timeout=30.0, retries=0)
    assert len(world.finished) == 31
    failed = [outcome for _, outcome in world.finished if outcome.kind is not Kind.DONE]
    assert [outcome.error for outcome in failed] == ["no answer within 30 s"] * 2


def test_a_late_result_is_not_published(world: World) -> None:
    world.answer = lambda day, now: (31.0, Outcome(Kind.DONE, 31.0, "late"))
    world.run(DAYS[:1], timeout=30.0, retries=0)
    assert [outcome.path for _, outcome in world.finished] == [""]


def test_a_thread_that_does_not_come_back_is_replaced() -> None:
    hang, back = threading.Event(), threading.Event()

    def call(wait: bool) -> Outcome:
        back.set()
        if wait:
            hang.wait()
        return OK

    pool = Threads(call)
    stuck = pool.submit(True)
    back.wait()
    assert pool.submit(False).result(timeout=10) == OK
    assert not stuck.done()
    hang.set()
    assert stuck.result(timeout=10) == OK


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_the_program_ends_though_a_call_hangs(command: Command, executor: str) -> None:
    command.fetcher("if day.day == 2: time.sleep(600)\nreturn [{'a': 1}]")
    line = ("2023-01-01", "2023-01-04", "--timeout", "5", "--retries", "0", "--executor", executor)
    out, err = (run := command.start(*line)).communicate(timeout=60)
    assert run.returncode == Exit.FAILED, err
    assert "2023-01-02 failed: no answer within 5 s" in out
    assert len(command.ads()) == 3
    assert not [name for name in command.everything() if name.endswith(".tmp")]


@pytest.mark.slow
def test_the_program_ends_though_a_library_left_a_thread_behind(command: Command) -> None:
    head = "import threading\nthreading.Thread(target=time.sleep, args=(600,)).start()"
    command.fetcher("return []", head=head)
    with command.start("2023-01-01", "2023-01-02") as run:
        try:
            run.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            run.kill()
            raise
    assert run.returncode == Exit.OK
