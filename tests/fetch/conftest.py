"""A folder to fetch into, a command to run, and a world with a clock of its own."""

from __future__ import annotations

import csv
import datetime as dt
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import fetch_ads
from fetch_ads import Finished, Kind, Limits, Outcome, Scheduler, Tally

ROOT = Path(fetch_ads.__file__).parent
EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
OK = Outcome(Kind.DONE, 1.0)


class World:
    """Simulated time: a call takes as long and ends as `answer(day, now)` says, and nothing really waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.answer: Callable[[dt.date, float], tuple[float, Outcome]] = lambda day, now: (1.0, OK)
        self.calls: set[Future[Outcome]] = set()
        self.ends: dict[Future[Outcome], tuple[float, Outcome]] = {}
        self.starts: list[tuple[float, dt.date]] = []
        self.finished: list[Finished] = []
        self.most_in_flight = 0
        self.storing = 0.0  # seconds from the end of a call until its rows are in their file
        self.tally = Tally()

    def submit(self, day: dt.date) -> Future[Outcome]:
        seconds, outcome = self.answer(day, self.now)
        future: Future[Outcome] = Future()
        self.starts.append((self.now, day))
        self.calls.add(future)
        self.ends[future] = (self.now + seconds, outcome)
        self.most_in_flight = max(self.most_in_flight, len(self.ends))
        return future

    def wait_first(self, futures: Iterable[Future[Outcome]], seconds: float) -> set[Future[Outcome]]:
        flying = set(futures)
        first = min((self.ends[future][0] for future in flying), default=float("inf"))
        self.now = max(self.now, min(first, self.now + seconds))
        for future in [f for f in self.ends if f not in flying]:
            del self.ends[future]
        done = {future for future in flying if self.ends[future][0] <= self.now}
        for future in done:
            self.end(future, self.ends.pop(future)[1])
        return done

    def end(self, future: Future[Any], outcome: Outcome) -> None:
        if self.storing and future in self.calls and outcome.kind is Kind.DONE:
            stored: Future[Outcome] = Future()
            self.ends[stored] = (self.now + self.storing, outcome)
            future.set_result(stored)
        else:
            future.set_result(outcome)

    def run(self, days: Iterable[dt.date], **limits: Any) -> Scheduler:
        scheduler = Scheduler(
            self.submit,
            Limits(**limits),
            self.tally,
            clock=lambda: self.now,
            wall=lambda: EPOCH + dt.timedelta(seconds=self.now),
            wait_first=self.wait_first,
            uniform=lambda low, high: high,
        )
        scheduler.run(days, self.finished.extend)
        return scheduler

    def tries(self, day: dt.date) -> list[float]:
        return [at for at, started in self.starts if started == day]


@pytest.fixture
def world() -> World:
    return World()


class Command:
    """fetch_ads.py and a folder; `fetcher` sets the body of the module that has fetch_data."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.data, self.capsys = tmp_path, tmp_path / "data", capsys
        self.out = self.err = ""
        self.module = tmp_path / "source.py"
        self.calls = tmp_path / "calls"
        self.fetcher("return [{'clicks': day.day, 'name': 'a'}]")

    def fetcher(self, body: str, head: str = "") -> None:
        """A new fetch_data; every call leaves its day in the file `calls`."""
        note = f"    with open({str(self.calls)!r}, 'a') as file:\n        file.write(f'{{day}}\\n')\n"
        fetch_data = "def fetch_data(day):\n    note(day)\n" + textwrap.indent(body, "    ")
        self.module.write_text(f"import datetime, time\n{head}\ndef note(day):\n{note}{fetch_data}")

    def arguments(self, *words: str) -> list[str]:
        return [*words, str(self.data), "--fetcher", f"{self.module}:fetch_data"]

    def run(self, *words: str) -> int:
        """Run in this process."""
        fetch_ads.load.cache_clear()
        code = fetch_ads.main(self.arguments(*words))
        self.out, self.err = self.capsys.readouterr()
        return code

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Run as a user does."""
        line = [sys.executable, str(ROOT / "fetch_ads.py"), *self.arguments(*words)]
        pipe = subprocess.PIPE
        return subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, cwd=self.home, **options)

    def called(self) -> list[str]:
        """The days asked for since the last look."""
        days = sorted(self.calls.read_text().split()) if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return days

    def summary(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.out)
        return told

    def manifest(self) -> dict[str, dict[str, str]]:
        with (self.data / "manifest.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len({row["date"] for row in rows}) == len(rows), "one row a day"
        return {row["date"]: row for row in rows}

    def ads(self) -> list[dict[str, str]]:
        with (self.data / "ads.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def day(self, day: str) -> Path:
        return self.data / "days" / f"{day}.csv"

    def everything(self) -> set[str]:
        return {str(path.relative_to(self.data)) for path in self.data.rglob("*")}


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(fetch_ads, "BACKOFF", 0.0)
    return Command(tmp_path, capsys)
