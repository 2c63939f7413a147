"""A throwaway PostgreSQL for the tests that need one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

WHY_NOT = "no PostgreSQL server programs on this machine: HALF OF THE TESTS ARE SKIPPED"


def pytest_configure() -> None:
    """Have Ctrl-C heard by the programs that tests start: a shell's job in the background would ignore it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def server_programs() -> Path | None:
    """The folder of initdb and postgres, the newest version first."""
    on_path = shutil.which("initdb")
    folders = sorted(glob("/usr/lib/postgresql/*/bin"), key=lambda folder: int(folder.split("/")[4]), reverse=True)
    return Path(folders[0]) if folders else Path(on_path).parent if on_path else None


def as_ordinary_user(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    return (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command] if os.getuid() == 0 else command
    )


@dataclass
class PostgresServer:
    """A server of our own in a folder, on a socket there; its collation is a natural language's, not "C"."""

    programs: Path
    folder: str

    @property
    def data(self) -> str:
        return f"{self.folder}/data"

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}/sockets"

    def make(self) -> None:
        os.chmod(self.folder, 0o755)
        for made in (self.data, f"{self.folder}/sockets"):
            os.mkdir(made, 0o700)
            if os.getuid() == 0:
                shutil.chown(made, "postgres", "postgres")
        locale = ["--encoding=UTF8", "--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8"]
        access = ["--username=postgres", "--auth=trust", "--no-sync"]
        initdb = [str(self.programs / "initdb"), "--pgdata", self.data, *access, *locale]
        subprocess.run(as_ordinary_user(initdb), check=True, capture_output=True, cwd="/")

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self.folder}/sockets -c max_connections=200 -c fsync=off"
        self._control("start", "--log", f"{self.data}/log", "--options", f"{options} -c full_page_writes=off")

    def crash(self) -> None:
        """End it at once: what was not yet written is lost."""
        self._control("stop", "--mode", "immediate")

    def _control(self, *command: str) -> None:
        control = [str(self.programs / "pg_ctl"), "--pgdata", self.data, "--wait", "--silent", *command]
        subprocess.run(as_ordinary_user(control), check=True, cwd="/")


@contextmanager
def new_server() -> Iterator[PostgresServer]:
    """A running server in a temporary folder; the test is skipped, or fails, where its programs are missing."""
    programs = server_programs()
    if programs is None:
        if os.environ.get("REQUIRE_POSTGRES"):
            pytest.fail(WHY_NOT)
        pytest.skip(WHY_NOT)
    with tempfile.TemporaryDirectory(prefix="inventory-pg-", dir="/tmp") as folder:
        server = PostgresServer(programs, folder)
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.crash()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server's maintenance database: TEST_DATABASE_URL, or a server of our own."""
    if "TEST_DATABASE_URL" in os.environ:
        yield os.environ["TEST_DATABASE_URL"]
        return
    with new_server() as server:
        yield server.url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of a fresh, empty database."""
    with new_database(postgres_server) as url:
        yield url


@contextmanager
def new_database(server_url: str, template: str = "template1") -> Iterator[str]:
    """A database of its own on a server, dropped afterwards."""
    name = f"test_{os.urandom(6).hex()}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        yield urlsplit(server_url)._replace(path="/" + name).geturl()
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
