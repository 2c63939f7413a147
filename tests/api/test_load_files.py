"""--load, from the bytes of a file to the exit code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from inventory_api import main
from tests.api.conftest import Service, one_engine

HEADER = b"id,name,price,stock_level\n"
Load = Callable[[bytes], int]


@pytest.fixture
def load(service: Service, tmp_path: Path) -> Load:
    """Run the program on a file with these bytes: its exit code."""

    def run(content: bytes) -> int:
        (tmp_path / "products.csv").write_bytes(content)
        return main(["--load", str(tmp_path / "products.csv"), "--database-url", service.url])

    return run


def table(service: Service) -> list[tuple[object, ...]]:
    return service.execute("SELECT id, name, price_cents, stock_level FROM products ORDER BY id")


@one_engine
@pytest.mark.parametrize(
    ("content", "names"),
    [
        (HEADER + b"1,a,1,1", ["a"]),
        (HEADER + b"1,a,1,1\r\n2,b,1,1\r\n", ["a", "b"]),
        (HEADER.replace(b"\n", b"\r") + b"1,a,1,1\r2,b,1,1\r", ["a", "b"]),
        (b"\xef\xbb\xbf" + HEADER + b"1,a,1,1\n", ["a"]),
        (b'\xef\xbb\xbf"id","name","price","stock_level"\n"1","a","1","1"\n', ["a"]),
        (HEADER + b"1,\xef\xbb\xbfa,1,1\n", ["\ufeffa"]),
        (HEADER + b'1,"a ""b"" c",1,1\n', ['a "b" c']),
        (HEADER + b'1,a"b,1,1\n', ['a"b']),
        (HEADER + b'1," a ,\r\nb",1,1\n', [" a ,\r\nb"]),
        (HEADER + b"1, a ,1,1\n", [" a "]),
        (HEADER + b"1,a\xc2\x85b\xe2\x80\xa8c\x0bd\x0ce\x1cf,1,1\n", ["a\x85b\u2028c\x0bd\x0ce\x1cf"]),
        (HEADER + b"1,\\N,1,1\n2,\\.,1,1\n3,a\\tb,1,1\n", ["\\N", "\\.", "a\\tb"]),
        (HEADER + "1,İ😀\U0010ffff,1,1\n".encode(), ["İ😀\U0010ffff"]),
        (HEADER + f"1,{'😀' * 200},1,1\n".encode(), ["😀" * 200]),
        (HEADER + b"\n\n1,a,1,1\n\n", ["a"]),
        (HEADER, []),
        (HEADER.rstrip(), []),
    ],
)
def test_a_file_is_read_as_csv_is_written(load: Load, service: Service, content: bytes, names: list[str]) -> None:
    assert load(content) == 0
    assert [row[1] for row in table(service)] == names


def test_text_that_means_something_to_copy_is_only_text(load: Load, service: Service) -> None:
    names = ["\\N", "\\.", "a\tb", "a\\tb", "a\nb", "\\", "NULL", "'; DROP TABLE products; --", "%s", ":name", "{0}"]
    assert load(HEADER + "".join(f'{i},"{name}",1,1\n' for i, name in enumerate(names, 1)).encode()) == 0
    assert [row[1] for row in table(service)] == names


@one_engine
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "line 1: name: "),
        (b"\xef\xbb\xbf", "line 1: name: "),
        (b"\n" + HEADER + b"1,a,1,1\n", "line 1: name: "),
        (b"1,a,1,1\n", "line 1: name: "),
        (HEADER.upper() + b"1,a,1,1\n", "line 1: name: "),
        (HEADER.replace(b",", b";") + b"1;a;1;1\n", "line 1: name: "),
        (HEADER.replace(b",", b", ") + b"1,a,1,1\n", "line 1: name: "),
        (HEADER.decode().encode("utf-16") + b"1,a,1,1\n", "line 1: name: "),
        (b"id,id,name,price,stock_level\n1,1,a,1,1\n", "line 1: id: "),
        (b"id,name,name,price,stock_level\n1,a,b,1,1\n", "line 1: name: "),
        (b"id,name,price,stock_level,\n1,a,1,1,\n", "line 1: : "),
        (b"id,name,price,stock_level,version\n1,a,1,1,5\n", "line 1: version: "),
        (HEADER + b"1,\xff,1,1\n", "line 2: name: "),
        (HEADER + b"1,\xed\xa0\x80,1,1\n", "line 2: name: "),
        (HEADER + b"1,a,\xff,1\n", "line 2: price: "),
        (HEADER + b"1,a,1,\xff\n", "line 2: stock_level: "),
        (HEADER + b"\xff,a,1,1\n", "line 2: id: "),
        (HEADER + b"1,a\0b,1,1\n", "line 2: "),
        (HEADER + b'1,"a,1,1\n2,b,1,1\n', "line 3: "),
        (HEADER + b'1,"a"b,1,1\n', "line 2: "),
        (HEADER + b"1," + b"x" * 300_000 + b",1,1\n", "line 2: "),
        (HEADER + b"1,a,1,1\n" + b"2,a,1," + b"9" * 100_000 + b"\n", "line 3: stock_level: "),
        (HEADER + b"1,a," + b"1" * 100_000 + b",1\n", "line 2: price: "),
        (HEADER + b"1" * 100_000 + b",a,1,1\n", "line 2: id: "),
        (HEADER + b"1,a,1,1\n,,,\n", "line 3: name: "),
        (HEADER + b"1,a,1,1\n \n", "line 3: "),
        (HEADER + b'1,"a\n\n\nb",1,1\n2,"c\nd",1,x\n', "line 7: stock_level: "),
        (HEADER + b"1,a,1,1\r\n\r\n2,b,1,1\r\n3,c,,1\r\n", "line 5: price: "),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line_on_stderr_and_nothing_loaded(
    load: Load, service: Service, capsys: pytest.CaptureFixture[str], content: bytes, told: str
) -> None:
    assert load(content) == 1
    out, errors = capsys.readouterr()
    assert (out, len(errors.splitlines()), len(errors) < 500) == ("", 1, True)
    assert told in errors
    assert table(service) == []


def test_a_bad_last_line_leaves_what_was_there(load: Load, service: Service) -> None:
    assert load(HEADER + b"1,a,1,1\n2,b,1,1\n") == 0
    before = service.execute("SELECT id, name, version, updated_at FROM products ORDER BY id")
    assert load(HEADER + b"1,x,9,9\n,new,1,1\n" * 2000 + b"3,c,1,-1\n") == 1
    assert service.execute("SELECT id, name, version, updated_at FROM products ORDER BY id") == before
    assert load(HEADER + b",c,1,1\n") == 0
    assert table(service)[2][1] == "c"


def test_what_was_loaded_is_told_with_its_number_and_speed(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    load(HEADER + b"1,a,1,1\n2,b,1,1\n")
    assert re.fullmatch(r"loaded 2 products in [0-9.]+ s, [0-9]+ a second\n", capsys.readouterr().out)


def test_the_last_of_many_lines_of_an_id_wins_wherever_they_stand(load: Load, service: Service) -> None:
    lines = [f"{i % 7 + 1},n{i},{i}.00,{i}\n" for i in range(700)]
    assert load(HEADER + "".join(lines).encode()) == 0
    assert table(service) == [(i - 692, f"n{i}", i * 100, i) for i in range(693, 700)]


def test_a_product_loaded_again_has_a_later_version_and_is_served(load: Load, service: Service) -> None:
    service.restart(cache_size=0)
    versions = []
    for content in (b"1,a,1,1\n", b"1,a,1,1\n", b"1,b,1,1\n1,c,2,1\n", b"1,c,2,1\n"):
        assert load(HEADER + content) == 0
        versions.append(service.get("/products/1").json["version"])
    assert versions == sorted(set(versions))


def test_what_a_load_did_not_bring_stays_as_it_is(load: Load, service: Service) -> None:
    load(HEADER + b"1,a,1,1\n2,b,1,1\n")
    load(HEADER + b"2,c,2,2\n")
    assert service.execute("SELECT version FROM products WHERE id = 1") == [(1,)]


def test_a_renamed_product_is_found_by_its_new_name_alone(load: Load, service: Service) -> None:
    service.restart(cache_size=0)
    load(HEADER + "1,Grüner ÄB Tisch,1,1\n".encode())
    for name in ("grüner äb tisch", "GRÜNER ÄB TISCH", "roter ab stuhl", "GRÜNER äb TISCH", "Grüner ÄB Tisch"):
        load(HEADER + f"1,{name},1,1\n".encode())
        for needle in ("grüner ä", "äb tis", "ER AB ST"):
            found = service.get("/products/search", "name=" + needle.replace(" ", "+").encode().decode("latin-1"))
            assert len(found.json["items"]) == (needle.lower() in name.lower()), (name, needle)


def test_lines_without_an_id_are_new_products_each_time(load: Load, service: Service) -> None:
    for _ in range(2):
        load(b"name,price,stock_level\na,1,1\na,1,1\n")
    assert [row[0] for row in table(service)] == [1, 2, 3, 4]


def test_an_id_that_is_brought_later_is_not_given_out_again(load: Load, service: Service) -> None:
    service.execute("INSERT INTO products (name, price_cents, stock_level) VALUES ('first', 1, 1)")
    load(HEADER + b",new,1,1\n3,three,1,1\n2,two,1,1\n,newer,1,1\n")
    service.execute("INSERT INTO products (name, price_cents, stock_level) VALUES ('last', 1, 1)")
    assert [row[:2] for row in table(service)] == [
        (1, "first"), (2, "two"), (3, "three"), (4, "new"), (5, "newer"), (6, "last")
    ]  # fmt: skip


def test_the_largest_id_is_loaded_and_served(load: Load, service: Service) -> None:
    load(HEADER + b"9223372036854775807,a,1,1\n")
    assert service.get("/products/9223372036854775807").json["id"] == 9223372036854775807
