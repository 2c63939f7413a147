"""Whether two server processes on one database ever tell what is no longer true.

python bench/coherence.py [--engine sqlite|postgresql] [--writes 20000] [--seconds 120]

In each scenario a client writes through process A while others read through A and B, on connections that stay open, and
judge every read by the writes that were acknowledged before it began. SQLite: no read by any process may show an
older version, nor one older than any read before it has shown. PostgreSQL: none through A may show an older version;
through B it may for a moment, as what plain SQL changed may through both, and how long is told. It exits with 1 if a
promise is broken. PostgreSQL's server programs must be installed; the server is a throwaway.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psycopg

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.conftest import new_database, new_server  # noqa: E402

Execute = Callable[[str], list[Any]]  # SQL to rows

PRODUCTS = 20
PATHS = ("/products/{id}", f"/products?limit={PRODUCTS}", "/products?sort=-price", "/products/search?name=oak")
READERS = 2  # of each process
LATE, LATE_WHEN_CUT_OFF = 1.0, 5.0  # seconds after which PostgreSQL's news have come too late


class Scenario(NamedTuple):
    """What happens besides a client that writes through A and others that read."""

    engine: str
    processes: int = 1  # 2: A and B are one program on one port
    plain_sql: bool = False  # a third program changes the same rows
    cut_off: bool = False  # the listeners' connections are ended, again and again

    def __str__(self) -> str:
        told = {"one port": self.processes > 1, "plain SQL": self.plain_sql, "listeners killed": self.cut_off}
        return ", ".join([self.engine, *(name for name, so in told.items() if so)])


SCENARIOS = [
    Scenario("sqlite"),
    Scenario("sqlite", plain_sql=True),
    Scenario("sqlite", processes=2, plain_sql=True),
    Scenario("postgresql"),
    Scenario("postgresql", plain_sql=True),
    Scenario("postgresql", cut_off=True),
    Scenario("postgresql", processes=2, plain_sql=True),
]


@dataclass
class Judge:
    """What was acknowledged when, and which reads showed less.

    A read shows a version of each product it names. It is late if a newer one had been acknowledged before it began,
    and it went back if any read had shown a newer one by then.
    """

    acknowledged: list[dict[int, float]] = field(default_factory=lambda: [{1: 0.0} for _ in range(PRODUCTS + 1)])
    newest: list[int] = field(default_factory=lambda: [1] * (PRODUCTS + 1))
    shown: list[int] = field(default_factory=lambda: [0] * (PRODUCTS + 1))
    late: dict[str, dict[tuple[int, int], float]] = field(default_factory=lambda: {"A": {}, "B": {}})
    reads: dict[str, int] = field(default_factory=lambda: {"A": 0, "B": 0})
    late_reads: dict[str, int] = field(default_factory=lambda: {"A": 0, "B": 0})
    went_back: int = 0
    stuck: list[str] = field(default_factory=list)  # the processes that tell what is old although all is quiet
    lock: threading.Lock = field(default_factory=threading.Lock)

    def acknowledge(self, id: int, version: int) -> None:
        with self.lock:
            self.acknowledged[id][version] = time.perf_counter()
            self.newest[id] = max(self.newest[id], version)

    def begin(self) -> tuple[float, list[int]]:
        """When a read begins, and what was shown until then."""
        with self.lock:
            return time.perf_counter(), list(self.shown)

    def end(self, process: str, begun: tuple[float, list[int]], versions: dict[int, int]) -> None:
        moment, floor = begun
        with self.lock:
            ages = {(id, seen + 1): self._age(id, seen, moment) for id, seen in versions.items()}
            late = {write: age for write, age in ages.items() if age > 0}
            for write, age in late.items():
                self.late[process][write] = max(age, self.late[process].get(write, 0.0))
            self.reads[process] += 1
            self.late_reads[process] += bool(late)
            self.went_back += any(seen < floor[id] for id, seen in versions.items())
            for id, seen in versions.items():
                self.shown[id] = max(seen, self.shown[id])

    def _age(self, id: int, seen: int, moment: float) -> float:
        """For how long something newer than `seen` had been acknowledged; not positive: it had not."""
        times = self.acknowledged[id]
        newer = [version for version in range(seen + 1, self.newest[id] + 1) if version in times]
        return max((moment - times[version] for version in newer), default=0.0)


class Client:
    """A connection that stays open."""

    def __init__(self, base: str) -> None:
        parts = urlsplit(base)
        self._connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *details: object) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, body: str | None = None) -> Any:
        self._connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = self._connection.getresponse()
        document = json.loads(answer.read())
        if answer.status != 200 and (method, answer.status) != ("PATCH", 503):  # SQLite's write lock is not a fair one
            raise RuntimeError(f"{method} {path}: {document}")
        return document


def versions_in(document: Any) -> dict[int, int]:
    return {item["id"]: item["version"] for item in document.get("items", [document])}


def read(judge: Judge, process: str, base: str, number: int, done: threading.Event) -> None:
    """Read all routes in turn until it is done."""
    with Client(base) as client:
        for turn in itertools.count(number):
            if done.is_set():
                return
            path = PATHS[turn % len(PATHS)].format(id=1 + turn // len(PATHS) % PRODUCTS)
            begun = judge.begin()
            judge.end(process, begun, versions_in(client.ask("GET", path)))


def write_over_http(judge: Judge, base: str, turn: Callable[[], int | None]) -> None:
    with Client(base) as client:
        while (number := turn()) is not None:
            id = 1 + number * 7 % PRODUCTS
            document = client.ask("PATCH", f"/products/{id}", json.dumps({"price": number % 1000, "stock_delta": 1}))
            if "version" in document:
                judge.acknowledge(id, document["version"])


def write_plain_sql(judge: Judge, url: str, turn: Callable[[], int | None]) -> None:
    with connect(url) as execute:
        while (number := turn()) is not None:
            id = 1 + number * 3 % PRODUCTS
            execute("BEGIN IMMEDIATE" if url.startswith("sqlite") else "BEGIN")
            execute(f"UPDATE products SET stock_level = stock_level + 1 WHERE id = {id}")
            ((version,),) = execute(f"SELECT version FROM products WHERE id = {id}")
            execute("COMMIT")
            judge.acknowledge(id, version)
            time.sleep(0.001)  # SQLite's write lock goes to whoever asks at the right moment: let others do so


@contextlib.contextmanager
def connect(url: str) -> Iterator[Execute]:
    """The connection of another program."""
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(path, 20, isolation_level=None, check_same_thread=False)) as lite:
            yield lambda sql: lite.execute(sql).fetchall()
    else:
        with psycopg.connect(url, autocommit=True) as post:

            def execute(sql: str) -> list[Any]:
                cursor = post.execute(sql.encode())
                return cursor.fetchall() if cursor.description else []

            yield execute


KILL_LISTENERS = """
SELECT pg_terminate_backend(pid)
FROM pg_stat_activity
WHERE datname = current_database() AND query LIKE 'LISTEN %'
"""


def kill_listeners(url: str, done: threading.Event) -> None:
    with connect(url) as execute:
        while not done.wait(2):
            execute(KILL_LISTENERS)


def turns(count: int, seconds: float) -> Callable[[], int | None]:
    """A function for any thread that gives 1 to `count`, then None; None as well when the time is over."""
    numbers, lock, expires = iter(range(1, count + 1)), threading.Lock(), time.monotonic() + seconds

    def turn() -> int | None:
        with lock:
            return next(numbers, None) if time.monotonic() < expires else None

    return turn


@contextlib.contextmanager
def serving(url: str, processes: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The real program on a free port: its base URL, and its process, which is ended."""
    line = [sys.executable, str(ROOT / "inventory_api.py"), "--port", "0", "--processes", str(processes)]
    environ = {**os.environ, "DATABASE_URL": url, "RATE_LIMIT": "0", "LOG_LEVEL": "ERROR"}
    with subprocess.Popen(line, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().rsplit(" at ", 1)[1].strip(), process
        finally:
            process.terminate()


@contextlib.contextmanager
def empty_database(engine: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if engine == "sqlite":
            yield f"sqlite:///{folder}/inventory.db"
        else:
            yield stack.enter_context(new_database(stack.enter_context(new_server()).url))


def run(scenario: Scenario, url: str, writes: int, seconds: float) -> Judge:
    """Let them all loose on an empty database, and look once more at everything when the writers are done."""
    judge, done, turn = Judge(), threading.Event(), turns(writes, seconds)
    with contextlib.ExitStack() as stack:
        a, _ = stack.enter_context(serving(url, scenario.processes))
        b, _ = (a, None) if scenario.processes > 1 else stack.enter_context(serving(url, 1))
        with connect(url) as execute:
            for id in range(1, PRODUCTS + 1):
                execute(f"INSERT INTO products (name, price_cents, stock_level) VALUES ('Oak {id}', {id}, 1)")
        pool = stack.enter_context(ThreadPoolExecutor(12))
        stack.callback(done.set)
        numbered = [(process, base, n) for n in range(READERS) for process, base in (("A", a), ("B", b))]
        others = [pool.submit(read, judge, *one, done) for one in numbered]
        if scenario.cut_off:
            others.append(pool.submit(kill_listeners, url, done))
        writers = [pool.submit(write_over_http, judge, a, turn)]
        if scenario.plain_sql:
            writers.append(pool.submit(write_plain_sql, judge, url, turn))
        for writer in writers:
            writer.result()
        expires = time.monotonic() + patience(scenario)
        for process, base in (("A", a), ("B", b)):
            while not (current := is_current(judge, base)) and time.monotonic() < expires:
                pass
            judge.stuck += [] if current else [process]
        done.set()
        for other in others:
            other.result()
    return judge


def patience(scenario: Scenario) -> float:
    """Seconds that a process may take to hear of what others changed."""
    return 0.0 if scenario.engine == "sqlite" else LATE_WHEN_CUT_OFF if scenario.cut_off else LATE


def is_current(judge: Judge, base: str) -> bool:
    """Whether every route tells the newest version of every product."""
    paths = [*PATHS[1:], *(PATHS[0].format(id=id) for id in range(1, PRODUCTS + 1))]
    with Client(base) as client:
        shown = [item for path in paths for item in versions_in(client.ask("GET", path)).items()]
    return all(version >= judge.newest[id] for id, version in shown)


def broken(scenario: Scenario, judge: Judge) -> list[str]:
    """The promises that were not kept."""
    sqlite = scenario.engine == "sqlite"  # where a commit is seen by all at once, acknowledged or not
    found = [f"{judge.went_back} reads went back"] if judge.went_back and sqlite else []
    found += [f"{process} tells what is old when all is quiet" for process in judge.stuck]
    for process, late in judge.late.items():
        may_be_late = process == "B" or scenario.plain_sql or scenario.processes > 1
        if late and max(late.values()) > (patience(scenario) if may_be_late else 0):
            found.append(f"{process} was late by {max(late.values()) * 1000:.1f} ms")
    return found


def report(scenario: Scenario, judge: Judge, seconds: float) -> str:
    writes = sum(len(times) - 1 for times in judge.acknowledged[1:])
    told = [f"{scenario}: {writes} writes in {seconds:.0f} s"]
    for process, late in judge.late.items():
        windows = sorted([*late.values(), *[0.0] * (writes - len(late))])
        p50, p99, most = (1000 * windows[int(share * (len(windows) - 1))] for share in (0.5, 0.99, 1))
        line = f"  {process}: {judge.reads[process]} reads, {judge.late_reads[process]} stale"
        told.append(f"{line}; a write unseen for p50 {p50:.1f}, p99 {p99:.1f}, max {most:.1f} ms" if late else line)
    told += [f"  BROKEN: {promise}" for promise in broken(scenario, judge)]
    return "\n".join(told)


def main() -> int:
    parser = argparse.ArgumentParser(description="Are the caches of two processes coherent?")
    parser.add_argument("--engine", choices=["sqlite", "postgresql"], help="only this one")
    parser.add_argument("--writes", type=int, default=20_000, help="in each scenario")
    parser.add_argument("--seconds", type=float, default=120, help="for them, at most")
    options = parser.parse_args()
    code = 0
    for scenario in SCENARIOS:
        if options.engine in (None, scenario.engine):
            started = time.monotonic()
            with empty_database(scenario.engine) as url:
                judge = run(scenario, url, options.writes, options.seconds)
            print(report(scenario, judge, time.monotonic() - started), flush=True)
            code |= bool(broken(scenario, judge))
    return code


if __name__ == "__main__":
    sys.exit(main())
