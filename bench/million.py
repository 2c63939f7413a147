"""A million products whose names are of Zipf's words, in SQLite and in PostgreSQL: what the benches here measure on.

Made once for each db.sql and kept in a folder: `products.csv`, `products.db`, and the data of a PostgreSQL server that
runs only while it is measured. Some words are planted, so that there is one for every share of rows.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psycopg

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.conftest import WHY_NOT, PostgresServer, server_programs  # noqa: E402

ROWS = 1_000_000
VOCABULARY = 20_000
ONSETS = [*"bcdfghjklmnprstvwz", "br", "cl", "dr", "fl", "gr", "pl", "pr", "sh", "sp", "st", "th", "tr"]
VOWELS = [*"aaaeeeeiiioou", "ai", "ea", "oo"]
CODAS = ["", "", "", *"lmnrstd", "ck", "ng", "nt", "rd", "st"]
TEN, ONE, NONE, LATE = "zephyr", "wyvern", "xylophone", "yonder"  # in ten names, in one, in none, in the last 1 %


class Place(NamedTuple):
    """A database to measure on, and the process of its server, or 0."""

    url: str
    pid: int = 0


class DurableServer(PostgresServer):
    """A server that has on the disk what it says it has written, and keeps it when it stops."""

    def start(self) -> None:
        (Path(self.data) / "postmaster.pid").unlink(missing_ok=True)  # of a run that was killed
        options = f"-c listen_addresses='' -k {self.folder}/sockets -c shared_buffers=512MB -c max_wal_size=4GB"
        self._control("start", "--log", f"{self.data}/log", "--options", options)

    def stop(self) -> None:
        self._control("stop", "--mode", "fast")

    @property
    def pid(self) -> int:
        return int((Path(self.data) / "postmaster.pid").read_text().split()[0])


def names(rows: int = ROWS) -> Iterator[str]:
    """The names, in the order of their ids: the same in every run."""
    lottery = random.Random(5)

    def word() -> str:
        return "".join(map(lottery.choice, (ONSETS, VOWELS, CODAS) * lottery.choice((1, 2, 2, 3))))

    words = list(dict.fromkeys(word() for _ in range(2 * VOCABULARY)))[:VOCABULARY]
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    for row in range(rows):
        name = lottery.choices(words, cum_weights=weights, k=lottery.choice((2, 3, 4, 5)))
        if row % (rows // 10) == rows // 20:
            name.append(TEN)
        if row == rows * 3 // 4:
            name.append(ONE)
        if row >= rows * 99 // 100:
            name.append(LATE)
        yield " ".join(name).capitalize()


def prices(rows: int = ROWS) -> Iterator[int]:
    """The prices in cents, in the order of the ids: 12 % are one and the same."""
    lottery = random.Random(6)
    return (1999 if lottery.random() < 0.12 else lottery.randint(1, 200_000) for _ in range(rows))


def words_by_share(some_names: list[str]) -> dict[str, str]:
    """A word for each share of the names, in lower case."""
    counts = Counter(word for name in some_names for word in set(name.lower().split()))

    def word_in(share: float) -> str:
        return min(counts, key=lambda word: abs(counts[word] / len(some_names) - share))

    common = {name: word_in(share) for name, share in (("30%", 0.3), ("1%", 0.01), ("0.1%", 0.001))}
    return {**common, "ten": TEN, "one": ONE, "none": NONE}


def folder_in(work: str) -> Path:
    """The folder for databases of this very schema, and of these products."""
    made_of = (ROOT / "db.sql").read_text() + "".join(names(100)) + str(sum(prices(100)))
    schema = hashlib.sha256(made_of.encode()).hexdigest()
    folder = Path(work).resolve() / f"million-{schema[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load(folder: Path, url: str) -> None:
    """Load the products as a user would."""
    path = folder / "products.csv"
    if not path.exists():
        with path.with_suffix(".part").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("id", "name", "price", "stock_level"))
            for id, (name, cents) in enumerate(zip(names(), prices(), strict=True), start=1):
                rows.writerow((id, name, f"{cents // 100}.{cents % 100:02}", id * 31 % 250))
        path.with_suffix(".part").rename(path)
    command = [sys.executable, str(ROOT / "inventory_api.py"), "--database-url", url, "--load", str(path)]
    print(f"{urlsplit(url).scheme}: ", end="", file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr)


@contextmanager
def sqlite(folder: Path) -> Iterator[Place]:
    """The products in a file."""
    path, part = folder / "products.db", folder / "part.db"
    if not path.exists():
        part.unlink(missing_ok=True)
        load(folder, f"sqlite:///{part}")
        part.rename(path)
    yield Place(f"sqlite:///{path}")


@contextmanager
def postgresql(folder: Path, url: str = "") -> Iterator[Place]:
    """The products in a server of our own, or in the database given, where they are loaded if it has no table."""
    if url:
        with psycopg.connect(url) as connection:
            (present,) = connection.execute("SELECT to_regclass('products') IS NOT NULL").fetchone() or (False,)
        if not present:
            load(folder, url)
        yield Place(url)
        return
    programs = server_programs()
    if programs is None:
        raise SystemExit(WHY_NOT.split(":")[0])
    home = folder / "postgresql"
    home.mkdir(exist_ok=True)
    server = DurableServer(programs, str(home))
    if not os.path.exists(server.data):
        server.make()
    server.start()
    try:
        with psycopg.connect(server.url, autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'million'").fetchone():
                connection.execute("DROP DATABASE IF EXISTS part")
                connection.execute("CREATE DATABASE part")
                load(folder, urlsplit(server.url)._replace(path="/part").geturl())
                connection.execute("ALTER DATABASE part RENAME TO million")
        yield Place(urlsplit(server.url)._replace(path="/million").geturl(), server.pid)
    finally:
        server.stop()
