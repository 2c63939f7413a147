"""What fetch_data may give, and the file that becomes of it."""

import collections
import csv
import datetime as dt
import hashlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fetch_ads import BATCH, Kind, Outcome, call_day

DAY = dt.date(2023, 1, 2)


def called(fetch: Callable[[dt.date], Any], path: Path) -> Outcome:
    outcome = call_day(fetch, DAY, str(path))
    assert isinstance(outcome, Outcome)
    return outcome


class Caller:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, answer: Any) -> Outcome:
        fetch = answer if callable(answer) else lambda day: answer
        self.path.unlink(missing_ok=True)
        return called(fetch, self.path)

    def text(self, answer: Any) -> str:
        outcome = self(answer)
        assert outcome.kind is Kind.DONE, outcome.error
        data = self.path.read_bytes()
        assert (outcome.bytes, outcome.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert [path.name for path in self.path.parent.iterdir()] == [self.path.name]
        return data.decode()

    def rows(self, answer: Any) -> list[list[str]]:
        self.text(answer)
        csv.field_size_limit(2**31 - 1)
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))


@pytest.fixture
def call(tmp_path: Path) -> Caller:
    return Caller(tmp_path / ".2023-01-02.1-1.tmp")


def test_a_list_of_dicts(call: Caller) -> None:
    assert call.text([{"b": 1, "a": "x"}, {"b": 2.5, "a": None}]) == (
        "date,b,a\r\n2023-01-02,1,x\r\n2023-01-02,2.5,\r\n"
    )


def test_a_generator_a_tuple_and_any_iterable(call: Caller) -> None:
    rows = [{"a": 1, "b": 2}]
    texts = {call.text(answer) for answer in (rows, tuple(rows), iter(rows), lambda day: (row for row in rows))}
    assert len(texts) == 1


def test_a_single_mapping_is_one_row(call: Caller) -> None:
    assert call.rows({"a": 1})[1:] == [["2023-01-02", "1"]]


def test_a_data_frame_gives_its_records(call: Caller) -> None:
    class Frame:
        def to_dict(self, orient: str) -> list[dict[str, int]]:
            assert orient == "records"
            return [{"a": 1}]

    assert call.rows(Frame())[1:] == [["2023-01-02", "1"]]


def test_nested_mappings_become_dotted_columns(call: Caller) -> None:
    nested = types.MappingProxyType({"clicks": 3, "cost": {"micros": 5}})
    assert call.rows([{"id": 1, "metrics": nested}]) == [
        ["date", "id", "metrics.clicks", "metrics.cost.micros"],
        ["2023-01-02", "1", "3", "5"],
    ]


def test_a_nested_mapping_deep_in_a_flat_batch_is_seen(call: Caller) -> None:
    rows: list[dict[str, Any]] = [{"a": 1, "b": 2}] * 10 + [{"a": 1, "b": {"c": 3}}]
    assert call.rows(rows)[0] == ["date", "a", "b", "b.c"]


def test_other_mappings_than_dict(call: Caller) -> None:
    assert call.rows([collections.ChainMap({"a": 1}), collections.OrderedDict(a=2)])[1:] == [
        ["2023-01-02", "1"],
        ["2023-01-02", "2"],
    ]


def test_no_rows_leave_a_header(call: Caller) -> None:
    empty: list[dict[str, int]] = []
    for nothing in (empty, tuple(empty), iter(empty), (row for row in empty)):
        assert call.text(nothing) == "date\r\n"


def test_an_empty_row_is_a_row(call: Caller) -> None:
    assert call.text([{}]) == "date\r\n2023-01-02\r\n"


@pytest.mark.parametrize(
    "own",
    [DAY, dt.datetime(2023, 1, 2, 13, 30), "2023-01-02", "20230102", "2023/01/02", "2023-01-02T00:00:00Z", None, ""],
)
def test_the_own_date_of_a_row_comes_first_as_a_day(call: Caller, own: object) -> None:
    assert call.rows([{"a": 1, "date": own, "b": 2}] * 3) == [["date", "a", "b"], *[["2023-01-02", "1", "2"]] * 3]


@pytest.mark.parametrize("own", [dt.date(2023, 1, 3), "2023-01-03", "20230103", "soon", 5])
@pytest.mark.parametrize("at", [0, 700])
def test_a_row_of_another_day_fails_the_day(call: Caller, own: object, at: int) -> None:
    rows: list[dict[str, object]] = [{"a": 1, "b": 2, "date": DAY} for _ in range(1000)]
    rows[at]["date"] = own
    outcome = call(rows)
    assert outcome.kind is Kind.FAILED
    assert str(own) in outcome.error


def test_equal_rows_are_kept(call: Caller) -> None:
    assert len(call.rows([{"a": 1, "b": 2}] * 3)) == 4


def test_columns_may_come_and_go_within_a_day(call: Caller) -> None:
    assert call.rows([{"a": 1, "b": 2}, {"b": 3, "c": 4}, {"a": 5}]) == [
        ["date", "a", "b", "c"],
        ["2023-01-02", "1", "2", ""],
        ["2023-01-02", "", "3", "4"],
        ["2023-01-02", "5", "", ""],
    ]


def test_a_column_that_comes_late_widens_the_file(call: Caller) -> None:
    rows = call.rows([{"a": "x\r\ny", "b": 2}] * (2 * BATCH + 5) + [{"a": 1, "b": 2, "c": 3}])
    assert {len(row) for row in rows} == {4}
    assert rows[1] == ["2023-01-02", "x\r\ny", "2", ""]
    assert rows[-1] == ["2023-01-02", "1", "2", "3"]


def test_rows_of_as_many_other_columns_are_not_mixed_up(call: Caller) -> None:
    assert call.rows([{"a": 1, "b": 2}, {"a": 3, "c": 4}, {"b": 6, "a": 5}])[1:] == [
        ["2023-01-02", "1", "2", ""],
        ["2023-01-02", "3", "", "4"],
        ["2023-01-02", "5", "6", ""],
    ]


@pytest.mark.parametrize(
    "cell", ["x\r\ny", "x\ny", "x\ry", 'say "no"', "a,b", " x ", "\u00e9\u4e2d\U0001f600", "\ufeff", "=1+1"]
)
def test_any_text_survives(call: Caller, cell: str) -> None:
    assert call.rows([{"a": cell, cell: 1}])[1][1] == cell


def test_a_huge_field_survives(call: Caller) -> None:
    assert call.rows([{"a": 1, "b": "x" * 10_000_000}, {"c": 1}])[1][2] == "x" * 10_000_000


def half() -> Iterator[dict[str, int]]:
    yield {"a": 1}
    raise TimeoutError("in the middle")


def leaves(day: dt.date) -> None:
    sys.exit("no configuration")


@pytest.mark.parametrize(
    ("answer", "kind", "error"),
    [
        (None, Kind.FAILED, "returned NoneType, not rows"),
        (7, Kind.FAILED, "returned int"),
        ("text", Kind.FAILED, "returned str"),
        ([{"a": 1}, ["b"]], Kind.FAILED, "row 2 is list, not a mapping"),
        (["x"], Kind.FAILED, "row 1 is str"),
        ([{"a": {"b": 1}, "a.b": 2}], Kind.FAILED, "names the column a.b twice"),
        ([{"a": "\0"}], Kind.FAILED, ""),  # Python 3.10 words it itself
        ([{"a": "\ud800"}], Kind.FAILED, "UnicodeEncodeError"),
        (half(), Kind.TRANSIENT, "in the middle"),
        (leaves, Kind.FAILED, "SystemExit: no configuration"),
    ],
)
def test_a_broken_answer_is_a_failed_call_and_leaves_no_file(call: Caller, answer: Any, kind: Kind, error: str) -> None:
    outcome = call(answer)
    assert outcome.kind is kind
    assert error in outcome.error
    assert list(call.path.parent.iterdir()) == []


def test_an_unwritable_place_is_trouble_with_the_folder(tmp_path: Path) -> None:
    outcome = called(lambda day: [{"a": 1}], tmp_path / "gone" / "x.tmp")
    assert outcome.kind is Kind.FOLDER
    assert "No such file" in outcome.error


def test_an_os_error_of_fetch_data_is_not(call: Caller) -> None:
    def fetch(day: dt.date) -> Any:
        raise FileNotFoundError("google-ads.yaml")

    assert call(fetch).kind is Kind.FAILED


def test_rows_are_streamed(call: Caller) -> None:
    alive: set[int] = set()
    most = 0

    class Row(dict[str, int]):
        def __init__(self, n: int) -> None:
            super().__init__(a=n, b=n)
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    def rows(day: dt.date) -> Iterator[Row]:
        nonlocal most
        for n in range(5 * BATCH):
            most = max(most, len(alive))
            yield Row(n)

    producer: Callable[[dt.date], Iterator[Row]] = rows
    assert call(producer).rows == 5 * BATCH
    assert most <= 2 * BATCH
