"""Fetch daily Google Ads data in parallel into a folder that is always whole. Needs Python 3.10+ and no more.

    python fetch_ads.py 2023-01-01 2023-01-31 ./data          a range, both ends included
    python fetch_ads.py --backfill ./data                     the two years up to yesterday
    python fetch_ads.py --daily ./data                        the same, and one line when nothing is missing
    python fetch_ads.py --check [START END] ./data            a calendar of what is there; calls nothing
    python fetch_ads.py ... --fetcher my_module:fetch_data    or path/to/file.py:fetch_data; else a simulation

fetch_data(date) gives the rows of one day: any iterable of mappings. The folder:

    data/ads.csv               every day that is there, in date order, under one header
    data/days/2023-01-01.csv   one file a day, the unit of truth
    data/manifest.csv          one row a day: its status, size, SHA-256, attempts, error

Exit: 0 all wanted days are there, 1 some failed, 2 usage, 3 OAuth, 4 quota: resume later, 5 folder,
130 interrupted.

Every command is safe to run again, after a kill too: a day counts once its file was flushed, swapped in whole
and written down with its checksum; what is missing or differs from its checksum is fetched again.

The way of one day: the main thread takes it off a heap and hands it to a worker; the worker calls fetch_data,
has the rows written to a temporary file and returns a record, never an exception; the main thread alone swaps
files in, keeps the manifest, decides what is tried again and when, and brakes all calls at a rate limit.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import datetime as dt
import fcntl
import functools
import hashlib
import heapq
import importlib.machinery
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
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO, Union

# A fetcher that says `import fetch_ads` must meet the classes of the running script, not a second set.
sys.modules.setdefault("fetch_ads", sys.modules[__name__])

BATCH = 1000  # rows turned into CSV at a time
CHUNK = 1 << 20  # bytes read at a time
TICK = 0.25  # seconds: the longest the main thread waits before it looks at signals and deadlines
GRACE = 5.0  # seconds that calls in flight get after Ctrl-C
FLUSH = 0.5  # seconds between two flushes of the manifest to disk
BACKOFF, BACKOFF_MAX = 0.5, 60.0  # seconds: full jitter below the first, which doubles with every try

# -- records -------------------------------------------------------------------------------------------------

Kind = Enum("Kind", "DONE TRANSIENT RATE_LIMIT OAUTH FOLDER FAILED")  # how a call ended


class Exit(IntEnum):
    """Exit codes, and the reasons to stop a run; where several apply, the first of this list is told."""

    INTERRUPTED, FOLDER, OAUTH, QUOTA, FAILED, USAGE, OK = 130, 5, 3, 4, 1, 2, 0


class RateLimitError(Exception):
    """For fetch_data to raise: the API refuses calls for retry_after seconds, or (None) for a while."""

    def __init__(self, retry_after: float | None = None, message: str = "rate limited") -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OAuthError(Exception):
    """For fetch_data to raise: the credentials are no good, so no other day would fare better."""


class RowError(Exception):
    """fetch_data gave something that cannot be stored as rows of this day."""


class UsageError(Exception):
    """The command cannot be carried out as it is written."""


class FolderError(Exception):
    """The folder cannot be read or written, or is in use."""


def utc_now() -> dt.datetime:
    """The wall clock, for records; durations are taken from the monotonic clock."""
    return dt.datetime.now(dt.timezone.utc)


class Job(NamedTuple):
    """A day to fetch. Jobs sort by the time they may start, then newest day first."""

    at: float
    order: int
    day: dt.date
    failures: int = 0
    calls: int = 0
    started: float = 0.0  # the last call, by the monotonic clock
    started_at: dt.datetime = dt.datetime.min


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


Report = Union[Outcome, "Future[Outcome]"]  # of a call: of what it fetched, the file is there or is being written
Store = Callable[..., "Future[Outcome]"]  # has store_day done
Finished = tuple[Job, Outcome]  # a day nothing more is done for: fetched, or failed for good


class Entry(NamedTuple):
    """One row of manifest.csv; `seconds` is how long the last call took, `fetched_at` (UTC) when it began."""

    date: dt.date
    status: str  # complete, provisional or failed
    rows: int
    bytes: int
    sha256: str
    attempts: int
    seconds: float
    fetched_at: str
    error: str


class Limits(NamedTuple):
    """How far a run goes; times in seconds."""

    workers: int = 8
    retries: int = 5
    timeout: float = 300.0
    max_wait: float = 300.0


class Tally:
    """What happened so far; times in seconds."""

    def __init__(self) -> None:
        self.fetched = self.rows = self.retries = self.rate_limits = 0
        self.wall = self.braked = self.aggregate = 0.0
        self.call_seconds: list[float] = []
        self.failed: dict[dt.date, str] = {}
        self.stops: dict[Exit, str] = {}  # what stops the run, and why
        self.resume: dt.datetime | None = None  # when the API lets calls through again, if it said so

    def count(self, finished: Iterable[Finished]) -> None:
        for job, outcome in finished:
            if outcome.kind is Kind.DONE:
                self.fetched += 1
                self.rows += outcome.rows
            else:
                self.failed[job.day] = outcome.error


# -- the plan: wanted minus complete -------------------------------------------------------------------------

DAY = re.compile(r"(\d{4})([-/]?)(\d\d)\2(\d\d)", re.ASCII)


def parse_range(first: str, last: str, today: dt.date) -> tuple[dt.date, dt.date]:
    """Two days in one of the three forms, in order, none of them in the future. Raises UsageError."""
    days, forms = [], set()
    for text in (first, last):
        if not (match := DAY.fullmatch(text)):
            raise UsageError(f"{text!r} is not a date: write YYYY-MM-DD, YYYYMMDD or YYYY/MM/DD")
        try:
            days.append(dt.date(int(match[1]), int(match[3]), int(match[4])))
        except ValueError:
            raise UsageError(f"{text} does not exist in the calendar") from None
        forms.add(match[2])
    start, end = days
    if len(forms) > 1:
        raise UsageError(f"{first} and {last} are written in two forms: use one")
    if end < start:
        raise UsageError(f"the end {last} is before the start {first}")
    if end > today:
        raise UsageError(f"{last} is in the future: today is {today}")
    return start, end


def two_years(today: dt.date) -> tuple[dt.date, dt.date]:
    """The two years up to yesterday: 730 days, or 731 with a leap day among them."""
    first_of_month = dt.date(today.year - 2, today.month, 1)  # a 29 February becomes 1 March
    return first_of_month + dt.timedelta(days=today.day - 1), today - dt.timedelta(days=1)


def days_between(start: dt.date, end: dt.date) -> list[dt.date]:
    """Every day from start to end, both included."""
    return [dt.date.fromordinal(n) for n in range(start.toordinal(), end.toordinal() + 1)]


def missing_days(wanted: list[dt.date], complete: set[dt.date], refresh: int, force: bool) -> list[dt.date]:
    """The days to fetch: those not complete, the last `refresh` of them anyhow, or all."""
    again = set(wanted if force else wanted[max(0, len(wanted) - refresh) :])
    return [day for day in wanted if day in again or day not in complete]


def spans(days: Iterable[dt.date]) -> Iterator[str]:
    """Sorted days in words, neighbours in one."""
    for _, group in itertools.groupby(enumerate(days), key=lambda pair: pair[1].toordinal() - pair[0]):
        run = [day for _, day in group]
        yield f"{run[0]} to {run[-1]} ({len(run)} days)" if len(run) > 1 else str(run[0])


# -- fetch_data ----------------------------------------------------------------------------------------------


def simulated(errors: float, day: dt.date) -> list[dict[str, object]]:
    """The built-in fetch_data: the same rows for a day each time, in 20 to 80 ms; a share of calls fails."""
    time.sleep(random.uniform(0.02, 0.08))
    if random.random() < errors:
        raise random.choice([TimeoutError("simulated timeout"), RateLimitError(0.1, "simulated rate limit")])
    draw, rows = random.Random(day.toordinal()), []
    for ad in range(100):
        impressions = draw.randrange(10_000)
        clicks = int(impressions * draw.uniform(0, 0.1))
        metrics = {"impressions": impressions, "clicks": clicks, "cost_micros": clicks * 370_000}
        campaign = {"id": 1000 + ad // 10, "name": f"Campaign {ad // 10}"}
        rows.append({"date": day, "campaign": campaign, "ad_group": {"id": 5000 + ad}, "metrics": metrics})
    return rows


def one_line(text: str, width: int = 300) -> str:
    """Text with every run of blanks and unprintable characters made one space, cut to a width."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * width]).split())
    return line if len(line) <= width else line[: width - 3] + "..."


def reason(error: BaseException) -> str:
    """An exception as one line for the manifest and the summary."""
    text = ""
    with contextlib.suppress(Exception):
        text = str(error)
    with contextlib.suppress(Exception):  # a GoogleAdsException says in one line here what takes it sixteen
        text = error.failure.errors[0].message  # type: ignore[attr-defined]
    return one_line(f"{type(error).__name__}: {text}".removesuffix(": "))


def load_file(path: Path) -> Any:
    """The module in a file, under a name that hides no other module."""
    loader = importlib.machinery.SourceFileLoader(f"fetcher_{path.stem}", str(path))
    module = sys.modules[loader.name] = types.ModuleType(loader.name)
    module.__file__ = str(path)
    loader.exec_module(module)
    return module


@functools.cache
def load(spec: str) -> Any:
    """The function named as module:function or path/to/file.py:function. Raises UsageError."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise UsageError(f"{spec!r}: write module:function or path/to/file.py:function")
    try:
        # What lies beside a file, or in the current folder, can be imported, as with a script or python -m.
        path = Path(place).resolve()
        sys.path.insert(0, str(path.parent))
        function = getattr(load_file(path) if place.endswith(".py") else importlib.import_module(place), name)
        if not callable(function):
            raise TypeError(f"{name} is not a function")
        return function
    except (Exception, SystemExit) as error:  # whatever the user's module does on import
        raise UsageError(f"{spec}: {reason(error)}") from error


def loaded(spec: str, day: dt.date) -> Any:
    """A fetch_data loaded where it is called: it travels to other processes by name, and is not pickled."""
    return load(spec)(day)


# -- what its errors mean ------------------------------------------------------------------------------------

OAUTH_TEXT = re.compile("invalid_grant|invalid_client|unauthorized_client")
TRANSIENT = (
    "DEADLINE_EXCEEDED UNAVAILABLE INTERNAL ABORTED TimeoutError Timeout TimeoutException ConnectionError "
    "TransportError URLError IncompleteRead ChunkedEncodingError BrokenExecutor"
)
MEANING: dict[object, Kind] = {  # of gRPC codes, HTTP statuses and the names of classes
    **dict.fromkeys((*TRANSIENT.split(), 408, *range(500, 600)), Kind.TRANSIENT),
    **dict.fromkeys(("RESOURCE_EXHAUSTED", 429, "RateLimitError"), Kind.RATE_LIMIT),
    **dict.fromkeys(("UNAUTHENTICATED", "PERMISSION_DENIED", 401, 403, "OAuthError"), Kind.OAUTH),
}


def codes(error: BaseException) -> Iterator[object]:
    """The gRPC code, then the HTTP status, that an exception of a client library carries.

    Seen in google.api_core, grpc.RpcError, GoogleAdsException, requests, httpx, urllib and aiohttp.
    """
    inner, response = getattr(error, "error", None), getattr(error, "response", None)
    places = ((error, "grpc_status_code"), (inner, "code"), (error, "code"), (response, "status_code"))
    for holder, name in (*places, (error, "status"), (error, "status_code")):
        with contextlib.suppress(Exception):  # a code() of some other library
            code = getattr(holder, name, None)
            code = code() if callable(code) else code
            if code := code if isinstance(code, int) else getattr(code, "name", None):
                yield code


def classify(error: BaseException) -> Kind:
    """What an exception of fetch_data means, told by names and attributes: no library is imported for it.

    A refused token comes first: gRPC calls it UNAVAILABLE. A status says more than a class: the HTTPError
    of requests and of urllib are OSError. What means nothing may have been raised `from` what does.
    """
    names = [cls.__name__ for cls in type(error).__mro__]
    with contextlib.suppress(Exception):  # it cannot be printed
        if OAUTH_TEXT.search(f"{error} {getattr(getattr(error, 'response', None), 'text', '')}"):
            return Kind.OAUTH
    if "RefreshError" in names:
        return Kind.TRANSIENT if getattr(error, "retryable", False) else Kind.OAUTH
    known = next(filter(None, map(MEANING.get, [*codes(error)] or names)), None)
    return known or (classify(error.__cause__) if error.__cause__ else Kind.FAILED)


def retry_after(error: BaseException, now: dt.datetime) -> float | None:
    """The seconds a rate limit asks for: an attribute, or a Retry-After header in seconds or as a date."""
    asked: Any = getattr(error, "retry_after", None)
    headers = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "headers", None) or {}
    asked = headers.get("Retry-After") if asked is None else asked
    with contextlib.suppress(TypeError, ValueError):
        return None if math.isnan(float(asked)) else max(0.0, float(asked))
    with contextlib.suppress(TypeError, ValueError):
        from email.utils import parsedate_to_datetime

        return max(0.0, (parsedate_to_datetime(str(asked)) - now).total_seconds())
    return None


# -- one day: call, write, hash ------------------------------------------------------------------------------


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Turns trouble with our own files into FolderError, so that no OSError of fetch_data is taken for it."""
    try:
        yield
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror or error}") from error


def csv_bytes(rows: Iterable[Iterable[object]]) -> bytes:
    """Rows as RFC 4180 lines. Raises RowError for a NUL, about which readers of CSV do not agree."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    data = text.getvalue().encode()
    if b"\0" in data:
        raise RowError("a cell holds a NUL character")
    return data


def csv_rows(path: Path) -> Iterator[list[str]]:
    """The records of a file, header first."""
    csv.field_size_limit(2**31 - 1)  # of the whole process; the default refuses fields of 128 KiB
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.reader(file)


def batches(rows: Iterator[Any]) -> Iterator[list[Any]]:
    """Rows, BATCH of them at a time."""
    return iter(lambda: list(itertools.islice(rows, BATCH)), [])


def recolumned(path: Path, head: Sequence[str], columns: Sequence[str]) -> Iterator[bytes]:
    """The rows of a file with the columns `head`, put under `columns`; a cell it lacks is empty."""
    for batch in batches(itertools.islice(csv_rows(path), 1, None)):
        named = (dict(zip(head, row)) for row in batch)  # noqa: B905 (a row may be short)
        yield csv_bytes([row.get(name, "") for name in columns] for row in named)


def flatten(row: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Columns and cells of a row; a nested mapping gives columns joined by dots."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class Table:
    """Turns the rows of a day into CSV: `date` first, the other columns in order of first appearance.

    A batch of flat dicts of one shape, the usual case, passes without a line of Python run for each row; any
    other is flattened row by row. A column that appears in a later batch leaves the rows above it short.
    """

    OWN_DAY = re.compile(DAY.pattern + r"([T ].*)?", re.ASCII | re.DOTALL)

    def __init__(self, day: dt.date) -> None:
        self.day, self.rows = day.isoformat(), 0
        self.columns = {"date": None}  # a set in order

    def lines(self, batch: list[Any]) -> bytes:
        """The next rows. Raises RowError."""
        self.columns.update(dict.fromkeys(self.flat(batch[0])))
        data = csv_bytes(self.plain(batch) or self.mixed(batch))
        self.rows += len(batch)
        return data

    def plain(self, batch: list[Any]) -> Iterable[Sequence[object]] | None:
        """The cells of a batch of flat dicts with the columns known, or None if it is anything else."""
        dated = "date" in batch[0]
        names = [*self.columns][not dated :]
        if {*map(type, batch)} != {dict} or {*map(len, batch)} != {len(names)} or len(names) < 2:
            return None
        try:
            cells = list(map(operator.itemgetter(*names), batch))
        except KeyError:  # as many columns, but others
            return None
        if any(issubclass(cls, Mapping) for cls in {*map(type, itertools.chain.from_iterable(cells))}):
            return None
        if not dated:
            return map(operator.add, itertools.repeat((self.day,)), cells)
        own_days = {*map(str, map(operator.itemgetter(0), cells))}
        for own_day in own_days:
            self.check(own_day)
        return cells if own_days == {self.day} else [(self.day, *row[1:]) for row in cells]

    def mixed(self, batch: list[Any]) -> Iterable[Sequence[object]]:
        rows = [self.flat(row, number) for number, row in enumerate(batch, self.rows + 1)]
        self.columns.update(dict.fromkeys(itertools.chain.from_iterable(rows)))
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
        """Raises RowError for a row's own date that is another day: the row would stand in two files."""
        match = self.OWN_DAY.fullmatch(own_day)
        if own_day not in ("", "None") and not (match and f"{match[1]}-{match[3]}-{match[4]}" == self.day):
            raise RowError(f"a row of {self.day} has the date {own_day}")


def rows_of(answer: Any) -> Iterator[Any]:
    """The rows in whatever fetch_data gave. Raises RowError."""
    if isinstance(answer, Mapping):
        return iter([answer])
    if hasattr(answer, "to_dict"):  # a DataFrame
        return iter(answer.to_dict(orient="records"))
    if isinstance(answer, Iterable) and not isinstance(answer, (str, bytes)):
        return iter(answer)
    raise RowError(f"fetch_data returned {type(answer).__name__}, not rows")


def write_hashed(path: Path, chunks: Iterable[bytes]) -> tuple[int, str]:
    """Write a file as far as the disk; its size and SHA-256. Raises FolderError, and what `chunks` raises."""
    sha256, size = hashlib.sha256(), 0
    with on_disk(path):
        file = path.open("wb", buffering=0)
    with file:
        for data in chunks:
            sha256.update(data)
            size += len(data)
            with on_disk(path):
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
        with on_disk(path):
            os.fsync(file.fileno())
    return size, sha256.hexdigest()


def write_day(answer: Any, day: dt.date, path: Path) -> tuple[int, int, str]:
    """Write the rows of a day to a new file; how many they are, its size and its SHA-256."""
    table = Table(day)
    chunks = map(table.lines, batches(rows_of(answer)))
    first = next(chunks, b"")  # now the columns are known, if no more of them come
    header = csv_bytes([table.columns])
    written = write_hashed(path, itertools.chain([header + first], chunks))
    if (wider := csv_bytes([table.columns])) != header:
        columns, wide = [*table.columns], path.with_suffix(".wide.tmp")
        written = write_hashed(wide, itertools.chain([wider], recolumned(path, columns, columns)))
        with on_disk(path):
            os.replace(wide, path)
    return table.rows, *written


def failure(error: BaseException, seconds: float = 0.0) -> Outcome:
    """The outcome of a call that raised."""
    if isinstance(error, FolderError):
        return Outcome(Kind.FOLDER, seconds, error=str(error))
    kind = classify(error)
    asked = retry_after(error, utc_now()) if kind is Kind.RATE_LIMIT else None
    return Outcome(kind, seconds, error=reason(error), retry_after=asked)


def store_day(rows: Iterable[Any], day: dt.date, path: str, seconds: float) -> Outcome:
    """Write the rows of a call, which took so many `seconds` so far, to the file at `path`."""
    began = time.perf_counter() - seconds
    try:
        written = write_day(rows, day, Path(path))
    except BaseException as error:  # a generator may go on calling; a library may even call sys.exit()
        with contextlib.suppress(OSError):
            os.unlink(path)
        return failure(error, time.perf_counter() - began)
    return Outcome(Kind.DONE, time.perf_counter() - began, path, *written)


def call_day(fetch: Callable[[dt.date], Any], day: dt.date, path: str, store: Store | None = None) -> Report:
    """Fetch one day into the file at `path`. Runs in a worker: it reports, and never raises.

    What is no more than a batch is left to `store`: the call is over, and the next one need not wait for the disk.
    """
    began = time.perf_counter()
    try:
        rows = rows_of(fetch(day))
        batch = list(itertools.islice(rows, BATCH))
    except BaseException as error:
        return failure(error, time.perf_counter() - began)
    seconds = time.perf_counter() - began
    if store and len(batch) < BATCH:
        return store(batch, day, path, seconds)
    return store_day(itertools.chain(batch, rows), day, path, seconds)


# -- workers -------------------------------------------------------------------------------------------------


class Threads:
    """Runs calls on threads that the interpreter does not wait for at its end.

    ThreadPoolExecutor joins its threads at exit: a call that never returns would hold the program for ever.
    Here nobody misses a thread that does not come back: the next call finds none idle and starts another.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call, self.idle = call, threading.Semaphore(0)
        self.queue: queue.SimpleQueue[tuple[Future[Any], tuple[Any, ...]]] = queue.SimpleQueue()

    def submit(self, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.queue.put((future, args))
        if not self.idle.acquire(blocking=False):
            threading.Thread(target=self.work, daemon=True).start()
        return future

    def work(self) -> None:
        while True:
            future, args = self.queue.get()
            try:
                future.set_result(self.call(*args))
            except BaseException as error:  # for whoever looks at the future
                future.set_exception(error)
            self.idle.release()


def serve(pipe: Any) -> None:
    """A child process: makes calls until the program at the other end of the pipe is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches children too
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(call_day(*pipe.recv()))


class Child(threading.local):
    """A child process for each thread that calls; one that hangs or dies is replaced."""

    process: Any = None
    pipe: Any = None

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout

    def start(self) -> None:
        import multiprocessing  # slow to import, and few need it

        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,))
        self.process.start()
        theirs.close()  # so that the pipe ends when the child does

    def call(self, *args: Any) -> Report:
        """call_day(*args) in the child of this thread."""
        if not self.process:
            self.start()
        error = f"no answer within {self.timeout:g} s"
        try:
            self.pipe.send(args)
            if self.pipe.poll(self.timeout):
                return self.pipe.recv()  # type: ignore[no-any-return]
        except (EOFError, OSError):
            error = "the process that made the call died"
        self.process.kill()
        self.process = None
        return Outcome(Kind.TRANSIENT, error=error)


def end_children() -> None:
    """Kill the processes that would keep the program from its end."""
    import multiprocessing

    for child in multiprocessing.active_children():
        child.kill()


def start_executor(name: str, timeout: float) -> tuple[Callable[..., Future[Any]], Callable[[], None]]:
    """What submits call_day(fetch, day, path) to that executor, and what ends it. Raises UsageError."""
    if name == "threads":
        return Threads(functools.partial(call_day, store=Threads(store_day).submit)).submit, lambda: None
    if name == "processes":
        return Threads(Child(timeout).call).submit, end_children
    try:
        executor = load(name)()
    except Exception as error:  # a cluster that does not answer, say
        raise UsageError(f"--executor {name}: {reason(error)}") from error
    return functools.partial(executor.submit, call_day), lambda: executor.shutdown(wait=False)


# -- the brake -----------------------------------------------------------------------------------------------


class Brake:
    """The pace of all calls together: additive increase, multiplicative decrease.

    Until the first rate limit there is no pace. A refusal closes the brake for as long as it asks, or for a
    pause that doubles while nothing succeeds; then calls start evenly. The first pace is a guess and rises
    fast. From the second refusal on it is taken from what came through since the last; an API at its
    limit lets through just that limit, and rises slowly, faster after a long time without refusal. Refusals
    of calls that began before the brake closed belong to the same event.
    """

    GUESS, FAST = 32.0, 1.5  # calls a second, and the gain for each success while the guess holds
    DECREASE, FLOOR = 0.92, 0.7  # of what came through; never below so much of the pace refused
    INCREASE, HURRY = 0.02, 1e-5  # of the base pace: a second, and for each success squared
    PAUSE, PAUSE_MAX = 0.1, 60.0  # seconds

    def __init__(self, now: float) -> None:
        self.rate, self.base = math.inf, 0.0  # calls a second now, and at the last refusal (0: a guess)
        self.opens = self.opened = now  # no call starts before `opens`
        self.closed = -math.inf
        self.passed = 0  # calls started since, less those refused
        self.pause = self.PAUSE
        self.refused_since: float | None = None  # the first refusal after the last success

    def started(self, now: float) -> None:
        """A call starts. A wake-up that was late by up to 2 ms does not shift the turn of the next."""
        self.opens = max(self.opens, now - 0.002) + 1 / self.rate
        self.passed += 1

    def succeeded(self) -> None:
        """A call came through: the pace rises."""
        slowly = self.base * (self.INCREASE / self.rate + self.HURRY * self.passed)
        self.rate += slowly if self.base else self.FAST
        self.pause, self.refused_since = self.PAUSE, None

    def refused(self, started: float, asked: float | None, now: float) -> float:
        """A call that had `started` met a rate limit. For how many seconds nothing has come through."""
        if started > self.closed:
            self.passed -= 1
            self.slow_down(now)
            asked = self.pause if asked is None else asked
            self.pause = min(2 * self.pause, self.PAUSE_MAX)
        if asked is not None:
            self.opens = self.opened = max(self.opens, now + asked)
        self.refused_since = now if self.refused_since is None else self.refused_since
        return now - self.refused_since

    def slow_down(self, now: float) -> None:
        """Set the next pace. The pause counts by half: meanwhile the API may have saved up some calls."""
        if math.isinf(self.rate):
            self.rate = self.GUESS
        else:
            seconds = (now - self.closed, max(now - self.opened, 0.001))
            let_through = sum(self.passed / time for time in seconds) / 2
            self.rate = self.base = max(self.DECREASE * min(self.rate, let_through), self.FLOOR * self.rate)
        self.closed, self.passed = now, 0


# -- the scheduler: a heap of days and one loop --------------------------------------------------------------


def wait_first(futures: Iterable[Future[Outcome]], seconds: float) -> set[Future[Outcome]]:
    """The futures that are done, as soon as there is one; none after so many seconds."""
    if waiting := set(futures):
        return wait(waiting, seconds, FIRST_COMPLETED).done
    time.sleep(seconds)
    return waiting


class Scheduler:
    """Calls every day, and again as its errors allow, until none is left or something stops the run.

    Runs in one thread; `submit` starts a call and gives its future. A day that waits for another try waits on
    the heap and holds no worker. Once stopped it starts no call and waits for those in flight: after Ctrl-C,
    for GRACE.
    """

    def __init__(
        self,
        submit: Callable[[dt.date], Future[Any]],  # of a Report
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
        self.flying: dict[Future[Any], Job] = {}  # calls
        self.storing: dict[Future[Any], Job] = {}  # what they fetched
        self.brake = Brake(clock())

    def run(self, days: Iterable[dt.date], publish: Callable[[list[Finished]], None]) -> None:
        """Fetch the days; `publish` is handed those that are finished, often none, every TICK at least."""
        self.ready = [Job(-math.inf, -day.toordinal(), day) for day in days]
        heapq.heapify(self.ready)
        give_up = math.inf
        while (self.flying or self.storing or (self.ready and not self.tally.stops)) and self.clock() < give_up:
            self.launch()
            before, braking = self.clock(), self.braking()
            done = self.wait_first([*self.flying, *self.storing], self.idle_seconds())
            self.tally.braked += self.clock() - before if braking else 0.0
            late = self.clock() - self.limits.timeout
            overdue = {future for future, job in self.flying.items() if job.started <= late}
            finished = [self.land(future) for future in done | overdue]  # the last look at their futures
            self.launch()  # before the disk is touched: no worker waits for it
            publish([one for one in finished if one])
            if Exit.INTERRUPTED in self.tally.stops:
                give_up = min(give_up, self.clock() + GRACE)

    def next_start(self) -> float:
        """When the next call may start; inf while there is no day, no worker or no point."""
        busy = len(self.flying) >= self.limits.workers or len(self.storing) > self.limits.workers
        if not self.ready or busy or self.tally.stops:
            return math.inf
        return max(self.ready[0].at, self.brake.opens)

    def braking(self) -> bool:
        """Whether it is the brake that a day waits for."""
        return self.clock() < self.brake.opens == self.next_start()

    def launch(self) -> None:
        """Start every call that may start now."""
        while self.next_start() <= (now := self.clock()):
            job = heapq.heappop(self.ready)
            self.brake.started(now)
            self.flying[self.submit(job.day)] = job._replace(calls=job.calls + 1, started=now, started_at=self.wall())

    def idle_seconds(self) -> float:
        """For how long nothing can happen but the end of a call."""
        now = self.clock()
        deadlines = (job.started + self.limits.timeout for job in self.flying.values())
        return max(0.0, min(now + TICK, self.next_start(), *deadlines) - now)

    def land(self, future: Future[Any]) -> Finished | None:
        """Take a call out of flight: its day is finished, being stored, back on the heap, or left for another run."""
        job, now = self.flying.pop(future, None) or self.storing.pop(future), self.clock()
        outcome = self.outcome(future)
        if isinstance(outcome, Future):
            self.storing[outcome] = job
            return None
        self.tally.call_seconds.append(outcome.seconds or now - job.started)
        if outcome.kind is Kind.DONE:
            self.brake.succeeded()
        elif outcome.kind is Kind.RATE_LIMIT:
            self.hold(job, outcome, now)
            return None
        elif outcome.kind is Kind.TRANSIENT and job.failures < self.limits.retries:
            self.again(job, now)
            return None
        elif outcome.kind in (Kind.OAUTH, Kind.FOLDER):
            self.tally.stops.setdefault(Exit[outcome.kind.name], outcome.error)
        return None if outcome.kind is Kind.FOLDER else (job, outcome)

    def outcome(self, future: Future[Any]) -> Report:
        """What became of a call, were it that it hangs, or that its worker died."""
        if future.done() and not future.cancelled():
            error = future.exception()
            return failure(error) if error else future.result()
        future.cancel()
        return Outcome(Kind.TRANSIENT, error=f"no answer within {self.limits.timeout:g} s")

    def again(self, job: Job, now: float) -> None:
        """Back on the heap for another try: exponential backoff with full jitter."""
        self.tally.retries += 1
        delay = self.uniform(0, min(BACKOFF * 2.0**job.failures, BACKOFF_MAX))
        heapq.heappush(self.ready, job._replace(at=now + delay, failures=job.failures + 1))

    def hold(self, job: Job, outcome: Outcome, now: float) -> None:
        """Back on the heap at once, behind the brake; or the end of the run, should that take too long."""
        self.tally.rate_limits += 1
        heapq.heappush(self.ready, job)
        asked = outcome.retry_after
        fruitless = self.brake.refused(job.started, asked, now)
        if fruitless >= self.limits.max_wait or (asked or 0.0) > self.limits.max_wait:
            if asked:
                self.tally.resume = self.wall() + dt.timedelta(seconds=min(asked, 366 * 86400))
            self.tally.stops.setdefault(Exit.QUOTA, outcome.error)


# -- the folder and its manifest -----------------------------------------------------------------------------

STORED = ("complete", "provisional")


def stamp(moment: dt.datetime) -> str:
    """A moment as it stands in records."""
    return moment.astimezone(dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """One run a folder. The lock belongs to the process and dies with it; the file just says whose it is.

    Raises FolderError. Whoever locked a file that its owner removed meanwhile holds nothing.
    """
    path = root / ".lock"
    with on_disk(root):
        root.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except (BlockingIOError, PermissionError, FileNotFoundError):
            held = False
        if not held:
            file.seek(0)
            raise FolderError(f"{root} is in use by {file.read(200) or 'another run'}")
        file.truncate(0)
        print(f"process {os.getpid()} on {os.uname().nodename} since {stamp(utc_now())}", file=file, end="", flush=True)
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def swap_in(path: Path, chunks: Iterable[bytes], flush: bool = True) -> None:
    """Replace a file by another at one stroke. Raises FolderError, and then the old one stands."""
    temp = path.with_name(f".{path.name}.tmp")
    with on_disk(path), contextlib.ExitStack() as undo:
        undo.callback(temp.unlink, missing_ok=True)
        with temp.open("wb") as file:
            file.writelines(chunks)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        os.replace(temp, path)


def manifest_lines(entries: Iterable[Entry]) -> bytes:
    """Entries as they stand in the manifest."""
    return csv_bytes([*entry[:6], f"{entry.seconds:.3f}", *entry[7:]] for entry in entries)


def parse_entry(line: str) -> Entry | None:
    """A line of the manifest, or None if it is not whole."""
    try:
        day, status, rows, size, sha256, attempts, seconds, at, error = next(csv.reader([line]))
        numbers = (int(rows), int(size), sha256, int(attempts), float(seconds))
        entry = Entry(dt.date.fromisoformat(day), status, *numbers, at, error)
    except (ValueError, csv.Error, StopIteration):
        return None
    return entry if status == "failed" or (status in STORED and re.fullmatch("[0-9a-f]{64}", sha256)) else None


def chunks(file: io.FileIO) -> Iterator[bytes]:
    """The rest of a file, CHUNK bytes at a time."""
    return iter(lambda: file.read(CHUNK), b"")


def trouble(path: Path, entry: Entry) -> str:
    """How a day file differs from its entry, or ''."""
    sha256 = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            for data in chunks(file):
                sha256.update(data)
        same = (path.stat().st_size, sha256.hexdigest()) == (entry.bytes, entry.sha256)
    except OSError as error:
        return f"its file: {error.strerror}"
    return "" if same else "its file was changed since it was fetched"


def adopt(path: Path, day: dt.date, today: Callable[[dt.datetime], dt.date]) -> Entry | None:
    """An entry for a day file that the manifest does not know; None unless it is a whole file of that day."""
    try:
        rows = csv_rows(path)
        header = next(rows)
        shapes = collections.Counter((len(row), row[0]) for row in rows)
        at, data = dt.datetime.fromtimestamp(path.stat().st_mtime, dt.timezone.utc), path.read_bytes()
    except (OSError, ValueError, IndexError, csv.Error, StopIteration):
        return None
    if header[:1] != ["date"] or shapes.keys() - {(len(header), str(day))} or not data.endswith(b"\r\n"):
        return None
    status = "complete" if today(at) > day else "provisional"
    return Entry(day, status, shapes.total(), len(data), hashlib.sha256(data).hexdigest(), 0, 0.0, stamp(at), "")


class Folder:
    """The days on disk: what the manifest says of them, and whether their files agree."""

    HEADER = csv_bytes([Entry._fields])

    def __init__(self, root: Path, today: Callable[[dt.datetime], dt.date]) -> None:
        self.days, self.manifest, self.ads = root / "days", root / "manifest.csv", root / "ads.csv"
        self.root, self.today = root, today  # the date at a moment in the account's zone
        self.entries: dict[dt.date, Entry] = {}
        self.damaged: dict[dt.date, str] = {}  # days whose file is not what the manifest says
        self.torn = 0  # lines of the manifest
        self.unsaved, self.flushed = False, -math.inf
        self.serial = itertools.count(1)

    def file(self, day: dt.date) -> Path:
        return self.days / f"{day}.csv"

    def temporary(self, day: dt.date) -> str:
        """A name for each call: one that was given up may still write to its own."""
        return str(self.days / f".{day}.{os.getpid()}-{next(self.serial)}.tmp")

    def read(self) -> None:
        """Read the manifest, hold it against the files, and take in whole days that it does not know."""
        with on_disk(self.manifest):
            data = self.manifest.read_bytes() if self.manifest.exists() else self.HEADER
        header, *lines = data.decode("utf-8", "replace").strip("\0").splitlines() or [""]
        if not self.HEADER.decode().startswith(header):
            raise FolderError(f"{self.manifest} is not a manifest of this program: move it away")
        parsed = [parse_entry(line) for line in lines]
        self.torn = parsed.count(None) + (not data.startswith(self.HEADER))
        self.entries = {entry.date: entry for entry in parsed if entry}
        self.damaged = {day: what for day in self.stored() if (what := trouble(self.file(day), self.entries[day]))}
        for path in self.days.glob("????-??-??.csv"):
            with contextlib.suppress(ValueError):  # 2023-02-30.csv is nobody's
                day = dt.date.fromisoformat(path.stem)
                if day not in self.entries and (found := adopt(path, day, self.today)):
                    self.entries[day] = found
        self.unsaved = data != self.text()

    def text(self) -> bytes:
        """The manifest as it should be."""
        return self.HEADER + manifest_lines(self.entries[day] for day in sorted(self.entries))

    def state(self, day: dt.date) -> str:
        """complete, provisional, failed, damaged or missing."""
        return "damaged" if day in self.damaged else self.entries[day].status if day in self.entries else "missing"

    def stored(self) -> list[dt.date]:
        """The days that are there, in order."""
        return [day for day in sorted(self.entries) if self.state(day) in STORED]

    def complete(self) -> set[dt.date]:
        return {day for day in self.entries if self.state(day) == "complete"}

    def publish(self, finished: Iterable[Finished]) -> None:
        """Swap in the days fetched and write down what happened: the one place where days change."""
        news: dict[dt.date, Entry] = {}
        for job, outcome in finished:
            day, status = job.day, "failed"
            if outcome.kind is Kind.DONE:
                with on_disk(self.file(day)):
                    os.replace(outcome.path, self.file(day))
                self.damaged.pop(day, None)
                status = "complete" if self.today(job.started_at) > day else "provisional"
            elif self.state(day) in STORED:
                continue  # a refresh that fails leaves the day as it was
            written = (outcome.rows, outcome.bytes, outcome.sha256, job.calls, outcome.seconds)
            news[day] = Entry(day, status, *written, stamp(job.started_at), outcome.error)
        if news:
            self.record(news)

    def record(self, news: dict[dt.date, Entry]) -> None:
        """Bring the manifest up to date: days new to it are added below, in no order until the next `save`."""
        flush = time.monotonic() - self.flushed > FLUSH
        added = self.entries.keys().isdisjoint(news)
        self.entries.update(news)
        self.unsaved = True
        if added:
            self.append(manifest_lines(news.values()), flush)
        else:
            swap_in(self.manifest, [self.text()], flush)
        if flush:
            self.flushed = time.monotonic()

    def append(self, lines: bytes, flush: bool) -> None:
        """Add lines to the manifest, all or none."""
        with on_disk(self.manifest), self.manifest.open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(lines) < len(lines):
                file.truncate(end)
                raise FolderError(f"{self.manifest}: No space left on device")
            if flush:
                os.fsync(file.fileno())

    def save(self) -> None:
        """Write the whole manifest, in order of days, if it has not been written so."""
        if self.unsaved or not self.manifest.exists():
            swap_in(self.manifest, [self.text()])
            self.unsaved = False

    def sweep(self) -> None:
        """Remove the temporary files of calls that were killed or given up."""
        for path in self.days.glob(".????-??-??.*.tmp"):
            with on_disk(path):
                path.unlink(missing_ok=True)


# -- the aggregate -------------------------------------------------------------------------------------------


def header_of(path: Path) -> bytes:
    """The header of a day file as it stands there; the name of a column may hold a line break."""
    with path.open("rb") as file:
        header = file.readline()
        while header.count(b'"') % 2:
            header += file.readline()
        return header


def aggregate(paths: Sequence[Path]) -> Iterator[bytes]:
    """The bytes of ads.csv: the union of columns, then every day, copied where its header is that union."""
    headers = [header_of(path) for path in paths]
    columns = {raw: next(csv.reader(io.StringIO(raw.decode(), newline=""))) for raw in dict.fromkeys(headers)}
    union = list(dict.fromkeys(itertools.chain(["date"], *columns.values())))
    yield (head := csv_bytes([union]))
    for path, raw in zip(paths, headers, strict=True):
        with path.open("rb", buffering=0) as file:
            file.seek(len(raw))
            yield from chunks(file) if raw == head else recolumned(path, columns[raw], union)


def has_bytes(path: Path, chunks: Iterable[bytes]) -> bool:
    """Whether a file holds just these bytes."""
    with path.open("rb") as file:
        return all(file.read(len(data)) == data for data in chunks) and not file.read(1)


def build_aggregate(folder: Folder) -> None:
    """Bring ads.csv up to date. It is compared first: a kill may have come before it was built."""
    paths = [folder.file(day) for day in folder.stored()]
    with on_disk(folder.ads):
        if not (folder.ads.exists() and has_bytes(folder.ads, aggregate(paths))):
            swap_in(folder.ads, aggregate(paths))


# -- progress and summary ------------------------------------------------------------------------------------


class Progress:
    """A live line on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, stream: TextIO, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.total, self.clock, self.live = stream, total, clock, stream.isatty()
        self.began = self.shown = clock()

    def show(self, tally: Tally, in_flight: int, braking: bool) -> None:
        """Write the line when it is time for one."""
        now, done = self.clock(), tally.fetched + len(tally.failed)
        if now - self.shown < (0.1 if self.live else 10.0):
            return
        self.shown, pace = now, done / max(now - self.began, 0.001)
        left = f"{(self.total - done) / pace:.0f} s left" if done else "time left unknown"
        self.write(
            f"{done}/{self.total} days, {tally.rows:,} rows, {pace:.1f} days/s, {in_flight} in flight, "
            f"{tally.retries} retries, {'braking, ' if braking else ''}{left}"
        )

    def write(self, line: str) -> None:
        """Write over the live line, or below the last line; '' takes the live line away."""
        if self.live:
            width = os.get_terminal_size(self.stream.fileno()).columns or 80
            self.stream.write(f"\r{line[: width - 1]}\x1b[K")
        elif line:
            self.stream.write(f"{line}\n")
        self.stream.flush()


def summarize(tally: Tally, folder: Folder, wanted: Sequence[dt.date], planned: int) -> dict[str, Any]:
    """The outcome of a run in plain values; times in seconds, percentiles by nearest rank."""
    calls = sorted(tally.call_seconds)
    code = next((code for code in Exit if code in tally.stops), Exit.FAILED if tally.failed else Exit.OK)
    ranks = {name: math.ceil(share * len(calls)) - 1 for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))}
    return {
        "exit_code": int(code),
        "start": str(wanted[0]),
        "end": str(wanted[-1]),
        "wanted": len(wanted),
        "fetched": tally.fetched,
        "skipped": len(wanted) - planned,
        "failed": {str(day): why for day, why in sorted(tally.failed.items())},
        "left": planned - tally.fetched - len(tally.failed),
        "rows": tally.rows,
        "wall_seconds": round(tally.wall, 3),
        "calls": len(calls),
        "call_seconds": round(sum(calls), 3),
        "speedup": round(sum(calls) / tally.wall, 2),
        **{name: round(calls[rank], 3) if calls else 0.0 for name, rank in ranks.items()},
        "retries": tally.retries,
        "rate_limits": tally.rate_limits,
        "braked_seconds": round(tally.braked, 3),
        "aggregate_seconds": round(tally.aggregate, 3),
        "stopped": {code.name.lower(): why for code, why in tally.stops.items()},
        "resume_at": stamp(tally.resume) if tally.resume else None,
        "files": [str(path) for path in (folder.ads, folder.days, folder.manifest)],
    }


def summary_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """A summary for people."""
    left = f", {told['left']} left" if told["left"] else ""
    yield "{start} to {end}: {fetched} days fetched, {skipped} skipped, {0} failed{1}".format(
        len(told["failed"]), left, **told
    )
    for day, why in told["failed"].items():
        yield f"  {day} failed: {why}"
    if told["calls"]:
        yield (
            "{rows:,} rows in {wall_seconds:.2f} s; {calls} calls took {call_seconds:.2f} s in all: "
            "{speedup:.1f} times as fast as one after another\n"
            "per call p50 {p50:.3f} s, p95 {p95:.3f} s, max {max:.3f} s; {retries} retries, "
            "{rate_limits} rate limits, braked {braked_seconds:.1f} s; ads.csv in {aggregate_seconds:.2f} s"
        ).format(**told)
    yield "files: " + ", ".join(told["files"])


ADVICE = {
    "interrupted": "interrupted ({why}): run the same command again to go on",
    "folder": "the folder cannot be used: {why}",
    "oauth": "the API refuses the credentials: renew them and run the same command again ({why})",
    "quota": "the quota is used up: run the same command again {when} ({why})",
}
MARKS = {"complete": "#", "provisional": "~", "failed": "x", "damaged": "!", "missing": "."}


def calendar_lines(folder: Folder, days: Sequence[dt.date]) -> Iterator[str]:
    """A line a month with a mark a day, then what is not complete, with what is known of it."""
    yield "         " + "".join(f"{n:<10}" for n in (1, 11, 21, 31)).rstrip()
    for month, group in itertools.groupby(days, key=lambda day: str(day)[:7]):
        marks = {day.day: MARKS[folder.state(day)] for day in group}
        yield f"{month}  " + "".join(marks.get(n, " ") for n in range(1, 32)).rstrip()
    yield "  ".join(f"{mark} {name}" for name, mark in MARKS.items())
    for name in ("missing", "provisional"):
        yield from (f"{name}: {span}" for span in spans(day for day in days if folder.state(day) == name))
    for day in days:
        if (name := folder.state(day)) in ("damaged", "failed"):
            yield f"{name}: {day}: {folder.damaged.get(day) or folder.entries[day].error}"


# -- a run ---------------------------------------------------------------------------------------------------


def tell(told: Mapping[str, Any], lines: Iterable[str], as_json: bool) -> None:
    """Print a result, as JSON or for people, though nobody may read it."""
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(told) if as_json else "\n".join(lines))


@contextlib.contextmanager
def signals(tally: Tally) -> Iterator[None]:
    """SIGINT or SIGTERM asks the run to stop; a second one leaves at once, by KeyboardInterrupt."""

    def handle(signum: int, frame: object) -> None:
        if Exit.INTERRUPTED in tally.stops:
            raise KeyboardInterrupt
        tally.stops[Exit.INTERRUPTED] = signal.Signals(signum).name

    with contextlib.ExitStack() as undo:
        for number in (signal.SIGINT, signal.SIGTERM):
            undo.callback(signal.signal, number, signal.signal(number, handle))
        yield


def fetch(folder: Folder, missing: list[dt.date], options: argparse.Namespace, tally: Tally) -> None:
    """Fetch the missing days into the folder. Raises FolderError, UsageError."""
    fetcher: Callable[[dt.date], Any] = functools.partial(loaded, options.fetcher)
    if not options.fetcher:
        print("SIMULATED DATA: no --fetcher was given. Keep real data in another folder.", file=sys.stderr)
        fetcher = functools.partial(simulated, options.simulate_errors or 0.0)
    submit_call, close = start_executor(options.executor, options.timeout)
    progress = Progress(sys.stderr or io.StringIO(), len(missing))

    def submit(day: dt.date) -> Future[Any]:
        try:
            return submit_call(fetcher, day, folder.temporary(day))
        except Exception as error:  # the executor is broken: a call that failed
            future: Future[Outcome] = Future()
            future.set_exception(error)
            return future

    def publish(finished: list[Finished]) -> None:
        folder.publish(finished)
        tally.count(finished)
        progress.show(tally, len(scheduler.flying), scheduler.braking())

    scheduler = Scheduler(submit, Limits(*(getattr(options, name) for name in Limits._fields)), tally)
    try:
        scheduler.run(missing, publish)
    finally:
        progress.write("")
        close()
        folder.sweep()


def warn(folder: Folder, wanted: list[dt.date]) -> None:
    """Say what is wrong with the folder and will not, or cannot, be put right by this run."""
    if folder.torn:
        print(f"manifest.csv was torn in {folder.torn} lines: rebuilt from the day files", file=sys.stderr)
    if number := len(folder.damaged.keys() - set(wanted)):
        print(f"{number} damaged days outside this range, left out of ads.csv; --check shows them", file=sys.stderr)


def report(told: Mapping[str, Any], options: argparse.Namespace) -> None:
    """The summary on stdout; what stopped the run, and what to do about it, on stderr."""
    idle = options.daily and told["skipped"] == told["wanted"] and not told["stopped"]
    nothing = "nothing to fetch: all {wanted} days from {start} to {end} are there"
    tell(told, [nothing.format(**told)] if idle else summary_lines(told), options.json)
    when = f"after {told['resume_at']}" if told["resume_at"] else "tomorrow, when a daily quota begins anew"
    for name, advice in ADVICE.items():
        if name in told["stopped"]:
            print(advice.format(why=told["stopped"][name], when=when), file=sys.stderr)


def run(folder: Folder, wanted: list[dt.date], options: argparse.Namespace) -> int:
    """Fetch what is missing, build ads.csv, tell what happened. Raises FolderError if it cannot begin."""
    tally, began = Tally(), time.monotonic()
    with signals(tally), locked(folder.root):
        folder.read()
        warn(folder, wanted)
        with on_disk(folder.days):
            folder.days.mkdir(exist_ok=True)
        folder.sweep()
        missing = missing_days(wanted, folder.complete(), options.refresh_days, options.force)
        try:
            folder.save()
            if missing:
                fetch(folder, missing, options, tally)
                folder.save()
            fetched = time.monotonic()
            build_aggregate(folder)
            tally.aggregate = time.monotonic() - fetched
        except FolderError as error:
            tally.stops.setdefault(Exit.FOLDER, str(error))
    tally.wall = time.monotonic() - began
    told = summarize(tally, folder, wanted, len(missing))
    report(told, options)
    return int(told["exit_code"])


def show_plan(wanted: list[dt.date], missing: list[dt.date], as_json: bool) -> int:
    """Tell what a run would do."""
    plan = {"wanted": len(wanted), "skipped": len(wanted) - len(missing), "calls": len(missing)}
    line = "{wanted} days wanted, {skipped} complete, {calls} calls to make".format(**plan)
    tell({"exit_code": 0, **plan, "days": [str(day) for day in missing]}, [line], as_json)
    return Exit.OK


def check(folder: Folder, days: list[dt.date], as_json: bool) -> int:
    """Show the calendar of a folder; 1 if there are gaps in it, or if there is nothing at all."""
    if not days and folder.entries:
        days = days_between(min(folder.entries), max(folder.entries))
    states = {str(day): folder.state(day) for day in days}
    code = int(not days or not set(states.values()) <= set(STORED))
    lines = calendar_lines(folder, days) if days else [f"no days in {folder.root}"]
    tell({"exit_code": code, "days": states}, lines, as_json)
    return code


# -- command line --------------------------------------------------------------------------------------------

USAGE = "fetch_ads.py [options] (START END | --backfill | --daily | --check [START END]) FOLDER"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(Exit.USAGE, f"fetch_ads.py: {one_line(message)}\n")


def number(kind: Callable[[str], float], least: float, most: float = sys.float_info.max) -> Callable[[str], float]:
    """A parser of numbers within bounds."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if least <= (value := kind(text)) <= most:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g} to {most:g}")

    return parse


def arguments() -> Parser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser("fetch_ads.py", usage=USAGE, description=__doc__, formatter_class=raw, allow_abbrev=False)
    add, mode = parser.add_argument, parser.add_mutually_exclusive_group()
    add("places", nargs="*", metavar="START END FOLDER", help="days as YYYY-MM-DD, YYYYMMDD or YYYY/MM/DD")
    mode.add_argument("--backfill", action="store_true", help="the two years up to yesterday")
    mode.add_argument("--daily", action="store_true", help="the same; one line when nothing is missing")
    mode.add_argument("--check", action="store_true", help="show what is there; exit 1 if there are gaps")
    add("--fetcher", metavar="NAME", help="module:function or path/to/file.py:function (a simulation)")
    add("--workers", type=number(int, 1), help="days in flight at most (%(default)s)")
    add("--retries", type=number(int, 0), help="further tries of one day (%(default)s)")
    add("--timeout", type=number(float, 0.001), help="seconds for one call (%(default)g)")
    add("--max-wait", type=number(float, 0), help="longest retry-after to wait for (%(default)g)")
    add("--refresh-days", type=number(int, 0), default=0, help="fetch the last N days again (%(default)s)")
    add("--timezone", metavar="ZONE", help="the account's: it says what today is (the machine's)")
    add("--force", action="store_true", help="fetch the whole range again")
    add("--dry-run", action="store_true", help="show the plan and the number of calls, and nothing else")
    add("--json", action="store_true", help="the summary as one JSON object on stdout")
    add("--executor", default="threads", metavar="NAME", help="or processes or module:factory (threads)")
    add("--simulate-errors", type=number(float, 0, 1), metavar="SHARE", help="of simulated calls to fail (0)")
    parser.set_defaults(**Limits()._asdict())
    return parser


def zone_named(name: str | None) -> dt.tzinfo | None:
    """A time zone; None is the machine's. Raises UsageError."""
    if name is None or name == "UTC":  # known without a database of zones
        return dt.timezone.utc if name else None
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UsageError(f"--timezone {name}: no such zone is known here (`pip install tzdata` knows all)") from None


def wanted_days(options: argparse.Namespace, today: dt.date) -> tuple[list[dt.date], Path]:
    """The days a command speaks of (none: --check of all there are) and the folder. Raises UsageError."""
    *dates, folder = options.places or [""]
    counts = {0} if options.backfill or options.daily else {0, 2} if options.check else {2}
    if not folder or len(dates) not in counts:
        raise UsageError(f"usage: {USAGE}")
    if options.simulate_errors is not None and options.fetcher:
        raise UsageError("--simulate-errors is for the simulation, not for --fetcher")
    if dates:
        return days_between(*parse_range(dates[0], dates[1], today)), Path(folder)
    return [] if options.check else days_between(*two_years(today)), Path(folder)


def command(options: argparse.Namespace) -> int:
    """Do what the command line asks for. Raises UsageError, FolderError."""
    zone = zone_named(options.timezone)
    wanted, root = wanted_days(options, utc_now().astimezone(zone).date())
    folder = Folder(root, lambda moment: moment.astimezone(zone).date())
    if options.check or options.dry_run:
        folder.read()
    if options.check:
        return check(folder, wanted, options.json)
    if options.dry_run:
        missing = missing_days(wanted, folder.complete(), options.refresh_days, options.force)
        return show_plan(wanted, missing, options.json)
    for spec in {options.fetcher, options.executor} - {None, "threads", "processes"}:
        load(spec)  # before anything is created
    return run(folder, wanted, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    options = arguments().parse_intermixed_args(argv)
    try:
        return command(options)
    except (UsageError, FolderError) as error:
        print(f"fetch_ads.py: {error}", file=sys.stderr)
        return Exit.FOLDER if isinstance(error, FolderError) else Exit.USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return Exit.INTERRUPTED


def leave(code: int) -> NoReturn:
    """End the program, though a thread that some library started may not want it to end."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:  # nobody reads it
        os._exit(code)
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
