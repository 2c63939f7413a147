"""A hundred kill -9s at random moments of a run, then a last run: nothing lost or fetched twice, no litter.

python bench/crash_bench.py [KILLS]
"""

from __future__ import annotations

import csv
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "fetch_ads.py"
RANGE = ("2023-01-01", "2024-12-31", "--workers", "4")
SOURCE = """
import time
def fetch_data(day):
    with open("calls", "a") as file:
        file.write(f"{day}\\n")
    time.sleep(0.03)
    return [{"clicks": n * day.day, "name": "x" * 50} for n in range(50)]
"""


def start(home: str, folder: str) -> subprocess.Popen[bytes]:
    line = [sys.executable, str(SCRIPT), *RANGE, folder, "--fetcher", "source.py:fetch_data"]
    return subprocess.Popen(line, cwd=home, stdout=subprocess.DEVNULL)


def recorded(folder: Path) -> set[str]:
    """The days the manifest calls complete."""
    if not (folder / "manifest.csv").exists():
        return set()
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["date"] for row in rows}) == len(rows), "two rows for a day"
    return {row["date"] for row in rows if row["status"] == "complete"}


def called(home: Path) -> list[str]:
    """The days asked for since the last look."""
    calls = home / "calls"
    days = calls.read_text().split() if calls.exists() else []
    calls.unlink(missing_ok=True)
    return days


def main(kills: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        home, folder = Path(place), Path(place) / "data"
        (home / "source.py").write_text(SOURCE)
        assert start(place, "undisturbed").wait() == 0
        called(home)
        twice = total = 0
        for _ in range(kills):
            done = recorded(folder)
            with start(place, "data") as run:
                time.sleep(random.uniform(0.05, 0.35))
                run.kill()
            days = called(home)
            total, twice = total + len(days), twice + len(done & set(days))
        left = len(recorded(folder))
        assert start(place, "data").wait() == 0
        total += len(called(home))
        same = (folder / "ads.csv").read_bytes() == (home / "undisturbed" / "ads.csv").read_bytes()
        litter = [path.name for path in folder.rglob("*") if path.suffix in (".tmp", ".lock")]
        print(f"{kills} kills; {left} of 731 days recorded before the last run; {total} calls in all")
        print(f"ads.csv the same byte for byte: {same}; recorded days fetched again: {twice}; litter: {litter}")
        assert same
        assert not twice
        assert not litter


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
