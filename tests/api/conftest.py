"""The real app over a real database, once on each engine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import falcon.testing
import pytest

from inventory_api import Database, Monitor, Settings, create_app, make_schema, merge, open_database, read_products
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
        self.settings = Settings(**{"rate_limit": 0.0, **changes})
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
        process.communicate(timeout=20)


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real program to its end in an empty folder."""

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(PROGRAM), *arguments],
            cwd=tmp_path, env={"PATH": os.environ["PATH"], **env}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run
