"""A throwaway PostgreSQL for the tests that need one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

WHY_NOT = "no PostgreSQL server programs on this machine: HALF OF THE TESTS ARE SKIPPED"


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


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server's maintenance database: TEST_DATABASE_URL, or a server of our own in a temporary folder.

    Its collation is a natural language's, so that a forgotten COLLATE "C" shows.
    """
    if "TEST_DATABASE_URL" in os.environ:
        yield os.environ["TEST_DATABASE_URL"]
        return
    programs = server_programs()
    if programs is None:
        if os.environ.get("REQUIRE_POSTGRES"):
            pytest.fail(WHY_NOT)
        pytest.skip(WHY_NOT)
    with tempfile.TemporaryDirectory(prefix="inventory-pg-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        data, sockets = f"{folder}/data", f"{folder}/sockets"
        for made in (data, sockets):
            os.mkdir(made, 0o700)
            if os.getuid() == 0:
                shutil.chown(made, "postgres", "postgres")
        locale = ["--encoding=UTF8", "--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8"]
        initdb = [
            str(programs / "initdb"),
            "--pgdata",
            data,
            "--username=postgres",
            "--auth=trust",
            "--no-sync",
            *locale,
        ]
        subprocess.run(as_ordinary_user(initdb), check=True, capture_output=True, cwd="/")
        options = f"-c listen_addresses='' -k {sockets} -c max_connections=200 -c fsync=off -c full_page_writes=off"
        control = [str(programs / "pg_ctl"), "--pgdata", data, "--wait", "--silent"]
        start = [*control, "start", "--log", f"{data}/log", "--options", options]
        subprocess.run(as_ordinary_user(start), check=True, cwd="/")
        try:
            yield f"postgresql://postgres@/postgres?host={sockets}"
        finally:
            subprocess.run(as_ordinary_user([*control, "stop", "--mode", "immediate"]), check=True, cwd="/")


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
