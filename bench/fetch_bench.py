"""How fast fetch_ads.py is, each figure as a ratio to its ideal or to its yardstick in the same run.

python bench/fetch_bench.py             all but the comparison
python bench/fetch_bench.py --compare   also pandas in a thread pool and dlt, installed for it elsewhere
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime as dt
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import textwrap
import time
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import fetch_ads  # noqa: E402

DAYS, LATENCY, WORKERS, ROWS = 731, 0.05, 16, 200
RANGE = ("2023-01-01", "2024-12-31")
LIMITS, BURST = (10, 20, 50), 5
SOURCE = f"""
import threading, time
import fetch_ads
TEMPLATE = [{{"campaign.id": n, "campaign.name": f"Campaign {{n}}", "device": "MOBILE", "clicks": n * 7,
             "impressions": n * 99, "cost": n * 0.37}} for n in range({ROWS})]
def fetch_data(day):
    time.sleep({LATENCY})
    return TEMPLATE

class Bucket:
    lock, tokens, then, refused, calls = threading.Lock(), {BURST}, time.monotonic(), 0, 0
def limited(day):
    rate = float(open("rate").read())
    with Bucket.lock:
        now = time.monotonic()
        Bucket.tokens = min({BURST}, Bucket.tokens + (now - Bucket.then) * rate)
        Bucket.then = now
        if Bucket.tokens < 1:
            raise fetch_ads.RateLimitError((1 - Bucket.tokens) / rate)
        Bucket.tokens -= 1
    time.sleep({LATENCY})
    return [{{"clicks": 1, "cost": 2}}]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true")
    compare_too = parser.parse_args().compare
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        Path("source.py").write_text(SOURCE)
        latency()
        rerun()
        writing()
        aggregating()
        memory()
        for rate in LIMITS:
            rate_limit(rate)
        if compare_too:
            compare()


def show(what: str, seconds: float, ideal: float, name: str, most: float | None = None) -> None:
    bound = f" (at most {most})" if most else ""
    print(f"{what:<44} {seconds:8.3f} s   {name} {ideal:8.3f} s   ratio {seconds / ideal:5.2f}{bound}", flush=True)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def run(*words: str, function: str = "fetch_data") -> dict[str, Any]:
    """A run as a user starts it; its summary."""
    line = [sys.executable, str(ROOT / "fetch_ads.py"), *RANGE, *words, "--json", "--fetcher", f"source.py:{function}"]
    told: dict[str, Any] = json.loads(subprocess.run(line, stdout=subprocess.PIPE, check=True).stdout)
    return told


def latency() -> None:
    """731 days through a real pool, held against the ideal, and against bare pools with and without the disk's part."""
    ideal = math.ceil(DAYS / WORKERS) * LATENCY
    whole, told = timed(lambda: run("data", "--workers", str(WORKERS)))
    with ThreadPoolExecutor(WORKERS) as pool:
        bare, _ = timed(lambda: list(pool.map(lambda day: time.sleep(LATENCY), range(DAYS))))
        kept, _ = timed(
            lambda: list(pool.map(keep, range(DAYS), [Path("data/days/2024-01-01.csv").read_bytes()] * DAYS))
        )
    show("731 days, 50 ms, 16 workers, 200 rows", told["wall_seconds"], ideal, "ideal", 1.10)
    show("  with the start of the interpreter", whole, ideal, "ideal")
    show("  held against a bare pool", told["wall_seconds"], bare, "bare pool")
    show("  held against a pool that keeps ready bytes", told["wall_seconds"], kept, "that pool")


def keep(number: int, data: bytes) -> None:
    """What any call must do that keeps a day whole: write its file aside, flush it, rename it."""
    time.sleep(LATENCY)
    with open(f".{number}.tmp", "wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
    os.replace(f".{number}.tmp", f"kept-{number}.csv")


def rerun() -> None:
    best = min(timed(lambda: run("data"))[0] for _ in range(5))
    start = min(timed(lambda: subprocess.run([sys.executable, "-c", ""], check=True))[0] for _ in range(5))
    show("nothing to do, 731 days verified", best, start, "bare interpreter")


def rows(number: int) -> list[dict[str, object]]:
    return [
        {"date": "2023-01-01", "campaign.id": n % 50, "campaign.name": f"Campaign {n % 50}", "ad_group.id": n,
         "device": "MOBILE", "impressions": n * 7 % 10_000, "clicks": n % 500, "cost": n * 0.37 % 1000}
        for n in range(number)
    ]  # fmt: skip


def writing() -> None:
    """A day of 200,000 rows, held against csv.writer over the same values and one SHA-256 of the bytes."""
    data, day = rows(200_000), dt.date(2023, 1, 1)

    def yardstick() -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(row.values() for row in data)
        whole = text.getvalue().encode()
        hashlib.sha256(whole).hexdigest()
        with open("yardstick.csv", "wb") as file:
            file.write(whole)
            os.fsync(file.fileno())

    pairs = [(timed(lambda: fetch_ads.write_day(data, day, Path("w.csv")))[0], timed(yardstick)[0]) for _ in range(7)]
    ours, theirs = min(a for a, _ in pairs), min(b for _, b in pairs)
    show("writing 200,000 rows", ours, theirs, "csv.writer + SHA-256", round(1 / 0.9, 2))
    print(f"  {200_000 / ours:,.0f} rows a second (200,000 at least), {theirs / ours:.2f} of the yardstick")


def aggregating() -> None:
    """ads.csv of 200 MB in 731 files, held against cp of those bytes."""
    os.mkdir("big")
    body = b"2023-01-01,1,2,3\r\n" * 15_000
    paths = [Path("big") / f"{n}.csv" for n in range(DAYS)]
    for path in paths:
        path.write_bytes(b"date,a,b,c\r\n" + body)
    ours = min(timed(lambda: fetch_ads.swap_in(Path("ads.csv"), fetch_ads.aggregate(paths)))[0] for _ in range(3))
    copy = "cp ads.csv copy.csv && sync copy.csv"
    cp = min(timed(lambda: subprocess.run(copy, shell=True, check=True))[0] for _ in range(3))
    show(f"ads.csv of {os.path.getsize('ads.csv') / 1e6:.0f} MB, flushed", ours, cp, "cp and sync")


def memory() -> None:
    """The peak of a process that streams ten million rows."""
    code = f"""
        import datetime, sys
        sys.path.insert(0, {str(ROOT)!r})
        import fetch_ads
        rows = ({{"a": n, "b": "x", "c": 1.5}} for n in range(10_000_000))
        print(fetch_ads.call_day(lambda day: rows, datetime.date(2023, 1, 1), "m.csv").rows)
        print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
    """
    seconds, done = timed(
        lambda: subprocess.check_output([sys.executable, "-c", textwrap.dedent(code)], text=True).split()
    )
    print(f"{int(done[0]):,} rows from a generator: {int(done[1]) / 1024:.0f} MB at the peak, {seconds:.0f} s")


def rate_limit(rate: float) -> None:
    """731 days against a token bucket of so many calls a second."""
    Path("rate").write_text(str(rate))
    told = run(f"limited{rate}", "--workers", "16", function="limited")
    show(f"731 days, {rate} calls a second allowed", told["wall_seconds"], DAYS / rate, "ideal", 1.15)
    share, lost = told["rate_limits"] / told["calls"], told["wanted"] - told["fetched"]
    print(f"  {told['rate_limits']} of {told['calls']} calls refused, {share:.1%}; {lost} days lost")


PANDAS = f"""
import sys, time
from concurrent.futures import ThreadPoolExecutor
import pandas as pd
from source import fetch_data
def one(day):
    frame = pd.DataFrame(fetch_data(day.date()))
    frame.insert(0, "date", day.date())
    return frame
with ThreadPoolExecutor({WORKERS}) as pool:
    frames = list(pool.map(one, pd.date_range(*{RANGE!r})))
pd.concat(frames).to_csv("pandas.csv", index=False)
"""
DLT = f"""
import datetime, dlt
from source import fetch_data
@dlt.resource(name="days")
def days():
    for n in range({DAYS}):
        yield datetime.date(2023, 1, 1) + datetime.timedelta(days=n)
@dlt.transformer(data_from=days, name="ads", parallelized=True)
def ads(day):
    yield [{{"date": day, **row}} for row in fetch_data(day)]
place = dlt.destinations.filesystem("file://" + __import__("os").getcwd() + "/dlt")
pipeline = dlt.pipeline("bench", destination=place)
pipeline.run(days | ads, loader_file_format="csv")
"""


@contextlib.contextmanager
def environment(*packages: str) -> Iterator[str]:
    """A Python with packages of its own."""
    with tempfile.TemporaryDirectory() as home:
        venv.create(home, with_pip=True)
        subprocess.run([f"{home}/bin/python", "-m", "pip", "install", "--quiet", *packages], check=True)
        yield f"{home}/bin/python"


def compare() -> None:
    """What people write instead, as whole processes; it does not resume, and ends at the first error."""
    ours, _ = timed(lambda: run("again", "--workers", str(WORKERS)))
    tuned = {**os.environ, "PYTHONPATH": f"{ROOT}:.", "EXTRACT__WORKERS": str(WORKERS), "RUNTIME__LOG_LEVEL": "ERROR"}
    tuned["EXTRACT__MAX_PARALLEL_ITEMS"] = str(2 * WORKERS)
    tuned["DLT_DATA_DIR"] = os.getcwd()
    with environment("pandas==2.3.3", "dlt[filesystem]==1.31.0") as python:
        for name, code in (("a thread pool with pandas", PANDAS), ("dlt to CSV files", DLT)):
            line = [python, "-c", code]
            seconds, _ = timed(lambda line=line: subprocess.run(line, env=tuned, check=True, stdout=subprocess.DEVNULL))
            show(f"the same with {name}", seconds, ours, "fetch_ads.py")


if __name__ == "__main__":
    main()
