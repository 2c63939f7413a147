"""Pages: order, cursors, walks in both directions, totals."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Service

SORTS = ["id", "price", "-price", "name", "-name"]
NAMES = ["desk", "Desk", "désk", "Zebra", "zebra", "éclair", "ab", "a b", "a_b", "\U0001f600", "\uffee", "Ω"]


@pytest.fixture
def shop(service: Service) -> Service:
    """60 products with many equal prices and some equal names."""
    service.add(*[(NAMES[i % len(NAMES)], f"{(i * 7) % 5}.50", i) for i in range(60)])
    return service


def in_order(service: Service, sort: str) -> list[int]:
    """The ids in a sort's order, by Python's own comparison: code points, ties by id in the sort's direction."""
    rows = service.execute("SELECT id, name, price_cents FROM products")
    column = {"id": 0, "name": 1, "price": 2}[sort.lstrip("-")]
    return [row[0] for row in sorted(rows, key=lambda row: (row[column], row[0]), reverse=sort.startswith("-"))]


def ids(page: Any) -> list[int]:
    return [item["id"] for item in page["items"]]


def walk(service: Service, query: str, cursor: str | None = None, along: str = "next_cursor") -> list[dict[str, Any]]:
    """All pages from a cursor on, in one direction."""
    pages: list[dict[str, Any]] = []
    while True:
        result = service.get("/products", query + (f"&cursor={cursor}" if cursor else ""))
        assert result.status_code == 200, result.text
        pages.append(result.json)
        cursor = result.json[along]
        if cursor is None:
            return pages


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("limit", [1, 7, 60])
def test_a_walk_forwards_gives_every_product_once_in_order(shop: Service, sort: str, limit: int) -> None:
    pages = walk(shop, f"sort={sort}&limit={limit}")
    assert [id for page in pages for id in ids(page)] == in_order(shop, sort)
    assert pages[0]["prev_cursor"] is None


@pytest.mark.parametrize("sort", SORTS)
def test_a_walk_back_from_the_end_gives_every_product_once_in_order(shop: Service, sort: str) -> None:
    last = walk(shop, f"sort={sort}&limit=7")[-1]
    back = walk(shop, f"sort={sort}&limit=7", last["prev_cursor"], along="prev_cursor")
    assert [id for page in back[::-1] for id in ids(page)] + ids(last) == in_order(shop, sort)


@pytest.mark.parametrize("sort", SORTS)
def test_changes_elsewhere_neither_repeat_nor_skip_a_product(shop: Service, sort: str) -> None:
    before = in_order(shop, sort)
    first = shop.get("/products", f"sort={sort}&limit=20").json
    shop.execute("DELETE FROM products WHERE id = :id", id=before[3])
    shop.execute("DELETE FROM products WHERE id = :id", id=before[19])  # the very row that the cursor was made at
    shop.add(("new", "2.50", 1))
    rest = [id for page in walk(shop, f"sort={sort}&limit=20", first["next_cursor"]) for id in ids(page)]
    assert [id for id in rest if id <= 60] == before[20:]
    assert len(rest) == len(set(rest))


def test_a_page_past_the_end_is_empty_and_leads_back_with_its_row(shop: Service) -> None:
    first = shop.get("/products", "limit=58").json
    shop.execute("DELETE FROM products WHERE id > 58")
    past = shop.get("/products", f"limit=58&cursor={first['next_cursor']}", Cache_Control="no-cache").json
    assert (past["items"], past["next_cursor"]) == ([], None)
    back = shop.get("/products", f"limit=10&cursor={past['prev_cursor']}").json
    assert ids(back) == list(range(49, 59))


def test_a_page_before_the_start_is_empty_and_leads_forward_with_its_row(shop: Service) -> None:
    second = shop.get("/products", f"limit=5&cursor={shop.get('/products', 'limit=5').json['next_cursor']}").json
    shop.execute("DELETE FROM products WHERE id < 6")
    before = shop.get("/products", f"limit=5&cursor={second['prev_cursor']}", Cache_Control="no-cache").json
    assert (before["items"], before["prev_cursor"]) == ([], None)
    assert ids(shop.get("/products", f"limit=3&cursor={before['next_cursor']}").json) == [6, 7, 8]


def test_the_last_full_page_has_no_next(shop: Service) -> None:
    page = shop.get("/products", "limit=60").json
    assert (len(page["items"]), page["next_cursor"], page["prev_cursor"]) == (60, None, None)


def test_an_empty_table_gives_an_empty_page(service: Service) -> None:
    page = service.get("/products", "include_total=true").json
    assert page == {"items": [], "next_cursor": None, "prev_cursor": None, "total": 0, "total_is_exact": True}


def test_a_page_has_fifty_products_unless_told_otherwise(shop: Service) -> None:
    assert len(shop.get("/products").json["items"]) == 50


def test_link_headers_lead_where_the_cursors_do(shop: Service) -> None:
    first = shop.get("/products", "limit=7&sort=-name")
    path, _, rest = first.headers["Link"].removeprefix("<").partition("?")
    target, _, relation = rest.partition(">; ")
    assert (path, relation) == ("/products", 'rel="next"')
    second = shop.get(path, target)
    assert second.json == shop.get("/products", f"limit=7&sort=-name&cursor={first.json['next_cursor']}").json
    assert [part.rpartition("rel=")[2] for part in second.headers["Link"].split(", ")] == ['"next"', '"prev"']


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/products", "sort=-price"),
        ("/products", "sort=price"),
        ("/products", ""),
        ("/products/search", "sort=name&name=d"),
        ("/products/search", "sort=name&min_price=0.01"),
    ],
)
def test_a_cursor_is_good_for_its_own_route_filters_and_sort_only(shop: Service, path: str, query: str) -> None:
    cursor = shop.get("/products", "sort=name&limit=5").json["next_cursor"]
    result = shop.get(path, f"{query}&cursor={cursor}".lstrip("&"))
    assert (result.status_code, "'cursor'" in result.json["detail"]) == (400, True)


def test_a_cursor_of_a_search_is_not_good_for_another(shop: Service) -> None:
    cursor = shop.get("/products/search", "name=e&max_price=3&limit=2").json["next_cursor"]
    assert shop.get("/products/search", f"name=e&max_price=3.00&limit=9&cursor={cursor}").status_code == 200
    for other in ("name=z&max_price=3", "name=e&max_price=4", "name=e", "name=e&max_price=3&sort=name"):
        assert shop.get("/products/search", f"{other}&cursor={cursor}").status_code == 400


def test_a_cursor_with_any_character_changed_is_refused(shop: Service) -> None:
    cursor = shop.get("/products", "sort=price&limit=5").json["next_cursor"]
    for at in range(len(cursor)):
        for other in ("A", "B", "_", "-", "", "%3D", "%20", "%00", "%C3%A9"):
            changed = cursor[:at] + other + cursor[at + 1 :]
            if changed != cursor:
                assert shop.get("/products", f"sort=price&cursor={changed}").status_code == 400, changed


@pytest.mark.parametrize("extra", ["=", "==", "A", "AAAA", ".", "%0A"])
def test_a_cursor_with_something_behind_it_is_refused(shop: Service, extra: str) -> None:
    cursor = shop.get("/products", "limit=5").json["next_cursor"]
    assert shop.get("/products", f"cursor={cursor}{extra}").status_code == 400


@pytest.mark.parametrize("limit", ["0", "201", "-1", "1.0", "+5", "%205", "5%20", "1_0", "%D9%A3", "x", "", "9" * 5000])
def test_a_bad_limit_is_refused(service: Service, limit: str) -> None:
    result = service.get("/products", f"limit={limit}")
    assert (result.status_code, "'limit'" in result.json["detail"]) == (400, True)


@pytest.mark.parametrize("sort", ["stock_level", "ID", "--id", "-id", "id,name", ""])
def test_an_unknown_sort_is_refused(service: Service, sort: str) -> None:
    result = service.get("/products", f"sort={sort}")
    assert (result.status_code, "'sort'" in result.json["detail"]) == (400, True)


def test_a_total_is_counted_only_when_asked_for(shop: Service) -> None:
    assert "total" not in shop.get("/products", "include_total=false").json
    page = shop.get("/products", "limit=1&include_total=true").json
    assert (page["total"], page["total_is_exact"]) == (60, True)


@pytest.mark.parametrize("extra", [0, 1])
def test_a_total_beyond_ten_thousand_is_not_counted_out(service: Service, extra: int) -> None:
    service.load("name,price,stock_level", (f"item {i},1.00,1" for i in range(10_000 + extra)))
    for path, query in (("/products", ""), ("/products/search", "name=item&"), ("/products/search", "max_price=1&")):
        page = service.get(path, f"{query}limit=1&include_total=true").json
        assert (page["total"], page["total_is_exact"]) == (10_000, not extra)


def test_a_page_not_changed_is_not_sent_again(shop: Service) -> None:
    etag = shop.get("/products", "limit=5").headers["ETag"]
    again = shop.get("/products", "limit=5", If_None_Match=etag)
    assert (again.status_code, again.text, again.headers["ETag"]) == (304, "", etag)
    shop.patch(1, '{"price": 77}')
    assert shop.get("/products", "limit=5", If_None_Match=etag).status_code == 200
