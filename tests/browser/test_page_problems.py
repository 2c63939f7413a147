"""What the page says when the API refuses something, and that text is only ever text."""

from __future__ import annotations

import json
import subprocess

import pytest

from inventory_api import open_database
from tests.browser.conftest import OpenShop, Tab

pytestmark = pytest.mark.slow

DESKS = [("Oak desk", "129.90", 12), ("Pine desk", "80", 0)]
KEY = "s3cr3t-key"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>&amp;"


def edit(tab: Tab, url: str, field: str, text: str) -> None:
    """Open product 1 and try to save it with one field changed."""
    tab.open(f"{url}/?product=1")
    tab.wait_for_text("#product-name", "Oak desk")
    tab.click(f"[name={field}]")
    tab.type(text)
    tab.press("Enter")


def test_a_400_names_the_parameter(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(f"{open_shop(DESKS).url}/?sort=colour")
    tab.wait_for_text("#list-problem", "does not understand this request")
    assert "'sort' must be one of" in tab.text("#list-problem")


def test_a_cursor_of_another_list_leads_to_the_first_page(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(f"{open_shop(DESKS).url}/?name=oak&cursor=abc")
    tab.wait_for_text("#list-problem", "'cursor' was not made for")
    tab.click("#list-problem a")
    tab.wait_for_text("tbody", "Oak desk")
    assert tab.text("#list-problem") == ""


def test_a_401_asks_for_the_key_which_is_kept_nowhere_but_in_memory(tab: Tab, open_shop: OpenShop) -> None:
    shop = open_shop(DESKS, API_KEY=KEY)
    edit(tab, shop.url, "price", "1")
    tab.wait_for_text("#product-problem", "needs the API key")
    tab.click("#product-problem button")
    tab.type("wrong")
    tab.press("Enter")
    tab.wait_for_text("#product-problem", "does not accept this API key")
    tab.click("[name=key]")
    tab.type(KEY)
    tab.press("Enter")
    tab.wait_for_text("#said", "Saved")
    tab.click("#close")
    tab.click("tbody tr:nth-child(2) a")
    tab.wait_for_text("#product-name", "Pine desk")
    tab.click("[name=stock]")
    tab.type("5")
    tab.press("Enter")
    tab.wait_for_text("#said", "Saved")  # without typing it again
    stored = "document.cookie, JSON.stringify([localStorage, sessionStorage])"
    assert KEY not in str(tab.look(f"[document.documentElement.outerHTML, location.href, {stored}]"))
    assert '-H "Authorization: Bearer $API_KEY"' in tab.look("document.querySelector('#calls code').textContent")


def test_a_403_says_that_changes_are_off(tab: Tab, open_shop: OpenShop) -> None:
    edit(tab, open_shop(DESKS, TRUSTED_PROXY="127.0.0.2").url, "price", "1")
    tab.wait_for_text("#product-problem", "Changes are switched off on this server")


def test_a_404_says_that_there_is_no_such_product(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(f"{open_shop(DESKS).url}/?product=99")
    tab.wait_for_text("#product-problem", "There is no such product")
    assert tab.text("#product-name") == "Product 99"


def test_a_409_tells_the_stock(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(f"{open_shop(DESKS).url}/?product=1")
    tab.wait_for_text("#product-name", "Oak desk")
    tab.look("edit.mode.value = 'stock_delta', edit.mode.dispatchEvent(new Event('change')), edit.stock.focus()")
    tab.type("-13")
    tab.press("Enter")
    tab.wait_for_text("#product-problem", "The stock does not allow this: it is 12 now.")


def test_a_422_stands_beside_the_fields(tab: Tab, open_shop: OpenShop) -> None:
    url = open_shop(DESKS).url
    edit(tab, url, "price", "1,50")
    tab.wait_for_text("#price-wrong", "in whole cents")
    assert tab.look("edit.price.ariaInvalid") == "true"
    assert tab.look("document.activeElement === edit.price")
    tab.click("[name=stock]")
    tab.type("many")
    tab.press("Enter")
    tab.wait_for_text("#stock-wrong", "an integer")
    assert tab.text("#price-wrong") != ""


def test_a_429_says_when_to_try_again(tab: Tab, open_shop: OpenShop) -> None:
    url = open_shop(DESKS, RATE_LIMIT="0.05", RATE_BURST="5").url
    tab.open(url)
    tab.search("oak")
    tab.wait_for_text("#list-problem", "Too many requests in a short time. Try again in ")
    assert tab.text("#rate") == "Rate limit: 3 of 5 left"
    assert tab.text("#list-problem button") == "Try again"


def test_a_503_can_be_tried_again(tab: Tab, open_shop: OpenShop) -> None:
    shop = open_shop(DESKS)
    other = open_database(shop.database_url)

    def lock_out(execute: object) -> None:
        edit(tab, shop.url, "price", "1")
        tab.wait_for_text("#product-problem", "The server cannot do this just now.")

    other.write(lock_out)
    other.close()
    tab.click("#product-problem button")
    tab.wait_for_text("#said", "Saved")


def test_a_server_that_is_away_is_called_so(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(open_shop(DESKS).url)
    tab.send("Network.enable")
    tab.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    tab.search("oak")
    tab.wait_for_text("#list-problem", "The server cannot be reached.")
    tab.send("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    tab.click("#list-problem button")
    tab.wait_for_text("#count", "1 on this page")


def test_a_name_that_looks_like_html_is_shown_as_it_is(tab: Tab, open_shop: OpenShop) -> None:
    shop = open_shop([(HOSTILE, "1", 1)])
    tab.open(f"{shop.url}/?name=%3Cimg&product=1")
    tab.wait_for_text("#product-name", "<img")
    assert tab.text("tbody a") == tab.text("#product-name") == HOSTILE
    assert tab.look("document.querySelectorAll('img, body script').length") == 1  # the page's own script
    tab.click("[name=price]")
    tab.type("2")
    tab.press("Enter")
    tab.wait_for_text("#said", "Saved")
    assert tab.look("document.title") == f"{HOSTILE} · <img · Product inventory"


def test_the_browser_itself_would_not_make_html_of_text(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(open_shop(DESKS).url)
    with pytest.raises(RuntimeError, match="TrustedHTML"):
        tab.look("document.body.innerHTML = '<img src=x>'")
    tab.look("document.body.append(Object.assign(document.createElement('style'), {textContent: 'h1 {color: red}'}))")
    assert tab.look("getComputedStyle(document.querySelector('h1')).color") != "rgb(255, 0, 0)"
    assert any("Content Security Policy" in said for said in tab.complaints())
    tab.browser.events.clear()


@pytest.mark.parametrize("name", ["oak", "it's", "a b&c=d", '$(x) `x` \\ "!', "50% [1-3] {a,b}", "Café ☕"])
def test_the_curl_line_makes_the_same_call(tab: Tab, open_shop: OpenShop, name: str) -> None:
    url = open_shop(DESKS).url
    tab.open(url)
    tab.search(name)
    tab.wait_for_text("#last-call", "/products/search")
    line = tab.look("document.querySelector('#calls code').textContent")
    told = "curl() { for word; do printf '%s\\n' \"$word\"; done; }\n" + line
    (called,) = subprocess.run(["sh", "-c", told], check=True, capture_output=True, text=True).stdout.splitlines()
    requested = tab.look("performance.getEntriesByType('resource').at(-1).name")
    assert called == requested
    assert not set(called) & set("[]{} ")  # curl would make something of them


def test_the_curl_line_of_a_change_has_its_headers_and_body(tab: Tab, open_shop: OpenShop) -> None:
    url = open_shop(DESKS).url
    edit(tab, url, "price", "it's 5")
    tab.wait_for_text("#price-wrong", "must be")
    line = tab.look("document.querySelector('#calls code').textContent")
    told = "curl() { for word; do printf '%s\\n' \"$word\"; done; }\n" + line
    words = subprocess.run(["sh", "-c", told], check=True, capture_output=True, text=True).stdout.splitlines()
    assert words == [
        "-X", "PATCH", "-H", "Content-Type: application/json", "-H", 'If-Match: "1"',
        "-d", json.dumps({"price": "it's 5"}, separators=(",", ":")), f"{url}/products/1",
    ]  # fmt: skip
