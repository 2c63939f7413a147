"""One table of numbers, good and bad, tried wherever the API reads one: in the path, a query, a JSON body and a CSV."""

import json

import pytest

from inventory_api import BadLine, parse_cents, read_products
from tests.api.conftest import Service, one_engine, quoted

# What is written; the cents it says as a number of a JSON body; the cents it says as text. None: it is refused.
PRICES: list[tuple[str, int | None, int | None]] = [
    ("0", 0, 0),
    ("0.00", 0, 0),
    ("5", 500, 500),
    ("0.1", 10, 10),
    ("0.01", 1, 1),
    ("19.99", 1999, 1999),
    ("1.10", 110, 110),
    ("12.340", 1234, None),
    ("1e2", 10000, None),
    ("1E+2", 10000, None),
    ("1e-2", 1, None),
    ("100e-2", 100, None),
    ("0.005e1", 5, None),
    ("1e00000000000000000002", 10000, None),
    ("0e9999999999", 0, None),
    ("0.0e-9999999999", 0, None),
    ("-0", 0, None),
    ("-0.00", 0, None),
    ("9999999.99", 999999999, 999999999),
    ("9999999.990", 999999999, None),
    ("9999999.98999999999999999999999999999999", None, None),
    ("0.99999999999999999999999999999999999999", None, None),
    ("9999999.991", None, None),
    ("9999999.994999999999999999999999999999", None, None),
    ("10000000", None, None),
    ("9999999.995", None, None),
    ("1e7", None, None),
    ("1.005", None, None),
    ("0.001", None, None),
    ("1e-3", None, None),
    ("1.000000000000000000000000000001", None, None),  # 31 digits: Decimal's context would round the last away
    ("1.000000000000000000000000000000", 100, None),
    ("123456789012345678901234567890", None, None),
    ("123456789012345678901234567890e-28", None, None),
    ("120000000000000000000000000000e-28", 1200, None),
    ("1e-999999999", None, None),
    ("1e999999999", None, None),
    ("1e99999999999999999999", None, None),
    ("1" + "0" * 6000 + "e-6000", 100, None),
    ("1" * 6000, None, None),
    ("0." + "0" * 6000, 0, None),
    ("0." + "0" * 6000 + "1", None, None),
    ("0." + "0" * 6000 + "1e6001", 100, None),
    ("1e" + "0" * 6000 + "1", 1000, None),
    ("1e-" + "0" * 6000 + "1", 10, None),
    ("1e" + "9" * 6000, None, None),
    ("-1", None, None),
    ("-0.01", None, None),
    ("-1e-999999999", None, None),
]
# None of these is a JSON number at all.
NOT_NUMBERS = (
    "",
    "1_0",
    "+5",
    "٣",
    "1.٣",
    "５",
    "0x10",
    ".5",
    "5.",
    "1,5",
    "1e",
    "e2",
    "1.2.3",
    "--1",
    "-",
    "²",
    "Infinity",
    "NaN",
    "5\0",
    "5 5",
    "½",
    "five",
    "\u22125",
    "$5",
    "1'000",
    "0b1",
    "1e2.5",
)
PADDED = (" 5", "5 ", "5\n", "\t5", "\u00a05", "5\u2003")
LEADING_ZEROS = ("01", "007.5", "0000005.25")


def ids(text: str) -> str:
    return ascii(text if len(text) < 40 else f"{text[:12]}...{text[-8:]}, {len(text)} long")


each_price = pytest.mark.parametrize(
    ("written", "as_number", "as_text"), PRICES, ids=[ids(written) for written, *_ in PRICES]
)
each_not_a_number = pytest.mark.parametrize("written", NOT_NUMBERS + PADDED, ids=ids)


@one_engine
@each_price
def test_a_price_in_a_body_is_taken_by_its_exact_value(
    desks: Service, written: str, as_number: int | None, as_text: int | None
) -> None:
    answered = desks.patch(1, f'{{"price": {written}}}')
    if as_number is None:
        assert answered.status_code == 422, answered.text
        assert [error["field"] for error in answered.json["errors"]] == ["price"]
        assert desks.get("/products/1").json["price"] == "129.90"
    else:
        assert answered.status_code == 200, answered.text
        assert answered.json["price"] == f"{as_number // 100}.{as_number % 100:02}"


@each_price
def test_a_price_as_text_has_seven_digits_and_two_decimals_at_most(
    written: str, as_number: int | None, as_text: int | None
) -> None:
    assert parse_cents(written) == as_text


@each_not_a_number
def test_what_is_no_number_is_no_price(written: str) -> None:
    assert parse_cents(written) is None


@one_engine
@pytest.mark.parametrize("written", NOT_NUMBERS + LEADING_ZEROS, ids=ids)
def test_a_number_that_json_does_not_know_makes_the_body_malformed(desks: Service, written: str) -> None:
    assert desks.patch(1, f'{{"price": {written}}}'.encode()).status_code == 400


@one_engine
@pytest.mark.parametrize("written", [*NOT_NUMBERS, *PADDED, "12.340", "1e2", "-0", "10000000", "1.005"], ids=ids)
def test_a_bad_price_in_a_json_string_is_a_bad_field(desks: Service, written: str) -> None:
    answered = desks.patch(1, json.dumps({"price": written}))
    assert answered.status_code == 422
    assert answered.json["errors"][0]["field"] == "price"


@one_engine
@pytest.mark.parametrize(("written", "price"), [("5", "5.00"), ("0.1", "0.10"), ("0000005.25", "5.25")])
def test_a_price_may_be_a_json_string(desks: Service, written: str, price: str) -> None:
    assert desks.patch(1, json.dumps({"price": written})).json["price"] == price


@one_engine
@pytest.mark.parametrize("parameter", ["min_price", "max_price"])
@pytest.mark.parametrize(
    "encoded",
    [
        "1_0",
        "%2B5",
        "+5",
        "%205",
        "5%20",
        "5+",
        "",
        "%D9%A3",
        "-0",
        "-1",
        "1e2",
        "12.340",
        "1.005",
        "10000000",
        ".5",
        "5.",
        "%EF%BC%95",
        "5%00",
        "5%0A",
        "NaN",
        "1" * 5000,
    ],
    ids=ids,
)
def test_a_bad_price_in_a_query_is_named(desks: Service, parameter: str, encoded: str) -> None:
    answered = desks.get("/products/search", f"{parameter}={encoded}")
    assert answered.status_code == 400
    assert parameter in answered.json["detail"]


def test_prices_in_a_query_are_exact(desks: Service) -> None:
    def found(query: str) -> list[int]:
        return [item["id"] for item in desks.get("/products/search", query).json["items"]]

    assert found("min_price=80&max_price=129.9") == [1, 2]
    assert found("min_price=80.01&max_price=129.90") == [1]
    assert found("min_price=80.00&max_price=129.89") == [2]
    assert found("min_price=0&max_price=9999999.99") == [1, 2, 3]


@one_engine
@pytest.mark.parametrize(
    "encoded",
    [
        "0",
        "201",
        "-0",
        "-1",
        "1_0",
        "%2B5",
        "+5",
        "%205",
        "5%20",
        "05",
        "",
        "%D9%A3",
        "5.0",
        "1e1",
        "0x5",
        "5%00",
        "9" * 5000,
    ],
    ids=ids,
)
def test_a_bad_limit_is_named(service: Service, encoded: str) -> None:
    answered = service.get("/products", f"limit={encoded}")
    assert answered.status_code == 400
    assert "limit" in answered.json["detail"]


@one_engine
@pytest.mark.parametrize(
    "encoded",
    [
        "abc",
        "0",
        "007",
        "-0",
        "-1",
        "+1",
        "1_0",
        "1.0",
        "1e0",
        "%201",
        "1%20",
        "%D9%A3",
        "1%00",
        "0x1",
        "%31x",
        "1%0A",
        "%",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PATCH"])
def test_an_id_that_is_no_plain_whole_number_is_a_bad_request(desks: Service, method: str, encoded: str) -> None:
    sent = {"body": '{"stock_delta": 0}', "Content_Type": "application/json"} if method == "PATCH" else {}
    assert desks.request(method, f"/products/{encoded}", **sent).status_code == 400


@pytest.mark.parametrize(
    "number", ["4", str(2**31 - 1), str(2**31), str(2**63 - 1), str(2**63), str(2**64), "9" * 30, "1" * 8000], ids=ids
)
@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_no_product_has_this_id_however_big(desks: Service, method: str, number: str) -> None:
    answered = desks.get(f"/products/{number}") if method == "GET" else desks.patch(number, '{"stock_delta": 0}')
    assert answered.status_code == 404


@one_engine
@pytest.mark.parametrize("field", ["stock_level", "stock_delta"])
@pytest.mark.parametrize(
    "written",
    [
        "1.0",
        "1e1",
        "1.5",
        '"1"',
        "true",
        "null",
        "[]",
        "{}",
        "2147483648",
        "-2147483648",
        "9" * 30,
        "9" * 9000,
        "-" + "9" * 9000,
    ],
    ids=ids,
)
def test_stock_is_a_plain_integer_in_its_range(desks: Service, field: str, written: str) -> None:
    answered = desks.patch(1, f'{{"{field}": {written}}}')
    assert answered.status_code == 422
    assert [error["field"] for error in answered.json["errors"]] == [field]


@pytest.mark.parametrize(
    ("body", "level"),
    [
        ('{"stock_level": 0}', 0),
        ('{"stock_level": 2147483647}', 2147483647),
        ('{"stock_delta": -12}', 0),
        ('{"stock_delta": 2147483635}', 2147483647),
        ('{"stock_delta": 0}', 12),
    ],
)
def test_stock_reaches_both_ends_of_its_range(desks: Service, body: str, level: int) -> None:
    assert desks.patch(1, body).json["stock_level"] == level


def cells(price: str = "1", stock: str = "1", number: str = "7") -> list[str]:
    return ["id,name,price,stock_level\n", f"{quoted(number)},Lamp,{quoted(price)},{quoted(stock)}\n"]


@each_price
def test_a_price_in_a_csv_is_read_as_text(written: str, as_number: int | None, as_text: int | None) -> None:
    if as_text is None:
        with pytest.raises(BadLine, match=r"line 2: price"):
            list(read_products(cells(price=written)))
    else:
        ((_, _, name, _, cents, _),) = read_products(cells(price=written))
        assert (name, cents) == ("Lamp", as_text)


@each_not_a_number
def test_what_is_no_number_is_no_price_in_a_csv(written: str) -> None:
    with pytest.raises(BadLine, match=r"price|NUL"):
        list(read_products(cells(price=written)))


@pytest.mark.parametrize("written", [*NOT_NUMBERS, *PADDED, "2147483648", "-1", "1.0", "1e1", "9" * 5000], ids=ids)
def test_what_is_no_stock_is_refused_in_a_csv(written: str) -> None:
    with pytest.raises(BadLine, match=r"stock_level|NUL"):
        list(read_products(cells(stock=written)))


@pytest.mark.parametrize(
    "written", ["0", "-1", "1_0", "+5", "٣", " 5", "5 ", "007", "1.0", str(2**63), "9" * 5000], ids=ids
)
def test_what_is_no_id_is_refused_in_a_csv(written: str) -> None:
    with pytest.raises(BadLine, match=r"line 2: id"):
        list(read_products(cells(number=written)))
