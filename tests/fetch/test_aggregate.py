"""ads.csv: the days in order under one header."""

import pytest

from fetch_ads import Exit

from .conftest import Command

RANGE = ("2023-01-01", "2023-01-03")


def text(command: Command) -> str:
    return (command.data / "ads.csv").read_bytes().decode()


def test_equal_headers_are_joined(command: Command) -> None:
    command.run(*RANGE)
    days = "".join(f"2023-01-0{n},{n},a\r\n" for n in (1, 2, 3))
    assert text(command) == "date,clicks,name\r\n" + days


def test_columns_are_the_union_in_order_of_first_appearance(command: Command) -> None:
    command.fetcher("return [{1: {'b': 1, 'a': 2}, 2: {'c': '3\\r\\n', 'a': 4}, 3: {'b': 5}}[day.day]]")
    command.run(*RANGE)
    assert text(command) == ('date,b,a,c\r\n2023-01-01,1,2,\r\n2023-01-02,,4,"3\r\n"\r\n2023-01-03,5,,\r\n')


def test_a_column_name_with_a_line_break(command: Command) -> None:
    command.fetcher("return [{'two\\r\\nlines': 1, 'b': day.day}]")
    command.run(*RANGE)
    assert [row["two\r\nlines"] for row in command.ads()] == ["1", "1", "1"]
    assert text(command).count("two") == 1


def test_days_without_rows_add_none(command: Command) -> None:
    command.fetcher("return [{'a': 1, 'b': 2}] if day.day == 2 else []")
    command.run(*RANGE)
    assert text(command) == "date,a,b\r\n2023-01-02,1,2\r\n"


def test_failed_days_are_not_in_it(command: Command) -> None:
    command.fetcher("return None if day.day == 2 else [{'a': 1, 'b': 2}]")
    assert command.run(*RANGE) == Exit.FAILED
    assert [row["date"] for row in command.ads()] == ["2023-01-01", "2023-01-03"]


def test_days_of_earlier_runs_are_in_it(command: Command) -> None:
    command.run("2023-01-03", "2023-01-03")
    command.run("2023-01-01", "2023-01-01")
    assert [row["date"] for row in command.ads()] == ["2023-01-01", "2023-01-03"]


@pytest.mark.parametrize("new", [None, b"", b"date\r\n", b"date,clicks,name\r\n2023-01-01,1,a\r\n2023-01-02,2,b\r\n"])
def test_it_is_built_again_when_it_is_not_what_the_days_say(command: Command, new: bytes | None) -> None:
    command.run(*RANGE)
    before = text(command)
    (command.data / "ads.csv").unlink() if new is None else (command.data / "ads.csv").write_bytes(new)
    command.called()
    assert command.run(*RANGE) == Exit.OK
    assert text(command) == before
    assert command.called() == []


def test_it_is_not_written_when_nothing_changed(command: Command) -> None:
    command.run(*RANGE)
    before = (command.data / "ads.csv").stat()
    command.run(*RANGE)
    assert (command.data / "ads.csv").stat().st_ino == before.st_ino


def test_a_huge_field_in_a_day_with_other_columns(command: Command) -> None:
    command.fetcher("return [{'a': 'x' * 300_000, 'b': 1}] if day.day == 1 else [{'c': 1}]")
    assert command.run(*RANGE) == Exit.OK
    assert len(command.ads()[0]["a"]) == 300_000
