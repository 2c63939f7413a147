"""What a page of a search costs at 1,000,000 products, whatever it searches: each kind of name, price range and sort.

python bench/search_bench.py --work /var/tmp/bench                 the whole grid, on both engines: half an hour
python bench/search_bench.py --engine sqlite --name 1% --calls 20  one engine, names of one kind, fewer calls

In process, from the query string to the encoded body, by the code that serves it; nothing is cached but the database's
own pages. Milliseconds, p50/p99. Ranges of price: none, of half of the rows, of 1 %, of 0.001 %.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple
from urllib.parse import urlencode

import million

from inventory_api import SORTS, Bulkhead, DatabaseUnavailable, Inventory, TTLCache, fold, open_database, parse_page

ENGINES = {"sqlite": million.sqlite, "postgresql": million.postgresql}
LIMIT = 20
SHARES = {"": 1.0, "50%": 0.5, "1%": 0.01, "0.001%": 0.00001}
MOST_LONG, MOST_OFTEN, OFTEN = 25.0, 2.0, 0.9  # ms at p50, for three characters or more
MOST_SHORT = {"sqlite": 120.0, "postgresql": 500.0}  # ms at p50, for one or two, or only signs


class Cell(NamedTuple):
    """A kind of search on an engine, and what it took in ms."""

    engine: str
    kind: str
    needle: str
    range: str
    sort: str
    p50: float
    p99: float

    @property
    def is_long(self) -> bool:
        return len(self.needle) >= 3 and any(map(str.isalnum, self.needle))

    @property
    def most(self) -> float:
        return MOST_LONG if self.is_long else MOST_SHORT[self.engine]


def needles(names: list[str]) -> dict[str, str]:
    """A substring of each kind: its words are looked for in the names, or planted there, or absent by design."""
    words = million.words_by_share(names[:100_000])
    return {
        **words,
        "1% late": million.LATE,
        "common trigrams, none": absent_of_common_trigrams(names),
        "two words": f"{words['30%']} {names[1].rpartition(' ')[2]}",
        "two characters": "ka",
        "two, none": "qq",
        "one character": "w",
        "one, none": "é",
        "signs, none": "-- ",
    }


def absent_of_common_trigrams(names: list[str]) -> str:
    """A string that is in no name, although each of its trigrams is in many."""
    trigrams = Counter(name[at : at + 3] for name in names[:20_000] for at in range(len(name) - 2))
    common = [trigram for trigram, _ in trigrams.most_common(40) if trigram.isalpha()]
    strings, text = set(common), "\n".join(names)
    while True:
        strings = {string + trigram[2] for string in strings for trigram in common if string.endswith(trigram[:2])}
        for string in sorted(strings):
            if string not in text:
                return string


def ranges(prices: list[int]) -> dict[str, dict[str, str]]:
    """A price range for each share of rows, in the middle of the prices."""
    ordered = sorted(prices)

    def middle(share: float) -> dict[str, str]:
        low, high = (ordered[min(len(ordered) - 1, int(len(ordered) * (0.5 + sign * share / 2)))] for sign in (-1, 1))
        return {"min_price": f"{low / 100:.2f}", "max_price": f"{high / 100:.2f}"}

    return {name: middle(share) if name else {} for name, share in SHARES.items()}


def measure(inventory: Inventory, parameters: dict[str, str], calls: int, seconds: float) -> tuple[float, float]:
    """The p50 and p99, in ms, of so many calls, or of those that a time allows, but of three at least."""
    took: list[float] = []
    query = parse_page("/products/search", urlencode({"limit": str(LIMIT), **parameters}))
    while len(took) < calls and (sum(took) < seconds or len(took) < 3):
        began = time.perf_counter()
        try:
            inventory.page(query, fresh=True)
        except DatabaseUnavailable as error:
            print(f"{parameters}: {error}", file=sys.stderr)
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000, sorted(took)[int(len(took) * 0.99)] * 1000


def measure_all(place: str, options: argparse.Namespace, names: list[str]) -> Iterator[Cell]:
    """The cells of an engine, printed a line for each name and range as they come."""
    database = open_database(place)
    inventory = Inventory(database, TTLCache(0, 0), Bulkhead(1))
    spans = ranges(list(million.prices()))
    print(f"\n{'name':<24}{'rows':>8} {'range':<8}" + "".join(f"{sort:>16}" for sort in SORTS))
    for kind, needle in needles(names).items():
        if not options.name or kind in options.name:
            rows = sum(needle in name for name in names)
            for range, bounds in spans.items():
                cells = []
                for sort in SORTS:
                    times = measure(inventory, {"name": needle, "sort": sort, **bounds}, options.calls, options.seconds)
                    cells.append(Cell(database.dialect, kind, needle, range, sort, *times))
                shown = "".join(f"{cell.p50:8.2f} /{cell.p99:6.1f}" for cell in cells)
                print(f"{kind:<24}{rows:>8} {range or 'none':<8}{shown}", flush=True)
                yield from cells
    database.close()


def judge(cells: list[Cell]) -> None:
    """How many cells are within the targets, and those that are furthest out."""
    print()
    for engine, is_long in itertools.product(ENGINES, (True, False)):
        judged = [cell for cell in cells if (cell.engine, cell.is_long) == (engine, is_long)]
        if not judged:
            continue
        most, within = judged[0].most, [cell for cell in judged if cell.p50 < judged[0].most]
        print(f"{engine}, {'three characters or more' if is_long else 'one or two characters, or only signs'}:")
        print(f"  p50 under {most:g} ms: {len(within)} of {len(judged)} cells")
        if is_long:
            often = sum(cell.p50 < MOST_OFTEN for cell in judged) / len(judged)
            print(f"  p50 under {MOST_OFTEN:g} ms: {often:.1%} of the cells (target {OFTEN:.0%})")
        worst = sorted(judged, key=lambda cell: -cell.p50)[:5]
        told = (f"{cell.kind}, {cell.range or 'any price'}, by {cell.sort}: {cell.p50:.1f}" for cell in worst)
        print(f"  worst, in ms: {'; '.join(told)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default=f"{tempfile.gettempdir()}/inventory-bench", help="where databases are kept")
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--name", action="append", help="only names of this kind")
    parser.add_argument("--postgres", default="", help="the URL of a database of your own for it")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.0, help="at most, for one cell")
    options = parser.parse_args()
    folder = million.folder_in(options.work)
    names = [fold(name) for name in million.names()]
    cells: list[Cell] = []
    for engine in options.engine or ENGINES:
        with ExitStack() as stack:
            opened = million.postgresql(folder, options.postgres) if engine == "postgresql" else million.sqlite(folder)
            cells += measure_all(stack.enter_context(opened).url, options, names)
    judge(cells)


if __name__ == "__main__":
    main()
