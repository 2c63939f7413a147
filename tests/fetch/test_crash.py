"""Kills, signals, locks and full disks, with real processes."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetch_ads import Exit

from .conftest import Command

pytestmark = pytest.mark.slow
RANGE = ("2023-01-01", "2023-03-31", "--workers", "4")
DAYS = 90
ROWS = "return [{'clicks': n * day.day, 'name': 'x' * 50} for n in range(50)]"


@pytest.fixture
def undisturbed(command: Command) -> bytes:
    """ads.csv as it comes out when nothing happens; the folder is then emptied."""
    command.fetcher(ROWS)
    assert command.run(*RANGE) == Exit.OK
    data = (command.data / "ads.csv").read_bytes()
    for path in sorted(command.data.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    command.called()
    return data


def wait_for(condition: object, seconds: float = 30.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_a_dozen_kills_lose_nothing(command: Command, undisturbed: bytes) -> None:
    command.fetcher("time.sleep(0.02)\n" + ROWS)
    draw = random.Random(3)
    for _ in range(12):
        recorded = (
            {day for day, row in command.manifest().items() if row["status"] == "complete"}
            if (command.data / "manifest.csv").exists()
            else set()
        )
        command.called()
        with command.start(*RANGE) as run:
            time.sleep(draw.uniform(0.1, 0.6))
            run.kill()
        assert not recorded & set(command.called()), "a recorded day was fetched again"
    with command.start(*RANGE) as run:
        _, err = run.communicate(timeout=60)
    assert run.returncode == Exit.OK, err
    assert (command.data / "ads.csv").read_bytes() == undisturbed
    assert len(command.manifest()) == DAYS
    assert not [name for name in command.everything() if name.endswith((".tmp", ".lock"))]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_calls_and_keeps_what_is_finished(command: Command, number: signal.Signals) -> None:
    command.fetcher("time.sleep(0.2)\nreturn [{'a': 1}]")
    with command.start(*RANGE) as run:
        wait_for(lambda: command.calls.exists() and len(command.calls.read_text().split()) > 6)
        run.send_signal(number)
        _, err = run.communicate(timeout=20)
    assert run.returncode == Exit.INTERRUPTED
    assert "interrupted" in err
    assert "Traceback" not in err
    called = command.called()
    assert len(called) < 20
    assert [row["date"] for row in command.ads()] == called


def test_a_call_that_hangs_gets_a_few_seconds_after_ctrl_c(command: Command) -> None:
    command.fetcher("time.sleep(600)")
    with command.start(*RANGE) as run:
        wait_for(command.calls.exists)
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=20)
    assert run.returncode == Exit.INTERRUPTED
    assert 4 < time.monotonic() - began < 10


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_a_second_ctrl_c_leaves_at_once(command: Command, executor: str) -> None:
    command.fetcher("time.sleep(600)")
    with command.start(*RANGE, "--executor", executor) as run:
        wait_for(command.calls.exists)
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=20)
    assert run.returncode == Exit.INTERRUPTED
    assert time.monotonic() - began < 3
    assert "Traceback" not in err


def test_a_second_run_says_who_is_at_work(command: Command) -> None:
    command.fetcher("time.sleep(1)\nreturn []")
    with command.start("2023-01-01", "2023-01-04") as first:
        wait_for(command.calls.exists)
        with command.start("2023-01-01", "2023-01-04") as second:
            _, err = second.communicate(timeout=20)
        assert second.returncode == Exit.FOLDER
        assert f"in use by process {first.pid}" in err
        assert err.count("\n") == 1
        first.communicate(timeout=20)
    assert first.returncode == Exit.OK
    assert len(command.called()) == 4


def test_the_lock_of_a_dead_process_holds_nobody(command: Command) -> None:
    command.data.mkdir()
    (command.data / ".lock").write_text("process 1 on somewhere")
    assert command.run("2023-01-01", "2023-01-02") == Exit.OK
    assert ".lock" not in command.everything()


def test_children_do_not_outlive_a_killed_run(command: Command) -> None:
    pids = command.home / "pids"
    command.fetcher(f"import os\nopen({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\ntime.sleep(1)\nreturn []")
    with command.start(*RANGE, "--executor", "processes") as run:
        wait_for(pids.exists)
        run.kill()

    def alive(pid: str) -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # gone before it is opened, or read
            return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
        return False

    wait_for(lambda: not any(map(alive, pids.read_text().split())))


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk here")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk_is_said_and_corrupts_nothing(command: Command) -> None:
    command.fetcher("return [{'a': 'x' * 1000, 'b': n} for n in range(40)]")
    with small_disk(command.data):
        with command.start("2023-01-01", "2023-01-31", "--workers", "2") as run:
            _, err = run.communicate(timeout=60)
        assert run.returncode == Exit.FOLDER
        assert "No space left on device" in err
        assert "Traceback" not in err
        assert not [name for name in command.everything() if name.endswith(".tmp")]
        for row in command.manifest().values():
            assert command.day(row["date"]).stat().st_size == int(row["bytes"])
        subprocess.run(["mount", "-o", "remount,size=20m", command.data], check=True)
        assert command.run("2023-01-01", "2023-01-31") == Exit.OK
        assert len(command.ads()) == 31 * 40


def test_a_folder_that_is_not_writable(command: Command) -> None:
    if os.geteuid() == 0:
        line = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        command.home.chmod(0o755)
    else:
        line = []
    command.data.mkdir(mode=0o555)
    script = [sys.executable, str(Path(__file__).parents[2] / "fetch_ads.py"), "2023-01-01", "2023-01-02"]
    probe = subprocess.run([*line, sys.executable, "-c", ""], capture_output=True, cwd="/")
    if probe.returncode:
        pytest.skip("no other user can run this Python")
    run = subprocess.run([*line, *script, command.data], capture_output=True, text=True, cwd="/")
    if "Permission denied" in run.stderr and "can't open file" in run.stderr:
        pytest.skip("no other user can read this folder")
    assert run.returncode == Exit.FOLDER
    assert "Permission denied" in run.stderr
    assert run.stderr.count("\n") == 1
    assert command.everything() == set()


def test_a_file_where_the_folder_should_be(command: Command) -> None:
    command.data.write_text("a file")
    assert command.run("2023-01-01", "2023-01-02") == Exit.FOLDER
    assert command.data.read_text() == "a file"


def test_a_million_rows_are_streamed_in_little_memory(command: Command) -> None:
    # Not ru_maxrss: that one remembers the process that started this one.
    report = "print(open('/proc/self/status').read(), file=open(peak, 'w'))"
    peak = command.home / "peak"
    body = "for n in range(1_000_000):\n    yield {'a': n, 'b': 'x', 'c': 1.5}\n" + report
    command.fetcher(body, head=f"peak = {str(peak)!r}")
    with command.start("2023-01-01", "2023-01-01") as run:
        _, err = run.communicate(timeout=120)
    assert run.returncode == Exit.OK, err
    status = dict(line.split(":", 1) for line in peak.read_text().splitlines() if ":" in line)
    assert int(status["VmHWM"].split()[0]) < 60_000
