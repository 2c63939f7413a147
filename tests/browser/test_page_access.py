"""The page by keyboard alone, on a phone, in the dark, and for who hears it."""

from __future__ import annotations

import pytest

from tests.browser.conftest import OpenShop, Tab

pytestmark = pytest.mark.slow

DESKS = [("Oak desk", "129.90", 12), ("Pine desk", "80", 0), ("Oak chair", "45.50", 7)]
EXTREME = [("W" * 200, "9999999.99", 2147483647), ("word " * 40, "0", 0)]


def test_a_search_by_keyboard_alone(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(open_shop(DESKS).url)
    tab.tab_to("[name=name]")
    tab.type("oak")
    tab.press("Enter")
    tab.wait_for_text("#count", "2 on this page")
    tab.tab_to("[data-sort=price] a")
    tab.press("Enter")
    tab.wait("document.querySelector('tbody a').innerText === 'Oak chair'")
    assert tab.look("document.activeElement.innerText") == "Price"


def test_an_edit_by_keyboard_alone(tab: Tab, open_shop: OpenShop) -> None:
    shop = open_shop(DESKS)
    tab.open(shop.url)
    tab.tab_to("tbody tr:nth-child(2) a")
    tab.press("Enter")
    tab.wait("document.activeElement.id === 'product-name'")
    tab.tab_to("[name=price]")
    tab.type("70")
    tab.tab_to("[name=mode]")
    tab.press("ArrowDown")
    tab.tab_to("[name=stock]")
    tab.type("+4")
    tab.tab_to("#edit button")
    tab.press("Enter")
    tab.wait_for_text("#said", "Saved")
    assert shop.execute("SELECT price_cents, stock_level FROM products WHERE id = 2") == [(7000, 4)]
    tab.tab_to("#close", backwards=True)
    tab.press("Enter")
    tab.wait("document.activeElement.innerText === 'Pine desk'")


def test_a_conflict_by_keyboard_alone(tab: Tab, open_shop: OpenShop) -> None:
    shop = open_shop(DESKS)
    tab.open(f"{shop.url}/?product=1")
    tab.wait_for_text("#product-name", "Oak desk")
    shop.execute("UPDATE products SET stock_level = 2 WHERE id = 1")
    tab.tab_to("[name=price]")
    tab.type("1")
    tab.press("Enter")
    tab.wait_for_text("#product-problem", "Somebody else changed it")
    tab.tab_to("#product-problem button", backwards=True)
    tab.press("Enter")
    tab.wait("document.activeElement.id === 'product-name'")
    tab.wait_for_text("#said", "This is the new state.")


def test_the_calls_open_by_keyboard(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(open_shop(DESKS).url)
    tab.tab_to("summary")
    tab.press("Enter")
    tab.wait("document.querySelector('#calls').checkVisibility()")
    assert tab.text("#calls code").startswith("curl 'http://127.0.0.1:")


def test_the_last_page_keeps_the_focus_where_it_was(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(f"{open_shop([*DESKS] * 4).url}/?limit=10")
    tab.tab_to("#next")
    tab.press("Enter")
    tab.wait_for_text("#count", "2 on this page")
    assert tab.look("document.activeElement.id") == "next"


@pytest.mark.parametrize("path", ["/", "/?product=1", "/?product=2", "/?sort=" + "x" * 90, "/?product=1&name=zebra"])
@pytest.mark.parametrize("width", [375, 320])
def test_nothing_hangs_over_the_side_of_a_phone(tab: Tab, open_shop: OpenShop, width: int, path: str) -> None:
    tab.resize(width, 700)
    tab.open(open_shop(EXTREME).url + path)
    tab.click("summary")
    tab.wait("document.querySelector('#calls').checkVisibility()")
    assert tab.look("document.documentElement.scrollWidth") <= width
    outside = f"(box) => box.width && (box.right > {width} + 0.5 || box.left < -0.5)"
    boxes = "[...document.querySelectorAll('body *:not(.unseen)')].map((element) => element.getBoundingClientRect())"
    assert tab.look(f"{boxes}.filter({outside})") == []


def test_on_a_phone_an_opened_product_takes_the_place_of_the_table(tab: Tab, open_shop: OpenShop) -> None:
    tab.resize(375, 700)
    tab.open(open_shop(DESKS).url)
    tab.click("tbody a")
    tab.wait_for_text("#product-name", "Oak desk")
    assert not tab.look("list.checkVisibility()")
    tab.click("#close")
    tab.wait("list.checkVisibility()")


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_the_page_is_as_light_or_dark_as_the_system(tab: Tab, open_shop: OpenShop, scheme: str, is_dark: bool) -> None:
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.open(open_shop(DESKS).url)
    for element in ("body", "#list", "input", "button"):
        back = tab.look(f"getComputedStyle(document.querySelector('{element}')).backgroundColor.match(/[0-9]+/g)[0]")
        assert element == "button" or (int(back) < 80) == is_dark


def contrast(tab: Tab, selector: str) -> float:
    """The contrast of an element's text with what lies behind it (WCAG 2.2)."""
    script = f"""(() => {{
        const part = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
        const numbers = (color) => color.match(/[0-9.]+/g).map(Number);
        const element = document.querySelector("{selector}");
        let behind = element;
        while (numbers(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
        const lights = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        const [dark, bright] = lights.map((color) => light(numbers(color))).sort((a, b) => a - b);
        return (bright + 0.05) / (dark + 0.05);
    }})()"""
    return float(tab.look(script))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(tab: Tab, open_shop: OpenShop, scheme: str) -> None:
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.open(f"{open_shop(DESKS).url}/?product=1")
    tab.wait_for_text("#product-name", "Oak desk")
    tab.click("[name=price]")
    tab.type("x")
    tab.press("Enter")
    tab.wait_for_text("#price-wrong", "must be")
    for selector in ("h1", "label", "#count", "thead a", "tbody a", ".out", "[aria-current]", "button.main", "dt", "dd",
                     ".problem strong", ".wrong", "#said", "#next", "#rate", "#close", "input", "select"):  # fmt: skip
        assert contrast(tab, selector) >= 4.5, selector


def test_whatever_can_be_used_has_a_name_that_can_be_heard(tab: Tab, open_shop: OpenShop) -> None:
    tab.open(f"{open_shop(DESKS).url}/?product=1")
    tab.wait_for_text("#product-name", "Oak desk")
    tab.click("summary")
    nodes = [node for node in tab.send("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    names = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes]
    for role in ("textbox", "searchbox", "button", "link", "combobox", "checkbox", "table", "region"):
        of_role = [name for this, name in names if this == role]
        assert of_role, role
        assert all(name.strip() for name in of_role), role
    live = tab.look("[...document.querySelectorAll('[role=status], [role=alert]')].map((element) => element.id)")
    assert live == ["count", "list-problem", "product-problem", "said"]
