"""Fetch daily Google Ads data in parallel into a folder that is always whole. Standard library only, Python 3.10+.

    python fetch_ads.py 2023-01-01 2023-01-31 ./data       a range, both ends included
    python fetch_ads.py --backfill ./data                  the two years up to yesterday
    python fetch_ads.py --daily ./data                     the same for a scheduler: one line when nothing is missing
    python fetch_ads.py --check [START END] ./data         a calendar of what is there; calls nothing
    python fetch_ads.py ... --fetcher my_module:fetch_data    or path/to/file.py:fetch_data

fetch_data(date) gives the rows of one day: any iterable of mappings. Without --fetcher it is simulated.

The folder:
    data/ads.csv               every day that is there, in date order, under one header
    data/days/2023-01-01.csv   one file a day, the unit of truth
    data/manifest.csv          one row a day: its status, size, checksum, attempts and error

Exit: 0 all wanted days are there, 1 some failed, 2 usage, 3 OAuth, 4 quota (resume later), 5 folder, 130 interrupted.

Every command is safe to run again, after a kill too: a day counts only once its file is flushed, swapped in whole
and written down with its SHA-256; what is missing or differs from its checksum is fetched again, nothing else is.

The way of one day: the main thread takes it off a heap and hands it to a worker; the worker calls fetch_data, writes
the rows to a temporary file and returns a record, never an exception; the main thread alone swaps files in, keeps the
manifest, decides what is tried again and when, and brakes all workers together when one meets a rate limit.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime as dt
import fcntl
import functools
import hashlib
import heapq
import importlib
import importlib.util
import io
import itertools
import json
import math
import operator
import os
import queue
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO, cast

# A fetcher that says `import fetch_ads` must meet the classes of the running script, not a second set of them.
sys.modules.setdefault("fetch_ads", sys.modules[__name__])

BATCH = 1000  # rows turned into CSV at a time
CHUNK = 1 << 20  # bytes copied or hashed at a time
TICK = 0.25  # seconds: the longest the main thread waits before it looks at signals and deadlines
GRACE = 5.0  # seconds that calls in flight get after Ctrl-C
FLUSH = 0.5  # seconds between two flushes of the manifest to disk
BACKOFF, BACKOFF_MAX = 0.5, 60.0  # seconds: full jitter below the first, doubled each time up to the second


# -- records ---------------------------------------------------------------------------------------------------------


class Exit(IntEnum):
    """Exit codes; where several apply, the first of PRECEDENCE."""

    OK = 0
    FAILED = 1
    USAGE = 2
    OAUTH = 3
    QUOTA = 4
    FOLDER = 5
    INTERRUPTED = 130


PRECEDENCE = (Exit.INTERRUPTED, Exit.FOLDER, Exit.OAUTH, Exit.QUOTA, Exit.FAILED)


class Kind(Enum):
    """How a call ended."""

    DONE = "done"
    TRANSIENT = "transient"
    RATE_LIMIT = "rate limit"
    OAUTH = "oauth"
    FOLDER = "folder"
    FAILED = "failed"


class RateLimitError(Exception):
    """For fetch_data to raise: the API refuses calls for retry_after seconds, or for an unknown time (None)."""

    def __init__(self, retry_after: float | None = None, message: str = "rate limited") -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OAuthError(Exception):
    """For fetch_data to raise: the credentials are no good, so no other day would fare better."""


class UsageError(Exception):
    """The command cannot mean anything."""


class FolderError(Exception):
    """The folder cannot be read or written, or is in use."""


class RowError(Exception):
    """fetch_data gave something that cannot be stored as this day's rows."""


class Outcome(NamedTuple):
    """What a worker reports of one call: the temporary file it wrote, or why there is none."""

    kind: Kind
    seconds: float = 0.0
    path: str = ""
    rows: int = 0
    bytes: int = 0
    sha256: str = ""
    error: str = ""
    retry_after: float | None = None


class Entry(NamedTuple):
    """One row of manifest.csv. `seconds` is the time of the last call, `fetched_at` (UTC) its start."""

    date: dt.date
    status: str  # complete, provisional or failed
    rows: int
    bytes: int
    sha256: str
    attempts: int
    seconds: float
    fetched_at: str
    error: str


class Job(NamedTuple):
    """A day to fetch. Jobs sort by the time they may start, then newest day first."""

    at: float
    order: int
    day: dt.date
    failures: int = 0
    calls: int = 0


class Flight(NamedTuple):
    """A call on its way."""

    job: Job
    started: float
    started_at: dt.datetime


class Finished(NamedTuple):
    """A day nothing more is done for: fetched, or failed for good."""

    flight: Flight
    outcome: Outcome


# -- the plan: wanted minus complete ---------------------------------------------------------------------------------

DAY = re.compile(r"(\d{4})([-/]?)(\d\d)\2(\d\d)", re.ASCII)


def parse_day(text: str) -> tuple[dt.date, str]:
    """The day that `text` names and the separator of its form. Raises UsageError."""
    match = DAY.fullmatch(text)
    if not match:
        raise UsageError(f"{text!r} is not a date: write YYYY-MM-DD, YYYYMMDD or YYYY/MM/DD")
    try:
        return dt.date(int(match[1]), int(match[3]), int(match[4])), match[2]
    except ValueError:
        raise UsageError(f"{text} does not exist in the calendar") from None


def parse_range(first: str, last: str, today: dt.date) -> tuple[dt.date, dt.date]:
    """Both ends of a range, in one form, in order, and none in the future. Raises UsageError."""
    (start, form), (end, other) = parse_day(first), parse_day(last)
    if form != other:
        raise UsageError(f"{first} and {last} are written in two forms: use one")
    if end < start:
        raise UsageError(f"the end {last} is before the start {first}")
    if end > today:
        raise UsageError(f"{last if start <= today else first} is in the future: today is {today}")
    return start, end


def two_years(today: dt.date) -> tuple[dt.date, dt.date]:
    """The two years up to yesterday: 730 days, or 731 with a leap day in them."""
    leap_day = (today.month, today.day) == (2, 29)
    start = dt.date(today.year - 2, 3, 1) if leap_day else today.replace(year=today.year - 2)
    return start, today - dt.timedelta(days=1)


def days_between(start: dt.date, end: dt.date) -> list[dt.date]:
    """Every day from start to end, both included."""
    return [dt.date.fromordinal(n) for n in range(start.toordinal(), end.toordinal() + 1)]


def missing_days(
    wanted: Sequence[dt.date], complete: set[dt.date], refresh: int, force: bool
) -> list[dt.date]:
    """The wanted days to fetch: those not complete, the last `refresh` ones, or all of them."""
    again = set(wanted if force else wanted[max(0, len(wanted) - refresh) :])
    return [day for day in wanted if day in again or day not in complete]


def spans(days: Iterable[dt.date]) -> list[tuple[dt.date, dt.date]]:
    """Sorted days as runs of neighbours."""
    runs: list[tuple[dt.date, dt.date]] = []
    for day in days:
        if runs and (day - runs[-1][1]).days == 1:
            runs[-1] = (runs[-1][0], day)
        else:
            runs.append((day, day))
    return runs


# -- fetch_data and what its errors mean -----------------------------------------------------------------------------


class Simulation:
    """The built-in fetch_data: the same rows for a day every time, after 20 to 80 ms; some calls fail if asked to."""

    def __init__(self, errors: float = 0.0) -> None:
        self.errors = errors

    def __call__(self, day: dt.date) -> Iterator[dict[str, object]]:
        """A day's rows. Raises TimeoutError or RateLimitError for the share `errors` of the calls."""
        time.sleep(random.uniform(0.02, 0.08))
        if random.random() < self.errors:
            raise random.choice(
                [TimeoutError("simulated timeout"), RateLimitError(0.1, "simulated rate limit")]
            )
        return self.rows(day)

    def rows(self, day: dt.date) -> Iterator[dict[str, object]]:
        """A hundred ads, their figures drawn from a generator seeded with the day."""
        draw = random.Random(day.toordinal())
        for ad in range(100):
            impressions = draw.randrange(10_000)
            clicks = int(impressions * draw.uniform(0, 0.1))
            yield {
                "date": day,
                "campaign": {"id": 1000 + ad // 10, "name": f"Campaign {ad // 10}"},
                "ad_group": {"id": 5000 + ad},
                "metrics": {"impressions": impressions, "clicks": clicks, "cost_micros": clicks * 370_000},
            }


class Fetcher:
    """fetch_data named as module:function or path/to/file.py:function, loaded where it is called.

    It travels to other processes by its name, so that fetch_data itself need not be pickled.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec

    def __call__(self, day: dt.date) -> Any:
        return load(self.spec)(day)


@functools.lru_cache(maxsize=None)
def load(spec: str) -> Callable[..., Any]:
    """The function that `spec` names. Raises UsageError."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise UsageError(f"{spec!r}: write module:function or path/to/file.py:function")
    try:
        module = load_file(Path(place)) if place.endswith(".py") else load_module(place)
        function = getattr(module, name)
    except (Exception, SystemExit) as error:  # whatever the user's module does when it is imported
        raise UsageError(f"{spec}: {reason(error)}") from error
    if not callable(function):
        raise UsageError(f"{spec}: {name} is not a function")
    return cast("Callable[..., Any]", function)


def load_file(path: Path) -> Any:
    """The module at `path`, imported as a script would be: what lies beside it can be imported too."""
    spec = importlib.util.spec_from_file_location(f"fetcher_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module


def load_module(name: str) -> Any:
    """The module of that name, looked for in the current folder first, as `python -m` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(name)


OAUTH_TEXT = re.compile("invalid_grant|invalid_client|unauthorized_client")
GRPC = {
    "RESOURCE_EXHAUSTED": Kind.RATE_LIMIT,
    "UNAUTHENTICATED": Kind.OAUTH,
    "PERMISSION_DENIED": Kind.OAUTH,
    **dict.fromkeys(("DEADLINE_EXCEEDED", "UNAVAILABLE", "INTERNAL", "ABORTED"), Kind.TRANSIENT),
}
HTTP = {429: Kind.RATE_LIMIT, 401: Kind.OAUTH, 403: Kind.OAUTH, 408: Kind.TRANSIENT}
NAMES = {
    "RateLimitError": Kind.RATE_LIMIT,
    "OAuthError": Kind.OAUTH,
    **dict.fromkeys(
        ("TimeoutError", "ConnectionError", "Timeout", "TimeoutException", "TransportError", "URLError",
         "ChunkedEncodingError", "IncompleteRead", "BrokenExecutor"), Kind.TRANSIENT,
    ),
}  # fmt: skip


def classify(error: BaseException) -> Kind:
    """What an exception of fetch_data means, told by names and attributes, with no library imported.

    A refused token comes first, since gRPC reports it as UNAVAILABLE. A status says more than a class: HTTPError of
    requests and of urllib are both OSError. What says nothing by itself may have been raised `from` what does.
    """
    names = [cls.__name__ for cls in type(error).__mro__]
    if OAUTH_TEXT.search(text_of(error)):
        return Kind.OAUTH
    if "RefreshError" in names:
        return Kind.TRANSIENT if getattr(error, "retryable", False) else Kind.OAUTH
    said = GRPC.get(grpc_code(error)) or http_kind(http_status(error))
    named = next((NAMES[name] for name in names if name in NAMES), None)
    if said or named:
        return said or named or Kind.FAILED
    return classify(error.__cause__) if error.__cause__ else Kind.FAILED


def grpc_code(error: BaseException) -> str:
    """UNAVAILABLE and so on: of a grpc.RpcError, a google.api_core exception, or a GoogleAdsException; else ''."""
    for code in (
        getattr(error, "grpc_status_code", None),
        getattr(error, "code", None),
        getattr(getattr(error, "error", None), "code", None),
    ):
        with contextlib.suppress(Exception):  # a code() of some other library
            name = getattr(code() if callable(code) else code, "name", None)
            if name in GRPC:
                return str(name)
    return ""


def http_status(error: BaseException) -> int | None:
    """The HTTP status of an exception of requests, httpx, urllib, aiohttp or google.api_core."""
    response = getattr(error, "response", None)
    said = (getattr(response, "status_code", None), *(getattr(error, n, None) for n in ("code", "status")))
    return next((int(status) for status in said if isinstance(status, int)), None)


def http_kind(status: int | None) -> Kind | None:
    """What an HTTP status means, or None where it says nothing."""
    return Kind.TRANSIENT if status and 500 <= status < 600 else HTTP.get(status or 0)


def retry_after(error: BaseException, now: dt.datetime) -> float | None:
    """The seconds a rate limit asks for: an attribute, or a Retry-After header in seconds or as a date."""
    asked = getattr(error, "retry_after", None)
    headers = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "headers", None)
    if asked is None and headers is not None:
        asked = headers.get("Retry-After")
    with contextlib.suppress(TypeError, ValueError):
        seconds = asked.total_seconds() if isinstance(asked, dt.timedelta) else float(asked)
        return None if math.isnan(seconds) else max(0.0, seconds)
    with contextlib.suppress(TypeError, ValueError, IndexError):
        from email.utils import parsedate_to_datetime

        return max(0.0, (parsedate_to_datetime(str(asked)) - now).total_seconds())
    return None


def text_of(error: BaseException) -> str:
    """str(error) and the body of its HTTP response, for exceptions that can tell."""
    try:
        return f"{error} {getattr(getattr(error, 'response', None), 'text', '')}"
    except Exception:  # an exception that cannot even be printed
        return ""


def reason(error: BaseException) -> str:
    """An exception as one line for the manifest and the summary."""
    text = ""
    with contextlib.suppress(Exception):  # an exception that cannot even be printed
        text = str(error)
    with contextlib.suppress(Exception):  # a GoogleAdsException says it best here
        text = error.failure.errors[0].message  # type: ignore[attr-defined]
    return one_line(f"{type(error).__name__}: {text}".removesuffix(": "))


def one_line(text: str, width: int = 300) -> str:
    """Text with every run of blanks and unprintable characters made one space, cut to a width."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * width]).split())
    return line if len(line) <= width else line[: width - 3] + "..."


# -- one day: call, write, hash --------------------------------------------------------------------------------------


def csv_bytes(rows: Iterable[Iterable[object]]) -> bytes:
    """Rows as RFC 4180 lines. Raises RowError for a NUL, which no reader of CSV agrees about."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    data = text.getvalue().encode()
    if b"\0" in data:
        raise RowError("a cell holds a NUL character")
    return data


def csv_rows(path: Path) -> Iterator[list[str]]:
    """The records of a file, header first."""
    csv.field_size_limit(2**31 - 1)  # of the whole process; the default refuses a field of 128 KiB
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.reader(file)


def recolumned(path: Path, head: Sequence[str], columns: Sequence[str]) -> Iterator[bytes]:
    """The rows of a file whose columns are `head`, put under `columns`; cells it lacks are empty."""
    rows = itertools.islice(csv_rows(path), 1, None)
    while batch := list(itertools.islice(rows, BATCH)):
        named = (dict(zip(head, row)) for row in batch)  # noqa: B905 (a row may be short)
        yield csv_bytes([row.get(name, "") for name in columns] for row in named)


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Trouble with our own files, which is not to be mistaken for an OSError of fetch_data."""
    try:
        yield
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror or error}") from error


class HashedFile:
    """A new file, written and hashed at once."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.sha256 = path, 0, hashlib.sha256()
        with on_disk(path):
            self.file = path.open("xb", buffering=0)

    def write(self, data: bytes) -> None:
        """Append all of `data`."""
        self.sha256.update(data)
        self.size += len(data)
        view = memoryview(data)
        with on_disk(self.path):
            while view:
                view = view[self.file.write(view) :]

    def flush(self) -> None:
        """Wait until the file is on the disk."""
        with on_disk(self.path):
            os.fsync(self.file.fileno())

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()


def flatten(row: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Columns and cells of a row; a nested mapping gives columns joined by dots."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


OWN_DAY = re.compile(DAY.pattern + r"([T ].*)?", re.ASCII | re.DOTALL)


class Table:
    """Rows turned into CSV: `date` first, the other columns in order of first appearance.

    A batch of flat dicts of one shape, the usual case, passes without a line of Python run for each row; any other
    is flattened row by row. A column that appears after the header was written leaves the rows above it short.
    """

    def __init__(self, day: dt.date) -> None:
        self.day = day.isoformat()
        self.columns = {"date": None}  # a set in order
        self.rows = 0

    def take(self, batch: list[Any]) -> bytes:
        """The lines of a batch. Raises RowError."""
        self.columns.update(dict.fromkeys(self.flat(batch[0])))
        cells = self.plain(batch) or self.mixed(batch)
        self.rows += len(batch)
        return csv_bytes(cells)

    def plain(self, batch: list[Any]) -> Iterable[Sequence[object]] | None:
        """The cells of a batch of flat dicts with the known columns; None if it is anything else."""
        dated, names = "date" in batch[0], [*self.columns][1:]
        if {*map(type, batch)} != {dict} or {*map(len, batch)} != {len(names) + dated} or len(names) < 2:
            return None
        try:
            cells = list(map(operator.itemgetter(*names), batch))
            own_days = {*map(str, map(operator.itemgetter("date"), batch))} if dated else set()
        except KeyError:  # as many columns, but others
            return None
        if any(issubclass(cls, Mapping) for cls in {*map(type, itertools.chain.from_iterable(cells))}):
            return None
        for own_day in own_days:
            self.check(own_day)
        return map(operator.concat, itertools.repeat((self.day,)), cells)

    def mixed(self, batch: list[Any]) -> Iterable[Sequence[object]]:
        """The cells of any batch."""
        rows = [self.flat(row, number) for number, row in enumerate(batch, self.rows + 1)]
        for row in rows:
            self.columns.update(dict.fromkeys(row))
        return [[row.get(name, "") for name in self.columns] for row in rows]

    def flat(self, row: Any, number: int = 1) -> dict[str, object]:
        """A row as a flat dict with the day asked for as its date. Raises RowError."""
        if not isinstance(row, Mapping):
            raise RowError(f"row {number} is {type(row).__name__}, not a mapping")
        flat: dict[str, object] = {}
        for name, value in flatten(row):
            if name in flat:
                raise RowError(f"row {number} names the column {name} twice")
            flat[name] = value
        self.check(str(flat.get("date", "")))
        return {**flat, "date": self.day}

    def check(self, own_day: str) -> None:
        """Raises RowError for a row's own date that is another day: it would stand in two files."""
        match = OWN_DAY.fullmatch(own_day)
        if own_day not in ("", "None") and not (match and f"{match[1]}-{match[3]}-{match[4]}" == self.day):
            raise RowError(f"a row of {self.day} has the date {own_day}")


def rows_of(answer: Any) -> Iterator[Any]:
    """The rows in any answer fetch_data may give. Raises RowError."""
    if isinstance(answer, Mapping):
        return iter([answer])
    if hasattr(answer, "to_dict"):  # a DataFrame
        return iter(answer.to_dict(orient="records"))
    if isinstance(answer, Iterable) and not isinstance(answer, (str, bytes)):
        return iter(answer)
    raise RowError(f"fetch_data returned {type(answer).__name__}, not rows")


def write_day(answer: Any, day: dt.date, path: Path) -> tuple[int, int, str]:
    """Write the rows of a day to a new file, flushed to disk; its rows, bytes and SHA-256."""
    rows, table = rows_of(answer), Table(day)
    with HashedFile(path) as file:
        while batch := list(itertools.islice(rows, BATCH)):
            lines = table.take(batch)
            if not file.size:
                file.write(csv_bytes([header := [*table.columns]]))
            file.write(lines)
        if not file.size:
            file.write(csv_bytes([header := ["date"]]))
        file.flush()
    if len(header) < len(table.columns):
        return table.rows, *widen(path, [*table.columns])
    return table.rows, file.size, file.sha256.hexdigest()


def widen(path: Path, columns: list[str]) -> tuple[int, str]:
    """Write a file again whose columns grew on the way; its bytes and SHA-256."""
    wide = path.with_suffix(".wide.tmp")
    with HashedFile(wide) as file:
        for data in itertools.chain([csv_bytes([columns])], recolumned(path, columns, columns)):
            file.write(data)
        file.flush()
    with on_disk(path):
        os.replace(wide, path)
    return file.size, file.sha256.hexdigest()


def call_day(fetch: Callable[[dt.date], Any], day: dt.date, path: str) -> Outcome:
    """Fetch one day into the file at `path`. Runs in a worker: it reports, and never raises."""
    began = time.perf_counter()
    try:
        written = write_day(fetch(day), day, Path(path))
    except BaseException as error:  # a sys.exit() somewhere in a library as well
        with contextlib.suppress(OSError):
            os.unlink(path)
        return failure(error, time.perf_counter() - began)
    return Outcome(Kind.DONE, time.perf_counter() - began, path, *written)


def failure(error: BaseException, seconds: float = 0.0) -> Outcome:
    """The outcome of a call that raised."""
    kind = Kind.FOLDER if isinstance(error, FolderError) else classify(error)
    asked = retry_after(error, dt.datetime.now(dt.timezone.utc)) if kind is Kind.RATE_LIMIT else None
    text = str(error) if kind is Kind.FOLDER else reason(error)
    return Outcome(kind, seconds, error=text, retry_after=asked)


# -- the scheduler: a heap of days, the brake, and one loop ----------------------------------------------------------


class Threads:
    """A pool of threads that the interpreter does not wait for at its end.

    ThreadPoolExecutor joins its threads at exit, and so a call that never returns would hold the program for ever.
    Here it holds nothing: a thread that does not come back is missed by nobody, and the next call starts another.
    """

    def __init__(self, run: Callable[..., Outcome]) -> None:
        self.run = run
        self.calls: queue.SimpleQueue[tuple[Future[Outcome], tuple[Any, ...]]] = queue.SimpleQueue()
        self.idle = threading.Semaphore(0)

    def submit(self, *args: Any) -> Future[Outcome]:
        """Run `run(*args)` on an idle thread, or on a new one."""
        future: Future[Outcome] = Future()
        self.calls.put((future, args))
        if not self.idle.acquire(blocking=False):
            threading.Thread(target=self.work, daemon=True).start()
        return future

    def work(self) -> None:
        """One thread: call after call."""
        while True:
            future, args = self.calls.get()
            try:
                future.set_result(self.run(*args))
            except BaseException as error:  # belongs to whoever waits for the future
                future.set_exception(error)
            self.idle.release()


class Children:
    """A child process for each thread that calls, replaced when it hangs or dies."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.mine = threading.local()
        self.all: list[Any] = []

    def call(self, *args: Any) -> Outcome:
        """call_day(*args) in the child of this thread."""
        import multiprocessing  # a third of the start-up time, for those who ask for it

        if not getattr(self.mine, "child", None):
            context = multiprocessing.get_context("spawn")
            self.mine.pipe, theirs = context.Pipe()
            self.mine.child = context.Process(target=serve, args=(theirs,))
            self.mine.child.start()
            self.all.append(self.mine.child)
            theirs.close()
        try:
            self.mine.pipe.send(args)
            if self.mine.pipe.poll(self.timeout):
                return cast(Outcome, self.mine.pipe.recv())
            error = f"no answer within {self.timeout:g} s"
        except (EOFError, OSError):
            error = "the process that made the call died"
        self.mine.child.kill()
        self.mine.child = None
        return Outcome(Kind.TRANSIENT, error=error)

    def close(self) -> None:
        """End every child."""
        for child in self.all:
            child.kill()


def serve(pipe: Any) -> None:
    """A child process: answers calls until the program at the other end of the pipe is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches children too
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(call_day(*pipe.recv()))


class Brake:
    """The pace of all calls together: additive increase, multiplicative decrease.

    Until the first rate limit there is no pace. A refusal closes the brake for as long as it asks, or for a pause
    that doubles while nothing succeeds. Then calls start evenly, at a rate taken from what was let through between
    this refusal and the one before, since a limited API lets through just what it allows, and the rate grows slowly.
    Refusals of calls that had started before the brake was last closed belong to the same event.
    """

    DECREASE = 0.85  # of the rate let through
    INCREASE = 0.03  # of the rate at the last refusal, a second
    PAUSE, PAUSE_MAX = 0.5, 60.0  # seconds

    def __init__(self, now: float) -> None:
        self.rate = math.inf  # calls a second
        self.step = 0.0  # calls a second gained a second
        self.opens = now  # no call starts before
        self.closed_at = now
        self.passed = 0  # calls let through since
        self.pause = self.PAUSE
        self.refused_since: float | None = None  # the first refusal after the last success

    def started(self, now: float) -> None:
        """A call starts: the next one has its turn, of which a late wake-up may make good 50 ms."""
        self.opens = max(self.opens, now - 0.05) + 1 / self.rate

    def succeeded(self) -> None:
        """A call came through: at `rate` of them a second the rate grows by `step` a second."""
        self.passed += 1
        self.rate += self.step / self.rate
        self.pause, self.refused_since = self.PAUSE, None

    def refused(self, started: float, asked: float | None, now: float) -> float:
        """A call that had `started` met a rate limit; the seconds for which nothing has succeeded."""
        if started >= self.closed_at:
            let_through = self.passed / max(now - self.closed_at, 0.001)
            self.rate = max(self.DECREASE * min(self.rate, let_through), 0.02)
            self.step = self.INCREASE * self.rate
            self.closed_at, self.passed = now, 0
            wait_for = self.pause if asked is None else asked
            self.pause = min(2 * self.pause, self.PAUSE_MAX)
            self.opens = max(self.opens, now + wait_for)
        elif asked is not None:
            self.opens = max(self.opens, now + asked)
        self.refused_since = now if self.refused_since is None else self.refused_since
        return now - self.refused_since


STOPS = {Kind.OAUTH: Exit.OAUTH, Kind.FOLDER: Exit.FOLDER}


class Limits(NamedTuple):
    """How far the scheduler goes. Times in seconds."""

    workers: int = 8
    retries: int = 5
    timeout: float = 300.0
    max_wait: float = 300.0


class Tally:
    """What happened so far."""

    def __init__(self) -> None:
        self.fetched = self.rows = self.retries = self.rate_limits = 0
        self.failed: dict[dt.date, str] = {}
        self.call_seconds: list[float] = []
        self.wall = self.braked = self.aggregate = 0.0  # seconds
        self.stops: dict[Exit, str] = {}
        self.resume: dt.datetime | None = None  # when the API lets calls through again, if it said so

    def count(self, finished: Iterable[Finished]) -> None:
        """Take in days that are finished."""
        for flight, outcome in finished:
            if outcome.kind is Kind.DONE:
                self.fetched, self.rows = self.fetched + 1, self.rows + outcome.rows
            else:
                self.failed[flight.job.day] = outcome.error


def wait_first(futures: Iterable[Future[Outcome]], seconds: float) -> set[Future[Outcome]]:
    """The futures that are done, as soon as there is one, or none after so many seconds."""
    waiting = set(futures)
    if not waiting:
        time.sleep(seconds)
        return set()
    return wait(waiting, seconds, FIRST_COMPLETED).done


def utc_now() -> dt.datetime:
    """The wall clock, for records."""
    return dt.datetime.now(dt.timezone.utc)


class Scheduler:
    """Calls every day, each again as its errors allow, until none is left or something stops the run.

    Runs in one thread; `submit` starts a call and gives its future. Days that wait for another try wait on the heap,
    where they hold no worker. Once stopped, it starts no call and waits for those in flight, after Ctrl-C for GRACE.
    """

    def __init__(
        self,
        submit: Callable[[dt.date], Future[Outcome]],
        limits: Limits,
        tally: Tally,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], dt.datetime] = utc_now,
        wait_first: Callable[[Iterable[Future[Outcome]], float], set[Future[Outcome]]] = wait_first,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.submit, self.limits, self.tally = submit, limits, tally
        self.clock, self.wall, self.wait_first, self.uniform = clock, wall, wait_first, uniform
        self.ready: list[Job] = []
        self.flying: dict[Future[Outcome], Flight] = {}
        self.brake = Brake(clock())
        self.give_up = math.inf  # when calls in flight are no longer waited for

    def run(self, days: Iterable[dt.date], publish: Callable[[list[Finished]], None]) -> None:
        """Fetch the days; `publish` is handed what is finished, often nothing, at least every TICK."""
        self.ready = [Job(-math.inf, -day.toordinal(), day) for day in days]
        heapq.heapify(self.ready)
        while self.flying or (self.ready and not self.tally.stops):
            self.launch()
            before, braking = self.clock(), self.braking()
            done = self.wait_first(self.flying, self.idle_seconds())
            self.tally.braked += (self.clock() - before) if braking else 0.0
            finished = [self.land(future) for future in done | self.overdue()]
            self.launch()  # before the disk is touched: no worker waits for it
            publish([day for day in finished if day])
            if Exit.INTERRUPTED in self.tally.stops:
                self.give_up = min(self.give_up, self.clock() + GRACE)
            if self.clock() >= self.give_up:
                return

    def may_launch(self) -> bool:
        """Whether a day waits for nothing but its time."""
        return bool(self.ready) and len(self.flying) < self.limits.workers and not self.tally.stops

    def launch(self) -> None:
        """Start every call that may start now."""
        while self.may_launch():
            now = self.clock()
            if max(self.ready[0].at, self.brake.opens) > now:
                return
            job = heapq.heappop(self.ready)
            self.brake.started(now)
            self.flying[self.submit(job.day)] = Flight(job._replace(calls=job.calls + 1), now, self.wall())

    def braking(self) -> bool:
        """Whether the brake is what a day waits for."""
        return self.may_launch() and self.brake.opens > max(self.ready[0].at, self.clock())

    def idle_seconds(self) -> float:
        """For how long nothing can happen but the end of a call."""
        now = self.clock()
        times = [now + TICK, *(flight.started + self.limits.timeout for flight in self.flying.values())]
        if self.may_launch():
            times.append(max(self.ready[0].at, self.brake.opens))
        return max(0.0, min(times) - now)

    def overdue(self) -> set[Future[Outcome]]:
        """The calls past their deadline. Nobody looks at their futures again."""
        late = self.clock() - self.limits.timeout
        return {future for future, flight in self.flying.items() if flight.started <= late}

    def land(self, future: Future[Outcome]) -> Finished | None:
        """Take a call out of flight: its day is finished, or back on the heap, or left for another run."""
        flight, now = self.flying.pop(future), self.clock()
        outcome = self.outcome(future)
        self.tally.call_seconds.append(outcome.seconds or now - flight.started)
        if outcome.kind is Kind.DONE:
            self.brake.succeeded()
        elif outcome.kind is Kind.RATE_LIMIT:
            return self.rate_limited(flight, outcome, now)
        elif outcome.kind is Kind.TRANSIENT and (
            self.tally.stops or flight.job.failures < self.limits.retries
        ):
            return self.again(flight, now)
        elif outcome.kind in STOPS:
            self.tally.stops.setdefault(STOPS[outcome.kind], outcome.error)
        return None if outcome.kind is Kind.FOLDER else Finished(flight, outcome)

    def outcome(self, future: Future[Outcome]) -> Outcome:
        """What became of a call, were it that it hangs or that its worker died."""
        if not future.done():
            future.cancel()
            return Outcome(
                Kind.TRANSIENT, self.limits.timeout, error=f"no answer within {self.limits.timeout:g} s"
            )
        if future.cancelled():
            return Outcome(Kind.TRANSIENT, error="the executor gave the call up")
        error = future.exception()
        return failure(error) if error else future.result()

    def again(self, flight: Flight, now: float) -> None:
        """Back on the heap for another try: exponential backoff with full jitter."""
        job = flight.job
        delay = self.uniform(0, min(BACKOFF * 2**job.failures, BACKOFF_MAX))
        self.tally.retries += 1
        heapq.heappush(self.ready, job._replace(at=now + delay, failures=job.failures + 1))

    def rate_limited(self, flight: Flight, outcome: Outcome, now: float) -> None:
        """Back on the heap at once, behind the brake; or the end of the run, if that would take too long."""
        self.tally.rate_limits += 1
        heapq.heappush(self.ready, flight.job)
        asked = outcome.retry_after
        fruitless = self.brake.refused(flight.started, asked, now)
        if (asked or 0.0) > self.limits.max_wait or fruitless >= self.limits.max_wait:
            if asked:
                self.tally.resume = self.wall() + dt.timedelta(seconds=min(asked, 366 * 86400))
            self.tally.stops.setdefault(Exit.QUOTA, outcome.error)


# -- the folder and its manifest -------------------------------------------------------------------------------------

DAY_FILE = re.compile(r"(\d{4}-\d\d-\d\d)\.csv", re.ASCII)
TEMPORARY = re.compile(r"\.\d{4}-\d\d-\d\d\..*\.tmp", re.ASCII)
STORED = ("complete", "provisional")


def stamp(moment: dt.datetime) -> str:
    """A moment as it stands in records."""
    return moment.astimezone(dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One run a folder. The lock belongs to the process and dies with it; the file only says whose it is.

    Raises FolderError. Whoever locks a file that its owner has just removed holds nothing, and looks again.
    """
    while True:
        with on_disk(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(fd, 200).decode(errors="replace") or "another run"
            os.close(fd)
            raise FolderError(f"{path.parent} is in use by {holder}") from error
        if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
            break
        os.close(fd)
    with on_disk(path):
        os.ftruncate(fd, 0)
        os.write(fd, f"process {os.getpid()} on {os.uname().nodename} since {stamp(utc_now())}".encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def swap_in(path: Path, chunks: Iterable[bytes], flush: bool = True) -> None:
    """Replace a file by another at one stroke. Raises FolderError, and then the old one stands."""
    temp = path.with_name(f".{path.name}.tmp")
    with on_disk(path):
        try:
            with temp.open("wb") as file:
                file.writelines(chunks)
                file.flush()
                if flush:
                    os.fsync(file.fileno())
            os.replace(temp, path)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise


def manifest_line(entry: Entry) -> bytes:
    """An entry as it stands in the manifest."""
    return csv_bytes([[*entry[:6], f"{entry.seconds:.3f}", *entry[7:]]])


def parse_entry(line: str) -> Entry | None:
    """A line of the manifest, or None if it is not whole."""
    try:
        day, status, rows, size, sha256, attempts, seconds, fetched_at, error = next(csv.reader([line]))
        entry = Entry(dt.date.fromisoformat(day), status, int(rows), int(size), sha256, int(attempts),
                      float(seconds), fetched_at, error)  # fmt: skip
    except (ValueError, csv.Error, StopIteration):
        return None
    whole = status == "failed" or (status in STORED and re.fullmatch("[0-9a-f]{64}", sha256))
    return entry if whole else None


def read_manifest(path: Path) -> tuple[dict[dt.date, Entry], int]:
    """The entries of a manifest, and how many lines of it were torn. Raises FolderError if it is somebody else's."""
    with on_disk(path):
        lines = path.read_text("utf-8", "replace").strip("\0").splitlines() if path.exists() else []
    head = ",".join(Entry._fields)
    if lines and not head.startswith(lines[0]):
        raise FolderError(f"{path} is not a manifest of this program: move it away, or choose another folder")
    entries = [parse_entry(line) for line in lines[1:]]
    return {entry.date: entry for entry in entries if entry}, entries.count(None) + (
        lines[:1] not in ([], [head])
    )


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    sha256 = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(CHUNK):
            sha256.update(data)
    return sha256.hexdigest()


def trouble(path: Path, entry: Entry) -> str:
    """How a day file differs from its entry, or ''."""
    try:
        if path.stat().st_size != entry.bytes:
            return "has another size than when it was fetched"
        return "" if digest(path) == entry.sha256 else "was changed since it was fetched"
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def adopt(path: Path, day: dt.date, today: Callable[[dt.datetime], dt.date]) -> Entry | None:
    """An entry for a day file the manifest has lost, or None unless it is a whole file of that day."""
    rows = -1
    try:
        for row in csv_rows(path):
            columns = row if rows < 0 else columns
            if len(row) != len(columns) or row[0] != ("date" if rows < 0 else day.isoformat()):
                return None
            rows += 1
        fetched = dt.datetime.fromtimestamp(path.stat().st_mtime, dt.timezone.utc)
        if rows < 0 or not path.read_bytes().endswith(b"\r\n"):
            return None
        status = "complete" if today(fetched) > day else "provisional"
        return Entry(day, status, rows, path.stat().st_size, digest(path), 0, 0.0, stamp(fetched), "")
    except (OSError, ValueError, csv.Error):
        return None


class Folder:
    """The days on disk: what the manifest says of them, and whether their files agree."""

    def __init__(self, root: Path, today: Callable[[dt.datetime], dt.date]) -> None:
        self.root, self.today = root, today  # today: the date at a moment, in the account's zone
        self.entries: dict[dt.date, Entry] = {}
        self.lines: dict[dt.date, bytes] = {}
        self.damaged: dict[dt.date, str] = {}  # days whose file is not what the manifest says
        self.torn = 0  # lines of the manifest
        self.dirty = False  # whether the manifest on disk is behind, or not flushed
        self.flushed = -math.inf
        self.serial = itertools.count(1)

    def file(self, day: dt.date) -> Path:
        """Where a day is."""
        return self.root / "days" / f"{day}.csv"

    def temporary(self, day: dt.date) -> str:
        """A name of its own for each call: one that was given up may still write."""
        return str(self.root / "days" / f".{day}.{os.getpid()}-{next(self.serial)}.tmp")

    def read(self) -> None:
        """Read the manifest, hold it against the files, and take in whole days that it does not know."""
        entries, self.torn = read_manifest(self.root / "manifest.csv")
        for entry in entries.values():
            self.record(entry)
            if entry.status in STORED and (what := trouble(self.file(entry.date), entry)):
                self.damaged[entry.date] = what
        self.dirty = bool(self.torn)
        for day in sorted(self.day_files() - entries.keys()):
            if entry := adopt(self.file(day), day, self.today):
                self.record(entry)

    def day_files(self) -> set[dt.date]:
        """The days that have a file; other names in the folder are nobody's business."""
        days = set()
        for match in filter(None, map(DAY_FILE.fullmatch, self.names())):
            with contextlib.suppress(ValueError):  # 2023-02-30.csv
                days.add(dt.date.fromisoformat(match[1]))
        return days

    def names(self) -> list[str]:
        """What lies in days/."""
        with on_disk(self.root / "days"):
            return os.listdir(self.root / "days") if (self.root / "days").exists() else []

    def record(self, entry: Entry) -> None:
        """Take an entry into the manifest, in memory."""
        self.entries[entry.date], self.lines[entry.date] = entry, manifest_line(entry)
        self.dirty = True

    def stored(self) -> list[dt.date]:
        """The days that are there, in order."""
        return sorted(d for d, e in self.entries.items() if e.status in STORED and d not in self.damaged)

    def complete(self) -> set[dt.date]:
        """The days that need not be fetched."""
        return {day for day in self.stored() if self.entries[day].status == "complete"}

    def sweep(self) -> None:
        """Remove the temporary files of calls that were given up or killed."""
        for name in self.names():
            if TEMPORARY.fullmatch(name):
                with on_disk(self.root / "days" / name):
                    (self.root / "days" / name).unlink(missing_ok=True)

    def publish(self, finished: Iterable[Finished]) -> None:
        """Swap in the days fetched and write down all: the one place where days change."""
        for flight, outcome in finished:
            day = flight.job.day
            if outcome.kind is Kind.DONE:
                with on_disk(self.file(day)):
                    os.replace(outcome.path, self.file(day))
                self.damaged.pop(day, None)
                status = "complete" if self.today(flight.started_at) > day else "provisional"
            elif day in self.stored():
                continue  # a refresh that fails leaves the day as it was
            else:
                status = "failed"
            self.record(Entry(day, status, *outcome[3:6], flight.job.calls, outcome.seconds,
                              stamp(flight.started_at), outcome.error))  # fmt: skip
        self.save(time.monotonic() - self.flushed > FLUSH)

    def save(self, flush: bool = True) -> None:
        """Write the manifest, if it is behind or not flushed."""
        if self.dirty:
            head = csv_bytes([Entry._fields])
            swap_in(
                self.root / "manifest.csv", [head, *(self.lines[day] for day in sorted(self.lines))], flush
            )
            self.dirty = not flush
            self.flushed = time.monotonic() if flush else self.flushed


# -- the aggregate ---------------------------------------------------------------------------------------------------


def header_of(path: Path) -> bytes:
    """The header of a day file as it stands there; a column name may have a line break in it."""
    with path.open("rb") as file:
        header = file.readline()
        while header.count(b'"') % 2:
            header += file.readline()
    return header


@functools.lru_cache(maxsize=None)
def columns_of(header: bytes) -> list[str]:
    """The column names in a header."""
    return next(csv.reader(io.StringIO(header.decode(), newline="")))


def body_of(path: Path, start: int) -> Iterator[bytes]:
    """The bytes of a file from `start` on."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while data := file.read(CHUNK):
            yield data


def aggregate(paths: Sequence[Path]) -> Iterator[bytes]:
    """The bytes of ads.csv: the union of the columns, then every day; copied where its header is the union."""
    headers = [header_of(path) for path in paths]
    columns = list(dict.fromkeys(itertools.chain(["date"], *map(columns_of, dict.fromkeys(headers)))))
    union = csv_bytes([columns])
    yield union
    for path, header in zip(paths, headers, strict=True):
        if header == union:
            yield from body_of(path, len(header))
        else:
            yield from recolumned(path, columns_of(header), columns)


def has_bytes(path: Path, chunks: Iterable[bytes]) -> bool:
    """Whether a file holds just these bytes."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        return all(file.read(len(data)) == data for data in chunks) and not file.read(1)


def build_aggregate(folder: Folder, tally: Tally) -> None:
    """Bring ads.csv up to date. Even without new days it is compared with them: a kill may have come before it."""
    began = time.monotonic()
    path, paths = folder.root / "ads.csv", [folder.file(day) for day in folder.stored()]
    with on_disk(path):
        if tally.fetched or not has_bytes(path, aggregate(paths)):
            swap_in(path, aggregate(paths))
    tally.aggregate = time.monotonic() - began


# -- progress and summary --------------------------------------------------------------------------------------------


def progress_line(tally: Tally, total: int, scheduler: Scheduler, seconds: float) -> str:
    """How far a run is after so many seconds."""
    done = tally.fetched + len(tally.failed)
    pace = done / max(seconds, 0.001)
    left = f"{(total - done) / pace:.0f} s left" if done else "time left unknown"
    braking = ", braking" if scheduler.braking() else ""
    return (
        f"{done}/{total} days, {tally.rows:,} rows, {pace:.1f} days/s, {len(scheduler.flying)} in flight, "
        f"{tally.retries} retries{braking}, {left}"
    )


class Progress:
    """A live line on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.clock, self.live = stream, clock, stream.isatty()
        self.began = self.shown = clock()

    def show(self, tally: Tally, total: int, scheduler: Scheduler) -> None:
        """Write the line when it is time for one."""
        now = self.clock()
        if now - self.shown < (0.1 if self.live else 10.0):
            return
        self.shown = now
        line = progress_line(tally, total, scheduler, now - self.began)
        self.stream.write(f"\r{line[: terminal_width() - 1]}\x1b[K" if self.live else f"{line}\n")
        self.stream.flush()

    def clear(self) -> None:
        """Take the live line away."""
        if self.live:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def terminal_width() -> int:
    """Columns of the terminal that stderr is."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(2).columns or 80
    return 80


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values; 0 of none."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0


def summarize(tally: Tally, folder: Folder, wanted: Sequence[dt.date], planned: int) -> dict[str, Any]:
    """The outcome of a run as plain values; times in seconds."""
    calls = sorted(tally.call_seconds)
    code = next((c for c in PRECEDENCE if c in tally.stops), Exit.FAILED if tally.failed else Exit.OK)
    return {
        "exit_code": int(code),
        "start": str(wanted[0]),
        "end": str(wanted[-1]),
        "wanted": len(wanted),
        "fetched": tally.fetched,
        "skipped": len(wanted) - planned,
        "failed": {str(day): why for day, why in sorted(tally.failed.items())},
        "left": planned - tally.fetched - len(tally.failed),
        "provisional": [str(day) for day in wanted if day in folder.entries and folder.entries[day].status == "provisional"],
        "rows": tally.rows,
        "wall_seconds": round(tally.wall, 3),
        "call_seconds": round(sum(calls), 3),
        "speedup": round(sum(calls) / tally.wall, 2) if tally.wall else 0.0,
        "call_p50": round(percentile(calls, 0.5), 3),
        "call_p95": round(percentile(calls, 0.95), 3),
        "call_max": round(percentile(calls, 1.0), 3),
        "calls": len(calls),
        "retries": tally.retries,
        "rate_limits": tally.rate_limits,
        "braked_seconds": round(tally.braked, 3),
        "aggregate_seconds": round(tally.aggregate, 3),
        "stopped": {code.name.lower(): why for code, why in tally.stops.items()},
        "resume_at": stamp(tally.resume) if tally.resume else None,
        "files": {"ads": str(folder.root / "ads.csv"), "days": str(folder.root / "days"),
                  "manifest": str(folder.root / "manifest.csv")},
    }  # fmt: skip


def summary_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """A summary for people."""
    yield (
        f"{told['start']} to {told['end']}: {told['fetched']} days fetched, {told['skipped']} skipped, "
        f"{len(told['failed'])} failed" + (f", {told['left']} left" if told["left"] else "")
    )
    for day, why in told["failed"].items():
        yield f"  {day} failed: {why}"
    if told["calls"]:
        yield (
            f"{told['rows']:,} rows in {told['wall_seconds']:.2f} s; calls took {told['call_seconds']:.2f} s in all, "
            f"so {told['speedup']:.1f} times as fast as one after another"
        )
        yield (
            f"per call: p50 {told['call_p50']:.3f} s, p95 {told['call_p95']:.3f} s, max {told['call_max']:.3f} s; "
            f"{told['retries']} retries, {told['rate_limits']} rate limits, braked {told['braked_seconds']:.1f} s"
        )
    files = told["files"]
    yield f"{files['ads']} (built in {told['aggregate_seconds']:.2f} s), {files['days']}, {files['manifest']}"


ADVICE = {
    Exit.INTERRUPTED: "interrupted: run the same command again to go on",
    Exit.OAUTH: "the API refuses the credentials ({why}): renew them and run the same command again",
    Exit.QUOTA: "the quota is used up ({why}): run the same command again {when}",
    Exit.FOLDER: "the folder cannot be written: {why}",
}


def advice(tally: Tally) -> Iterator[str]:
    """What stopped a run, and what to do about it."""
    when = f"after {stamp(tally.resume)}" if tally.resume else "tomorrow, when a daily quota starts anew"
    for code in PRECEDENCE:
        if code in tally.stops:
            yield ADVICE[code].format(why=tally.stops[code], when=when)


MARKS = {"complete": "#", "provisional": "~", "failed": "x", "damaged": "!", "missing": "."}


def state(folder: Folder, day: dt.date) -> str:
    """The state of a day, one of MARKS."""
    if day in folder.damaged:
        return "damaged"
    return folder.entries[day].status if day in folder.entries else "missing"


def calendar_lines(folder: Folder, days: Sequence[dt.date]) -> Iterator[str]:
    """A line a month with a mark a day, then the gaps."""
    yield "         " + "".join(f"{n:<10}" for n in (1, 11, 21, 31)).rstrip()
    for month, group in itertools.groupby(days, key=lambda day: f"{day:%Y-%m}"):
        marks = {day.day: MARKS[state(folder, day)] for day in group}
        yield f"{month}  " + "".join(marks.get(n, " ") for n in range(1, 32)).rstrip()
    yield "  ".join(f"{mark} {name}" for name, mark in MARKS.items())
    for name in ("missing", "damaged", "failed", "provisional"):
        for first, last in spans(day for day in days if state(folder, day) == name):
            yield f"{name}: {span(first, last)}{why(folder, first) if first == last else ''}"


def span(first: dt.date, last: dt.date) -> str:
    """A run of days in words."""
    return f"{first} to {last} ({(last - first).days + 1} days)" if last > first else str(first)


def why(folder: Folder, day: dt.date) -> str:
    """What is known of a day that is not there."""
    said = folder.damaged.get(day) or (folder.entries[day].error if day in folder.entries else "")
    return f": {said}" if said else ""


# -- command line ----------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit 2."""
        self.exit(Exit.USAGE, f"fetch_ads.py: {one_line(message)} (--help shows the usage)\n")


def number(kind: Callable[[str], float], least: float, most: float = math.inf) -> Callable[[str], Any]:
    """A parser of numbers between two bounds."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if least <= (value := kind(text)) <= most and math.isfinite(value):
                return value
        upper = "" if math.isinf(most) else f" and {most:g} at most"
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {least:g} at least{upper}")

    return parse


def arguments() -> Parser:
    """The command line."""
    parser = Parser(
        prog="fetch_ads.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="fetch_ads.py [options] START END FOLDER | --backfill FOLDER | --daily FOLDER | --check [START END] FOLDER",
    )  # fmt: skip
    add = parser.add_argument
    add("places", nargs="*", metavar="START END FOLDER", help="days as YYYY-MM-DD, YYYYMMDD or YYYY/MM/DD")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--backfill", action="store_true", help="the two years up to yesterday")
    mode.add_argument("--daily", action="store_true", help="the same, with one line when nothing is missing")
    mode.add_argument("--check", action="store_true", help="show what is there; exit 1 if there are gaps")
    add("--fetcher", metavar="MODULE:FUNCTION", help="fetch_data, also path/to/file.py:function (simulated)")
    add("--workers", type=number(int, 1), default=8, help="days in flight at most (%(default)s)")
    add("--retries", type=number(int, 0), default=5, help="further tries of one day (%(default)s)")
    add("--timeout", type=number(float, 0.001), default=300.0, help="seconds for one call (%(default)g)")
    add(
        "--max-wait",
        type=number(float, 0),
        default=300.0,
        help="longest retry-after worth waiting (%(default)g)",
    )
    add("--refresh-days", type=number(int, 0), default=0, help="fetch the last N days again (%(default)s)")
    add("--timezone", metavar="ZONE", help="the account's: it says what today is (the machine's)")
    add("--force", action="store_true", help="fetch the whole range again")
    add("--dry-run", action="store_true", help="show the plan and the number of calls")
    add("--json", action="store_true", help="the summary as one JSON object on stdout")
    add(
        "--executor", default="threads", metavar="NAME", help="threads, processes or module:factory (threads)"
    )
    add(
        "--simulate-errors",
        type=number(float, 0, 1),
        metavar="SHARE",
        help="of simulated calls that fail (0)",
    )
    return parser


def zone_named(name: str | None) -> dt.tzinfo | None:
    """The time zone of that name; None is the machine's. Raises UsageError."""
    if name is None or name.upper() == "UTC":  # known without a database of zones
        return dt.timezone.utc if name else None
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UsageError(
            f"--timezone {name}: no such zone on this machine (pip install tzdata has all)"
        ) from None


def wanted_days(options: argparse.Namespace, today: dt.date) -> tuple[list[dt.date], Path]:
    """The days a command speaks of (none for a --check of all) and the folder. Raises UsageError."""
    *dates, folder = options.places or [""]
    if not folder or len(dates) not in (
        {0} if options.backfill or options.daily else {0, 2} if options.check else {2}
    ):
        raise UsageError(
            "give START END FOLDER, --backfill FOLDER, --daily FOLDER or --check [START END] FOLDER"
        )
    if options.simulate_errors is not None and options.fetcher:
        raise UsageError("--simulate-errors is for the simulation, not for --fetcher")
    if dates:
        return days_between(*parse_range(*dates, today)), Path(folder)
    return [] if options.check else days_between(*two_years(today)), Path(folder)


def check(folder: Folder, days: list[dt.date], as_json: bool) -> int:
    """Show the calendar of a folder; 1 if there are gaps in it, or nothing at all."""
    folder.read()
    if not days and folder.entries:
        days = days_between(min(folder.entries), max(folder.entries))
    states = {str(day): state(folder, day) for day in days}
    gaps = [day for day, name in states.items() if name not in STORED]
    if as_json:
        print(json.dumps({"exit_code": int(bool(gaps or not days)), "days": states, "gaps": gaps}))
    elif days:
        print("\n".join(calendar_lines(folder, days)))
    else:
        print(f"no days in {folder.root}")
    return int(bool(gaps or not days))


def show_plan(wanted: list[dt.date], missing: list[dt.date], as_json: bool) -> int:
    """Tell what a run would do."""
    if as_json:
        plan = {"wanted": len(wanted), "skipped": len(wanted) - len(missing), "calls": len(missing)}
        print(json.dumps({"exit_code": 0, **plan, "days": [str(day) for day in missing]}))
        return Exit.OK
    print(f"{len(wanted)} days wanted, {len(wanted) - len(missing)} complete, {len(missing)} calls to make")
    for first, last in spans(missing):
        print(f"  {span(first, last)}")
    return Exit.OK


@contextlib.contextmanager
def signals(tally: Tally) -> Iterator[None]:
    """SIGINT or SIGTERM asks the run to stop; the second one leaves at once, by KeyboardInterrupt."""

    def handle(signum: int, frame: object) -> None:
        if Exit.INTERRUPTED in tally.stops:
            raise KeyboardInterrupt
        tally.stops[Exit.INTERRUPTED] = signal.Signals(signum).name

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


BUILT_IN = ("threads", "processes")


def caller(options: argparse.Namespace) -> tuple[Callable[..., Future[Outcome]], Callable[[], None]]:
    """What starts call_day(fetch, day, path) on the executor asked for, and what ends it. Raises UsageError."""
    if options.executor == "threads":
        return Threads(call_day).submit, lambda: None
    if options.executor == "processes":
        children = Children(options.timeout)
        return Threads(children.call).submit, children.close
    try:
        executor: Executor = load(options.executor)()
    except Exception as error:  # a cluster that does not answer, say
        raise UsageError(f"--executor {options.executor}: {reason(error)}") from error
    return functools.partial(executor.submit, call_day), lambda: executor.shutdown(wait=False)


def fetch(folder: Folder, missing: list[dt.date], options: argparse.Namespace, tally: Tally) -> None:
    """Fetch the missing days into the folder. Raises FolderError, UsageError."""
    if not missing:
        return folder.save()
    if not options.fetcher:
        print("SIMULATED DATA: no --fetcher given. Keep real data in another folder.", file=sys.stderr)
    fetcher = Fetcher(options.fetcher) if options.fetcher else Simulation(options.simulate_errors or 0.0)
    start, close = caller(options)
    progress = Progress(sys.stderr)

    def submit(day: dt.date) -> Future[Outcome]:
        try:
            return start(fetcher, day, folder.temporary(day))
        except Exception as error:  # the executor is broken: a call that failed
            future: Future[Outcome] = Future()
            future.set_exception(error)
            return future

    def publish(finished: list[Finished]) -> None:
        folder.publish(finished)
        tally.count(finished)
        progress.show(tally, len(missing), scheduler)

    scheduler = Scheduler(
        submit, Limits(options.workers, options.retries, options.timeout, options.max_wait), tally
    )
    try:
        scheduler.run(missing, publish)
    finally:
        progress.clear()
        close()
        folder.sweep()
    return folder.save()


def run(folder: Folder, wanted: list[dt.date], options: argparse.Namespace) -> int:
    """Fetch what is missing, build ads.csv, tell what happened. Raises FolderError if it cannot even begin."""
    tally, began = Tally(), time.monotonic()
    with on_disk(folder.root):
        folder.root.mkdir(parents=True, exist_ok=True)
    with signals(tally), locked(folder.root / ".lock"):
        folder.read()
        with on_disk(folder.root / "days"):
            (folder.root / "days").mkdir(exist_ok=True)
        folder.sweep()
        missing = missing_days(wanted, folder.complete(), options.refresh_days, options.force)
        warn(folder, wanted)
        try:
            fetch(folder, missing, options, tally)
            build_aggregate(folder, tally)
        except FolderError as error:
            tally.stops.setdefault(Exit.FOLDER, str(error))
    tally.wall = time.monotonic() - began
    told = summarize(tally, folder, wanted, len(missing))
    report(told, tally, options)
    return int(told["exit_code"])


def warn(folder: Folder, wanted: list[dt.date]) -> None:
    """Say what is wrong with the folder that this run will not, or cannot, put right."""
    if folder.torn:
        print(f"manifest.csv was torn ({folder.torn} lines): rebuilt from the day files", file=sys.stderr)
    if elsewhere := folder.damaged.keys() - set(wanted):
        print(
            f"{len(elsewhere)} damaged days outside this range are left out of ads.csv (--check shows them)",
            file=sys.stderr,
        )


def report(told: Mapping[str, Any], tally: Tally, options: argparse.Namespace) -> None:
    """The summary on stdout, what stopped the run on stderr."""
    if options.json:
        print(json.dumps(told))
    elif options.daily and told["skipped"] == told["wanted"] and not tally.stops:
        print(f"nothing to fetch: all {told['wanted']} days from {told['start']} to {told['end']} are there")
    else:
        print("\n".join(summary_lines(told)))
    for line in advice(tally):
        print(line, file=sys.stderr)


def command(options: argparse.Namespace) -> int:
    """Do what the command line asks for. Raises UsageError, FolderError."""
    zone = zone_named(options.timezone)
    wanted, root = wanted_days(options, utc_now().astimezone(zone).date())
    folder = Folder(root, lambda moment: moment.astimezone(zone).date())
    if options.check:
        return check(folder, wanted, options.json)
    if options.dry_run:
        folder.read()
        missing = missing_days(wanted, folder.complete(), options.refresh_days, options.force)
        return show_plan(wanted, missing, options.json)
    for spec in filter(None, (options.fetcher, options.executor not in BUILT_IN and options.executor)):
        load(spec)  # before anything is created
    return run(folder, wanted, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    options = arguments().parse_intermixed_args(argv)
    try:
        return command(options)
    except UsageError as error:
        print(f"fetch_ads.py: {error}", file=sys.stderr)
        return Exit.USAGE
    except FolderError as error:
        print(f"fetch_ads.py: {error}", file=sys.stderr)
        return Exit.FOLDER
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return Exit.INTERRUPTED


def leave(code: int) -> NoReturn:
    """End the program, though a thread that some library started may not want it to end."""
    try:
        sys.stdout.flush()
    except OSError:  # nobody reads
        os._exit(code)
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
