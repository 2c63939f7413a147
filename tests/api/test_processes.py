"""Many processes on one port: they share the listening socket and nothing else, and are begun anew when they die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.api.conftest import PROGRAM, Wire, running, until

pytestmark = pytest.mark.slow
QUIET = {"LOG_LEVEL": "WARNING", "RATE_LIMIT": "0"}


@contextmanager
def two(tmp_path: Path, url: str = "sqlite:///inventory.db", **env: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Two processes, both of which serve already."""
    with running("--processes", "2", cwd=tmp_path, env={**QUIET, "DATABASE_URL": url, **env}) as (base, process):
        for wire in wires_to_both(base):
            wire.__exit__()
        yield base, process


def wires_to_both(base: str) -> tuple[Wire, Wire]:
    """A connection to process 1 and one to process 2."""
    found: dict[str, Wire] = {}
    expires = time.monotonic() + 20
    while len(found) < 2:
        assert time.monotonic() < expires, found
        wire = Wire(base)
        number = process_of(wire)
        wire.__exit__() if number in found else found.update({number: wire})
    return found["1"], found["2"]


def process_of(wire: Wire) -> str:
    (number,) = set(re.findall(r'process="(.*?)"', wire.get("/metrics").body.decode()))
    return str(number)


def children(parent: subprocess.Popen[str]) -> set[int]:
    return {int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()}


def is_alive(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):  # gone before it is opened, or before it is read
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False


def sockets(pid: int) -> set[str]:
    return {name for name in open_files(pid) if name.startswith("socket:")}


def open_files(pid: int) -> list[str]:
    names = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            names.append(os.readlink(link))
    return names


def test_no_connection_to_the_database_is_shared(tmp_path: Path, url: str) -> None:
    with two(tmp_path, url) as (base, process):
        wires = wires_to_both(base)
        for wire in wires:
            for path in ("/products", "/products?limit=3"):
                assert wire.get(path, "Cache-Control: no-cache").status == 200
            wire.__exit__()
        first, second = children(process)
        (listener,) = sockets(process.pid)
        assert sockets(first) & sockets(second) == {listener}
        assert not [name for name in open_files(process.pid) if "inventory.db" in name]
    assert process.returncode == 0


def test_every_series_of_the_metrics_carries_its_process(tmp_path: Path) -> None:
    with two(tmp_path) as (base, _), ExitStack() as stack:
        for number, wire in enumerate(map(stack.enter_context, wires_to_both(base)), 1):
            lines = [line for line in wire.get("/metrics").body.decode().splitlines() if line[0] != "#"]
            assert len(lines) > 10
            assert all(f'{{process="{number}"' in line for line in lines)


def test_a_process_that_was_killed_is_followed_by_another_and_the_port_goes_on(tmp_path: Path) -> None:
    with two(tmp_path) as (base, process):
        before = children(process)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        until(lambda: not is_alive(victim))
        expires = time.monotonic() + 20
        while len(children(process)) < 2 or children(process) == before:
            assert time.monotonic() < expires
            with Wire(base) as wire:
                assert wire.get("/products").status == 200
        assert len(children(process) & before) == 1
        for wire in wires_to_both(base):
            wire.__exit__()
    assert process.returncode == 0


def test_a_process_that_is_frozen_does_not_stop_the_other_nor_the_end(tmp_path: Path) -> None:
    with two(tmp_path) as (base, process):
        with ExitStack() as stack:
            wires = wires_to_both(base)
            for wire in wires:
                stack.enter_context(wire)
            frozen = min(children(process))
            os.kill(frozen, signal.SIGSTOP)
            for _ in range(20):
                with Wire(base) as wire:
                    assert wire.get("/products").status == 200
        process.terminate()
        until(lambda: children(process) == {frozen})
        process.terminate()
        process.wait(5)
    assert (process.returncode, is_alive(frozen)) == (0, False)


def test_processes_do_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    with two(tmp_path) as (_, process):
        orphans = children(process)
        process.kill()
        until(lambda: not any(map(is_alive, orphans)))


def to_parent(process: subprocess.Popen[str]) -> None:
    process.terminate()


def to_all(number: signal.Signals) -> Callable[[subprocess.Popen[str]], None]:
    """As a terminal or an init system does it."""

    def tell(process: subprocess.Popen[str]) -> None:
        for pid in (*children(process), process.pid):
            os.kill(pid, number)

    return tell


@pytest.mark.parametrize(
    "tell",
    [to_parent, to_all(signal.SIGTERM), to_all(signal.SIGINT)],
    ids=["SIGTERM", "SIGTERM to all", "SIGINT to all"],
)
def test_all_processes_drain_and_the_exit_code_is_0(
    tmp_path: Path, tell: Callable[[subprocess.Popen[str]], None]
) -> None:
    with two(tmp_path) as (base, process), ExitStack() as stack:
        wires = [stack.enter_context(wire) for wire in wires_to_both(base)]
        for wire in wires:
            wire.send("GET /products HTTP/1.1\r\n")
        time.sleep(0.2)
        tell(process)
        time.sleep(0.5)
        for wire in wires:
            wire.send("Host: localhost\r\n\r\n")
            answer = wire.reply()
            assert answer
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


def test_rate_limits_are_the_processes_own(tmp_path: Path) -> None:
    with two(tmp_path, RATE_LIMIT="0.001", RATE_BURST="5") as (base, _), ExitStack() as stack:
        first, second = (stack.enter_context(wire) for wire in wires_to_both(base))
        assert [first.get("/products").status for _ in range(3)] == [200, 200, 429]
        assert second.get("/products").headers["ratelimit"].startswith('"default";r=3;')


def with_serve(body: str, tmp_path: Path, ignored: str = "") -> subprocess.Popen[str]:
    """The program with two processes that do something else than serve; it has printed its URL."""
    code = f"import signal, sys, time; sys.path.insert(0, {str(PROGRAM.parent)!r}); import inventory_api\n"
    code += f"inventory_api.serve = lambda *given: {body}\n" if body else ""
    code += f"signal.signal(signal.{ignored}, signal.SIG_IGN)\n" if ignored else ""
    process = subprocess.Popen(
        [sys.executable, "-c", code + "sys.exit(inventory_api.main(['--processes', '2', '--port', '0']))"],
        cwd=tmp_path, env={"PATH": os.environ["PATH"]}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert " at " in process.stdout.readline()
    return process


def test_it_ends_when_told_even_while_its_processes_die_as_soon_as_they_begin(tmp_path: Path) -> None:
    process = with_serve("time.sleep(0.1 if given[-1] == 1 else 0.3)", tmp_path)
    time.sleep(1.2)
    process.terminate()
    try:
        _, err = process.communicate(timeout=5)
    finally:
        process.kill()
    assert process.returncode == 0
    assert 1 <= err.count("another one follows") <= 4  # it takes its time


def test_where_deaths_of_children_came_ignored_it_ends_all_the_same(tmp_path: Path) -> None:
    process = with_serve("", tmp_path, ignored="SIGCHLD")
    time.sleep(0.5)
    process.terminate()
    assert process.wait(20) == 0
    process.communicate()


def test_where_ctrl_c_came_ignored_it_stays_ignored(tmp_path: Path) -> None:
    process = with_serve("", tmp_path, ignored="SIGINT")
    process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    assert process.poll() is None
    process.terminate()
    assert process.wait(20) == 0
    process.communicate()
