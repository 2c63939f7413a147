"""Search: the same answers on both engines, whichever way they are found."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from inventory_api import Finder, PageQuery, Position, Product, fold, open_database
from tests.api.conftest import Service

TRICKY = [
    *(
        "Oak desk",
        "OAK DESK",
        "oakdesk",
        "Größe",
        "GRÖSSE",
        "größe",
        "İstanbul",
        "istanbul",
        "ISTANBUL",
        "ΟΔΟΣ",
        "οδος",
    ),
    *(
        "οδοσ",
        "100% wool",
        "100 wool",
        "a_b",
        "axb",
        "it's",
        'say "hi"',
        "back\\slash",
        "back\\\\slash",
        "%",
        "_",
        "\\",
        "%%%",
    ),
    *(
        "___",
        "--- ---",
        "désk",
        "de\u0301sk",
        "東京都 desk",
        "東京",
        "😀😀😀",
        "😀",
        "x AND y",
        "NEAR(a b)",
        "a* b*",
        "^caret",
    ),
    *("***", "*", "?", "a?b", "[abc]", "[", "]", "[^a]", "a-[b]", "[*]"),
    *("name_folded: x", "tab\there", "line\nbreak", " lead", "trail ", "a  b", "\ua000\ua000\ua000", "oak\ua000desk"),
    *("ǅungla", "K", "ſharp", "ﬁre", "xx-9", "--", "'", '"', "NULL", "0", "Ⅷ rooms", "ẞ"),
]
NEEDLES = [
    *TRICKY,
    *(
        "oak",
        "k d",
        "ak de",
        "ö",
        "SS",
        "σ",
        "ς",
        "o",
        "de",
        "des",
        "100%",
        "%%",
        "__",
        "\\\\",
        "\\s",
        "t's",
        'y "',
        "東",
        "京都",
    ),
    *("😀😀", "i̇", "zzz", "zz", "q", " ", "  ", "AND", "(a", "b*", "[a", "c]", "]b", "??", "[]", "é", "\u0301"),
]
SORTS = ["id", "price", "-price", "name", "-name"]


def answer(products: list[Product], query: PageQuery) -> list[int]:
    """What a page must hold, by going through all products in Python."""
    low, high = query.min_cents or 0, query.top_cents
    found = [p for p in products if (query.name or "") in fold(p.name) and low <= p.price_cents <= high]
    column = {"id": 0, "name": 1, "price": 2}[query.sort.lstrip("-")]
    found.sort(key=lambda p: (p[column], p.id), reverse=query.sort.startswith("-"))
    return [p.id for p in found]


@pytest.fixture
def tricky(service: Service) -> Service:
    service.add(*[(name, f"{i % 9}.{i % 3}0", i) for i, name in enumerate(TRICKY * 2)])
    return service


def search(service: Service, query: str) -> list[int]:
    """The ids on all pages."""
    ids: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        result = service.get("/products/search", query + (f"&cursor={cursor}" if cursor else ""))
        assert result.status_code == 200, result.text
        ids += [item["id"] for item in result.json["items"]]
        cursor = result.json["next_cursor"]
    return ids


def test_every_needle_finds_what_folding_each_code_point_says(tricky: Service) -> None:
    products = [
        Product(*row) for row in tricky.execute("SELECT id, name, price_cents, stock_level, version, 'x' FROM products")
    ]
    for needle in NEEDLES:
        expected = answer(products, PageQuery("", name=fold(needle)))
        assert search(tricky, f"limit=200&name={quote(needle)}") == expected, needle


def test_name_range_and_sort_combine(tricky: Service) -> None:
    products = [
        Product(*row) for row in tricky.execute("SELECT id, name, price_cents, stock_level, version, 'x' FROM products")
    ]
    for sort in SORTS:
        for needle in ("desk", "s", "oak d", "%"):
            expected = answer(products, PageQuery("", fold(needle), 110, 620, sort))
            query = f"limit=3&name={quote(needle)}&min_price=1.10&max_price=6.2&sort={sort}"
            assert search(tricky, query) == expected, (sort, needle)


def test_a_range_has_both_its_ends(service: Service) -> None:
    service.add(("a", "1.00", 1), ("b", "2.00", 1), ("c", "3.00", 1))
    assert search(service, "min_price=1&max_price=2") == [1, 2]
    assert search(service, "min_price=2") == [2, 3]
    assert search(service, "max_price=0.99") == []
    assert search(service, "min_price=2.00&max_price=2") == [2]


def test_capital_dotted_i_stays_as_it_is() -> None:
    assert fold("İI") == "İi"
    assert fold("ΟΔΟΣ") == "οδοσ"


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("", "name"),
        ("sort=price", "name"),
        ("limit=5&include_total=true", "name"),
        ("name=" + "x" * 101, "'name'"),
        ("name=", "'name'"),
        ("name=%00", "'name'"),
        ("name=%FF", "'name'"),
        ("name=%ED%A0%80", "'name'"),
        ("name=%zz", "'name'"),
        ("min_price=-1", "'min_price'"),
        ("max_price=1.005", "'max_price'"),
        ("max_price=1e2", "'max_price'"),
        ("min_price=2&max_price=1", "'min_price'"),
        ("name=a&name=b", "'name'"),
        ("name=a&price=1", "'price'"),
    ],
)
def test_a_bad_search_is_refused_and_the_parameter_named(service: Service, query: str, named: str) -> None:
    result = service.get("/products/search", query)
    assert (result.status_code, named in result.json["detail"]) == (400, True), result.text


def test_a_hundred_characters_may_be_searched_for(service: Service) -> None:
    service.add(("😀" * 200, "1", 1))
    assert search(service, "name=" + quote("😀" * 100)) == [1]


def test_plus_and_percent_20_are_spaces(service: Service) -> None:
    service.add(("oak desk", "1", 1), ("oak+desk", "1", 1))
    assert search(service, "name=k+d") == search(service, "name=k%20d") == [1]
    assert search(service, "name=k%2Bd") == [2]


def test_plain_sql_of_other_programs_is_found_and_lost(service: Service) -> None:
    fresh = {"Cache_Control": "no-cache"}
    service.execute("INSERT INTO products (name, price_cents, stock_level) VALUES ('Walnut TABLE', 5, 5)")
    assert len(service.get("/products/search", "name=nut+table", **fresh).json["items"]) == 1
    service.execute("UPDATE products SET name = 'Cherry BED'")
    assert service.get("/products/search", "name=walnut", **fresh).json["items"] == []
    assert len(service.get("/products/search", "name=RRY+bed", **fresh).json["items"]) == 1
    service.execute("UPDATE products SET id = 77")
    assert service.get("/products/search", "name=cherry", **fresh).json["items"][0]["id"] == 77
    service.execute("DELETE FROM products")
    assert service.get("/products/search", "name=cherry", **fresh).json["items"] == []


WORDS = {"common": 0.5, "usual": 0.05, "rarely": 0.002}
ROWS = 30_000


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def crowd(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, list[Product]]]:
    """A database with enough products for each way of finding them, and the products."""
    from inventory_api import make_schema, merge
    from tests.conftest import new_database

    lottery = random.Random(3)
    rows = []
    for i in range(1, ROWS + 1):
        words = [word for word, share in WORDS.items() if lottery.random() < share] + [
            f"no{i % 97}",
            "Late" * (i > ROWS - 400),
        ]
        cents = 1999 if lottery.random() < 0.3 else lottery.randrange(100_000)
        lottery.shuffle(words)
        name = " ".join(filter(None, words))
        rows.append((i, i, name, fold(name), cents, i % 50))

    def filled(url: str) -> Any:
        database = open_database(url)
        make_schema(database, with_samples=False)
        database.write(lambda execute: merge(database, execute, rows))
        return database

    products = [Product(id, name, cents, stock, 1, "x") for _, id, name, _, cents, stock in rows]
    if request.param == "sqlite":
        database = filled(f"sqlite:///{tmp_path_factory.mktemp('crowd')}/crowd.db")
        yield database, products
        database.close()
    else:
        with new_database(request.getfixturevalue("postgres_server")) as url:
            database = filled(url)
            yield database, products
            database.close()


CASES = [
    (name, low, high)
    for name in (None, "common", "usual", "rarely", "late", "absent!", "no", "q", "o 1")
    for low, high in ((None, None), (0, 50_000), (1_000, 2_000), (1999, 1999), (77_000, 77_050))
    if name or high
]


@pytest.mark.parametrize("sort", SORTS)
def test_every_way_gives_the_same_page(crowd: tuple[Any, list[Product]], sort: str) -> None:
    database, products = crowd
    by_id = {product.id: product for product in products}
    lottery = random.Random(sort)
    for name, low, high in CASES:
        query = PageQuery("", name, low, high, sort, limit=5)
        expected = answer(products, query)
        starts: list[Position | None] = [None]
        for _ in range(3):  # somewhere in the middle, in each direction, with and without the row itself
            if expected:
                at = by_id[lottery.choice(expected)]
                value = {"id": None, "price": at.price_cents, "name": at.name}[sort.lstrip("-")]
                starts.append(Position(lottery.random() < 0.5, lottery.random() < 0.5, value, at.id))
        for start in starts:
            query = query._replace(start=start)
            found = database.read(lambda execute, query=query: Finder(database, execute, query).rows())
            if start is None:
                wanted = expected[:6]
            else:
                at_index = expected.index(start.id)
                ahead = expected[at_index + (not start.inclusive) :]
                behind = expected[: at_index + start.inclusive][::-1]
                wanted = (ahead if start.forward else behind)[:6]
            assert [product.id for product in found] == wanted, (name, low, high, start)


def test_the_ways_are_all_taken(crowd: tuple[Any, list[Product]]) -> None:
    database, _ = crowd
    seen = set()

    def watch(query: PageQuery) -> None:
        def work(execute: Any) -> None:
            def spy(sql: str, **parameters: Any) -> Any:
                seen.add(
                    sql.split()[0] + ("walked" in sql) * " walk" + ("MATCH" in sql or "spaced" in sql) * " trigrams"
                )
                return execute(sql, **parameters)

            Finder(database, spy, query).rows()

        database.read(work)

    for name, low, high in CASES:
        watch(PageQuery("", name, low, high, "-price", limit=50))
        watch(PageQuery("", name, low, high, "name", limit=50))
    assert {"SELECT", "SELECT walk", "WITH", "WITH trigrams"} <= seen


def test_totals_are_right_whichever_way_they_are_counted(crowd: tuple[Any, list[Product]]) -> None:
    database, products = crowd
    for name, low, high in CASES:
        query = PageQuery("", name, low, high)
        total = database.read(lambda execute, q=query: Finder(database, execute, q).total())
        assert total == min(len(answer(products, query)), 10_001), (name, low, high)
