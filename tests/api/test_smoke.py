from tests.api.conftest import Service


def test_a_product_is_read_and_changed(desks: Service) -> None:
    assert desks.get("/products/1").json["name"] == "Oak desk"
    changed = desks.patch(1, '{"price": "99.5", "stock_delta": -2}')
    assert changed.status_code == 200, changed.text
    assert (changed.json["price"], changed.json["stock_level"], changed.json["version"]) == ("99.50", 10, 2)
    assert desks.get("/products/1").json == changed.json
    page = desks.get("/products/search", "name=DESK&sort=-name&include_total=true")
    assert [item["id"] for item in page.json["items"]] == [2, 1], page.text
