"""More comes than can be done, or it comes too slowly: who is served, who is told so, and how soon."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import inventory_api
from inventory_api import Bulkhead, Channel, DatabaseUnavailable, Overloaded, Server, make_schema, open_database
from tests.api.conftest import (
    PROGRAM,
    FakeClock,
    Reply,
    Service,
    Stuck,
    Wire,
    one_engine,
    request,
    running,
    serving,
    until,
)

FRESH = "Cache-Control: no-cache"


def assert_refused(answer: Reply | None, status: int) -> None:
    """A problem document, and when to come back."""
    assert answer
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json["status"] == status
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert answer.headers.get("retry-after") == ("1" if status == 503 else None)


def channels(server: Server) -> list[Channel]:
    return list(server.active_channels.values())


# ---------------------------------------------------------------- the bulkhead


def test_a_bulkhead_lets_in_as_many_as_it_has_places() -> None:
    bulkhead = Bulkhead(2, timer=FakeClock())
    with bulkhead, bulkhead:
        pass
    with bulkhead, bulkhead:
        pass


def test_a_full_bulkhead_refuses_at_once_when_nobody_moved_for_a_while() -> None:
    clock = FakeClock()
    bulkhead = Bulkhead(1, patience=0.25, timer=clock)
    with bulkhead:
        clock.tick(0.25)
        began = time.monotonic()
        with pytest.raises(Overloaded), bulkhead:
            pass
        assert time.monotonic() - began < 0.2
    with bulkhead:
        pass


def test_a_full_bulkhead_is_waited_for_while_others_come_and_go() -> None:
    bulkhead, inside = Bulkhead(1, patience=5), threading.Event()

    def visit() -> None:
        with bulkhead:
            inside.set()

    with ThreadPoolExecutor(1) as pool:
        with bulkhead:
            visitor = pool.submit(visit)
            assert not inside.wait(0.1)
        visitor.result(5)


@pytest.mark.parametrize(("error", "waits"), [(ValueError, True), (DatabaseUnavailable, False)])
def test_who_leaves_because_the_database_is_away_is_no_reason_to_wait(error: type[Exception], waits: bool) -> None:
    clock = FakeClock()
    bulkhead = Bulkhead(2, patience=0.25, timer=clock)
    with bulkhead:
        with contextlib.suppress(error), bulkhead:
            clock.tick(1)
            raise error("out")
        with bulkhead:  # a place was given back
            bulkhead._moved -= 0 if waits else 1  # but entering is a move
            began = time.monotonic()
            with pytest.raises(Overloaded), bulkhead:
                pass
            assert (time.monotonic() - began > 0.2) == waits


# ---------------------------------------------------------------- a database that does not answer


@one_engine
def test_while_the_database_is_stuck_what_needs_none_goes_on(desks: Service, stuck: Stuck) -> None:
    with serving(desks, threads=4) as server, Wire(server) as wire:
        stuck.let_go()
        assert wire.get("/products/1").headers["x-cache"] == "MISS"
        stuck.hold()
        waiting = [Wire(server) for _ in range(3)]
        for one in waiting:
            one.send(request("/products", FRESH))
        until(lambda: stuck.waiting == 3)
        with Wire(server) as other:
            other.get("/products/2")  # which may have waited for those to move
            began = time.monotonic()
            for path in ("/products/2", "/products", "/products/search?name=a", "/readyz"):
                assert_refused(other.get(path), 503)
            for path in ("/healthz", "/metrics", "/products/1"):
                assert other.get(path).status == 200
            assert time.monotonic() - began < 1
        assert stuck.waiting == 3
        stuck.let_go()
        for one in waiting:
            with one:
                assert (one.reply() or pytest.fail("closed")).status == 200
        assert wire.get("/products/2").status == 200


def test_a_database_that_answers_is_never_said_to_be_overloaded(desks: Service) -> None:
    def hammer(number: int) -> set[int]:
        with Wire(server) as wire:
            path = "/readyz" if number % 4 == 0 else f"/products?limit={number + 1}"
            return {wire.get(path, FRESH).status for _ in range(60)}

    with serving(desks, threads=4) as server, ThreadPoolExecutor(16) as pool:
        assert set().union(*pool.map(hammer, range(16))) == {200}


@one_engine
def test_a_new_file_is_read_while_another_program_holds_its_lock(empty_url: str) -> None:
    database = open_database(empty_url)
    make_schema(database, with_samples=True)
    with contextlib.closing(sqlite3.connect(empty_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert Service(empty_url, database, FakeClock()).get("/products/1").status_code == 200
    database.close()


# ---------------------------------------------------------------- the queue


@one_engine
def test_a_request_that_waited_too_long_is_told_so_and_its_connection_stays(
    desks: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(desks.database, "has_news", lambda: not go.wait(20))
    with serving(desks, threads=2) as server, contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(Wire(server)) for _ in range(3))
        for wire in (first, second):
            wire.send(request("/products/1"))
        until(lambda: server.task_dispatcher.active_count == 2 and not server.task_dispatcher.queue)
        third.send(request("/products/2"))
        until(lambda: len(server.task_dispatcher.queue) == 1)
        monkeypatch.setattr(inventory_api, "QUEUE_TIMEOUT", 0.05)
        time.sleep(0.1)
        go.set()
        assert_refused(third.reply(), 503)
        monkeypatch.setattr(inventory_api, "QUEUE_TIMEOUT", 3.0)
        assert third.get("/products/2").status == 200
        assert [(wire.reply() or pytest.fail("closed")).status for wire in (first, second)] == [200, 200]


SMUGGLED = request("/healthz")


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        ("PATCH /products/1 HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n", 413),
        ("PATCH /products/1 HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
    ],
)
@one_engine
def test_what_follows_a_bad_request_is_no_request_however_long_that_waited(
    desks: Service, monkeypatch: pytest.MonkeyPatch, bad: str, status: int
) -> None:
    monkeypatch.setattr(inventory_api, "QUEUE_TIMEOUT", -1)
    with serving(desks) as server, Wire(server) as wire:
        wire.send(bad, SMUGGLED)
        assert_refused(wire.reply(), status)
        assert wire.reply() is None
    assert len(desks.lines) == 1


# ---------------------------------------------------------------- clients that are slow


@pytest.fixture
def short_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_api, "REQUEST_TIMEOUT", 0.2)


HALVES = [
    "G",
    "GET /products/1 HTTP/1.1\r\nHost: x\r\n",
    "PATCH /products/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{",
    "PATCH /products/1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
]


@one_engine
def test_a_request_that_takes_too_long_to_arrive_is_told_so(desks: Service, short_arrival: None) -> None:
    with serving(desks) as server:
        wires = [Wire(server) for _ in HALVES]
        for wire, half in zip(wires, HALVES, strict=True):
            wire.send(half)
        for wire in wires:
            with wire:
                answer = wire.reply()
                assert_refused(answer, 408)
                assert answer
                assert answer.headers["connection"] == "close"
                assert wire.reply() is None
        with Wire(server) as wire:
            assert wire.get("/products/1").status == 200
    assert sum("status=408" in line for line in desks.lines) == len(HALVES)


@one_engine
def test_a_drip_of_bytes_does_not_count_as_arriving(desks: Service, short_arrival: None) -> None:
    with serving(desks) as server, Wire(server) as wire:
        wire.send("GET /products/1 HTTP/1.1\r\nX: ")
        with contextlib.suppress(OSError):
            for _ in range(60):
                wire.send("x")
                time.sleep(0.05)
                if "408" in "".join(desks.lines):
                    break
        assert_refused(wire.reply(), 408)


@one_engine
def test_a_request_that_stalls_behind_one_that_runs_is_refused_after_its_answer(
    desks: Service, stuck: Stuck, short_arrival: None
) -> None:
    with serving(desks) as server, Wire(server) as wire:
        wire.send(request("/products/1"), HALVES[2])
        until(lambda: [channel for channel in channels(server) if len(channel.requests) == 2])
        stuck.let_go()
        assert (wire.reply() or pytest.fail("closed")).status == 200
        assert_refused(wire.reply(), 408)
        assert wire.reply() is None


@one_engine
def test_what_is_thrown_away_behind_a_refusal_is_not_refused_once_more(desks: Service, short_arrival: None) -> None:
    with serving(desks) as server, Wire(server) as wire:
        wire.send("PATCH /products/1 HTTP/1.1\r\nContent-Length: 2000000\r\n\r\nand so on")
        assert_refused(wire.reply(), 413)
        for _ in range(15):
            wire.send("and on")
            time.sleep(0.1)
    assert len(desks.lines) == 1


@one_engine
def test_a_client_that_takes_nothing_of_its_answers_is_let_go(desks: Service, short_arrival: None) -> None:
    desks.add(*[("x" * 200, "1", 1)] * 200)
    with serving(desks) as server, Wire(server, receive_buffer=4096) as wire:
        wire.send("GET /products?limit=200 HTTP/1.1\r\n\r\n" * 200)
        until(lambda: [channel for channel in channels(server) if channel.total_outbufs_len])
        until(lambda: not server.active_channels)


@one_engine
def test_clients_that_ask_and_never_read_hold_no_thread_for_ever(
    desks: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    desks.add(*[("x" * 200, "1", 1)] * 200)
    with serving(desks, threads=2) as server, contextlib.ExitStack() as stack:
        server.adj.outbuf_high_watermark = 100_000
        for _ in range(2):
            wire = stack.enter_context(Wire(server, receive_buffer=4096))
            wire.send("GET /products?limit=200 HTTP/1.1\r\n\r\n" * 200)
        until(lambda: [c.total_outbufs_len > 100_000 and len(c.requests) > 1 for c in channels(server)] == [True] * 2)
        monkeypatch.setattr(inventory_api, "REQUEST_TIMEOUT", 0.2)
        with Wire(server) as other:
            assert other.get("/products/1").status == 200


@one_engine
def test_a_burst_of_connections_is_taken_in_few_turns(desks: Service) -> None:
    with serving(desks, start=False) as server, contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(Wire(server))
        for _ in range(100):
            server._turn(0)
        assert len(server.active_channels) == 400


@pytest.mark.slow
def test_two_thousand_idle_and_slow_connections_do_not_stop_others_whatever_the_soft_limit_of_files(
    tmp_path: Path,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2_500:
        pytest.skip("so many files may not be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))  # as most systems have it
    try:
        with running(cwd=tmp_path, env={"LOG_LEVEL": "WARNING"}) as (url, process), contextlib.ExitStack() as stack:
            resource.setrlimit(resource.RLIMIT_NOFILE, (2_500, hard))
            for number in range(2_000):
                wire = stack.enter_context(Wire(url))
                if number % 2:
                    wire.send(HALVES[number % len(HALVES)])
            began = time.monotonic()
            for _ in range(10):
                with Wire(url) as other:
                    assert other.get("/products/1").status == 200
                    assert other.get("/products").status == 200
            assert time.monotonic() - began < 5
            stack.close()
            process.terminate()
            _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def by_shell(command: str, tmp_path: Path, **settings: Any) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The program, begun by a command in which $program stands for it."""
    process = subprocess.Popen(
        ["sh", "-c", command.replace("$program", f"{sys.executable} {PROGRAM} --port 0")],
        cwd=tmp_path, env={"PATH": os.environ["PATH"]}, stdout=subprocess.PIPE, text=True, **settings,
    )  # fmt: skip
    try:
        assert process.stdout
        yield process.stdout.readline().rsplit(" at ", 1)[1].strip(), process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        finally:
            process.kill()


@pytest.mark.slow
def test_where_fewer_files_may_be_open_it_takes_fewer_connections_and_goes_on(tmp_path: Path) -> None:
    with by_shell("ulimit -n 256; exec $program 2>log", tmp_path) as (url, process):
        with contextlib.ExitStack() as stack:
            wires = [stack.enter_context(Wire(url)) for _ in range(300)]
            assert wires[0].get("/products/1").status == 200
            wires[299].send(request("/products"))
            assert wires[1].get("/products?limit=3").status == 200
            for wire in wires[:200]:
                wire.__exit__()
            assert (wires[299].reply() or pytest.fail("closed")).status == 200
            for _ in range(300):
                stack.enter_context(Wire(url))
            process.terminate()
        process.wait(20)
    assert process.returncode == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


# ---------------------------------------------------------------- a log that cannot be written


@pytest.mark.slow
@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", ""], ids=["closed", "full", "broken"])
def test_a_log_that_cannot_be_written_breaks_no_request(tmp_path: Path, where: str) -> None:
    reader, writer = os.pipe()
    with by_shell(f"exec $program {where}", tmp_path, stderr=writer) as (url, process), Wire(url) as wire:
        os.close(reader)
        os.close(writer)
        for path, status in (("/products/1", 200), ("/nowhere", 404), ("/products/1", 200)):
            assert wire.get(path).status == status
        wire.send("GET / HTTP/1.1\r\nno colon\r\n\r\n")
        assert_refused(wire.reply(), 400)
    assert process.returncode == 0


@one_engine
def test_the_loop_rests_while_a_thread_sends(desks: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    send, turn, turns = Channel.send, Server._turn, []
    sending, go_on = threading.Event(), threading.Event()

    def slow_send(*arguments: Any, **keywords: Any) -> Any:
        sending.set()
        assert go_on.wait(20)
        return send(*arguments, **keywords)

    def counted_turn(server: Server, timeout: float) -> None:
        turns.append(timeout)
        turn(server, timeout)

    monkeypatch.setattr(Channel, "send", slow_send)
    monkeypatch.setattr(Server, "_turn", counted_turn)
    with serving(desks, threads=2) as server, Wire(server) as wire:
        wire.send(request("/products/1"))
        assert sending.wait(20)
        before = len(turns)
        server.pull_trigger()  # as the end of another request does
        go_on.wait(0.3)
        assert len(turns) - before < 20  # some thousands, if it did not
        go_on.set()
        assert wire.reply()
