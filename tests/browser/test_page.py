"""What the page shows, and how one finds and changes a product on it."""

from __future__ import annotations

import pytest

from tests.browser.conftest import OpenShop, Tab

pytestmark = pytest.mark.slow

DESKS = [("Oak desk", "129.90", 12), ("Pine desk", "80", 0), ("Oak chair", "45.50", 7), ("Café table", "12.50", 3)]
MANY = [(f"Lamp {number:02}", f"{number}.00", number) for number in range(1, 46)]


def first_row(tab: Tab) -> str:
    return tab.text("tbody tr")


def test_it_shows_products_and_what_the_call_cost(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(open_shop(DESKS).url)
    assert tab.texts("tbody tr") == ["1\tOak desk\t129.90\t12", "2\tPine desk\t80.00\t0", "3\tOak chair\t45.50\t7",
                                     "4\tCafé table\t12.50\t3"]  # fmt: skip
    assert tab.text("#count") == "4 on this page"
    assert tab.text("#last-call") == "GET /products?limit=20"
    status, cached, milliseconds = tab.text("#last-facts").split(" · ")
    assert (status, cached) == ("200", "MISS")
    assert float(milliseconds.removesuffix(" ms")) > 0
    assert tab.text("#rate") == "Rate limit: 198 of 200 left"


def test_what_the_cache_had_is_called_a_hit(tab: Tab, open_shop: OpenShop) -> None:
    shop = open_shop(DESKS)
    tab.open(shop.url)
    tab.open(f"{shop.url}/?")
    tab.wait_for_text("#last-facts", "200 · HIT")


def test_a_server_without_a_limit_has_none_shown(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(open_shop(DESKS, RATE_LIMIT="0").url)
    assert tab.text("#rate") == "No rate limit"


def test_search_by_name_and_price(tab: Tab, open_shop: OpenShop) -> None:
    shop = open_shop(DESKS)
    tab.open(shop.url)
    tab.search("OAK")
    tab.wait_for_text("#count", "2 on this page")
    assert tab.texts("tbody a") == ["Oak desk", "Oak chair"]
    tab.click("[name=max_price]")
    tab.type("100")
    tab.click("#search button")
    tab.wait_for_text("#count", "1 on this page")
    assert tab.texts("tbody a") == ["Oak chair"]
    assert tab.look("location.search") == "?name=OAK&max_price=100"
    assert tab.look("document.title") == "OAK · Product inventory"


def test_nothing_found_is_said(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(f"{open_shop(DESKS).url}/?name=zebra")
    assert tab.text("#count") == "None on this page"
    assert tab.look("document.querySelector('table').hidden")


def test_the_total_is_told_if_asked(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(open_shop(MANY).url)
    tab.click("[name=include_total]")
    tab.wait_for_text("#count", "20 on this page, 45 in all")
    assert tab.look("location.search") == "?include_total=true"


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_it_round(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(open_shop(DESKS).url)
    tab.click("[data-sort=price] a")
    tab.wait("document.querySelector('tbody a').innerText === 'Café table'")
    assert tab.look("document.querySelector('[data-sort=price]').ariaSort") == "ascending"
    tab.click("[data-sort=price] a")
    tab.wait("document.querySelector('tbody a').innerText === 'Oak desk'")
    assert tab.look("document.querySelector('[data-sort=price]').ariaSort") == "descending"
    assert tab.look("document.querySelector('[data-sort=id]').ariaSort") is None


def test_a_page_forward_and_back(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(open_shop(MANY).url)
    assert tab.look("document.querySelector('#prev').href") == ""
    for expected in (("Lamp 21", "Lamp 40"), ("Lamp 41", "Lamp 45")):
        tab.click("#next")
        tab.wait_for_text("tbody", expected[0])
        names = tab.texts("tbody a")
        assert (names[0], names[-1]) == expected
    assert tab.look("document.querySelector('#next').href") == ""
    tab.click("#prev")
    tab.wait_for_text("tbody", "Lamp 21")
    assert len(tab.texts("tbody a")) == 20


def test_a_shared_link_shows_the_same(tab: Tab, open_shop: OpenShop) -> None:
    shop = open_shop([*MANY, *DESKS])
    tab.open(f"{shop.url}/?name=lamp&min_price=5&sort=-price&limit=10&include_total=true")
    tab.click("#next")
    tab.wait_for_text("tbody", "Lamp 35")
    tab.click("tbody a")
    tab.wait_for_text("#product-name", "Lamp 35")
    shared = tab.look("location.href")
    tab.open("about:blank#") if False else None
    tab.open(shared)
    tab.wait_for_text("#product-name", "Lamp 35")
    assert tab.texts("tbody a")[0] == "Lamp 35"
    assert tab.text("#count") == "10 on this page, 41 in all"
    fields = "[...document.querySelectorAll('#search input, #search select')].map((field) => field.value)"
    assert tab.look(fields) == ["lamp", "5", "", "10", "true"]
    assert tab.look("document.querySelector('[name=include_total]').checked")


def test_the_back_button_goes_through_what_was_shown(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(open_shop(DESKS).url)
    tab.search("oak")
    tab.wait_for_text("#count", "2 on this page")
    tab.click("tbody tr:nth-child(2) a")
    tab.wait_for_text("#product-name", "Oak chair")
    tab.back()
    tab.wait("document.querySelector('#product').hidden")
    assert tab.texts("tbody a") == ["Oak desk", "Oak chair"]
    tab.back()
    tab.wait_for_text("#count", "4 on this page")
    assert tab.look("document.querySelector('[name=name]').value") == ""
    tab.back(+2)
    tab.wait_for_text("#product-name", "Oak chair")
    tab.wait_for_text("#count", "2 on this page")
    assert tab.look("document.querySelector('[name=name]').value") == "oak"


def test_a_product_is_shown_with_its_etag(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(f"{open_shop(DESKS).url}/?product=3")
    tab.wait_for_text("#product-name", "Oak chair")
    assert tab.texts("dd")[:4] == ["3", "45.50", "7", '"1"']
    assert tab.texts("dd")[4].endswith(" UTC")
    assert tab.text("[aria-current=true]") == "Oak chair"
    assert tab.look("document.title") == "Oak chair · Product inventory"


def test_the_greatest_id_is_shown_and_opened_as_it_is(tab: Tab, open_shop: OpenShop) -> None:
    shop = open_shop(DESKS)
    shop.execute("UPDATE products SET id = 9223372036854775807 WHERE id = 4")
    tab.open(f"{shop.url}/?name=table")
    tab.click("tbody a")
    tab.wait_for_text("#product-name", "Café table")
    assert tab.text("tbody td") == tab.text("dd") == "9223372036854775807"


def test_an_edit_changes_the_product_and_the_table(tab: Tab, open_shop: OpenShop) -> None:
    shop = open_shop(DESKS)
    tab.open(f"{shop.url}/?product=1")
    tab.wait_for_text("#product-name", "Oak desk")
    tab.click("[name=price]")
    tab.type("99.5")
    tab.click("[name=stock]")
    tab.type("20")
    tab.click("#edit button")
    tab.wait_for_text("#said", "Saved. It is at version 2 now.")
    assert tab.texts("dd")[:4] == ["1", "99.50", "20", '"2"']
    assert first_row(tab) == "1\tOak desk\t99.50\t20"
    assert shop.execute("SELECT price_cents, stock_level FROM products WHERE id = 1") == [(9950, 20)]


def test_stock_is_changed_by_so_many(tab: Tab, open_shop: OpenShop) -> None:
    shop = open_shop(DESKS)
    tab.open(f"{shop.url}/?product=1")
    tab.wait_for_text("#product-name", "Oak desk")
    tab.look("edit.mode.focus()")
    tab.press("ArrowDown")
    tab.click("[name=stock]")
    tab.type("-5")
    tab.press("Enter")
    tab.wait_for_text("#said", "Saved")
    assert shop.execute("SELECT price_cents, stock_level FROM products WHERE id = 1") == [(12990, 7)]
    assert "-d '{\"stock_delta\":-5}'" in tab.look("document.querySelector('#calls code').textContent")


def test_nothing_changed_is_not_sent(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(f"{open_shop(DESKS).url}/?product=1")
    tab.wait_for_text("#product-name", "Oak desk")
    tab.click("#edit button")
    tab.wait_for_text("#said", "Nothing to save")
    assert "PATCH" not in tab.text("#last-call")


def test_a_conflict_is_told_and_the_new_state_loaded_beside_what_was_typed(tab: Tab, open_shop: OpenShop) -> None:
    shop = open_shop(DESKS)
    tab.open(f"{shop.url}/?product=1")
    tab.wait_for_text("#product-name", "Oak desk")
    shop.execute("UPDATE products SET stock_level = 2 WHERE id = 1")
    tab.click("[name=price]")
    tab.type("100")
    tab.press("Enter")
    tab.wait_for_text("#product-problem", "Somebody else changed it")
    assert shop.execute("SELECT price_cents FROM products WHERE id = 1") == [(12990,)]
    tab.click("#product-problem button")
    tab.wait_for_text("#said", "What you typed is still in the form")
    assert tab.texts("dd")[:4] == ["1", "129.90", "2", '"2"']
    assert first_row(tab) == "1\tOak desk\t129.90\t2"
    assert tab.look("[edit.price.value, edit.stock.value]") == ["100", "2"]
    tab.click("#edit button")
    tab.wait_for_text("#said", "Saved. It is at version 3 now.")
    assert shop.execute("SELECT price_cents, stock_level FROM products WHERE id = 1") == [(10000, 2)]


def test_a_slow_page_never_takes_the_place_of_a_later_one(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(open_shop(DESKS).url)
    delay_oak = """
        const quick = fetch;
        window.fetch = async (path, options) => {
            const answer = await quick(path, options);
            if (path.includes("oak")) await new Promise((done) => setTimeout(done, 300)), window.slow = "done";
            return answer;
        };
        go("?name=oak"); go("?name=pine");"""
    tab.look(f"(() => {{ {delay_oak} }})()")
    tab.wait("window.slow === 'done' && document.querySelectorAll('#calls li').length === 3")
    assert tab.texts("tbody a") == ["Pine desk"]
