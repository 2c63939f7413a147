"""The server is told to end: what was accepted is answered, and then it ends with exit code 0."""

from __future__ import annotations

import errno
import signal
import socket
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import inventory_api
from tests.api.conftest import Service, Stuck, Wire, one_engine, request, running, serving, until

PRODUCTS = tuple(f"/products/{number}" for number in (1, 2, 3))
HALF = "PATCH /products/1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 12\r\n"


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_api, "IDLE_GRACE", 0.3)


@one_engine
def test_a_connection_that_was_accepted_learns_that_the_server_is_not_ready(desks: Service) -> None:
    with serving(desks) as server, Wire(server) as wire:
        assert wire.get("/readyz").status == 200
        server.stop()
        answer = wire.get("/readyz")
        assert (answer.status, answer.headers["connection"], answer.headers["retry-after"]) == (503, "close", "1")
        assert answer.json["status"] == 503
        assert wire.reply() is None


@one_engine
def test_what_runs_and_what_waits_for_a_thread_is_answered(desks: Service, stuck: Stuck) -> None:
    with serving(desks, threads=2) as server:
        wires = [Wire(server) for _ in range(6)]
        for wire in wires:
            wire.send(request("/products/1", "Cache-Control: no-cache"))
        until(lambda: stuck.waiting == 1 and len(server.task_dispatcher.queue) >= 4)
        server.stop()
        stuck.let_go()
        for wire in wires:
            with wire:
                answer = wire.reply()
                assert answer
                assert answer.status in (200, 503)  # the bulkhead's, of the one that the second thread took
                assert answer.headers["connection"] == "close"
                assert wire.reply() is None


def test_a_change_that_runs_is_made_and_answered(desks: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, go, write = threading.Event(), threading.Event(), desks.database.write

    def slow(work: Any) -> Any:
        runs.set()
        assert go.wait(20)
        return write(work)

    monkeypatch.setattr(desks.database, "write", slow)
    with serving(desks) as server, Wire(server) as wire:
        wire.send(HALF, "\r\n", '{"price": 1}')
        assert runs.wait(10)
        server.stop()
        go.set()
        answer = wire.reply()
        assert answer
        assert (answer.status, answer.json["price"], answer.headers["connection"]) == (200, "1.00", "close")
    assert desks.get("/products/1").json["version"] == 2


@pytest.mark.parametrize("packets", [1, 3])
@one_engine
def test_pipelined_requests_are_answered_even_those_that_were_not_read_yet(
    desks: Service, stuck: Stuck, packets: int
) -> None:
    requests = [request(path) for path in PRODUCTS]
    with serving(desks) as server, Wire(server) as wire:
        wire.send(*requests if packets == 1 else requests[:1])
        until(lambda: stuck.waiting)
        if packets > 1:
            for late in requests[1:]:
                wire.send(late)
        server.stop()
        time.sleep(inventory_api.IDLE_GRACE)
        stuck.let_go()
        answers = [wire.reply() for _ in range(4)]
    assert [answer and answer.status for answer in answers] == [200, 200, 200, None]
    assert [answer.headers.get("connection") for answer in answers if answer] == [None, None, "close"]


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        (("GET /products/1 HT", "TP/1.1\r\nHost: localhost\r\n\r\n"), 200),
        ((HALF, '\r\n{"price": 1}'), 200),
        ((HALF + '\r\n{"pri', 'ce": 1}'), 200),
        ((HALF + '\r\n{"pri', 'ce":  }'), 400),
        ((request("/healthz", "Connection: keep-alive", version="1.0")[:-2], "\r\n"), 200),
    ],
    ids=["in the request line", "in the headers", "in the body", "and then refused", "of HTTP/1.0"],
)
@one_engine
def test_a_request_that_has_begun_to_arrive_is_answered(desks: Service, parts: tuple[str, str], status: int) -> None:
    with serving(desks) as server, Wire(server) as wire:
        wire.send(parts[0])
        until(lambda: [channel for channel in server.active_channels.values() if channel.request])
        server.stop()
        time.sleep(inventory_api.IDLE_GRACE + 0.2)
        wire.send(parts[1])
        answer = wire.reply()
        assert answer
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert wire.reply() is None


@one_engine
def test_who_waits_for_100_continue_gets_it(desks: Service) -> None:
    with serving(desks) as server, Wire(server) as wire:
        wire.send(HALF)
        until(lambda: [channel for channel in server.active_channels.values() if channel.request])
        server.stop()
        wire.send("Expect: 100-continue\r\n\r\n")
        first = wire.reply()
        wire.send('{"price": 1}')
        second = wire.reply()
        assert first
        assert second
        assert (first.status, second.status, second.headers["connection"]) == (100, 200, "close")


@one_engine
def test_connections_in_the_accept_queue_are_served_and_no_others(desks: Service) -> None:
    with serving(desks, start=False) as server:
        wires = [Wire(server) for _ in range(50)]
        for wire in wires:
            wire.send(request("/products/1"))
        server.stop()
        server.thread.start()
        for wire in wires:
            with wire:
                answer = wire.reply()
                assert answer
                assert (answer.status, answer.headers["connection"]) == (200, "close")
        with pytest.raises(ConnectionRefusedError):
            Wire(server)


@one_engine
def test_a_queue_that_cannot_be_accepted_does_not_keep_it_from_ending(
    desks: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, "too many open files")

    with serving(desks, start=False) as server, Wire(server):
        monkeypatch.setattr(server, "accept", refuse)
        server.stop()
        server.thread.start()
        server.thread.join(5)
        assert not server.thread.is_alive()


@one_engine
def test_an_idle_connection_has_a_moment_to_bring_a_request_and_is_closed_then(desks: Service) -> None:
    with serving(desks) as server, Wire(server) as wire, Wire(server) as silent:
        until(lambda: len(server.active_channels) == 2)
        server.stop()
        assert wire.get("/products/1").headers["connection"] == "close"
        assert silent.reply() is None
        server.thread.join(2)
        assert not server.thread.is_alive()


@one_engine
def test_what_has_not_arrived_when_the_time_is_over_is_cut(desks: Service) -> None:
    with serving(desks, drain_timeout=0.5) as server, Wire(server) as wire:
        wire.send(HALF)
        until(lambda: server.active_channels)
        server.stop()
        began = time.monotonic()
        assert wire.reply() is None
        assert 0.4 < time.monotonic() - began < 3
        server.thread.join(3)
        assert not server.thread.is_alive()


@one_engine
def test_a_client_that_never_reads_does_not_keep_it_from_ending(desks: Service) -> None:
    desks.add(*[("x" * 200, "1", 1)] * 200)
    with serving(desks, drain_timeout=0.5) as server, Wire(server, receive_buffer=4096) as wire:
        wire.socket.setblocking(False)
        wire.socket.send(b"GET /products?limit=200 HTTP/1.1\r\n\r\n" * 400)
        until(lambda: [c for c in server.active_channels.values() if c.total_outbufs_len and not c.requests])
        server.stop()
        server.thread.join(5)
        assert not server.thread.is_alive()


@one_engine
def test_what_waited_too_long_is_told_that_its_connection_ends(
    desks: Service, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(desks) as server, Wire(server) as wire:
        monkeypatch.setattr(inventory_api, "QUEUE_TIMEOUT", -1)
        server.monitor.draining = True
        answer = wire.get("/products/1")
        assert (answer.status, answer.headers["connection"]) == (503, "close")


@one_engine
def test_the_change_of_a_client_that_has_gone_is_made_before_the_end(
    desks: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, write = threading.Event(), desks.database.write

    def slow(work: Any) -> Any:
        runs.set()
        until(lambda: server.monitor.draining)
        time.sleep(0.5)
        return write(work)

    monkeypatch.setattr(desks.database, "write", slow)
    with serving(desks) as server:
        with Wire(server) as wire:
            wire.send(HALF, "\r\n", '{"price": 1}')
            assert runs.wait(10)
        server.stop()
        server.thread.join(10)
        assert desks.get("/products/1").json["version"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_program_drains_and_ends_with_exit_code_0(tmp_path: Path, how: signal.Signals) -> None:
    with running(cwd=tmp_path) as (url, process), Wire(url) as wire, Wire(url) as other:
        other.get("/healthz")
        wire.send("GET /products/1 HTTP/1.1\r\n")
        other.get("/healthz")  # so the half was read too
        process.send_signal(how)
        assert until(lambda: other.get("/readyz")).status == 503
        wire.send("Host: localhost\r\n\r\n")
        answer = wire.reply()
        assert answer
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_who_is_told_as_soon_as_it_has_begun_ends_with_exit_code_0(tmp_path: Path, processes: str) -> None:
    with running("--processes", processes, cwd=tmp_path) as (_, process):
        pass
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_second_signal_ends_it_at_once_whatever_the_threads_are_at(tmp_path: Path, processes: str) -> None:
    with running("--processes", processes, cwd=tmp_path) as (url, process), Wire(url) as wire:
        with closing(sqlite3.connect(tmp_path / "inventory.db", isolation_level=None)) as other:
            wire.get("/healthz")
            other.execute("BEGIN IMMEDIATE")
            wire.send(HALF, "\r\n", '{"price": 1}')
            time.sleep(0.3)
            process.terminate()
            until(lambda: is_refused(url))
            began = time.monotonic()
            process.terminate()
            _, err = process.communicate(timeout=20)
        assert (process.returncode, "Traceback" in err) == (0, False)
        assert time.monotonic() - began < 2


def is_refused(url: str) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", int(url.rsplit(":", 1)[1]))) == errno.ECONNREFUSED
