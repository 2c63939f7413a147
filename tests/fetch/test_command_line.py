"""What a user types, and what comes of it."""

import datetime as dt
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import fetch_ads
from fetch_ads import Exit, main

from .conftest import ROOT, Command

SCRIPT = str(ROOT / "fetch_ads.py")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["data"],
        ["2023-01-01", "data"],
        ["2023-01-01", "2023-01-02"],
        ["2023-01-01", "2023-01-02", "data", "more"],
        ["--backfill"],
        ["--backfill", "2023-01-01", "2023-01-02", "data"],
        ["--backfill", "--daily", "data"],
        ["--check", "2023-01-01", "data"],
        ["2023-01-02", "2023-01-01", "data"],
        ["2023-02-30", "2023-03-01", "data"],
        ["2023-01-01", "20230102", "data"],
        ["2023-01-01", "2999-01-01", "data"],
        ["2023-01-01", "2023-01-02", "data", "--workers", "0"],
        ["2023-01-01", "2023-01-02", "data", "--workers", "two"],
        ["2023-01-01", "2023-01-02", "data", "--retries", "-1"],
        ["2023-01-01", "2023-01-02", "data", "--timeout", "nan"],
        ["2023-01-01", "2023-01-02", "data", "--max-wait", "inf"],
        ["2023-01-01", "2023-01-02", "data", "--simulate-errors", "1.5"],
        ["2023-01-01", "2023-01-02", "data", "--simulate-errors", "0.5", "--fetcher", "os:getcwd"],
        ["2023-01-01", "2023-01-02", "data", "--timezone", "Mars/Olympus"],
        ["2023-01-01", "2023-01-02", "data", "--timezone", "../etc/passwd"],
        ["2023-01-01", "2023-01-02", "data", "--fetcher", "no_such_module:fetch_data"],
        ["2023-01-01", "2023-01-02", "data", "--fetcher", "no_such_file.py:fetch_data"],
        ["2023-01-01", "2023-01-02", "data", "--fetcher", "os:no_such_function"],
        ["2023-01-01", "2023-01-02", "data", "--fetcher", "os:sep"],
        ["2023-01-01", "2023-01-02", "data", "--fetcher", "os"],
        ["2023-01-01", "2023-01-02", "data", "--executor", "fibers"],
        ["2023-01-01", "2023-01-02", "data", "--exec", "threads"],
    ],
)
def test_a_command_that_makes_no_sense_exits_2_with_one_line_and_makes_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (Exit.USAGE, "", 1), err
    assert err.startswith("fetch_ads.py: ")
    assert list(tmp_path.iterdir()) == []


def test_the_main_job_with_nothing_installed(tmp_path: Path) -> None:
    line = [sys.executable, "-I", "-S", SCRIPT, "2023-01-01", "2023-01-31", "./my data"]
    run = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "31 days fetched, 0 skipped, 0 failed" in run.stdout
    assert "SIMULATED" in run.stderr
    again = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "0 days fetched, 31 skipped" in again.stdout
    assert again.stderr == ""
    assert len((tmp_path / "my data" / "ads.csv").read_text().splitlines()) == 3101


def test_simulated_days_are_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        main(["2023-01-01", "2023-01-03", str(tmp_path / name)])
    assert (tmp_path / "a" / "ads.csv").read_bytes() == (tmp_path / "b" / "ads.csv").read_bytes()


def test_simulated_errors_are_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_ads, "BACKOFF", 0.0)
    assert main(["2023-01-01", "2023-01-31", str(tmp_path), "--simulate-errors", "0.3", "--retries", "50"]) == Exit.OK


def test_dry_run_tells_the_calls_and_makes_nothing(command: Command) -> None:
    assert command.run("2023-01-01", "2023-01-31", "--dry-run") == Exit.OK
    assert "31 calls to make" in command.out
    assert not command.data.exists()
    command.run("2023-01-10", "2023-01-11")
    command.called()
    command.run("2023-01-01", "2023-01-31", "--dry-run", "--json")
    plan = command.summary()
    assert (plan["wanted"], plan["skipped"], plan["calls"]) == (31, 2, 29)
    assert command.called() == []


def test_json_is_one_object_on_stdout(command: Command) -> None:
    command.fetcher("return None if day.day == 2 else [{'a': 1}]")
    assert command.run("2023-01-01", "2023-01-03", "--json") == Exit.FAILED
    told = command.summary()
    assert told["exit_code"] == 1
    assert (told["fetched"], told["skipped"], told["left"], told["rows"]) == (2, 0, 0, 2)
    assert told["failed"] == {"2023-01-02": "RowError: fetch_data returned NoneType, not rows"}
    assert {"wall_seconds", "call_seconds", "speedup", "p50", "p95", "max", "braked_seconds"} <= told.keys()


def test_backfill_and_daily_want_the_two_years_up_to_yesterday(command: Command) -> None:
    today = dt.datetime.now(dt.timezone.utc).date()
    for mode in ("--backfill", "--daily"):
        command.run(mode, "--dry-run", "--json", "--timezone", "UTC")
        days = command.summary()["days"]
        assert len(days) in (730, 731)
        assert days[-1] == str(today - dt.timedelta(days=1))


def test_daily_says_one_line_when_nothing_is_missing(command: Command) -> None:
    assert command.run("--daily", "--timezone", "UTC", "--workers", "16") == Exit.OK
    assert "fetched" in command.out
    assert command.run("--daily", "--timezone", "UTC") == Exit.OK
    assert command.out.count("\n") == 1
    assert command.out.startswith("nothing to fetch: all 73")
    assert command.err == ""


def test_a_fetcher_named_by_its_module_is_found_in_the_current_folder(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(command.home)
    assert main(["2023-01-01", "2023-01-01", "data", "--fetcher", "source:fetch_data"]) == Exit.OK
    sys.modules.pop("source")


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["threads", "processes"])
@pytest.mark.parametrize(("raised", "code"), [("RateLimitError(999)", Exit.QUOTA), ("OAuthError('x')", Exit.OAUTH)])
def test_a_fetcher_that_imports_fetch_ads_meets_the_classes_of_the_script(
    command: Command, executor: str, raised: str, code: Exit
) -> None:
    head = "import sys, fetch_ads\nassert fetch_ads.RateLimitError is sys.modules['__main__'].RateLimitError"
    command.fetcher(f"raise fetch_ads.{raised}", head=head)
    _, err = (run := command.start("2023-01-01", "2023-01-02", "--executor", executor)).communicate(timeout=60)
    assert run.returncode == code, err
    if code is Exit.QUOTA:
        assert f"after {dt.datetime.now(dt.timezone.utc):%Y-%m}" in err


@pytest.mark.slow
def test_processes_fetch_what_threads_fetch(command: Command) -> None:
    command.run("2023-01-01", "2023-01-10")
    ads = (command.data / "ads.csv").read_bytes()
    (run := command.start("2023-01-01", "2023-01-10", "--force", "--executor", "processes")).communicate(timeout=60)
    assert run.returncode == Exit.OK
    assert (command.data / "ads.csv").read_bytes() == ads


@pytest.mark.slow
def test_a_process_that_dies_costs_its_day_alone(command: Command) -> None:
    command.fetcher("import os\nif day.day == 3:\n    os._exit(9)\nreturn []")
    line = ("2023-01-01", "2023-01-05", "--executor", "processes", "--retries", "1")
    out, err = (run := command.start(*line)).communicate(timeout=60)
    assert run.returncode == Exit.FAILED, err
    assert out.count(" failed: ") == 1
    assert "2023-01-03 failed: the process that made the call died" in out


def test_any_executor_may_be_named(command: Command) -> None:
    (command.home / "pools.py").write_text(
        "from concurrent.futures import ThreadPoolExecutor\ndef pool():\n    return ThreadPoolExecutor(2)\n"
    )
    assert command.run("2023-01-01", "2023-01-05", "--executor", f"{command.home / 'pools.py'}:pool") == Exit.OK
    assert len(command.ads()) == 5


def test_an_executor_that_cannot_start_is_said_in_one_line(command: Command) -> None:
    (command.home / "pools.py").write_text("def pool():\n    raise ConnectionError('no cluster')\n")
    assert command.run("2023-01-01", "2023-01-05", "--executor", f"{command.home / 'pools.py'}:pool") == Exit.USAGE
    assert "no cluster" in command.err


@pytest.mark.slow
def test_a_terminal_sees_a_live_line(command: Command) -> None:
    command.fetcher("time.sleep(0.3)\nreturn [{'a': 1}]")
    ours, theirs = pty.openpty()
    line = [sys.executable, SCRIPT, *command.arguments("2023-01-01", "2023-01-04", "--workers", "2")]
    with subprocess.Popen(line, stderr=theirs, stdout=subprocess.PIPE) as run:
        assert run.wait(timeout=60) == Exit.OK
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    os.close(theirs)
    assert "\r2/4 days, 2 rows, " in shown
    assert "2 in flight, 0 retries, " in shown
    assert shown.endswith("\r\x1b[K")


def test_utc_needs_no_database_of_zones(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zoneinfo", None)
    assert command.run("2023-01-01", "2023-01-01", "--timezone", "UTC") == Exit.OK


def test_the_zone_says_what_today_is(command: Command) -> None:
    ahead = dt.datetime.now(dt.timezone(dt.timedelta(hours=14))).date()
    behind = dt.datetime.now(dt.timezone(dt.timedelta(hours=-12))).date()
    assert behind < ahead
    assert command.run(str(ahead), str(ahead), "--timezone", "Etc/GMT+12") == Exit.USAGE
    assert command.run(str(ahead), str(ahead), "--timezone", "Pacific/Kiritimati", "--json") == Exit.OK
    assert command.manifest()[str(ahead)]["status"] == "provisional"
