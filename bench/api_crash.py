"""kill -9 at a random moment while clients write, again and again: is every acknowledged write there, once?

python bench/api_crash.py [--engine sqlite|postgresql] [--kills 50]

Each client sells pieces of its own product. Two of three times the server is killed; on PostgreSQL every other of these
also crashes the database's server. Every third time a bulk load is killed, of which all or nothing may be there.
It exits with 1 if anything is lost, made twice or inconsistent.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.coherence import Client, Execute, connect, serving  # noqa: E402
from tests.conftest import PostgresServer, new_server  # noqa: E402

CLIENTS = 6
STOCK = 1_000_000
LOADED = 5_000  # rows
CHECKS = (
    "PRAGMA integrity_check",
    "INSERT INTO products_trigrams (products_trigrams, rank) VALUES ('integrity-check', 1)",
)


@dataclass
class Database:
    """One to write to and to look at, and its server if it has one that can crash."""

    url: str
    folder: Path
    server: PostgresServer | None = None


@contextlib.contextmanager
def new_database(engine: str) -> Iterator[Database]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if engine == "sqlite":
            yield Database(f"sqlite:///{folder}/inventory.db", Path(folder))
        else:
            server = stack.enter_context(new_server())
            yield Database(server.url, Path(folder), server)


@dataclass
class Outcome:
    """What was acknowledged, and what was found to be wrong afterwards."""

    version: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(1, CLIENTS + 1), 1))  # of each product
    kills: int = 0
    acknowledged: int = 0
    unconfirmed: int = 0  # writes that were made, and not answered before the kill
    loads: int = 0  # that were killed before they were done
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = f"{self.kills} kills, {self.acknowledged} acknowledged writes, {self.unconfirmed} made but not answered"
        return "\n".join([f"{told}, {self.loads} loads cut off, {len(self.wrong)} wrong", *self.wrong])


def sell(base: str, id: int, outcome: Outcome, lock: threading.Lock) -> None:
    """Sell one piece after the other until the server is gone."""
    with contextlib.suppress(OSError, http.client.HTTPException), Client(base) as client:
        while "version" in (product := client.ask("PATCH", f"/products/{id}", '{"stock_delta": -1}')):
            with lock:
                outcome.version[id] = product["version"]
                outcome.acknowledged += 1


def kill_server(database: Database, outcome: Outcome, crash: bool) -> None:
    lock = threading.Lock()
    with serving(database.url, 1) as (base, process), ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(sell, base, id, outcome, lock) for id in outcome.version]
        time.sleep(random.uniform(0.05, 0.5))
        if crash and database.server:
            database.server.crash()
        process.kill()
        for client in clients:
            client.result()
    if crash and database.server:
        database.server.start()


def kill_load(database: Database, outcome: Outcome) -> None:
    """Kill a bulk load that renames what the one before brought."""
    file = database.folder / "products.csv"
    lines = (f"{id},Oak {random.random()} {id},1.00,{outcome.kills}\n" for id in range(1_001, 1_001 + LOADED))
    file.write_text("id,name,price,stock_level\n" + "".join(lines))
    line = [sys.executable, str(ROOT / "inventory_api.py"), "--database-url", database.url, "--load", str(file)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0.4, 1.0))
        process.kill()
    outcome.loads += process.returncode != 0


def look(database: Database, outcome: Outcome) -> None:
    """Compare what is there with what was acknowledged."""
    with connect(database.url) as execute:
        if database.server is None:
            for check in CHECKS:
                if (found := execute(check)) not in ([], [("ok",)]):
                    outcome.wrong.append(f"{check}: {found}")
        for id, version, stock in execute(f"SELECT id, version, stock_level FROM products WHERE id <= {CLIENTS}"):
            if version - outcome.version[id] not in (0, 1):
                outcome.wrong.append(f"product {id} is at version {version}, not {outcome.version[id]}")
            if stock != STOCK - (version - 1):
                outcome.wrong.append(f"product {id} at version {version} has {stock} pieces left")
            outcome.unconfirmed += version - outcome.version[id]
            outcome.version[id] = version
        loaded = execute("SELECT count(*), count(DISTINCT stock_level) FROM products WHERE id > 1000")
        if loaded not in ([(0, 0)], [(LOADED, 1)]):
            outcome.wrong.append(f"a part of a load is there: {loaded}")


def fill(execute: Execute) -> None:
    for id in range(1, CLIENTS + 1):
        execute(f"INSERT INTO products (name, price_cents, stock_level) VALUES ('Oak {id}', {id}, {STOCK})")


def run(database: Database, kills: int) -> Outcome:
    outcome = Outcome()
    with serving(database.url, 1), connect(database.url) as execute:  # makes the schema
        fill(execute)
    for number in range(kills):
        if number % 3 == 2:
            kill_load(database, outcome)
        else:
            kill_server(database, outcome, crash=number % 3 == 1)
        outcome.kills += 1
        look(database, outcome)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description="Is an acknowledged write there after a kill -9?")
    parser.add_argument("--engine", choices=["sqlite", "postgresql"], help="only this one")
    parser.add_argument("--kills", type=int, default=50)
    options = parser.parse_args()
    wrong = 0
    for engine in ("sqlite", "postgresql"):
        if options.engine in (None, engine):
            with new_database(engine) as database:
                outcome = run(database, options.kills)
            print(f"{engine}: {outcome}", flush=True)
            wrong += len(outcome.wrong)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
