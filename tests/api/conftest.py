"""The real app over a real database, once on each engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import falcon.testing
import pytest

from inventory_api import (
    Database,
    Monitor,
    Server,
    Settings,
    create_app,
    listen,
    make_schema,
    merge,
    open_database,
    read_products,
)
from tests.conftest import new_database

PROGRAM = Path(__file__).parents[2] / "inventory_api.py"


@dataclass
class FakeClock:
    """A timer that moves only when it is told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Service:
    """The app, its database, its clock and its log, as a test drives them."""

    url: str
    database: Database
    clock: FakeClock
    lines: list[str] = field(default_factory=list)
    address: str = "127.0.0.1"  # the client's
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self, **changes: Any) -> None:
        """Begin anew with these settings, nothing cached and every bucket full. Unless asked for, there is no limit."""
        self.settings = Settings(**{"rate_limit": 0.0, "threads": 100, **changes})  # no test starts as many
        app = create_app(self.settings, self.database, Monitor(self.lines.append), self.clock)
        self.client = falcon.testing.TestClient(app)

    def get(self, path: str, query: str = "", **headers: str) -> falcon.testing.Result:
        return self.request("GET", path, query, **headers)

    def request(
        self, method: str, path: str, query: str = "", body: str | bytes | None = None, **headers: str
    ) -> falcon.testing.Result:
        """A request with the query string as it stands; header names with _ for -."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.simulate_request(
            method, path, query_string=query, body=body, headers=sent, remote_addr=self.address
        )

    def patch(self, product_id: int | str, body: str | bytes, **headers: str) -> falcon.testing.Result:
        return self.request(
            "PATCH", f"/products/{product_id}", body=body, **{"Content_Type": "application/json", **headers}
        )

    def execute(self, sql: str, **parameters: Any) -> list[Any]:
        """Plain SQL on a connection of its own, committed, as another program would do it."""
        other = open_database(self.url)
        try:
            return other.write(lambda execute: execute(sql, **parameters))
        finally:
            other.close()

    def add(self, *products: tuple[str, str, int]) -> None:
        """Products (name, price, stock), the way --load brings them in; ids follow the last one."""
        self.load("name,price,stock_level", (f"{quoted(name)},{price},{stock}" for name, price, stock in products))

    def load(self, header: str, lines: Iterable[str]) -> int:
        rows = read_products([f"{line}\n" for line in (header, *lines)])
        return self.database.write(lambda execute: merge(self.database, execute, rows))


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema and no rows."""
    path = tmp_path_factory.mktemp("template") / "inventory.db"
    database = open_database(f"sqlite:///{path}")
    make_schema(database, with_samples=False)
    database.close()
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> Iterator[str]:
    """The name of a PostgreSQL database with the schema and no rows."""
    with new_database(postgres_server) as url:
        database = open_database(url)
        make_schema(database, with_samples=False)
        database.close()
        yield urlsplit(url).path[1:]


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# For what no database can change: once is enough.
one_engine = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)


@pytest.fixture
def empty_url(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with nothing in it."""
    return f"sqlite:///{tmp_path}/empty.db" if engine == "sqlite" else str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def url(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh database with the schema and no rows."""
    if engine == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "inventory.db")
        yield f"sqlite:///{tmp_path}/inventory.db"
    else:
        server, template = request.getfixturevalue("postgres_server"), request.getfixturevalue("postgres_template")
        with new_database(server, template) as fresh:
            yield fresh


@pytest.fixture
def service(url: str) -> Iterator[Service]:
    """The service on a fresh database without products, its rate limit off."""
    database = open_database(url)
    yield Service(url, database, FakeClock())
    database.close()


@pytest.fixture
def desks(service: Service) -> Service:
    """The service with three products, ids 1 to 3."""
    service.add(("Oak desk", "129.90", 12), ("Pine desk", "80", 0), ("Café table", "12.50", 2147483647))
    return service


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    if os.getuid() != 0:
        pytest.skip("mounting a small file system takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@contextmanager
def running(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None, stop: int = signal.SIGTERM
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The real program on a free port: its base URL and its process; stopped afterwards, by its id."""
    environ = {"PATH": os.environ["PATH"], "PORT": "0", **(env or {})}
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        cwd=cwd, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        if " at " not in first:
            raise AssertionError(f"it did not start: {first}{process.communicate()}")
        yield first.rsplit(" at ", 1)[1].strip(), process
    finally:
        process.send_signal(stop)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real program to its end in an empty folder."""

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(PROGRAM), *arguments],
            cwd=tmp_path, env={"PATH": os.environ["PATH"], **env}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run


@contextmanager
def serving(service: Service, start: bool = True, **changes: Any) -> Iterator[Server]:
    """The service's app on the real server, in threads of this process; drained afterwards."""
    settings = Settings(**{"rate_limit": 0.0, "drain_timeout": 5.0, **changes})
    monitor = Monitor(service.lines.append)
    app = create_app(settings, service.database, monitor, service.clock)
    server = Server(app, listen("127.0.0.1", 0), settings, monitor)
    server.thread = threading.Thread(target=server.run, daemon=True)
    try:
        if start:
            server.thread.start()
        yield server
    finally:
        if not server.monitor.draining:
            server.stop()
        if server.thread.ident:
            server.thread.join(20)
        for channel in list(server.active_channels.values()):
            channel.close()
        server.close()


@dataclass
class Reply:
    """One answer, its header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A connection to a server (or the URL of one), on which a test sends bytes and reads answers."""

    def __init__(self, server: Server | str, receive_buffer: int = 0) -> None:
        port = urlsplit(server).port or 80 if isinstance(server, str) else int(server.effective_port)
        self.socket = socket.socket()
        self.socket.settimeout(10)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, *parts: str) -> None:
        self.socket.sendall("".join(parts).encode())

    def get(self, path: str, *headers: str, method: str = "GET") -> Reply:
        self.send(request(path, *headers, method=method))
        reply = self.reply(method)
        assert reply
        return reply

    def reply(self, method: str = "GET") -> Reply | None:
        """The next answer; None if the connection was closed instead."""
        try:
            status_line = self._file.readline()
            if not status_line:
                return None
            lines = iter(lambda: self._file.readline().decode().strip(), "")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            status = int(status_line.split()[1])
            bodiless = method == "HEAD" or status in (100, 204, 304)
            body = b"" if bodiless else self._file.read(int(headers["content-length"]))
            return Reply(status, headers, body)
        except ConnectionResetError:
            return None


def request(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> str:
    return "\r\n".join((f"{method} {path} HTTP/{version}", "Host: localhost", *headers, "", ""))


class Stuck:
    """A database whose reads wait until they are let go."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting, self._go = 0, threading.Event()  # how many began to wait; what they wait for
        read = service.database.read

        def wait(work: Any) -> Any:
            if not self._go.is_set():
                self.waiting += 1
            assert self._go.wait(20)
            return read(work)

        monkeypatch.setattr(service.database, "read", wait)

    def let_go(self) -> None:
        self._go.set()

    def hold(self) -> None:
        self._go.clear()


@pytest.fixture
def stuck(desks: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    held = Stuck(desks, monkeypatch)
    yield held
    held.let_go()


def until(true: Callable[[], Any], seconds: float = 10.0) -> Any:
    """What `true` returns once it is true; the test fails if that takes longer than so many seconds."""
    expires = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < expires, "it did not come true"
        time.sleep(0.005)
    return found
