"""Bulk load: --load."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from inventory_api import BadLine, fold, open_database, read_products
from tests.api.conftest import Service

Run = Callable[..., "subprocess.CompletedProcess[str]"]
HEADER = "id,name,price,stock_level"


def table(service: Service) -> list[tuple[object, ...]]:
    rows = service.execute("SELECT id, name, price_cents, stock_level, version, name_folded FROM products ORDER BY id")
    assert all(row[5] == fold(row[1]) for row in rows)
    return [row[:5] for row in rows]


def test_ids_prices_and_stock_are_taken_as_written(service: Service) -> None:
    assert service.load(HEADER, ['7,"Oak, round",0007.5,0', "3,x,9999999.99,2147483647"]) == 2
    assert table(service) == [(3, "x", 999_999_999, 2_147_483_647, 1), (7, "Oak, round", 750, 0, 1)]


def test_columns_stand_in_any_order_and_ids_may_be_absent(service: Service) -> None:
    service.load("stock_level,price,name", ["1,2.00,a", "3,4,b"])
    assert table(service) == [(1, "a", 200, 1, 1), (2, "b", 400, 3, 1)]


def test_a_line_without_an_id_never_takes_an_id_of_another_line(service: Service) -> None:
    service.load(HEADER, [",new,1,1", "1,one,1,1", ",newer,1,1", "2,two,1,1"])
    assert [row[:2] for row in table(service)] == [(1, "one"), (2, "two"), (3, "new"), (4, "newer")]


def test_the_last_line_of_an_id_wins(service: Service) -> None:
    assert service.load(HEADER, ["1,a,1,1", "2,b,1,1", "1,c,2,2"]) == 2
    assert [row[:4] for row in table(service)] == [(1, "c", 200, 2), (2, "b", 100, 1)]


def test_a_product_loaded_again_is_changed(service: Service) -> None:
    service.load(HEADER, ["1,a,1,1"])
    service.load(HEADER, ["1,a,1,1", "2,b,1,1"])
    (_, _, _, _, first), (_, _, _, _, second) = table(service)
    assert (first, second) == (2, 1)


@pytest.mark.parametrize(("before", "after"), [("ÄB", "äb"), ("äb", "ÄB"), ("Ab", "aB"), ("ÄB", "ÖB"), ("x", "É")])
def test_a_name_that_changes_only_in_case_is_still_found(service: Service, before: str, after: str) -> None:
    service.load(HEADER, [f"1,{before} desk,1,1"])
    service.load(HEADER, [f"1,{after} desk,1,1"])
    found = service.get("/products/search", "name=" + "".join(f"%{byte:02X}" for byte in f"{after} d".encode()))
    assert [item["name"] for item in found.json["items"]] == [f"{after} desk"]
    assert table(service)[0][1] == f"{after} desk"


def test_new_ids_go_on_behind_those_that_a_file_brought(service: Service) -> None:
    service.load(HEADER, ["500,a,1,1"])
    service.execute("INSERT INTO products (name, price_cents, stock_level) VALUES ('b', 1, 1)")
    service.load(HEADER, ["5,c,1,1"])
    service.execute("INSERT INTO products (name, price_cents, stock_level) VALUES ('d', 1, 1)")
    assert [row[:2] for row in table(service)] == [(5, "c"), (500, "a"), (501, "b"), (502, "d")]


BAD = [
    ("1,a,1", 2, "stock_level"),
    ("1,a,1,1,1", 2, "stock_level"),
    ("0,a,1,1", 2, "id"),
    ("-1,a,1,1", 2, "id"),
    ("1.0,a,1,1", 2, "id"),
    ("9223372036854775808,a,1,1", 2, "id"),
    (" 1,a,1,1", 2, "id"),
    ("x,a,1,1", 2, "id"),
    ("1,,1,1", 2, "name"),
    (f"1,{'x' * 201},1,1", 2, "name"),
    ("1,a\udcff,1,1", 2, "name"),
    ("1,a,,1", 2, "price"),
    ("1,a,1.005,1", 2, "price"),
    ("1,a,-1,1", 2, "price"),
    ("1,a,1e2,1", 2, "price"),
    ("1,a,10000000,1", 2, "price"),
    ("1,a, 1,1", 2, "price"),
    ("1,a,١,1", 2, "price"),
    ("1,a,1,", 2, "stock_level"),
    ("1,a,1,-1", 2, "stock_level"),
    ("1,a,1,1.5", 2, "stock_level"),
    ("1,a,1,2147483648", 2, "stock_level"),
    ("1,a,1,1_0", 2, "stock_level"),
    ('1,"two\nlines",1,1\n2,a,x,1', 4, "price"),
    ("1,a,1,1\n\n\n2,a,x,1", 5, "price"),
]


@pytest.mark.parametrize(("lines", "number", "column"), BAD)
def test_a_bad_line_is_told_with_its_number_and_column(lines: str, number: int, column: str) -> None:
    with pytest.raises(BadLine, match=rf"^line {number}: {column}: "):
        list(read_products(f"{HEADER}\n{lines}\n".splitlines(keepends=True)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1: name: "),
        ("\n", "line 1: name: "),
        ("id,name,price\n", "line 1: stock_level: "),
        ("id,name,price,price,stock_level\n", "line 1: price: "),
        ("id,name,price,stock_level,colour\n", "line 1: colour: "),
        (f'{HEADER}\n1,"a,1,1\n', "line 2: "),
        (f"{HEADER}\n1,{'x' * 200_000},1,1\n", "line 2: "),
        (f"{HEADER}\n1,a\0b,1,1\n", "line 2: "),
    ],
)
def test_a_file_that_cannot_be_understood_is_told(text: str, reason: str) -> None:
    with pytest.raises(BadLine, match=f"^{reason}"):
        list(read_products(text.splitlines(keepends=True)))


def test_one_bad_line_loads_nothing(service: Service) -> None:
    service.load(HEADER, ["1,a,1,1"])
    with pytest.raises(BadLine, match="line 4"):
        service.load(HEADER, ["1,b,2,2", "2,c,1,1", "3,d,1,x"])
    assert table(service) == [(1, "a", 100, 1, 1)]
    assert service.load(HEADER, ["2,c,1,1"]) == 1


def test_an_empty_table_of_lines_loads_nothing(service: Service) -> None:
    assert service.load(HEADER, []) == 0


@pytest.mark.slow
def test_a_file_is_loaded_and_told(run_program: Run, tmp_path: Path, empty_url: str) -> None:
    (tmp_path / "p.csv").write_bytes(
        b'\xef\xbb\xbfid,name,price,stock_level\r\n1,"Caf\xc3\xa9, ""round""\r\ntable",12.5,3\r\n'
    )
    result = run_program("--load", "p.csv", "--database-url", empty_url)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("loaded 1 products in ")
    database = open_database(empty_url)
    assert database.read(lambda execute: execute("SELECT name FROM products")) == [('Café, "round"\r\ntable',)]
    database.close()


@pytest.mark.slow
def test_a_load_makes_no_samples(run_program: Run, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(f"{HEADER}\n1,a,1,1\n")
    assert run_program("--load", "p.csv").stdout.startswith("loaded 1 products")
    database = open_database(f"sqlite:///{tmp_path}/inventory.db")
    assert database.read(lambda execute: execute("SELECT count(*) FROM products")) == [(1,)]
    database.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "reason"), [("none.csv", "none.csv"), (".", "directory"), ("bad.csv", "line 2: price")]
)
def test_a_file_that_cannot_be_loaded_is_told_in_one_line(
    run_program: Run, tmp_path: Path, path: str, reason: str
) -> None:
    (tmp_path / "bad.csv").write_text(f"{HEADER}\n1,a,x,1\n")
    result = run_program("--load", path)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert reason in result.stderr
