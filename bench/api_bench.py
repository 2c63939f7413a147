"""How fast the API is under load at 1,000,000 products, against a server that does nothing, and against its peers.

python bench/api_bench.py --work /var/tmp/bench            every row on both engines: ten minutes
python bench/api_bench.py --engine sqlite --rows product   one engine, one row
python bench/api_bench.py --peers --granian                with its peers, and on granian: half an hour

The yardstick is a Falcon app on waitress, with the same settings, that answers everything with constant bytes of the
same size. It is measured before and after each measurement, with the same requests. The figure is its CPU time per
request over the server's: of the server's processes alone, so not of PostgreSQL's, which stands beside it. Requests a
second, p50 and p99 stand beside it too. 16 connections; server on one core, load generator and PostgreSQL on another;
RATE_LIMIT=0, access log to a file. It needs wrk (Debian: apt-get install wrk) and Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import million
from million import ROOT, ROWS, Place

from inventory_api import Position, cursor_at, parse_page

ENGINES = ("sqlite", "postgresql")
CONNECTIONS, LIMIT, WARM_UP = 16, 20, 1.0  # seconds
SERVER_CORE, LOAD_CORE = {0}, {min(1, (os.cpu_count() or 1) - 1)}
TICKS = os.sysconf("SC_CLK_TCK")  # a second
PEERS = Path(__file__).with_name("peers")

# ---------------------------------------------------------------- what is asked

Request = tuple[str, Any]  # ("product", id), ("page", share of the products before it), ("search", name), ("patch", id)


class Row(NamedTuple):
    """A line of the table: the requests, and the figures it is to reach on the two engines."""

    title: str
    requests: Callable[[random.Random], list[Request]]
    targets: tuple[float, float]
    fresh: bool = False  # with Cache-Control: no-cache


def zipf(lottery: random.Random, count: int = 20_000) -> list[Request]:
    """Products out of a thousand, the n-th of them asked for 1/n as often as the first."""
    ids = lottery.sample(range(1, ROWS + 1), 1000)
    weights = [1 / rank for rank in range(1, 1001)]
    return [("product", id) for id in lottery.choices(ids, weights, k=count)]


def uniform(lottery: random.Random, kind: str, count: int = 100_000) -> list[Request]:
    return [(kind, lottery.randint(1, ROWS)) for _ in range(count)]


def mixed(lottery: random.Random) -> list[Request]:
    return [("patch" if lottery.random() < 0.1 else kind, id) for kind, id in zipf(lottery)]


def searches(lottery: random.Random) -> list[Request]:
    """Names that are in 30 % of the rows, in 1 %, 0.1 %, in ten, in one and in none, each as often as the others."""
    words = million.words_by_share(list(itertools.islice(million.names(), 100_000)))
    return [("search", word) for word in words.values()]


TABLE = {
    "product": Row("product, cached (Zipf over 1,000 ids)", zipf, (0.85, 0.85)),
    "cold": Row("product, uniform over a million ids", lambda lottery: uniform(lottery, "product"), (0.65, 0.40)),
    "page": Row("first page of 20, cached", lambda lottery: [("page", 0)], (0.80, 0.80)),
    "fresh": Row("page of 20, not cached", lambda lottery: [("page", 0)], (0.45, 0.25), fresh=True),
    "deep": Row("page at 99 % depth, to the first", lambda lottery: [("page", 0.99)], (1.0, 1.0), fresh=True),
    "search": Row("search by name, mixed, not cached", searches, (0.12, 0.05), fresh=True),
    "patch": Row("PATCH, durable", lambda lottery: uniform(lottery, "patch"), (0.30, 0.15)),
    "mixed": Row("90 % cached reads, 10 % PATCH", mixed, (0.65, 0.45)),
    "processes": Row("two processes to one, requests/s, not pinned", zipf, (1.4, 1.4)),
}


class Depths:
    """Where a page by price starts, for those who page by keyset."""

    def __init__(self) -> None:
        self._ordered = sorted((cents, id) for id, cents in enumerate(million.prices(), start=1))

    def cursor(self, depth: float) -> str:
        query = parse_page("/products", f"limit={LIMIT}&sort=price")
        return cursor_at(Position(True, False, *self._ordered[int(depth * ROWS) - 1]), query)

    def datasette(self, depth: float) -> str:
        return "{},{}".format(*self._ordered[int(depth * ROWS) - 1])


def our_path(kind: str, value: Any, depths: Depths) -> str:
    if kind == "page":
        return f"/products?limit={LIMIT}&sort=price" + (f"&cursor={depths.cursor(value)}" if value else "")
    return f"/products/search?limit={LIMIT}&name={quote(value)}" if kind == "search" else f"/products/{value}"


def orm_path(kind: str, value: Any, depths: Depths) -> str:
    deep = kind == "page" and value
    return our_path(kind, 0 if deep else value, depths) + (f"&offset={int(value * ROWS)}" if deep else "")


def datasette_path(kind: str, value: Any, depths: Depths) -> str:
    if kind not in ("page", "search"):
        return f"/products/products/{value}.json"
    asked = f"name__contains={quote(value)}" if kind == "search" else "_sort=price_cents"
    following = f"&_next={depths.datasette(value)}" if kind == "page" and value else ""
    return f"/products/products.json?_nocount=1&_size={LIMIT}&{asked}{following}"


# ---------------------------------------------------------------- who is asked


class Subject(NamedTuple):
    """A server: its command line with {port} in it, its variables, and how it calls the things asked for."""

    name: str
    command: Sequence[str]
    environ: Mapping[str, str] = {}
    path: Callable[[str, Any, Depths], str] = our_path
    pinned: bool = True

    def sized(self, size: int) -> Subject:
        return self._replace(environ={**self.environ, "BODY_SIZE": str(size)})


def granian(python: str, app: str) -> list[str]:
    serving = ["--host", "127.0.0.1", "--port", "{port}", "--interface", "wsgi", "--workers", "1"]
    return [python, "-m", "granian", *serving, "--blocking-threads", "8", "--working-dir", str(PEERS), app]


def the_api(*flags: str) -> Subject:
    return Subject("this API", [sys.executable, str(ROOT / "inventory_api.py"), "--port", "{port}", *flags])


YARDSTICK = Subject("yardstick", [sys.executable, str(PEERS / "yardstick.py"), "{port}"])


def subjects(options: argparse.Namespace, python: str, place: Place) -> Iterator[tuple[Subject, Subject]]:
    """Each server to be measured, with its yardstick."""
    yield the_api(), YARDSTICK
    if options.granian:
        bare = Subject("bare app on granian", granian(python, "yardstick:app"))
        yield Subject("this API on granian", granian(python, "granian_app:app")), bare
    if options.peers:
        serving = ["--host=127.0.0.1", "--port={port}"]
        uvicorn = [python, "-m", "uvicorn", *serving, "--app-dir", str(PEERS), "fastapi_app:app"]
        yield Subject("FastAPI, SQLAlchemy, uvicorn", uvicorn, path=orm_path), YARDSTICK
        waitress = [python, "-m", "waitress", *serving, "--threads=8", "flask_app:app"]
        yield Subject("Flask, SQLAlchemy, waitress", waitress, {"PYTHONPATH": str(PEERS)}, orm_path), YARDSTICK
        if place.url.startswith("sqlite"):
            file = place.url.removeprefix("sqlite:///")
            lenient = ["--setting", "sql_time_limit_ms", "30000", "--setting", "suggest_facets", "off"]
            datasette = [python, "-m", "datasette", "serve", *serving, *lenient, file]
            yield Subject("Datasette", datasette, path=datasette_path), YARDSTICK


def peers_python(work: Path) -> str:
    """The interpreter of an environment that has all the peers, made in the folder."""
    home, wanted = work / "peers", (PEERS / "requirements.txt").read_text()
    python, ready = home / "bin" / "python", home / "ready"
    if not ready.exists() or ready.read_text() != wanted:
        venv.create(home, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(PEERS / "requirements.txt")], check=True)
        ready.write_text(wanted)
    return str(python)


# ---------------------------------------------------------------- processes


def tree(root: int) -> list[int]:
    """A process and all that descend from it, as far as they are alive."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """What a process and its descendants have used so far, in user and system mode."""
    ticks = 0
    for pid in tree(root) if root else ():
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / TICKS


def pin(root: int, cores: set[int]) -> None:
    """Keep every thread of a process and its descendants, and those they start later, to some cores."""
    for thread in itertools.chain.from_iterable(Path(f"/proc/{pid}/task").glob("*") for pid in tree(root)):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(thread.name), cores)


class Running(NamedTuple):
    pid: int
    port: int


class Refused(Exception):
    """A server ended before it listened; the message is what it said."""


@contextmanager
def running(subject: Subject, place: Place, folder: Path) -> Iterator[Running]:
    """The server on a free port of its own, its log in the folder; it is gone at the end, whatever happens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = {**os.environ, "DATABASE_URL": place.url, "RATE_LIMIT": "0", **subject.environ}
    command = [word.replace("{port}", str(port)) for word in subject.command]
    log = folder / f"{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        while not answers(port):
            if process.poll() is not None:
                raise Refused(log.read_text().strip().rpartition("\n")[2])
            time.sleep(0.05)
        if subject.pinned:
            pin(process.pid, SERVER_CORE)
        yield Running(process.pid, port)
    finally:
        family = tree(process.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        for pid in family:  # those that outlive their parent, or the parent if it does not listen to reason
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


# ---------------------------------------------------------------- measuring

# Requests are put together before the clock starts. The summary comes as one line of JSON, in microseconds.
SCRIPT = """
local requests, n = {}, 0
function init(args)
  wrk.headers["Content-Type"] = "application/json"
  if args[2] == "fresh" then wrk.headers["Cache-Control"] = "no-cache" end
  for line in io.lines(args[1]) do
    local method, path, body = line:match("^(%S+) (%S+) ?(.*)$")
    requests[#requests + 1] = wrk.format(method, path, nil, body ~= "" and body or nil)
  end
end
function request()
  n = n % #requests + 1
  return requests[n]
end
function done(summary, latency)
  local errors = summary.errors
  print(string.format('{"requests":%d,"duration":%d,"p50":%f,"p99":%f,"errors":%d}', summary.requests,
    summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
"""


class Measured(NamedTuple):
    """A run of load: CPU in microseconds a request, of the server and of its database; latencies in ms."""

    cpu: float
    database_cpu: float
    rate: float  # requests a second
    p50: float
    p99: float
    errors: int


class Load(NamedTuple):
    """Requests, written down for wrk in a folder."""

    folder: Path
    lines: list[str]
    fresh: bool
    seconds: float
    pinned: bool

    def wrk(self, port: int, seconds: float) -> dict[str, float]:
        command = ["wrk", "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds:.0f}s"]
        command += ["--timeout", "60s", "--script", str(self.folder / "load.lua"), f"http://127.0.0.1:{port}", "--"]
        command += [str(self.folder / "requests"), "fresh" if self.fresh else ""]
        pinned = ["taskset", "--cpu-list", str(min(LOAD_CORE))] if self.pinned else []
        said = subprocess.run([*pinned, *command], check=True, timeout=seconds + 60, stdout=subprocess.PIPE, text=True)
        told: dict[str, float] = json.loads(said.stdout.strip().rpartition("\n")[2])
        return told

    def run(self, server: Running, database: int) -> Measured:
        """Load the server for a moment unmeasured, then for the time that is measured."""
        self.wrk(server.port, WARM_UP)
        before = cpu_seconds(server.pid), cpu_seconds(database)
        told = self.wrk(server.port, self.seconds)
        spent = cpu_seconds(server.pid) - before[0], cpu_seconds(database) - before[1]
        count = max(told["requests"], 1)
        cpu, database_cpu = (seconds / count * 1e6 for seconds in spent)
        rate = told["requests"] / told["duration"] * 1e6
        return Measured(cpu, database_cpu, rate, told["p50"] / 1e3, told["p99"] / 1e3, int(told["errors"]))

    def answer_size(self, port: int) -> int:
        """The bytes of a body, on average over some requests. Raises Refused if one is not answered well."""
        sizes = []
        for method, path, body in (line.split(" ", 2) for line in self.lines[:6]):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request(method, path, body or None, {"Content-Type": "application/json"})
                response = connection.getresponse()
                sizes.append(len(response.read()))
            except OSError as error:
                raise Refused(f"{method} {path}: {error}") from error
            finally:
                connection.close()
            if response.status != 200:
                raise Refused(f"{method} {path} is answered with {response.status}")
        return round(statistics.mean(sizes))


def prepare(folder: Path, row: Row, subject: Subject, depths: Depths, seconds: float) -> Load:
    lines = []
    for kind, value in row.requests(random.Random(1)):
        path = subject.path(kind, value, depths)
        lines.append(f'PATCH {path} {{"stock_delta":1}}' if kind == "patch" else f"GET {path} ")
    (folder / "load.lua").write_text(SCRIPT)
    (folder / "requests").write_text("\n".join(lines) + "\n")
    return Load(folder, lines, row.fresh, seconds, subject.pinned)


class Bench:
    """One engine's database, the folder for what is generated, and how long to measure."""

    def __init__(self, place: Place, folder: Path, seconds: float, depths: Depths) -> None:
        self._place, self._folder, self._seconds, self._depths = place, folder, seconds, depths

    def against_yardstick(self, row: Row, subject: Subject, yardstick: Subject) -> tuple[float, Measured]:
        load = prepare(self._folder, row, subject, self._depths, self._seconds)
        with self._running(subject) as server:
            size = load.answer_size(server.port)
            with self._running(yardstick.sized(size)) as bare:
                before, measured, after = (load.run(who, self._place.pid) for who in (bare, server, bare))
        return statistics.mean((before.cpu, after.cpu)) / measured.cpu, measured

    def against_first_page(self, row: Row, subject: Subject) -> tuple[float, Measured]:
        """By the CPU time of the server and of the database together: it is there that OFFSET costs."""

        def run(asked: Row) -> Measured:
            load = prepare(self._folder, asked, subject, self._depths, self._seconds)
            with self._running(subject) as server:  # a new one: the last may still be at what nobody waits for any more
                load.answer_size(server.port)
                return load.run(server, self._place.pid)

        before, deep, after = map(run, (TABLE["fresh"], row, TABLE["fresh"]))
        first = statistics.mean(each.cpu + each.database_cpu for each in (before, after))
        return first / (deep.cpu + deep.database_cpu), deep

    def against_one_process(self, row: Row) -> tuple[float, Measured]:
        one, two = (the_api(*flags)._replace(pinned=False) for flags in ((), ("--processes", "2")))
        load = prepare(self._folder, row, one, self._depths, self._seconds)
        with self._running(one) as single, self._running(two) as double:
            before, measured, after = (load.run(who, self._place.pid) for who in (single, double, single))
        return measured.rate / statistics.mean((before.rate, after.rate)), measured

    def _running(self, subject: Subject) -> contextlib.AbstractContextManager[Running]:
        return running(subject, self._place, self._folder)


def measure_engine(engine: str, bench: Bench, servers: Sequence[tuple[Subject, Subject]], rows: Sequence[str]) -> None:
    for name in rows:
        row = TABLE[name]
        for subject, yardstick in servers if name != "processes" else servers[:1]:
            ours = subject.name == "this API"
            target = f"{row.targets[ENGINES.index(engine)]:.2f}" if ours else ""
            try:
                if name == "processes":
                    ratio, measured = bench.against_one_process(row)
                elif name == "deep":
                    ratio, measured = bench.against_first_page(row, subject)
                else:
                    ratio, measured = bench.against_yardstick(row, subject, yardstick)
            except Refused as refusal:
                print(f"| {row.title} | {engine} | {subject.name} | skipped: {refusal} |", flush=True)
                continue
            who = f"{subject.name} ({measured.errors} errors)" if measured.errors else subject.name
            figures = f"{ratio:.4f}" if ratio < 0.01 else f"{ratio:.2f}"
            if not measured.rate:
                figures, who = f"under {figures}", f"{who} (none answered in time)"
            database = f"{measured.database_cpu:.0f}" if measured.database_cpu else ""
            print(
                f"| {row.title} | {engine} | {who} | {figures} | {target} | {measured.cpu:.0f} | {database} "
                f"| {measured.rate:,.0f} | {measured.p50:.1f} | {measured.p99:.1f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default=f"{tempfile.gettempdir()}/inventory-bench", help="where databases are kept")
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--rows", choices=TABLE, nargs="+", default=list(TABLE))
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--postgres", default="", help="the URL of a database of your own for it")
    parser.add_argument("--peers", action="store_true", help="FastAPI, Flask and Datasette as well")
    parser.add_argument("--granian", action="store_true", help="this API on granian as well")
    options = parser.parse_args()
    for program, package in (("wrk", "wrk"), ("taskset", "util-linux")):
        if not shutil.which(program):
            raise SystemExit(f"api_bench.py needs {program}, which is not installed here: apt-get install {package}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("terminated"))
    work = Path(options.work)
    folder, depths = million.folder_in(options.work), Depths()
    python = peers_python(work) if options.peers or options.granian else sys.executable
    print("| row | engine | server | ratio | target | CPU us | of database | requests/s | p50 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for engine in options.engine or ENGINES:
        opened = million.postgresql(folder, options.postgres) if engine == "postgresql" else million.sqlite(folder)
        with opened as place, tempfile.TemporaryDirectory(dir=work) as generated:
            if place.pid:
                pin(place.pid, LOAD_CORE)
            bench = Bench(place, Path(generated), options.seconds, depths)
            measure_engine(engine, bench, list(subjects(options, python, place)), options.rows)


if __name__ == "__main__":
    main()
