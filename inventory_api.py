"""Product inventory over HTTP: a Falcon app on waitress, hand-written SQL, SQLite or PostgreSQL.

    GET   /products/{id}       one product
    GET   /products            a page of all products: limit, cursor, sort, include_total
    GET   /products/search     a page of those that match: name, min_price, max_price, and the page parameters
    PATCH /products/{id}       a new price, a new stock_level or a stock_delta; If-Match is honoured
    GET   /                    links to every route, and to a browser the page explorer.html
    GET   /openapi.json        all of this in full
    GET   /healthz             the process is up;  /readyz: the database answers;  /metrics: Prometheus' text

The way of one request: waitress' thread, request id, route, token bucket, API key, strict input, cache, and only then
this thread's database connection. A write commits, then invalidates, then answers.

    python inventory_api.py                        http://127.0.0.1:8000 on ./inventory.db, with 1,000 sample products
    python inventory_api.py --load products.csv    bulk load, then exit
    DATABASE_URL=postgresql://user@host/db python inventory_api.py
    python inventory_api.py --check-health         exits 0 if a server is up at HOST and PORT, else 1

Read it from top to bottom: settings, errors, database, cache, limiter, input, pages, the inventory, schema and bulk
load, and then what HTTP adds: problems, middleware, resources, the app, the server.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import csv
import functools
import hashlib
import hmac
import ipaddress
import itertools
import json
import logging
import math
import os
import random
import re
import resource
import select
import signal
import socket
import sqlite3
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn, TypeVar
from urllib.parse import quote, unquote_to_bytes, urlencode

import falcon
import psycopg
import waitress.channel
import waitress.proxy_headers
import waitress.server
import waitress.task
import waitress.utilities
from psycopg.types.string import TextLoader

VERSION = "1.0.0"
SCHEMA_FILE = Path(__file__).with_name("db.sql")
PAGE_FILE = Path(__file__).with_name("explorer.html")
OPENAPI_FILE = Path(__file__).with_name("openapi.json")

MAX_ID = 2**63 - 1
MAX_NAME, MAX_NEEDLE = 200, 100  # characters of a name, and of what is searched in it
MAX_CENTS = 999_999_999
MAX_STOCK = 2**31 - 1
DEFAULT_LIMIT, MAX_LIMIT = 50, 200  # products a page
MAX_TOTAL = 10_000  # products; a total beyond it is not counted out
MAX_BODY = 16 * 1024  # bytes
MAX_WAITRESS_BODY = 1024 * 1024  # bytes; beyond it waitress refuses before the app is asked
MAX_UNREAD = 16 * 1024 * 1024  # bytes that are read and thrown away behind a refusal
MAX_CONNECTIONS = 10_000
MAX_CLIENTS = 10_000  # token buckets remembered

QUERY_DEADLINE = 4.0  # seconds, for all statements of one request
LOCK_TIMEOUT = 4.0  # seconds, for SQLite's one write lock
CONNECT_TIMEOUT = 2  # seconds
IDLE_GRACE = 3.0  # seconds that an idle connection may still bring a request while the server drains
REQUEST_TIMEOUT = 30.0  # seconds for a request to arrive, and for a client to take anything of its answer
QUEUE_TIMEOUT = 3.0  # seconds for it to wait for a thread
HEALTH_TIMEOUT = 4.0  # seconds for the answer to --check-health
RESTART_PAUSE = 0.5  # seconds before a process takes the place of one that died
RETRY_AFTER = 1  # seconds a client is told to wait while the database is away
PATIENCE = 0.5  # seconds that a request waits for others to be done with the database while none is
LOG_PAUSE = 0.05  # seconds between two writes of the access log
LISTENER_PAUSE = 0.2  # seconds, at first, between two attempts to connect
MAX_HEARD = 1000  # notifications that wait to be looked at
UPDATE_ATTEMPTS = 100  # of one PATCH, while others keep changing its row

COST_PRODUCT, COST_PAGE, COST_SEARCH, COST_PATCH = 1, 2, 5, 5  # tokens
CACHE_BYTES = 64 * 1024 * 1024
ENTRY_OVERHEAD = 1000  # bytes taken by the objects around a cached body, roughly

LOGGABLE = re.compile("[A-Za-z0-9/:._~-]+")
SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger("inventory")
T = TypeVar("T")
Timer = Callable[[], float]  # seconds from some moment on

# ---------------------------------------------------------------- settings


class BadSetting(Exception):
    """A flag or variable that is not allowed; the message is one line."""


@dataclass(frozen=True)
class Settings:
    """What the operator chooses. A field is its variable in lower case."""

    database_url: str = "sqlite:///inventory.db"
    host: str = "127.0.0.1"
    port: int = 8000
    threads: int = 8
    processes: int = 1
    cache_size: int = 10_000
    cache_ttl: float = 30.0  # seconds
    cache_sync: str = "notify"
    rate_limit: float = 100.0  # tokens a second; 0: no limit
    rate_burst: int = 200
    api_key: str | None = None
    trusted_proxy: str | None = None
    drain_timeout: float = 10.0  # seconds
    log_level: str = "INFO"
    load: str | None = None
    check_health: bool = False
    database_named: bool = False  # by flag or variable, even by the default's own URL

    @property
    def writes_are_open(self) -> bool:
        """Whether a write needs no key: only to this very machine, and behind a proxy that says nothing."""
        try:
            local = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            local = self.host == "localhost"
        return local and self.trusted_proxy is None


class Rule(NamedTuple):
    """How the text of a variable is read (ValueError where it cannot be), and what is said to be allowed."""

    parse: Callable[[str], Any]
    allowed: str


def within(kind: type[int] | type[float], low: int, high: int) -> Rule:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,10}(\.[0-9]{1,6})?", text) or not low <= kind(text) <= high:
            raise ValueError
        return kind(text)

    return Rule(parse, f"{'an integer' if kind is int else 'a number'} from {low} to {high}")


def matching(pattern: str, allowed: str) -> Rule:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return Rule(parse, allowed)


def database_url(text: str) -> str:
    """The text, if it is the URL of one of the two engines. Raises ValueError or psycopg.ProgrammingError."""
    if not re.fullmatch(r"sqlite:///(?!:memory:)[^?\0]*[^?\0/]|postgresql://\S*", text):
        raise ValueError
    if text.startswith("postgresql:"):
        psycopg.conninfo.conninfo_to_dict(text)
    return text


RULES = {
    "DATABASE_URL": Rule(database_url, "sqlite:///file.db, sqlite:////abs/file.db or postgresql://user@host/db"),
    "HOST": matching(r"[A-Za-z0-9.:_-]{1,255}", "a host name or an IP address"),
    "PORT": within(int, 0, 65535),
    "THREADS": within(int, 2, 1000),
    "PROCESSES": within(int, 1, 100),
    "CACHE_SIZE": within(int, 0, 10_000_000),
    "CACHE_TTL": within(float, 0, 86_400),
    "CACHE_SYNC": matching("notify|ttl", "notify or ttl"),
    "RATE_LIMIT": within(float, 0, 1_000_000),
    "RATE_BURST": within(int, COST_PATCH, 10_000_000),
    "API_KEY": matching(r"[!-~]+", "one or more visible ASCII characters"),
    "TRUSTED_PROXY": Rule(lambda text: text if text == "*" else str(ipaddress.ip_address(text)), "an IP address, or *"),
    "DRAIN_TIMEOUT": within(float, 0, 3600),
    "LOG_LEVEL": matching(r"DEBUG|INFO|WARNING|ERROR|CRITICAL", "DEBUG, INFO, WARNING, ERROR or CRITICAL"),
}
FLAGS = ("DATABASE_URL", "HOST", "PORT", "THREADS", "PROCESSES")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, where argparse would print its usage as well."""
        raise BadSetting(message)


def read_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """The settings: a flag wins over its variable, a variable over the default. Raises BadSetting."""
    parser = Parser(prog="inventory_api.py", description="A product inventory over HTTP.", allow_abbrev=False)
    for variable in FLAGS:
        flag = "--" + variable.lower().replace("_", "-")
        parser.add_argument(flag, dest=variable, metavar="", help=f"{RULES[variable].allowed} (or {variable})")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--load", metavar="FILE", help="load a CSV with the header id,name,price,stock_level, and exit"
    )
    instead.add_argument("--check-health", action="store_true", help="ask the server at HOST and PORT whether it is up")
    flags = {name: text for name, text in vars(parser.parse_args(argv)).items() if text is not None}
    load, check_health = flags.pop("load", None), flags.pop("check_health")
    given = {name: environ[name] for name in RULES if name in environ} | flags
    chosen = {}
    for variable, text in given.items():
        try:
            chosen[variable.lower()] = RULES[variable].parse(text)
        except (ValueError, psycopg.ProgrammingError):
            raise BadSetting(f"{variable}: {without_password(text)!r} is not {RULES[variable].allowed}") from None
    return Settings(**chosen, load=load, check_health=check_health, database_named="DATABASE_URL" in given)


def without_password(url: str) -> str:
    return re.sub(
        r"(://[^:/@]*:).*@|(password=)[^&\s]*", lambda found: f"{found[1]}***@" if found[1] else "password=***", url
    )


def one_line(error: object) -> str:
    return " ".join(str(error).split())


# ---------------------------------------------------------------- domain errors


class InventoryError(Exception):
    """Told to the caller: what is wrong, in words, and the `fact` a program wants with it, if there is one."""

    def __init__(self, detail: str, fact: Any = None) -> None:
        super().__init__(detail)
        self.fact = fact


class BadInput(InventoryError):
    """A path, query or body that cannot be read."""


class UnsupportedBody(InventoryError):
    """A body of another media type, charset or coding than plain UTF-8 JSON."""


class BodyTooLarge(InventoryError):
    """A body over MAX_BODY."""


class InvalidFields(InventoryError):
    """Members of a body that are wrong; the fact lists them all as {"field", "message"}."""


class NoSuchProduct(InventoryError):
    """No product has this id."""


class VersionMismatch(InventoryError):
    """The product is at another version than the caller asked for; the fact is the one it is at."""


class StockOutOfRange(InventoryError):
    """A delta would take the stock out of its range; the fact is the stock as it is."""


class Unauthenticated(InventoryError):
    """A write without the API key."""


class WritesDisabled(InventoryError):
    """A write where no key could tell a friend from a stranger."""


class RateLimited(InventoryError):
    """Too few tokens; the fact is in how many seconds there will be enough."""


class Overloaded(InventoryError):
    """Too many wait already, or the server is about to end."""


class DatabaseUnavailable(InventoryError):
    """The database is away, locked, full, read-only or too slow."""


class BadSchema(Exception):
    """There is a table `products`, but not ours."""


class BadLine(Exception):
    """A line of a CSV file cannot be loaded; the message has its number, the column and the reason."""


# ---------------------------------------------------------------- database

Row = tuple[Any, ...]
Execute = Callable[..., list[Row]]


class Database:
    """A connection per thread to one database; its two subclasses are all that knows there are two engines.

    SQL is written once, with `:name` parameters. `read` and `write` hand their work a function
    `execute(sql, **parameters) -> rows`, grant it `deadline` seconds in all, and raise DatabaseUnavailable in place of
    the driver's errors. Work whose connection turns out to be lost runs once more, unless COMMIT was already sent.
    """

    listening: bool | None = None  # whether changes are heard of, where the engine tells of them
    dialect: str  # the name of its part in db.sql
    begin: str
    driver_errors: tuple[type[Exception], ...]
    lock_schema: str  # one process at a time may make it
    list_schema: str  # names of tables, indexes and triggers, and `products.name` and so on for its columns
    skip_used_ids: str  # so that no new product is given an id that a file brought
    after_load: str  # outside any transaction
    tie: str  # the id, as the indexes know it
    has_name: str
    by_trigrams: str
    count_trigrams: str
    trigrams_by_id: str  # a table of their ids, in this order without a sort; empty where there is none
    ways: tuple[str, ...]  # to few rows, the one that is cheaper to find out about first

    def __init__(self, deadline: float = QUERY_DEADLINE, timer: Timer = time.monotonic) -> None:
        self.deadline = deadline
        self._timer = timer
        self._local = threading.local()
        self._connections: list[Any] = []
        self.counts = Counter(errors=0, reconnects=0)

    def read(self, work: Callable[[Execute], T]) -> T:
        """What `work` makes of its statements, each of which sees all that was committed when it began."""
        return self._run(lambda connection: work(self._executor(connection)))

    def write(self, work: Callable[[Execute], T]) -> T:
        """What `work` makes of its statements, which are one durable transaction; an exception rolls it back."""

        def transaction(connection: Any) -> T:
            connection.execute(self.begin)
            try:
                result = work(self._executor(connection))
            except BaseException as error:
                if not isinstance(error, self.driver_errors):  # after those the connection is closed anyway
                    with contextlib.suppress(*self.driver_errors):  # a trigger may have rolled back already
                        connection.execute("ROLLBACK")
                raise
            try:
                connection.execute("COMMIT")
            except self.driver_errors as error:
                self._discard()
                raise DatabaseUnavailable(
                    "the change was not confirmed; look at the product before repeating it"
                ) from error
            return result

        return self._run(transaction)

    def close(self) -> None:
        """Close the connections of every thread."""
        while self._connections:
            self._connections.pop().close()
        self._local = threading.local()

    def _run(self, work: Callable[[Any], T], may_retry: bool = True) -> T:
        self._local.expires = self._timer() + self.deadline
        try:
            return work(self._connection())
        except self.driver_errors as error:
            self.counts["errors"] += 1
            lost = self._discard()
            if not (lost and may_retry):
                raise self._unavailable(error) from error
        self.counts["reconnects"] += 1
        return self._run(work, may_retry=False)

    def _connection(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            self._connections.append(connection)
        return connection

    def _discard(self) -> bool:
        """Close this thread's connection, whose next statement opens another; whether it was lost already."""
        connection = self._local.__dict__.pop("connection", None)
        self._local.version = None
        if connection is None:
            return False
        lost = bool(getattr(connection, "closed", False))
        self._connections.remove(connection)
        connection.close()
        return lost

    def _time_left(self) -> float:
        return float(self._local.expires - self._timer())

    def _unavailable(self, error: Exception) -> DatabaseUnavailable:
        if isinstance(error, psycopg.errors.QueryCanceled) or self._time_left() <= 0:
            return DatabaseUnavailable(f"the database took longer than {self.deadline:g} s")
        return DatabaseUnavailable("the database cannot serve this now; try again in a moment")

    def _connect(self) -> Any:
        raise NotImplementedError

    def _executor(self, connection: Any) -> Execute:
        raise NotImplementedError

    def stage(self, rows: Iterable[Row]) -> None:
        """Append a stream of rows to the temporary table `staged`."""
        raise NotImplementedError

    def listen(self) -> None:
        """Begin to hear of changes, in a thread of its own, where the engine is not to be asked but tells."""

    def has_news(self) -> bool:
        """Whether others may have changed products since this thread last asked."""
        raise NotImplementedError

    def news(self) -> Iterable[int] | None:
        """The ids of products that were changed, by whomever, since any thread last asked; None: any may have been."""
        raise NotImplementedError


CHANGES_SINCE = """
SELECT n, mark, product_id
FROM product_changes
WHERE n >= ?
ORDER BY n
"""


def file_identity(path: str) -> tuple[int, int] | None:
    """Device and inode of a file; None where there is none."""
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None


class Turn(NamedTuple):
    """A write that waits for others, or that others wait for; once woken without a result, it is the first."""

    work: Callable[[Execute], Any]
    result: Future[Any]
    woken: threading.Event


def in_turn(turns: Iterable[Turn]) -> Callable[[Execute], list[Any]]:
    """The work of all, which gives their results, or the errors by which they refused to change anything."""

    def attempt(turn: Turn, execute: Execute) -> Any:
        before = execute("SELECT total_changes()")
        try:
            return turn.work(execute)
        except InventoryError as error:
            if execute("SELECT total_changes()") != before:  # to undo it is to undo what others did as well
                raise
            return error

    return lambda execute: [attempt(turn, execute) for turn in turns]


class SQLiteDatabase(Database):
    dialect = "sqlite"
    begin = "BEGIN IMMEDIATE"  # a write lock taken later, in mid-transaction, could not be waited for
    driver_errors = (sqlite3.OperationalError,)
    lock_schema = "SELECT 1"  # BEGIN IMMEDIATE has done it
    list_schema = (
        "SELECT lower(name) FROM sqlite_master UNION ALL SELECT 'products.' || name FROM pragma_table_xinfo('products')"
    )
    skip_used_ids = "SELECT 1"  # SQLite looks at the table itself
    after_load = "SELECT 1"
    tie = "seq"
    has_name = "name_folded GLOB :glob"  # quicker than instr(), and than LIKE with ESCAPE
    trigrams_by_id = "SELECT rowid AS id FROM products_trigrams WHERE products_trigrams MATCH :phrase"
    by_trigrams = f"id IN ({trigrams_by_id})"
    count_trigrams = f"SELECT count(*) FROM ({trigrams_by_id} LIMIT :n)"
    ways = ("range", "trigrams")

    def __init__(self, path: str, deadline: float) -> None:
        super().__init__(deadline)
        self._path, self._was_open = path, False
        self._last_change: Row | None = None
        self._turns: list[Turn] = []  # the first of them leads
        self._turns_lock = threading.Lock()

    def _connect(self) -> sqlite3.Connection:
        mode = "rw" if self._was_open else "rwc"  # a file that goes away later is away, and not to be made anew
        url = f"file://{quote(os.fsencode(os.path.abspath(self._path)))}?mode={mode}"
        connection = sqlite3.connect(url, LOCK_TIMEOUT, isolation_level=None, check_same_thread=False, uri=True)
        connection.set_progress_handler(lambda: self._time_left() < 0, 20_000)  # steps of SQLite's virtual machine
        try:
            if connection.execute("SELECT name FROM sqlite_master WHERE name = 'product_changes'").fetchall():
                with contextlib.suppress(sqlite3.OperationalError):  # another connection, when nobody holds a lock
                    connection.execute("PRAGMA journal_mode = WAL")  # the file keeps it, so it must be ours
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA cache_size = -16384")  # KiB
        except sqlite3.Error:
            connection.close()
            raise
        self._was_open, self._local.file = True, file_identity(self._path)
        return connection

    def _run(self, work: Callable[[Any], T], may_retry: bool = True) -> T:
        if getattr(self._local, "file", None) != file_identity(self._path):
            self._discard()  # the file is gone or another: what is written to the one that is open nobody will read
        return super()._run(work, may_retry)

    def write(self, work: Callable[[Execute], T]) -> T:
        """As above. What is asked for while another write is flushed is written together, and flushed once.

        SQLite would have all who wait sleep and try again, and the luckless for seconds. This is a group commit: who
        finds nobody before it leads, and when it is done, so does the first of those who came meanwhile.
        """
        turn = Turn(work, Future(), threading.Event())
        with self._turns_lock:
            self._turns.append(turn)
            leads = len(self._turns) == 1
        if not leads:
            turn.woken.wait()
        if not turn.result.done():
            self._write_turns(self._turns[:])
        return turn.result.result()  # type: ignore[no-any-return]

    def _write_turns(self, turns: list[Turn]) -> None:
        for turn, outcome in zip(turns, self._outcomes(turns), strict=True):
            failed = isinstance(outcome, BaseException)
            turn.result.set_exception(outcome) if failed else turn.result.set_result(outcome)
        with self._turns_lock:
            del self._turns[: len(turns)]
            leader = self._turns[:1]
        for turn in turns + leader:
            turn.woken.set()

    def _outcomes(self, turns: list[Turn]) -> list[Any]:
        try:
            return super().write(in_turn(turns)) if len(turns) > 1 else [super().write(turns[0].work)]
        except BaseException as error:
            if len(turns) == 1 or isinstance(error, DatabaseUnavailable):
                return [error] * len(turns)
        return [outcome for turn in turns for outcome in self._outcomes([turn])]  # one error undid them all: each alone

    def _executor(self, connection: sqlite3.Connection) -> Execute:
        return lambda sql, **parameters: connection.execute(sql, parameters).fetchall()

    def stage(self, rows: Iterable[Row]) -> None:
        self._connection().executemany("INSERT INTO staged VALUES (?, ?, ?, ?, ?, ?)", rows)

    def has_news(self) -> bool:
        """Whether another connection committed: another program's, another process', another thread's."""
        self._local.expires = self._timer() + self.deadline  # that of this thread's last statement may be long past
        for _ in range(2):  # it may be the connection that is at fault
            try:
                version = self._connection().execute("PRAGMA data_version").fetchall()
            except sqlite3.Error:
                self._discard()
            else:
                known, self._local.version = getattr(self._local, "version", None), version
                return bool(version != known)
        return False  # the database is away: what is cached is served until its time is over

    def news(self) -> Iterable[int] | None:
        try:
            rows = self._connection().execute(CHANGES_SINCE, (self._last_change or (0,))[:1]).fetchall()
        except sqlite3.Error:
            self._discard()
            return None
        known = rows and rows[0] == self._last_change  # else many followed, or the file is not what it was
        self._last_change = rows[-1] if rows else None
        return [product_id for _, _, product_id in rows[1:]] if known else None


class BoundedConnection(psycopg.Connection[Row]):
    """A connection on which no wait outlasts the deadline, not even for a server that is frozen."""

    time_left: Callable[[], float]

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        left = self.time_left()
        return super().wait(gen, interval, None if left == math.inf else left)


LISTED_IDS = re.compile(r"[0-9]{1,19}(?:,[0-9]{1,19})*")

LISTENER_OPTIONS: dict[str, Any] = {
    "autocommit": True,
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives_idle": 5,  # seconds
    "keepalives_interval": 2,
    "keepalives_count": 3,
}


class PostgresDatabase(Database):
    dialect = "postgresql"
    begin = "BEGIN"
    driver_errors = (
        psycopg.OperationalError,
        psycopg.InternalError,
        psycopg.InterfaceError,
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.UndefinedTable,
    )
    options: ClassVar = {
        "synchronous_commit": "on",
        "timezone": "UTC",
        "datestyle": "ISO",
        "client_encoding": "UTF8",
        "jit": "off",  # all queries are short, and the planner is to know it
        "max_parallel_workers_per_gather": "0",
        "random_page_cost": "1.1",
    }
    lock_schema = "SELECT pg_advisory_xact_lock(hashtext('inventory schema'))"
    list_schema = """
        SELECT relname FROM pg_class WHERE pg_table_is_visible(oid)
        UNION ALL
        SELECT tgname FROM pg_trigger WHERE tgrelid = to_regclass('products')
        UNION ALL
        SELECT 'products.' || attname FROM pg_attribute WHERE attrelid = to_regclass('products') AND NOT attisdropped
    """
    skip_used_ids = """
        SELECT setval(ids, max(id))
        FROM products, pg_get_serial_sequence('products', 'id') AS ids
        GROUP BY ids
        HAVING max(id) > COALESCE(pg_sequence_last_value(ids), 0)
    """
    after_load = "VACUUM (ANALYZE) products"  # its marks of what all can see are what lets an index answer alone
    tie = "id"
    has_name = "name_folded LIKE :pattern"
    by_trigrams = "replace(name_folded, ' ', U&'\\A000') LIKE :spaced"
    trigrams_by_id = ""
    count_trigrams = ""  # a GIN index cannot stop half-way: to count is to read
    ways = ("trigrams", "range")
    varying = re.compile(":(low|pattern|spaced)\\b")  # a plan for any name cannot know a common one from a rare one

    def __init__(self, url: str, deadline: float) -> None:
        super().__init__(deadline)
        self._url = url
        self._heard: list[str] = []  # payloads of notifications
        self._hearing = threading.Lock()
        self._closed = threading.Event()
        self.listening = False

    def _connect(self) -> BoundedConnection:
        connection = BoundedConnection.connect(self._url, autocommit=True, connect_timeout=CONNECT_TIMEOUT)
        connection.time_left = self._time_left
        connection.adapters.register_loader("timestamptz", TextLoader)
        bulk = self.deadline == math.inf
        for name, value in {
            **self.options,
            "statement_timeout": "0" if bulk else f"{self.deadline * 1000:.0f}",
            "gin_pending_list_limit": "16MB" if bulk else "256kB",  # larger: quicker to write, slower to search
        }.items():
            connection.execute(f"SET {name} = '{value}'")
        return connection

    def _executor(self, connection: psycopg.Connection[Row]) -> Execute:
        def execute(sql: str, **parameters: Any) -> list[Row]:
            prepare = False if self.varying.search(sql) else None
            cursor = connection.execute(to_psycopg(sql) if parameters else sql, parameters or None, prepare=prepare)
            return cursor.fetchall() if cursor.description else []

        return execute

    def stage(self, rows: Iterable[Row]) -> None:
        with self._connection().cursor().copy("COPY staged FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def has_news(self) -> bool:
        return bool(self._heard)

    def news(self) -> Iterable[int] | None:
        with self._hearing:
            heard, self._heard = self._heard, []
        return None if "" in heard else {int(number) for payload in heard for number in payload.split(",")}

    def listen(self) -> None:
        self._closed.clear()
        threading.Thread(target=self._listen, name="listener", daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        super().close()

    def _listen(self) -> None:
        pause = LISTENER_PAUSE
        while not self._closed.is_set():
            try:
                with psycopg.Connection.connect(self._url, **LISTENER_OPTIONS) as connection:
                    connection.execute("LISTEN inventory_products")
                    self._hear("")  # whatever was changed while nobody listened
                    self.listening, pause = True, LISTENER_PAUSE
                    while not self._closed.is_set():
                        for notice in connection.notifies(timeout=LISTENER_PAUSE):
                            self._hear(notice.payload)
            except (psycopg.Error, UnicodeError) as error:  # a payload may be in any encoding
                self.counts["errors"] += 1
                log.warning("listener: %s", one_line(error))
            self.listening = False
            self._closed.wait(random.uniform(0, pause))
            pause = min(2 * pause, 5.0)
            self.counts["reconnects"] += 1

    def _hear(self, payload: str) -> None:
        """Take a note of ids; of all there are, if they are too many, or if the payload is none of ours."""
        with self._hearing:
            if LISTED_IDS.fullmatch(payload) and len(self._heard) < MAX_HEARD:
                self._heard.append(payload)
            else:
                self._heard = [""]


@functools.cache
def to_psycopg(sql: str) -> str:
    """`:name` as psycopg writes it."""
    return re.sub(r":([a-z_]+)", r"%(\1)s", sql.replace("%", "%%"))


def open_database(url: str, deadline: float = QUERY_DEADLINE) -> Database:
    """The database behind a URL; it is not connected to yet. `deadline`: seconds, math.inf for none."""
    if url.startswith("sqlite:///"):
        return SQLiteDatabase(url.removeprefix("sqlite:///"), deadline)
    return PostgresDatabase(url, deadline)


# ---------------------------------------------------------------- cache


class Representation(NamedTuple):
    """A body as it is sent, encoded once, with its validator (RFC 9110) and its Link header, if it has one."""

    body: bytes
    etag: str
    link: str = ""


Loader = Callable[[], Representation | None]  # None: there is no such thing, which is worth remembering too


class Answer(NamedTuple):
    """What a cached read gives, and whether the cache had it."""

    representation: Representation | None
    cached: bool


class Entry(NamedTuple):
    representation: Representation | None
    expires: float
    generation: int | None  # of a volatile entry, which ends with it
    size: int  # bytes


class Flight(NamedTuple):
    """A load under way, for all who ask meanwhile, and its lease: the generation in which it began."""

    result: Future[Representation | None]
    generation: int

    def fly(self, loader: Loader) -> None:
        try:
            self.result.set_result(loader())
        except BaseException as error:
            self.result.set_exception(error)


class TTLCache:
    """Least-recently-used representations with a time to live, bounded by entries and by bytes.

    Every invalidation begins a generation. Only in the generation a load began in is its result kept and do others join
    it (the leases of Nishtala et al., NSDI 2013, one for all keys). `news`: the keys that others changed; None: any.
    """

    def __init__(
        self, size: int, ttl: float, timer: Timer = time.monotonic,
        has_news: Callable[[], bool] = bool, news: Callable[[], Iterable[Hashable] | None] = tuple,
    ) -> None:  # fmt: skip
        self._size, self._ttl, self._timer = (size if ttl else 0), ttl, timer
        self._has_news, self._news = has_news, news
        self._lock = threading.Lock()  # never held while something is loaded
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._flights: dict[Hashable, Flight] = {}
        self._generation, self._bytes = 0, 0
        self.counts = Counter(hits=0, misses=0, evictions=0, invalidations=0, refused_fills=0)

    def get(self, key: Hashable) -> Answer | None:
        """What `key` has alive."""
        if self._has_news():
            self.invalidate()
        with self._lock:
            entry = self._entries.get(key)
            if entry and entry.expires > self._timer() and entry.generation in (None, self._generation):
                self._entries.move_to_end(key, last=entry.representation is not None)
                self.counts["hits"] += 1
                return Answer(entry.representation, cached=True)
            self._drop(key)
        return None

    def load(self, key: Hashable, loader: Loader, volatile: bool = False, join: bool = True) -> Answer:
        """What one call of `loader` gives all who miss `key` meanwhile. Volatile: it ends with any invalidation."""
        with self._lock:
            self.counts["misses"] += 1
            under_way = self._flights.get(key) if join and self._size else None
            joins = under_way is not None and under_way.generation == self._generation
            flight = under_way if under_way and joins else Flight(Future(), self._generation)
            self._flights[key] = flight
        if not joins:
            flight.fly(loader)
            self._land(key, flight, volatile)
        return Answer(flight.result.result(), cached=False)

    def invalidate(self, *keys: Hashable) -> None:
        """Forget `keys`, what others changed and all that is volatile, and refuse what is being loaded now."""
        with self._lock:
            news = self._news()
            changed = {*keys, *(self._entries if news is None else news)}
            for key in changed:
                self._drop(key)
            if changed or news is None:
                self._generation += 1
                self.counts["invalidations"] += 1

    def _land(self, key: Hashable, flight: Flight, volatile: bool) -> None:
        with self._lock:
            if self._flights.get(key) is flight:  # else a fresh read overtook this one, and has a newer row
                del self._flights[key]
                self.counts["refused_fills"] += flight.generation != self._generation
                if not flight.result.exception():
                    self._drop(key)  # what a fresh read found there is older, even if its own row may not be kept
                    if flight.generation == self._generation:
                        self._keep(key, flight.result.result(), flight.generation if volatile else None)

    def _keep(self, key: Hashable, representation: Representation | None, generation: int | None) -> None:
        size = ENTRY_OVERHEAD + len(str(key)) + sum(map(len, representation or ()))
        while self._entries and (len(self._entries) >= self._size or self._bytes + size > CACHE_BYTES):
            self._drop(next(iter(self._entries)))
            self.counts["evictions"] += 1
        if self._size and size <= CACHE_BYTES:
            self._entries[key] = Entry(representation, self._timer() + self._ttl, generation, size)
            self._bytes += size
            # What is absent stays at the cold end: who asks for absent things crowds out nothing but those.
            self._entries.move_to_end(key, last=representation is not None)

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        self._bytes -= entry.size if entry else 0


# ---------------------------------------------------------------- admission


class Bulkhead:
    """Room for so many threads to wait for the database at a time, so that one stays free for what needs none.

    Entered as a context. Where it is full, one waits as long as others still come and go; when nobody did for
    `patience` seconds, whoever comes is refused at once: it raises Overloaded.
    """

    def __init__(self, places: int, patience: float = PATIENCE, timer: Timer = time.monotonic) -> None:
        self._places, self._patience, self._timer = threading.Semaphore(places), patience, timer
        self._moved = -math.inf

    def __enter__(self) -> None:
        if not self._places.acquire(blocking=False):
            patience = self._moved + self._patience - self._timer()
            if patience <= 0 or not self._places.acquire(timeout=patience):
                raise Overloaded("too many requests wait for the database; try again in a moment")
        self._moved = self._timer()

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if not (kind and issubclass(kind, DatabaseUnavailable)):
            self._moved = self._timer()
        self._places.release()


class Grant(NamedTuple):
    """What a bucket says: whole tokens left, seconds until it is full, seconds to wait (0: granted)."""

    remaining: int
    reset: int
    retry_after: int


class RateLimiter:
    """Token buckets, one a client, refilled when looked at: `rate` tokens a second, up to `burst`.

    At most `clients` are remembered; the one longest out of use is forgotten first, and after burst / rate seconds
    that changes nothing, since its bucket would be full, as a new one is.
    """

    def __init__(self, rate: float, burst: int, timer: Timer, clients: int = MAX_CLIENTS) -> None:
        self.policy = f'"default";q={burst};w={math.ceil(burst / rate)}'
        self._rate, self._burst, self._timer, self._clients = rate, burst, timer, clients
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client: tokens, when counted

    def take(self, client: str, cost: int) -> Grant:
        """Take `cost` tokens from the client's bucket, or none if there are fewer."""
        with self._lock:
            now = self._timer()
            tokens, then = self._buckets.pop(client, (self._burst, now))
            tokens = min(self._burst, tokens + (now - then) * self._rate)
            missing = max(0.0, cost - tokens)
            tokens -= 0 if missing else cost
            self._buckets[client] = tokens, now
            if len(self._buckets) > self._clients:
                self._buckets.popitem(last=False)
        return Grant(int(tokens), math.ceil((self._burst - tokens) / self._rate), math.ceil(missing / self._rate))


# ---------------------------------------------------------------- input

ID = re.compile(r"[1-9][0-9]*")
INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
PRICE = re.compile(r"([0-9]{1,7})(?:\.([0-9]{1,2}))?()")  # as text: in a query, a CSV, a JSON string
JSON_NUMBER = re.compile(r"(?:-(?=[0.]+(?![0-9.])))?([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")  # not negative
PRICE_RULE = "must be from 0 to 9999999.99, in whole cents"
OPAQUE_TAG = r'"[\x21\x23-\x7e\x80-\xff]*"'
ENTITY_TAGS = re.compile(rf"[ \t,]*(?:W/)?{OPAQUE_TAG}(?:[ \t]*,[ \t,]*(?:W/)?{OPAQUE_TAG})*[ \t,]*")


class JsonNumber(str):
    """A number of a JSON body, as it was written."""


class Change(NamedTuple):
    """What a PATCH asks for; None leaves a column alone."""

    price_cents: int | None = None
    stock_level: int | None = None
    stock_delta: int | None = None


def parse_cents(text: str, grammar: re.Pattern[str] = PRICE) -> int | None:
    """The cents, up to MAX_CENTS, that a text says exactly; None where it does not.

    It counts digits before it converts any: no float, no Decimal with its 28 digits, nothing huge is ever computed.
    """
    match = grammar.fullmatch(text)
    if not match:
        return None
    fraction, exponent = match[2] or "", match[3] or "0"
    digits = (match[1] + fraction).lstrip("0")
    significant = digits.rstrip("0")
    if not significant:
        return 0
    power = exponent.lstrip("+-").lstrip("0") or "0"
    if len(power) > 6:  # no body has a million digits to make up for it
        return None
    zeros = len(digits) - len(significant) - len(fraction) + int(power) * (-1 if exponent[0] == "-" else 1) + 2
    fits = 0 <= zeros <= len(str(MAX_CENTS)) - len(significant)
    return int(significant + "0" * zeros) if fits else None


def parse_integer(text: str, low: int, high: int) -> int | None:
    """The integer from low to high that a text says without a plus or leading zeros; None where it does not."""
    fits = INTEGER.fullmatch(text) and len(text) <= len(str(MAX_ID))
    return int(text) if fits and low <= int(text) <= high else None


def fold(text: str) -> str:
    """Lower case, one code point for one: how search compares, decided here and not by an engine."""
    if text.isascii():
        return text.lower()
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


def parse_id(text: str) -> int:
    """A product's id; MAX_ID + 1 stands for all that no product can have. Raises BadInput."""
    if not ID.fullmatch(text):
        raise BadInput("an id is a whole number from 1, without sign or leading zeros")
    return min(int(text), MAX_ID + 1) if len(text) <= len(str(MAX_ID)) else MAX_ID + 1


def parse_query(query_string: str, allowed: Iterable[str]) -> dict[str, str]:
    """The parameters, each given once and not empty. Raises BadInput naming the first that is not."""
    parameters: dict[str, str] = {}
    for pair in query_string.split("&") if query_string else ():
        raw_name, _, raw_value = pair.partition("=")
        name = decode_component(raw_name, "a parameter's name")
        if name not in allowed:
            raise BadInput(f"unknown parameter {name[:50]!r}")
        if name in parameters:
            raise BadInput(f"parameter {name!r} is repeated")
        parameters[name] = decode_component(raw_value, f"parameter {name!r}")
        if not parameters[name]:
            raise BadInput(f"parameter {name!r} is empty")
    return parameters


def decode_component(raw: str, what: str) -> str:
    """Percent-decoded UTF-8 without NUL, from a WSGI string (bytes told as Latin-1). Raises BadInput."""
    try:
        text = unquote_to_bytes(raw.replace("+", " ").encode("latin-1")).decode()
    except UnicodeError as error:
        raise BadInput(f"{what} is not UTF-8") from error
    if "\0" in text or re.search("%(?![0-9A-Fa-f]{2})", raw):
        raise BadInput(f"{what} has a NUL or a broken escape")
    return text


def parse_json_object(body: bytes) -> dict[str, Any]:
    """An object by the letter of RFC 8259, its numbers left as they were written. Raises BadInput."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            raise ValueError
        return members

    def constant(name: str) -> NoReturn:
        raise ValueError

    hooks: dict[str, Any] = {"parse_constant": constant, "parse_int": JsonNumber, "parse_float": JsonNumber}
    try:
        value = json.loads(body.decode(), object_pairs_hook=unique, **hooks)
    except (ValueError, RecursionError) as error:
        raise BadInput("the body is not JSON, or names a member twice") from error
    if not isinstance(value, dict):
        raise BadInput("the body is not a JSON object")
    return value


def parse_change(members: Mapping[str, Any]) -> Change:
    """What a PATCH asks for. Raises InvalidFields with everything that is wrong."""
    changes: dict[str, int] = {}
    errors = [] if members else [{"field": "", "message": "give price, stock_level or stock_delta"}]
    for field, value in members.items():
        column, parsed, rule = parse_member(field, value)
        if parsed is None:
            errors.append({"field": field, "message": rule})
        else:
            changes[column] = parsed
    if "stock_level" in members and "stock_delta" in members:
        errors.append({"field": "stock_delta", "message": "cannot be given together with stock_level"})
    if errors:
        raise InvalidFields("; ".join(f"{error['field'][:50]}: {error['message']}" for error in errors), errors)
    return Change(**changes)


def parse_member(field: str, value: object) -> tuple[str, int | None, str]:
    """The field of Change that a member of a body sets, to what (None: it is wrong), and the rule it must keep."""
    text, is_number = (value if isinstance(value, str) else ""), isinstance(value, JsonNumber)
    if field == "price":
        return "price_cents", parse_cents(text, JSON_NUMBER if is_number else PRICE), PRICE_RULE
    if field in ("stock_level", "stock_delta"):
        low = 0 if field == "stock_level" else -MAX_STOCK
        rule = f"must be an integer from {low} to {MAX_STOCK}"
        return field, parse_integer(text, low, MAX_STOCK) if is_number else None, rule
    read_only = field in ("id", "name", "version", "updated_at")
    return field, None, "is read-only" if read_only else "is unknown"


def parse_if_match(header: str | None) -> frozenset[int] | None:
    """The versions that an If-Match header allows; None: any. What is malformed or weak allows none."""
    if header is None or header.strip() == "*":
        return None
    tags = re.split(r"[ \t]*,[ \t]*", header) if ENTITY_TAGS.fullmatch(header) else []
    return frozenset(int(tag[1:-1]) for tag in tags if re.fullmatch(r'"[1-9][0-9]{0,18}"', tag))


def is_not_modified(if_none_match: str | None, etag: str) -> bool:
    """Whether the client says that it has this representation (RFC 9110, weak comparison)."""
    return if_none_match is not None and (if_none_match.strip() == "*" or etag in re.findall(OPAQUE_TAG, if_none_match))


# ---------------------------------------------------------------- products and pages


class Product(NamedTuple):
    """A row of the table."""

    id: int
    name: str
    price_cents: int
    stock_level: int
    version: int
    updated_at: str  # UTC, as 2026-11-22 10:00:00, perhaps with a fraction


def product_json(product: Product) -> str:
    """A product as clients see it. Its price is a string, so that nobody reads it as a float."""
    id, name, cents, stock_level, version, at = product
    return (
        f'{{"id":{id},"name":{encode_basestring(name)},"price":"{cents // 100}.{cents % 100:02}",'
        f'"stock_level":{stock_level},"version":{version},"updated_at":"{at[:10]}T{at[11:19]}Z"}}'
    )


def represent_product(product: Product) -> Representation:
    return Representation(product_json(product).encode(), f'"{product.version}"')


SORTS = ("id", "price", "-price", "name", "-name")
PAGE_PARAMETERS = ("limit", "cursor", "sort", "include_total")
SEARCH_PARAMETERS = ("name", "min_price", "max_price", *PAGE_PARAMETERS)


class Position(NamedTuple):
    """Where a page starts: behind, or with, the row of this sort value and id, seen in the direction walked."""

    forward: bool
    inclusive: bool
    value: int | str | None  # of the column sorted by; None where that is the id
    id: int


class PageQuery(NamedTuple):
    """A page as it is asked for, and its key in the cache."""

    path: str
    name: str | None = None  # folded
    min_cents: int | None = None
    max_cents: int | None = None
    sort: str = "id"
    limit: int = DEFAULT_LIMIT
    include_total: bool = False
    start: Position | None = None
    given: tuple[tuple[str, str], ...] = ()  # the parameters as they came, but for the cursor

    @property
    def forward(self) -> bool:
        return self.start is None or self.start.forward

    @property
    def top_cents(self) -> int:
        return MAX_CENTS if self.max_cents is None else self.max_cents


@functools.lru_cache(maxsize=1000)
def parse_page(path: str, query_string: str) -> PageQuery:
    """The page that is asked for on one of the two routes. Raises BadInput naming the parameter."""
    searching = path.endswith("/search")
    given = parse_query(query_string, SEARCH_PARAMETERS if searching else PAGE_PARAMETERS)
    limit = parse_integer(given.get("limit", str(DEFAULT_LIMIT)), 1, MAX_LIMIT)
    prices = {name: parse_cents(given[name]) for name in ("min_price", "max_price") if name in given}
    if limit is None:
        raise BadInput(f"parameter 'limit' must be an integer from 1 to {MAX_LIMIT}")
    if None in prices.values():
        raise BadInput(f"parameter {next(name for name in prices if prices[name] is None)!r} {PRICE_RULE}")
    if given.get("sort", "id") not in SORTS:
        raise BadInput(f"parameter 'sort' must be one of {', '.join(SORTS)}")
    if given.get("include_total", "true") not in ("true", "false"):
        raise BadInput("parameter 'include_total' must be true or false")
    if len(given.get("name", "")) > MAX_NEEDLE:
        raise BadInput(f"parameter 'name' must have 1 to {MAX_NEEDLE} characters")
    if searching and not given.keys() & {"name", "min_price", "max_price"}:
        raise BadInput("give at least one of 'name', 'min_price' and 'max_price'")
    query = PageQuery(
        path,
        fold(given["name"]) if "name" in given else None,
        prices.get("min_price"),
        prices.get("max_price"),
        given.get("sort", "id"),
        limit,
        given.get("include_total") == "true",
        given=tuple((name, value) for name, value in given.items() if name != "cursor"),
    )
    if (query.min_cents or 0) > query.top_cents:
        raise BadInput("parameter 'min_price' is over 'max_price'")
    return query._replace(start=parse_cursor(given["cursor"], query)) if "cursor" in given else query


compact_json = json.JSONEncoder(separators=(",", ":")).encode


def cursor_at(position: Position, query: PageQuery) -> str:
    """An opaque, URL-safe text for a position, bound by its digest to the route, filters and sort it was made for."""
    payload = compact_json(position).encode()
    bound_to = repr((query.path, query.name, query.min_cents, query.max_cents, query.sort))
    digest = hashlib.blake2b(payload + bound_to.encode(), digest_size=9).digest()
    return base64.urlsafe_b64encode(digest + payload).rstrip(b"=").decode()


def parse_cursor(text: str, query: PageQuery) -> Position:
    """The position in a cursor that was made for this query. Raises BadInput for any other text."""
    kind = {"id": type(None), "price": int, "name": str}[query.sort.lstrip("-")]
    try:
        payload = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)[9:]
        position = Position(*json.loads(payload))
        if [type(part) for part in position] != [bool, bool, kind, int] or cursor_at(position, query) != text:
            raise ValueError
        if (
            len(str(position.value)) > MAX_NAME
            or not 1 <= position.id <= MAX_ID
            or re.search("[\0\ud800-\udfff]", str(position.value))
        ):
            raise ValueError
        if kind is int and not (query.min_cents or 0) <= int(str(position.value)) <= query.top_cents:
            raise ValueError
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInput("parameter 'cursor' was not made for this route, filters and sort") from error
    return position


def neighbours(query: PageQuery, products: Sequence[Product], more: bool) -> tuple[Position | None, Position | None]:
    """Where the following and the preceding page start; `more`: there are further rows in the direction walked.

    Whence the walk came there was a row, so there is a page. A page that turned out empty leads back to that row.
    """
    start = query.start
    if not products:
        back = start and start._replace(forward=not start.forward, inclusive=not start.inclusive)
        return (None, back) if query.forward else (back, None)
    ahead = position_of(products[-1], query.sort, forward=True)
    behind = position_of(products[0], query.sort, forward=False)
    if query.forward:
        return ahead if more else None, behind if start else None
    return ahead, behind if more else None


def position_of(product: Product, sort: str, forward: bool) -> Position:
    values: dict[str, Any] = {"id": None, "price": product.price_cents, "name": product.name}
    return Position(forward, False, values[sort.lstrip("-")], product.id)


def represent_page(query: PageQuery, found: Sequence[Product], total: int | None) -> Representation:
    """The page in rows as they were found: up to limit + 1, in the direction walked. A total over MAX_TOTAL is cut.

    The links (RFC 8288) are relative, so that no Host header is believed.
    """
    products = found[: query.limit] if query.forward else found[: query.limit][::-1]
    positions = neighbours(query, products, more=len(found) > query.limit)
    following, preceding = (position and cursor_at(position, query) for position in positions)
    body = f'{{"items":[{",".join(map(product_json, products))}]'
    body += f',"next_cursor":{compact_json(following)},"prev_cursor":{compact_json(preceding)}'
    if total is not None:
        body += f',"total":{min(total, MAX_TOTAL)},"total_is_exact":{json.dumps(total <= MAX_TOTAL)}'
    encoded = f"{body}}}".encode()
    target = f"{query.path}?{urlencode([*query.given, ('cursor', '')])}"
    link = ", ".join(f'<{target}{at}>; rel="{rel}"' for rel, at in (("next", following), ("prev", preceding)) if at)
    return Representation(encoded, f'"{hashlib.blake2b(encoded, digest_size=12).hexdigest()}"', link)


# ---------------------------------------------------------------- finding rows

COLUMNS = "id, name, price_cents, stock_level, version, updated_at"

# Every row on the way is one of the page's: no filter, or no other than the price range that the walk itself keeps to.
LIST = """
SELECT {columns}
FROM products
WHERE {start}
ORDER BY {order}
LIMIT :n
"""

# Along the sort's index until there are enough: right where many match.
SCAN = """
SELECT {columns}
FROM (
    SELECT id AS hit
    FROM products
    WHERE {start} AND {has_name} AND {in_range}
    ORDER BY {order}
    LIMIT :n
) AS page
JOIN products ON id = hit
ORDER BY {order}
"""

# Along the ids that have the trigrams: right for a page by id, however many match.
STREAM = """
SELECT {columns}
FROM ({trigrams_by_id}) AS hits
CROSS JOIN products USING (id)
WHERE {start} AND {has_name}
ORDER BY {order}
LIMIT :n
"""

# The same along the sort's index, at no more than :budget rows, of which the index alone tells whether they match.
WALK = """
SELECT {columns}
FROM (
    SELECT hit
    FROM (
        SELECT id AS hit, price_cents AS cents, name_folded
        FROM products
        WHERE {start}
        ORDER BY {order}
        LIMIT :budget
    ) AS walked
    WHERE {has_name} AND cents BETWEEN :low AND :high
    LIMIT :n
) AS page
JOIN products ON id = hit
ORDER BY {order}
"""

# All that match, by way of the trigrams or the price range, then sorted: right where few do.
SORT = """
WITH found AS MATERIALIZED (
    SELECT id AS hit, {key} AS sorted
    FROM products
    WHERE {by_index} AND {has_name} AND price_cents BETWEEN :low AND :high AND {start}
)
SELECT {columns}
FROM (
    SELECT hit
    FROM found
    ORDER BY sorted {down}, hit {down}
    LIMIT :n
) AS page
JOIN products ON id = hit
ORDER BY {order}
"""

COUNT = """
SELECT count(*)
FROM (
    SELECT 1
    FROM products
    WHERE {by_index} AND {has_name} AND price_cents BETWEEN :low AND :high
    LIMIT :n
) AS counted
"""


class Finder:
    """Finds the rows of one page query, whatever its filters and sort match, at a bounded cost.

    Where the trigrams give ids in order, a page by id is read along them. Elsewhere a few rows are walked along the
    sort's index first: what is common is found at once. Else the ways in are counted, each up to a cap, and the first
    that is narrow is read whole and sorted. Both are then tried further, and where nothing is narrow, the walk goes on
    to its end. Every way gives the whole answer: the counts only steer its cost.
    """

    def __init__(self, database: Database, execute: Execute, query: PageQuery) -> None:
        self._database, self._execute, self._query = database, execute, query
        self._column = {"id": "id", "price": "price_cents", "name": "name"}[query.sort.lstrip("-")]
        self._down = query.sort.startswith("-") == query.forward
        self._ranged = query.min_cents is not None or query.max_cents is not None
        name = query.name or ""
        pattern = "%" + re.sub(r"([\\%_])", r"\\\1", name) + "%"
        self._values: dict[str, Any] = {
            "low": query.min_cents or 0,
            "high": query.top_cents,
            "glob": "*" + re.sub(r"([*?\[])", r"[\1]", name) + "*",
            "phrase": '"' + name.replace('"', '""') + '"',
            "pattern": pattern,
            "spaced": pattern.replace(" ", "\ua000"),
        }
        self._has_name = database.has_name if name else "TRUE"
        self._has_trigrams = len(name) >= 3 and any(map(str.isalnum, name))

    def rows(self) -> list[Product]:
        """Up to limit + 1 products from the start of the page on, in the direction walked."""
        n = self._query.limit + 1
        start, values = self._start()
        filtered = self._ranged and self._column != "price_cents"
        if not self._query.name and not filtered:
            return self._products(LIST, start, values, n=n)
        if self._column == "id" and not filtered and self._has_trigrams and self._database.trigrams_by_id:
            return self._products(STREAM, start, values, n=n)
        found = self._products(WALK, start, values, n=n, budget=1_000)
        if len(found) == n:
            return found
        few = len(found) * 20 < n  # else twenty times as many rows may well do
        way = self._narrow_way(1_000, rare=not found) if few else "scan"
        if way == "scan" and found:
            found = self._products(WALK, start, values, n=n, budget=20_000)
            if len(found) == n:
                return found
        if way == "scan":
            way = self._narrow_way(20_000)
        if way == "scan":
            in_range = "+price_cents BETWEEN :low AND :high" if filtered else "TRUE"  # +: not by that index
            return self._products(SCAN, start, values, n=n, in_range=in_range)
        return self._products(SORT, start, values, n=n, by_index=self._by_index(way)) if way else []

    def total(self) -> int:
        """How many products match, counted no further than MAX_TOTAL + 1."""
        way = self._narrow_way(20_000) if self._query.name else "scan"
        if way is None:
            return 0
        sql = COUNT.format(by_index=self._by_index(way), has_name=self._has_name)
        ((count,),) = self._execute(sql, n=MAX_TOTAL + 1, **self._values)
        return int(count)

    def _start(self) -> tuple[str, dict[str, Any]]:
        """The condition that rows are on the page's side of its start, within the price range if that is the sort."""
        start, position = "TRUE", self._query.start
        if self._ranged and self._column == "price_cents":
            start = "price_cents >= :low" if self._down else "price_cents <= :high"
            near_end = (self._values["high"], MAX_ID) if self._down else (self._values["low"], 0)
            position = position or Position(self._query.forward, True, *near_end)
        if position is None and self._column == "id":
            position = Position(True, True, None, 1)
        if position is None:
            return start, {}
        after = ("<" if self._down else ">") + ("=" if position.inclusive else "")
        if self._column == "id":
            return f"{start} AND id {after} :start_id", {"start_id": position.id}
        seek = f"({self._column}, {self._database.tie}) {after} (:start_value, :start_id)"
        return f"{start} AND {seek}", {"start_value": position.value, "start_id": position.id}

    def _products(self, template: str, start: str, values: dict[str, Any], **more: Any) -> list[Product]:
        down = "DESC" if self._down else "ASC"
        keys = [self._column] if self._column == "id" else [self._column, self._database.tie]
        order = ", ".join(f"{key} {down}" for key in keys)
        fragments = {name: more.pop(name) for name in ("by_index", "in_range") if name in more}
        sql = template.format(
            columns=COLUMNS, start=start, order=order, down=down, key=self._column, has_name=self._has_name,
            trigrams_by_id=self._database.trigrams_by_id, **fragments,
        )  # fmt: skip
        return [Product._make(row) for row in self._execute(sql, **self._values, **values, **more)]

    def _narrow_way(self, cap: int, rare: bool = True) -> str | None:
        """The first way with few candidates, or taken to have few if `rare`; None if it is seen to have none."""
        usable = {"range": self._ranged, "trigrams": self._has_trigrams}
        counts = {"range": COUNT.format(by_index="TRUE", has_name="TRUE"), "trigrams": self._database.count_trigrams}
        for way in filter(usable.__getitem__, self._database.ways):
            uncounted = 1 if rare else cap + 1
            count = self._execute(counts[way], n=cap + 1, **self._values)[0][0] if counts[way] else uncounted
            if count <= cap:
                return way if count else None
        return "scan"

    def _by_index(self, way: str | None) -> str:
        return self._database.by_trigrams if way == "trigrams" else "TRUE"


# ---------------------------------------------------------------- inventory

SELECT_PRODUCT = """
SELECT id, name, price_cents, stock_level, version, updated_at
FROM products
WHERE id = :id
"""

# Version and time are set as the trigger would set them, so that RETURNING, which runs before it in SQLite, tells them.
UPDATE_PRODUCT = """
UPDATE products
SET price_cents = COALESCE(:price_cents, price_cents),
    stock_level = COALESCE(:stock_level, stock_level + COALESCE(:stock_delta, 0)),
    version = version + 1,
    updated_at = CURRENT_TIMESTAMP
WHERE id = :id
  AND (CAST(:versions AS TEXT) IS NULL OR :versions LIKE '%,' || version || ',%')
  AND CAST(stock_level AS BIGINT) + COALESCE(:stock_delta, 0) BETWEEN 0 AND 2147483647
RETURNING id, name, price_cents, stock_level, version, updated_at
"""


class Inventory:
    """The use cases. A product is cached under its id, a page under its query."""

    def __init__(self, database: Database, cache: TTLCache, admission: Bulkhead) -> None:
        self._database, self._cache, self._admission = database, cache, admission

    def product(self, product_id: int, fresh: bool) -> Answer:
        """One product; `fresh`: from the database, whatever the cache has."""
        if product_id > MAX_ID:
            return Answer(None, cached=False)
        return self._read(product_id, lambda: self._load_product(product_id), volatile=False, fresh=fresh)

    def page(self, query: PageQuery, fresh: bool) -> Answer:
        """A page of products."""
        return self._read(query, lambda: self._load_page(query), volatile=True, fresh=fresh)

    def update(self, product_id: int, change: Change, versions: frozenset[int] | None) -> Representation:
        """The product after a change that is made if it is at one of `versions` (None: whatever it is at).

        Raises NoSuchProduct, VersionMismatch, StockOutOfRange (in this order) or DatabaseUnavailable.
        """
        listed = None if versions is None else f",{','.join(map(str, versions))},"

        def work(execute: Execute) -> Product:
            for _ in range(UPDATE_ATTEMPTS):
                rows = execute(UPDATE_PRODUCT, id=product_id, versions=listed, **change._asdict())
                if rows:
                    return Product(*rows[0])
                current = execute(SELECT_PRODUCT, id=product_id)
                refuse(Product(*current[0]) if current else None, change, versions)  # or it matches by now: again
            raise DatabaseUnavailable("others keep changing this product; try again")

        if product_id > MAX_ID:
            refuse(None, change, versions)
        with self._admission:
            try:
                product = self._database.write(work)
            except DatabaseUnavailable:
                self._changed(product_id)  # it may have been, if COMMIT was sent but not answered
                raise
            self._changed(product_id)
        return represent_product(product)

    def check(self) -> None:
        """Return if the database answers. Raises DatabaseUnavailable."""
        with self._admission:
            self._database.read(lambda execute: execute("SELECT id FROM products LIMIT 1"))

    def _read(self, key: Hashable, loader: Loader, volatile: bool, fresh: bool) -> Answer:
        answer = None if fresh else self._cache.get(key)
        if answer is None:
            with self._admission:
                answer = self._cache.load(key, loader, volatile, join=not fresh)
        return answer

    def _changed(self, product_id: int) -> None:
        """What a write invalidates: the product, and every page, since any might show it, or no longer show it."""
        self._cache.invalidate(product_id)

    def _load_product(self, product_id: int) -> Representation | None:
        rows = self._database.read(lambda execute: execute(SELECT_PRODUCT, id=product_id))
        return represent_product(Product(*rows[0])) if rows else None

    def _load_page(self, query: PageQuery) -> Representation:
        def work(execute: Execute) -> Representation:
            finder = Finder(self._database, execute, query)
            return represent_page(query, finder.rows(), finder.total() if query.include_total else None)

        return self._database.read(work)


def refuse(current: Product | None, change: Change, versions: frozenset[int] | None) -> None:
    """Raise for the reason that keeps a change from a row as it is; return if there is none."""
    if current is None:
        raise NoSuchProduct("there is no product with this id")
    if versions is not None and current.version not in versions:
        raise VersionMismatch(f"the product is at version {current.version}", current.version)
    if not 0 <= current.stock_level + (change.stock_delta or 0) <= MAX_STOCK:
        raise StockOutOfRange(f"the stock, {current.stock_level}, would leave 0 to {MAX_STOCK}", current.stock_level)


# ---------------------------------------------------------------- schema and bulk load

PRODUCT_COLUMNS = ("id", "name", "price_cents", "stock_level", "version", "updated_at", "name_folded")
CSV_COLUMNS = ("id", "name", "price", "stock_level")

STAGE = """
CREATE TEMPORARY TABLE staged (
    line INTEGER, id BIGINT, name TEXT, name_folded TEXT, price_cents INTEGER, stock_level INTEGER
)
"""

KEEP_LAST_LINES = """
DELETE FROM staged
WHERE id IS NOT NULL
  AND line NOT IN (SELECT max(line) FROM staged GROUP BY id)
"""

MERGE_BY_ID = """
INSERT INTO products (id, name, name_folded, price_cents, stock_level)
SELECT id, name, name_folded, price_cents, stock_level
FROM staged
WHERE id IS NOT NULL
ORDER BY id
ON CONFLICT (id) DO UPDATE
SET name = excluded.name,
    name_folded = excluded.name_folded,
    price_cents = excluded.price_cents,
    stock_level = excluded.stock_level
"""

# A trigger that sees a new name beside an old fold folds by ASCII: it cannot know that both names fold alike.
RESTORE_FOLDS = """
UPDATE products
SET name_folded = staged.name_folded
FROM staged
WHERE staged.id = products.id
  AND staged.name_folded <> products.name_folded
"""

APPEND = """
INSERT INTO products (name, name_folded, price_cents, stock_level)
SELECT name, name_folded, price_cents, stock_level
FROM staged
WHERE id IS NULL
ORDER BY line
"""


def make_schema(database: Database, with_samples: bool) -> None:
    """Make the schema of db.sql, and sample products if wanted, unless there is a table `products`.

    Many processes may do so at once. Raises BadSchema if the table is another one, and DatabaseUnavailable.
    """
    portable, *parts = re.split(r"^-- == (\w+) ==\n", SCHEMA_FILE.read_text(), flags=re.MULTILINE)[2:]
    script = portable + parts[parts.index(database.dialect) + 1]
    expected = {f"products.{column}" for column in PRODUCT_COLUMNS}
    expected.update(re.findall(r"^CREATE (?:VIRTUAL TABLE|TABLE|INDEX|TRIGGER) (\w+)", script, re.MULTILINE))

    def work(execute: Execute) -> None:
        execute(database.lock_schema)
        present = {name for (name,) in execute(database.list_schema)}
        if "products" in present:
            if missing := sorted(expected - present):
                raise BadSchema(f"there is a table products, but it lacks {', '.join(missing)}")
            execute("UPDATE products SET id = id WHERE FALSE")  # fails where nothing can be written
            return
        for statement in script.split("\n\n"):
            execute(statement)
        if with_samples:
            merge(database, execute, sample_products())

    database.write(work)
    database.close()  # whoever connects from here on sees that the database is ours
    with contextlib.suppress(DatabaseUnavailable):  # to set the journal mode takes a moment without others' locks
        database.read(lambda execute: execute("SELECT 1"))
    database.close()  # no connection is to cross a fork


def merge(database: Database, execute: Execute, rows: Iterable[Row]) -> int:
    """Insert products, or replace those of the same id, and return how many. Rows are as `staged` has them.

    The last line of an id wins. Rows without an id come after all others, so that no id is given out that a row brings.
    """
    execute(STAGE)
    database.stage(rows)
    for statement in (KEEP_LAST_LINES, MERGE_BY_ID, RESTORE_FOLDS, database.skip_used_ids, APPEND):
        execute(statement)
    ((count,),) = execute("SELECT count(*) FROM staged")
    execute("DROP TABLE staged")
    return int(count)


def sample_products() -> Iterator[Row]:
    woods = ("Oak", "Birch", "Walnut", "Cherry", "Pine", "Steel", "Glass", "Bamboo", "Marble", "Rosé gold")
    styles = ("", "round ", "folding ", "standing ", "children's ", "vintage ", "slim ", "XL ", "café ", "outdoor ")
    things = ("desk", "chair", "shelf", "lamp", "bench", "table", "stool", "mirror", "cabinet", "bed")
    for line, (style, thing, wood) in enumerate(itertools.product(styles, things, woods), start=1):
        name = f"{wood} {style}{thing}"
        yield line, line, name, fold(name), 499 + line * 7919 % 100_000, line * 31 % 250


def read_products(lines: Iterable[str]) -> Iterator[Row]:
    """The rows for `staged` that the lines of a CSV file stand for, as a stream. Raises BadLine."""
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        for column in CSV_COLUMNS[1:]:
            if header.count(column) != 1:
                raise ValueError(f"{column}: the header must have it once")
        for column in header:
            if column not in CSV_COLUMNS or header.count(column) > 1:
                raise ValueError(f"{column}: does not belong to the header, {','.join(CSV_COLUMNS)}")
        for cells in reader:
            if len(cells) == len(header):
                yield reader.line_num, *parse_cells(dict(zip(header, cells, strict=True)))
            elif cells:  # an empty line is none
                raise ValueError(f"{header[min(len(cells), len(header) - 1)]}: {len(cells)} cells, not {len(header)}")
    except (csv.Error, ValueError) as error:
        raise BadLine(f"line {max(reader.line_num, 1)}: {error}") from error


def parse_cells(cells: Mapping[str, str]) -> Row:
    """id or None, name, folded name, cents, stock. Raises ValueError naming the column."""
    name, number = cells["name"], cells.get("id")
    if not 1 <= len(name) <= MAX_NAME or re.search("[\0\ud800-\udfff]", name):
        raise ValueError(f"name: must be UTF-8 of 1 to {MAX_NAME} characters without NUL")
    row = (
        parse_integer(number, 1, MAX_ID) if number else None,
        name,
        fold(name),
        parse_cents(cells["price"]),
        parse_integer(cells["stock_level"], 0, MAX_STOCK),
    )
    if number and row[0] is None:
        raise ValueError(f"id: {number[:50]!r} is not an integer from 1 to {MAX_ID}")
    if row[3] is None:
        raise ValueError(f"price: {cells['price'][:50]!r} {PRICE_RULE}")
    if row[4] is None:
        raise ValueError(f"stock_level: {cells['stock_level'][:50]!r} is not an integer from 0 to {MAX_STOCK}")
    return row


# ---------------------------------------------------------------- problems (RFC 9457)

MEDIA_TYPES = ("application/json", "application/merge-patch+json")


class Problem(NamedTuple):
    """How a domain error is told: its status, a header ({} stands for the fact), and the member that has the fact."""

    status: int
    header: tuple[str, str] | None = None
    member: str | None = None


PROBLEMS = {
    BadInput: Problem(400),
    Unauthenticated: Problem(401, ("WWW-Authenticate", 'Bearer realm="inventory"')),
    WritesDisabled: Problem(403),
    NoSuchProduct: Problem(404),
    StockOutOfRange: Problem(409, member="stock_level"),
    VersionMismatch: Problem(412, ("ETag", '"{}"')),
    BodyTooLarge: Problem(413),
    UnsupportedBody: Problem(415, ("Accept-Patch", ", ".join(MEDIA_TYPES))),
    InvalidFields: Problem(422, member="errors"),
    RateLimited: Problem(429, ("Retry-After", "{}")),
    Overloaded: Problem(503, ("Retry-After", str(RETRY_AFTER))),
    DatabaseUnavailable: Problem(503, ("Retry-After", str(RETRY_AFTER))),
}


def problem_json(status: HTTPStatus, detail: str, path: str, request_id: str, members: Mapping[str, Any]) -> bytes:
    """An RFC 9457 document; in ASCII, so that even a lone surrogate in a client's text can be told."""
    document = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail}
    return json.dumps({**document, "instance": quote(path), "request_id": request_id, **members}).encode()


def write_problem(req: falcon.Request, resp: falcon.Response, code: int, detail: str, **members: Any) -> None:
    resp.status = code
    resp.set_headers((("Content-Type", "application/problem+json"), ("Cache-Control", "no-store")))
    resp.data = problem_json(HTTPStatus(code), detail, req.path, req.context.request_id, members)


def tell_inventory_error(req: falcon.Request, resp: falcon.Response, error: InventoryError, params: object) -> None:
    problem = PROBLEMS[type(error)]
    if isinstance(error, DatabaseUnavailable):
        log.warning("request_id=%s database: %s", req.context.request_id, one_line(error.__cause__ or error))
    if problem.header:
        resp.set_header(problem.header[0], problem.header[1].format(error.fact))
    members = {problem.member: error.fact} if problem.member else {}
    write_problem(req, resp, problem.status, str(error), **members)


def tell_falcon_error(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, params: object) -> None:
    """What Falcon refuses: a path that is not there, a method that the path has not."""
    resp.set_headers(error.headers or {})
    write_problem(req, resp, error.status_code, error.description or HTTPStatus(error.status_code).description)


def tell_bug(req: falcon.Request, resp: falcon.Response, error: Exception, params: object) -> None:
    log.error("request_id=%s", req.context.request_id, exc_info=error)
    write_problem(req, resp, 500, "the server failed; its log tells why")


# ---------------------------------------------------------------- monitoring

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds

METRICS = {
    "requests_total": "Requests answered, by route, method and status.",
    "request_seconds": "Seconds from the first look at a request to its answer, by route.",
    "rate_limited_total": "Requests refused with 429.",
    "cache_hits_total": "Reads answered by the cache.",
    "cache_misses_total": "Reads that the cache had no answer for.",
    "cache_evictions_total": "Answers forgotten to make room.",
    "cache_invalidations_total": "Changes, own and others', that the cache forgot answers for.",
    "cache_refused_fills_total": "Answers not kept, because something was changed while they were loaded.",
    "database_errors_total": "Errors of the database, and connections to it that failed.",
    "database_reconnects_total": "Connections made anew in place of lost ones.",
    "listener_up": "1 while notifications of PostgreSQL are heard.",
    "queue_depth": "Requests that wait for a thread.",
    "in_flight": "Requests that have a thread.",
}


def access_line(method: str, path: str, status: int, seconds: float, request_id: str, client: str) -> str:
    said = f"method={method} path={loggable(path)} status={status} ms={seconds * 1000:.1f}"
    return f"{utc_text(int(time.time()))} {said} request_id={request_id} client={loggable(client)}\n"


def loggable(text: str) -> str:
    return text if LOGGABLE.fullmatch(text) else quote(text, safe="/:")


@functools.lru_cache(maxsize=1)
def utc_text(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Monitor:
    """What a process tells of itself: ids for its requests, a line in the log for each, and metrics."""

    def __init__(self, write_line: Callable[[str], object] = lambda line: None, process: int = 1) -> None:
        self.draining = False
        self._write_line, self._process = write_line, process
        self._prefix, self._numbers = os.urandom(6).hex(), itertools.count(1)
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: Counter[str] = Counter()
        self._sources: list[Callable[[], Mapping[str, float]]] = []

    def request_id(self, offered: str) -> str:
        """The id that a client offers, if it is one that can go into a header and a log; else a new one."""
        return offered if SAFE_ID.fullmatch(offered) else f"{self._prefix}-{next(self._numbers)}"

    def record(
        self, method: str, path: str, status: int, seconds: float, request_id: str, client: str, route: str = ""
    ) -> None:
        """Log and count one request that was answered."""
        self._write_line(access_line(method, path, status, seconds, request_id, client))
        with self._lock:
            self._requests[route, method if method in falcon.COMBINED_METHODS else "other", status] += 1
            if route not in self._buckets:
                self._buckets[route] = [0] * (len(BUCKETS) + 1)
            self._buckets[route][bisect_left(BUCKETS, seconds)] += 1
            self._seconds[route] += seconds  # type: ignore[assignment]

    def watch(self, source: Callable[[], Mapping[str, float]]) -> None:
        """Have metrics told as `source` has them at the time."""
        self._sources.append(source)

    def text(self) -> str:
        """All metrics in Prometheus' text format; each carries the process, since a scrape meets any one of them."""
        lines = []
        for name, samples in self._collect().items():
            kind = {"total": "counter", "seconds": "histogram"}.get(name.rpartition("_")[2], "gauge")
            lines += [f"# HELP inventory_{name} {METRICS[name]}", f"# TYPE inventory_{name} {kind}"]
            for series, value in samples.items():
                suffix, _, labels = series.partition("{")
                lines.append(f'inventory_{name}{suffix}{{process="{self._process}"{labels and "," + labels}}} {value}')
        return "\n".join(lines) + "\n"

    def _collect(self) -> dict[str, dict[str, float]]:
        """Metric: series (what follows the metric's name, but for the closing brace): value."""
        with self._lock:
            requests, seconds = dict(self._requests), dict(self._seconds)
            buckets = {route: list(itertools.accumulate(counts)) for route, counts in self._buckets.items()}
        answered: dict[str, float] = {
            f'{{route="{route}",method="{method}",status="{status}"': count
            for (route, method, status), count in requests.items()
        }
        latency: dict[str, float] = {}
        for route, counts in buckets.items():
            for bound, count in zip((*BUCKETS, "+Inf"), counts, strict=True):
                latency[f'_bucket{{route="{route}",le="{bound}"'] = count
            latency[f'_sum{{route="{route}"'] = seconds[route]
            latency[f'_count{{route="{route}"'] = counts[-1]
        limited = sum(count for (_, _, status), count in requests.items() if status == 429)
        told = {name: {"": value} for source in self._sources for name, value in source().items()}
        return {"requests_total": answered, "request_seconds": latency, "rate_limited_total": {"": limited}, **told}


# ---------------------------------------------------------------- middleware

CACHED = "private, no-cache"  # keep it, but ask each time whether it still is so


def believe_proxy(environ: dict[str, Any]) -> None:
    """Take the client's address from the last hop of X-Forwarded-For, as waitress reads it. Raises BadInput."""
    try:
        waitress.proxy_headers.parse_proxy_headers(environ, 1, {"x-forwarded-for"})
    except (waitress.proxy_headers.MalformedProxyHeader, IndexError) as error:
        raise BadInput("the header X-Forwarded-For is malformed") from error
    environ["REMOTE_ADDR"] = re.sub(r"\[(.*)\](:[0-9]+)?", r"\1", environ["REMOTE_ADDR"])  # of IPv6, the address alone


class Conversation:
    """What every response carries, and the line in the log that every request gets."""

    def __init__(self, monitor: Monitor, trusted_proxy: str | None) -> None:
        self._monitor, self._trusted_proxy = monitor, trusted_proxy

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        request_id = self._monitor.request_id(req.env.get("HTTP_X_REQUEST_ID", ""))
        req.context.request_id = request_id
        req.context.started = time.perf_counter()
        resp.set_headers(
            (("X-Request-ID", request_id), ("X-Content-Type-Options", "nosniff"), ("Cache-Control", CACHED))
        )
        if self._trusted_proxy in ("*", req.env["REMOTE_ADDR"]):
            believe_proxy(req.env)

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: object, succeeded: bool) -> None:
        seconds = time.perf_counter() - req.context.started
        client, request_id = req.env["REMOTE_ADDR"], req.context.request_id
        route = req.uri_template or ""
        self._monitor.record(req.method, req.path, resp.status_code, seconds, request_id, client, route)


def methods(resource: object) -> list[str]:
    """Those that it answers, as 405 and OPTIONS list them."""
    return [*(name[3:].upper() for name in dir(resource) if name.startswith("on_")), "OPTIONS"]


class Gate:
    """Who may come in: first the rate limit, then, for writes, the API key. What has no cost is always open."""

    def __init__(self, settings: Settings, timer: Timer) -> None:
        rate, burst = settings.rate_limit, settings.rate_burst
        self._limiter = RateLimiter(rate, burst, timer) if rate else None
        self._api_key, self._writes_are_open = settings.api_key, settings.writes_are_open

    def process_resource(self, req: falcon.Request, resp: falcon.Response, resource: Any, params: object) -> None:
        if req.method not in falcon.COMBINED_METHODS:  # Falcon would say 400
            raise falcon.HTTPMethodNotAllowed(methods(resource))
        if req.method == "OPTIONS":  # Falcon would leave it out of those that it lists
            resp.set_header("Allow", ", ".join(methods(resource)))
            resp.complete = True
        cost = resource.costs.get(req.method, 0)
        if cost and self._limiter:
            self._charge(self._limiter, cost, req, resp)
        if cost and req.method == "PATCH":
            self._authenticate(req)

    def _charge(self, limiter: RateLimiter, cost: int, req: falcon.Request, resp: falcon.Response) -> None:
        grant = limiter.take(req.env["REMOTE_ADDR"], cost)
        limit = f'"default";r={grant.remaining};t={grant.reset}'
        resp.set_headers((("RateLimit-Policy", limiter.policy), ("RateLimit", limit)))
        if grant.retry_after:
            raise RateLimited(f"too many requests; try again in {grant.retry_after} s", grant.retry_after)

    def _authenticate(self, req: falcon.Request) -> None:
        if self._api_key:
            scheme, _, key = req.env.get("HTTP_AUTHORIZATION", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._api_key.encode()):
                raise Unauthenticated("a write needs the header Authorization: Bearer with the API key")
        elif not self._writes_are_open:
            raise WritesDisabled("writes are off: others can reach this server, and it was given no API_KEY")


# ---------------------------------------------------------------- resources


def answer(req: falcon.Request, resp: falcon.Response, found: Answer) -> None:
    """A cacheable read: 200, or 304 if the client has it. Raises NoSuchProduct."""
    resp.set_header("X-Cache", "HIT" if found.cached else "MISS")
    if found.representation is None:
        raise NoSuchProduct("there is no product with this id")
    write_unless_known(req, resp, found.representation)


def write_unless_known(req: falcon.Request, resp: falcon.Response, representation: Representation) -> None:
    write_representation(resp, representation)
    if is_not_modified(req.env.get("HTTP_IF_NONE_MATCH"), representation.etag):
        resp.status = 304


def write_representation(resp: falcon.Response, representation: Representation) -> None:
    resp.data = representation.body
    resp.set_header("ETag", representation.etag)
    if representation.link:
        resp.set_header("Link", representation.link)


def wants_fresh(req: falcon.Request) -> bool:
    directives = req.env.get("HTTP_CACHE_CONTROL")
    return directives is not None and "no-cache" in re.split(r"[ \t]*,[ \t]*", directives.strip().lower())


def read_change(req: falcon.Request) -> Change:
    """The change that a PATCH asks for. Raises UnsupportedBody, BodyTooLarge, BadInput or InvalidFields."""
    media_type, parameters = falcon.parse_header(req.content_type or "")
    charset, coding = parameters.get("charset", "utf-8"), req.env.get("HTTP_CONTENT_ENCODING", "identity")
    if (media_type.lower(), charset.lower(), coding.lower()) not in {
        (kind, "utf-8", "identity") for kind in MEDIA_TYPES
    }:
        raise UnsupportedBody(f"send {' or '.join(MEDIA_TYPES)} in UTF-8")
    if (req.content_length or 0) > MAX_BODY:
        raise BodyTooLarge(f"the body is over {MAX_BODY} bytes")
    return parse_change(parse_json_object(req.bounded_stream.read()))


class ProductResource:
    costs: ClassVar = {"GET": COST_PRODUCT, "HEAD": COST_PRODUCT, "PATCH": COST_PATCH}

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    def on_get(self, req: falcon.Request, resp: falcon.Response, id: str) -> None:
        product_id = parse_id(id)
        parse_query(req.query_string, allowed=())
        answer(req, resp, self._inventory.product(product_id, wants_fresh(req)))

    on_head = on_get

    def on_patch(self, req: falcon.Request, resp: falcon.Response, id: str) -> None:
        product_id = parse_id(id)
        parse_query(req.query_string, allowed=())
        versions = parse_if_match(req.env.get("HTTP_IF_MATCH"))
        write_representation(resp, self._inventory.update(product_id, read_change(req), versions))


class PageResource:
    """One of the two routes that give pages."""

    def __init__(self, inventory: Inventory, path: str, cost: int) -> None:
        self._inventory, self._path = inventory, path
        self.costs = {"GET": cost, "HEAD": cost}

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        query = parse_page(self._path, req.query_string)
        answer(req, resp, self._inventory.page(query, wants_fresh(req)))

    on_head = on_get


class DocumentResource:
    """A document about the service itself, made by `render` each time it is asked for."""

    costs: ClassVar[dict[str, int]] = {}

    def __init__(self, render: Callable[[], str], cache_control: str, media_type: str = falcon.MEDIA_JSON) -> None:
        self._render, self._cache_control, self._media_type = render, cache_control, media_type

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        parse_query(req.query_string, allowed=())
        resp.set_headers((("Cache-Control", self._cache_control), ("Content-Type", self._media_type)))
        resp.data = self._render().encode()

    on_head = on_get


INDEX = {
    "name": "inventory",
    "version": VERSION,
    "links": {
        "product": "/products/{id}",
        "products": f"/products{{?{','.join(PAGE_PARAMETERS)}}}",
        "search": f"/products/search{{?{','.join(SEARCH_PARAMETERS)}}}",
        "health": "/healthz",
        "readiness": "/readyz",
        "metrics": "/metrics",
        "openapi": "/openapi.json",
    },
}


def page_policy(page: str) -> str:
    """A Content-Security-Policy by which only the scripts and styles that stand in the page, known by hash, work.

    Nor may it load anything from another host, or make HTML of text (Trusted Types). The one image is its icon.
    """

    def hashes(element: str) -> str:
        texts = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


class FrontResource:
    """The index, or the page where the client would rather have HTML. The page's parameters are its script's affair."""

    costs: ClassVar[dict[str, int]] = {}

    def __init__(self, index: DocumentResource, page: str) -> None:
        self._index, self._policy = index, page_policy(page)
        body = page.encode()
        self._page = Representation(body, f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"')

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.set_header("Vary", "Accept")
        if req.client_prefers(("application/json", "text/html")) == "text/html":
            resp.set_header("Content-Security-Policy", self._policy)
            write_unless_known(req, resp, self._page)
            resp.content_type = falcon.MEDIA_HTML if resp.status_code == 200 else None  # a 304 has no content
        else:
            self._index.on_get(req, resp)

    on_head = on_get


# ---------------------------------------------------------------- app


class App(falcon.App[falcon.Request, falcon.Response]):
    _META_METHODS: ClassVar = frozenset()  # what Falcon would refuse before any middleware: WEBSOCKET


def create_app(
    settings: Settings, database: Database, monitor: Monitor | None = None, timer: Timer = time.monotonic
) -> App:
    """The WSGI app, with all that it is made of. The schema must be there."""
    monitor = monitor or Monitor()
    admission = Bulkhead(settings.threads - 1)
    cache = TTLCache(settings.cache_size, settings.cache_ttl, timer, database.has_news, database.news)
    inventory = Inventory(database, cache, admission)
    monitor.watch(lambda: {f"cache_{name}_total": count for name, count in cache.counts.items()})
    monitor.watch(lambda: {f"database_{name}_total": count for name, count in database.counts.items()})
    if database.listening is not None:
        monitor.watch(lambda: {"listener_up": int(database.listening or False)})

    def ready() -> str:
        if monitor.draining:
            raise Overloaded("the server is about to end")
        inventory.check()
        return json.dumps({"status": "ready"})

    app = App(middleware=[Conversation(monitor, settings.trusted_proxy), Gate(settings, timer)])
    index = DocumentResource(lambda: json.dumps(INDEX), CACHED)
    app.add_route("/", FrontResource(index, PAGE_FILE.read_text("utf-8")))
    app.add_route("/products", PageResource(inventory, "/products", COST_PAGE))
    app.add_route("/products/search", PageResource(inventory, "/products/search", COST_SEARCH))
    app.add_route("/products/{id}", ProductResource(inventory))
    app.add_route("/healthz", DocumentResource(lambda: json.dumps({"status": "up"}), "no-store"))
    app.add_route("/readyz", DocumentResource(ready, "no-store"))
    description = OPENAPI_FILE.read_text("utf-8")
    app.add_route("/openapi.json", DocumentResource(lambda: description, CACHED))
    app.add_route("/metrics", DocumentResource(monitor.text, "no-store", "text/plain; version=0.0.4; charset=utf-8"))
    app.add_error_handler(Exception, tell_bug)
    app.add_error_handler(falcon.HTTPError, tell_falcon_error)
    app.add_error_handler(InventoryError, tell_inventory_error)
    return app


# ---------------------------------------------------------------- server


class TooLate(waitress.utilities.Error):
    """A request that has not arrived whole in REQUEST_TIMEOUT."""

    code, reason = 408, "Request Timeout"


class Shed(waitress.utilities.Error):
    """A request whose turn came so late that nobody may wait for its answer any more."""

    code, reason = 503, "Service Unavailable"


class Refusal(waitress.task.ErrorTask):
    """What is refused before the app is asked, told like every other error."""

    def execute(self) -> None:
        channel, request = self.channel, self.request
        monitor, status = channel.server.monitor, HTTPStatus(request.error.code)
        method, path = getattr(request, "command", "-"), getattr(request, "path", "")
        request_id = monitor.request_id(request.headers.get("X_REQUEST_ID", ""))
        body = problem_json(status, one_line(request.error.body), path, request_id, {})
        self.status = f"{status.value} {status.phrase}"
        self.response_headers = [
            ("Content-Type", "application/problem+json"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Request-ID", request_id),
        ]
        self.content_length = len(body)
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.response_headers.append(("Retry-After", str(RETRY_AFTER)))
        else:
            channel.refused = True
        if channel.refused or channel.is_last():
            self.set_close_on_finish()
        monitor.record(method, path or "-", status, 0.0, request_id, channel.addr[0])
        self.write(b"" if method == "HEAD" else body)


HEADER_PARTS = {"Etag": "ETag", "Www": "WWW", "Ratelimit": "RateLimit", "Id": "ID"}


class Task(waitress.task.WSGITask):
    """A request that the app answers."""

    def execute(self) -> None:
        """Send what Falcon answers, one chunk, with its head. Waitress would check and sort Falcon's headers anew."""

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
            self.status, self.response_headers = status, headers

        body = b"".join(self.channel.server.application(self.get_environment(), start_response))
        self.channel.write_soon(self.head() + body)
        self.wrote_header = True

    def head(self) -> bytes:
        connection = self.request.headers.get("CONNECTION", "").lower()
        kept_alive = connection == "keep-alive" if self.version == "1.0" else connection != "close"
        self.close_on_finish = not kept_alive or self.channel.is_last()
        lines = [f"HTTP/{self.version} {self.status}"]
        lines += [f"{header_name(name)}: {value}" for name, value in self.response_headers]
        lines.append(f"Date: {http_date(int(self.start_time))}")
        if self.close_on_finish or self.version == "1.0":
            lines.append(f"Connection: {'close' if self.close_on_finish else 'keep-alive'}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


@functools.lru_cache(maxsize=1)
def http_date(seconds: int) -> str:
    return str(waitress.utilities.build_http_date(seconds))


@functools.cache
def header_name(name: str) -> str:
    """A header's name as its own document writes it; what comes from Falcon is in lower case."""
    return re.sub("Etag|Www|Ratelimit|Id$", lambda odd: HEADER_PARTS[odd[0]], name.title())


class Channel(waitress.channel.HTTPChannel):
    """A connection that knows for how long its requests arrive and wait.

    It reads on after a refusal: closed over unread bytes, it would be reset, and the refusal lost.
    """

    task_class = Task
    error_task_class = Refusal
    request: Any  # the one that is arriving
    began = math.inf  # when the request that is arriving did
    queued = math.inf  # when the request that waits for a thread did
    refused = False
    unread_left = 0  # bytes, once it lingers

    def received(self, data: bytes) -> bool:
        before = self.request
        result = super().received(data)
        if self.request is not before:
            self.began = time.monotonic()
        return bool(result)

    def writable(self) -> bool:
        """Not while a thread sends: the loop would find the socket ready and the lock taken, over and over again."""
        free = bool(super().writable()) and self.outbuf_lock.acquire(blocking=False)
        if free:
            self.outbuf_lock.release()
        return free

    def service(self) -> None:
        late = time.monotonic() - self.queued > QUEUE_TIMEOUT
        if late and not self.requests[0].error:  # that closes the connection: who knows where the next one begins
            self.requests[0].error = Shed("the server has more to do than it can; try again in a moment")
        super().service()

    def give_up(self) -> None:
        """Refuse the request that is still arriving."""
        with self.requests_lock:
            request, self.request = self.request, None
            request.error = TooLate(f"the request took longer than {REQUEST_TIMEOUT:g} s to arrive")
            self.requests.append(request)
            if len(self.requests) == 1:
                self.server.add_task(self)

    def is_last(self) -> bool:
        """Whether the request being answered is the last: the server drains, and no other has begun to arrive."""
        return self.server.monitor.draining and len(self.requests) == 1 and not (self.request or self.has_unread())

    def is_idle(self) -> bool:
        return not (self.requests or self.request or self.total_outbufs_len or self.unread_left or self.has_unread())

    def has_unread(self) -> bool:
        """Whether more came than was read: while a request is answered, nothing is."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except (OSError, AttributeError):  # nothing yet; or the client is gone, and the socket with it
            return False

    def handle_close(self) -> None:
        if self.refused and self.connected and self.socket:
            self.refused, self.will_close, self.close_when_flushed = False, False, False
            self.request = None  # what follows is thrown away, and cannot come too late
            with contextlib.suppress(OSError):  # it may have gone meanwhile
                self.socket.shutdown(socket.SHUT_WR)
                self.unread_left = MAX_UNREAD
                self.readable = lambda: True
                return
        super().handle_close()

    def handle_read(self) -> None:
        if not self.unread_left:
            super().handle_read()
        else:
            self.unread_left -= min(self.unread_left, len(self.recv(65536)))
            if not self.unread_left:
                self.handle_close()


def room_for_connections(threads: int) -> int:
    """How many may be open. Raises the limit of open files as far as they need it, and as it may be raised."""
    others = 50 + 5 * threads  # files that are no connection of a client
    soft, hard = (math.inf if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(resource.RLIMIT_NOFILE))
    files = min(MAX_CONNECTIONS + others, hard)
    if soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return max(10, int(files) - others)


class AccessLog:
    """Lines for stderr, appended by all threads and written by one: a write for each would cost more than an answer."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._written = -math.inf
        self.append = self._lines.append if sys.stderr and log.isEnabledFor(logging.INFO) else lambda line: None

    def flush(self, now: float) -> bool:
        """Write all lines, unless some were written less than LOG_PAUSE ago; whether none is left."""
        lines = self._lines[:] if now - self._written >= LOG_PAUSE else []
        if lines:
            self._written = now
            del self._lines[: len(lines)]  # threads go on appending
            with contextlib.suppress(OSError):  # that nobody reads them is no reason to refuse requests
                os.write(sys.stderr.fileno(), "".join(lines).encode())
        return not self._lines


class Server(waitress.server.TcpWSGIServer):
    """Waitress, which also gives up on what takes too long, and drains before it ends."""

    channel_class = Channel

    def __init__(
        self,
        app: App,
        listener: socket.socket,
        settings: Settings,
        monitor: Monitor,
        access_log: AccessLog | None = None,
    ) -> None:
        self.monitor, self._access_log = monitor, access_log or AccessLog()
        self._ends, self._alone, self._all_logged = math.inf, settings.processes == 1, True
        self._drain_timeout = settings.drain_timeout
        super().__init__(
            app,
            _sock=listener,
            sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
            bind_socket=False,
            threads=settings.threads,
            ident=None,
            clear_untrusted_proxy_headers=False,  # the app reads none but what it was told to believe
            max_request_body_size=MAX_WAITRESS_BODY,
            connection_limit=room_for_connections(settings.threads),
            cleanup_interval=1,  # seconds
            asyncore_use_poll=True,  # select() ends at 1,024 connections
        )
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a line for every request that waits is no help
        dispatcher = self.task_dispatcher
        monitor.watch(lambda: {"queue_depth": len(dispatcher.queue), "in_flight": dispatcher.active_count})

    def handle_accept(self) -> None:
        """Accept the more at a time the more there are: each turn of the loop looks at all of them."""
        known = len(self._map)
        for _ in range(min(1 + known // 20, self.adj.connection_limit - known)):
            super().handle_accept()
            if len(self._map) == known:  # nobody waits, or another process was quicker
                break
            known = len(self._map)

    def add_task(self, channel: Channel) -> None:
        channel.queued = time.monotonic()
        super().add_task(channel)

    def maintenance(self, now: float) -> None:
        super().maintenance(now)
        for channel in list(self.active_channels.values()):
            if channel.request is not None and time.monotonic() - channel.began > REQUEST_TIMEOUT:
                channel.give_up()
            takes_nothing = channel.total_outbufs_len and now - channel.last_activity > REQUEST_TIMEOUT
            if channel.will_close or takes_nothing:
                channel.handle_close()  # at once: waitress would wait until it can be written to

    def stop(self, *signal_and_frame: object) -> None:
        """Drain, and end then; asked once more, end at once.

        One of many processes only drains: who tells all at once that they should end tells its parent too, which
        tells it again, and which ends it by force.
        """
        if not self.monitor.draining:
            self._ends = time.monotonic() + self._drain_timeout
        elif self._alone:
            self._access_log.flush(math.inf)
            os._exit(0)  # to tidy up would wait for what the threads are at
        self.monitor.draining = True
        self.pull_trigger()

    def run(self) -> None:
        """Serve until it is told to stop, and then until what was accepted is answered."""
        while not self.monitor.draining:
            self._turn(1.0)
        self._accept_the_rest()
        cut_idle = min(self._ends, time.monotonic() + IDLE_GRACE)
        while self.active_channels and time.monotonic() < self._ends + QUERY_DEADLINE + 1:
            self._turn(0.05)
            self.maintenance(time.time())
            for channel in list(self.active_channels.values()):
                expires = cut_idle if channel.is_idle() else self._ends
                if not channel.requests and time.monotonic() > expires:
                    channel.handle_close()
        self.task_dispatcher.shutdown(timeout=1)
        self._access_log.flush(math.inf)

    def _turn(self, timeout: float) -> None:
        """Wait for sockets and serve them, and write what is to be logged of it. Every answer ends such a wait."""
        self.asyncore.loop(timeout if self._all_logged else LOG_PAUSE, use_poll=True, map=self._map, count=1)
        self._all_logged = self._access_log.flush(time.monotonic())

    def _accept_the_rest(self) -> None:
        """Take all connections that the kernel has accepted already, and listen no more."""
        waiting = select.poll()
        waiting.register(self.socket, select.POLLIN)
        for _ in range(self.adj.backlog + 1):  # what cannot be taken must not keep the server from its end
            if not waiting.poll(0) or len(self._map) >= self.adj.connection_limit:
                break
            self.handle_accept()
        self.asyncore.dispatcher.close(self)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError naming the address."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from error


def announce(settings: Settings, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"{without_password(settings.database_url)} at {url}\ntry: curl {url}/products/7", flush=True)


def serve(settings: Settings, database: Database, listener: socket.socket, process: int = 1) -> None:
    """Serve in this process until SIGTERM or Ctrl-C."""
    access_log = AccessLog()
    monitor = Monitor(access_log.append, process)
    server = Server(create_app(settings, database, monitor), listener, settings, monitor, access_log)
    if settings.cache_sync == "notify":
        database.listen()
    signal.signal(signal.SIGTERM, server.stop)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, server.stop)
    if settings.processes == 1:
        announce(settings, listener)
    server.run()
    database.close()


# ---------------------------------------------------------------- processes

ENDINGS = {signal.SIGTERM, signal.SIGINT}
SIGNALS = {*ENDINGS, signal.SIGCHLD}


def supervise(settings: Settings, database: Database, listener: socket.socket) -> None:
    """Serve in many processes, each begun anew when it dies, until SIGTERM or Ctrl-C; then have them drain.

    They share the listening socket. No thread and no connection is there to cross a fork.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it came ignored, no death would be told
    signal.pthread_sigmask(signal.SIG_BLOCK, {n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN})
    pipe = os.pipe()
    running: dict[int, int] = {}  # process id: number
    missing = set(range(1, settings.processes + 1))
    announce(settings, listener)
    while missing or signal.sigwait(SIGNALS) == signal.SIGCHLD:
        for number in missing:
            running[fork(functools.partial(serve, settings, database, listener, number), pipe)] = number
        missing = reap(running)
        if missing:
            log.error("process %s died, another one follows", ", ".join(map(str, missing)))
            if signal.sigtimedwait(ENDINGS, RESTART_PAUSE):
                break
    listener.close()
    end(running, settings.drain_timeout + QUERY_DEADLINE + 3)


def fork(work: Callable[[], None], pipe: tuple[int, int]) -> int:
    """The id of a new process that does `work`. It ends with its parent: only that holds the pipe open to write."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.close(pipe[1])
        threading.Thread(target=follow_parent, args=pipe[:1], daemon=True).start()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all, and the parent acts on it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        work()
        code = 0
    except Exception:
        log.exception("a process failed")
    finally:
        os._exit(code)


def follow_parent(pipe: int) -> None:
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def reap(running: dict[int, int]) -> set[int]:
    """The numbers of the processes that have ended, which are running no more."""
    ended = set()
    while running and (pid := os.waitpid(-1, os.WNOHANG)[0]):
        if pid in running:  # the first process of a container also inherits other programs' orphans
            ended.add(running.pop(pid))
    return ended


def end(running: dict[int, int], patience: float) -> None:
    """Have processes end, by force after `patience` seconds or when asked once more."""
    expires = time.monotonic() + patience
    order = signal.SIGTERM
    while running:
        for pid in running:
            os.kill(pid, order)
        reported = signal.sigtimedwait(SIGNALS, max(0.0, expires - time.monotonic()))
        if reported is None or reported.si_signo != signal.SIGCHLD:
            order = signal.SIGKILL
        reap(running)


# ---------------------------------------------------------------- command line


def load(database: Database, path: str) -> None:
    """Load a CSV file in one transaction, and tell how many products it brought and how fast."""
    started = time.perf_counter()
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        count = database.write(lambda execute: merge(database, execute, read_products(file)))
    database.read(lambda execute: execute(database.after_load))
    seconds = time.perf_counter() - started
    print(f"loaded {count} products in {seconds:.1f} s, {count / seconds:.0f} a second")


def check_health(settings: Settings) -> None:
    """Ask the server at these settings' address whether it is up. Raises OSError where it does not say so."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    try:
        with contextlib.closing(HTTPConnection(host, settings.port, timeout=HEALTH_TIMEOUT)) as connection:
            connection.request("GET", "/healthz")
            status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        raise OSError(f"no answer from {host} port {settings.port}: {error}") from error
    if status != HTTPStatus.OK:
        raise OSError(f"{host} port {settings.port} answers {status}")


def run(settings: Settings) -> None:
    """Load, serve, or ask a server that does. Raises BadSchema, BadLine or OSError."""
    if settings.check_health:
        return check_health(settings)
    database = open_database(settings.database_url, math.inf if settings.load else QUERY_DEADLINE)
    try:
        make_schema(database, with_samples=not settings.database_named and not settings.load)
        if settings.load:
            load(database, settings.load)
        else:
            listener = listen(settings.host, settings.port)
            (serve if settings.processes == 1 else supervise)(settings, database, listener)
    except (DatabaseUnavailable, sqlite3.Error, psycopg.Error) as error:
        url = without_password(settings.database_url)
        raise OSError(f"the database {url} cannot be used: {one_line(error.__cause__ or error)}") from error
    finally:
        database.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code: 0 done, 1 a database or file that will not do, 2 a bad setting."""
    try:
        settings = read_settings(sys.argv[1:] if argv is None else argv, os.environ)
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
        run(settings)
    except (BadSetting, BadSchema, BadLine, OSError) as error:
        print(f"inventory_api.py: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, BadSetting) else 1
    except KeyboardInterrupt:  # waitress takes it while it serves
        print("inventory_api.py: interrupted, nothing was loaded", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
