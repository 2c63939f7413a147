"""manifest.csv: never believed when torn, never overwritten when foreign."""

import datetime as dt
import os

import pytest

from fetch_ads import Entry, Exit

from .conftest import Command

RANGE = ("2023-01-01", "2023-01-05")


@pytest.fixture
def filled(command: Command) -> Command:
    assert command.run(*RANGE) == Exit.OK
    command.called()
    return command


def test_a_row_a_day_in_date_order_with_the_columns_promised(filled: Command) -> None:
    lines = (filled.data / "manifest.csv").read_text().splitlines()
    assert lines[0] == "date,status,rows,bytes,sha256,attempts,seconds,fetched_at,error" == ",".join(Entry._fields)
    assert [line[:19] for line in lines[1:]] == [f"2023-01-0{n},complete" for n in range(1, 6)]


def test_a_row_describes_the_file(filled: Command) -> None:
    row = filled.manifest()["2023-01-02"]
    assert (row["rows"], row["attempts"], row["error"]) == ("1", "1", "")
    assert int(row["bytes"]) == filled.day("2023-01-02").stat().st_size
    assert dt.datetime.fromisoformat(row["fetched_at"].replace("Z", "+00:00")).tzinfo is not None


def test_attempts_count_every_call(command: Command) -> None:
    command.fetcher("note.seen = getattr(note, 'seen', 0) + 1\nif note.seen < 3:\n    raise TimeoutError\nreturn []")
    command.run("2023-01-01", "2023-01-01", "--json")
    assert command.manifest()["2023-01-01"]["attempts"] == "3"
    assert (command.summary()["retries"], command.summary()["calls"]) == (2, 3)


def test_a_day_is_written_down_while_others_are_being_fetched(command: Command) -> None:
    known = f"'2023-01-02,complete' in Path({str(command.data / 'manifest.csv')!r}).read_text()"
    wait_for_it = f"while day.day == 1 and not {known}:\n    time.sleep(0.01)\nreturn []"
    command.fetcher(wait_for_it, head="from pathlib import Path")
    assert command.run("2023-01-01", "2023-01-02", "--workers", "1", "--timeout", "5", "--retries", "0") == Exit.OK


@pytest.mark.parametrize("keep", [0, 5, 40, 70, 150, 300])
def test_a_torn_manifest_is_rebuilt_from_the_days(filled: Command, keep: int) -> None:
    manifest = filled.data / "manifest.csv"
    ads = (filled.data / "ads.csv").read_bytes()
    manifest.write_bytes(manifest.read_bytes()[:keep])
    assert filled.run(*RANGE) == Exit.OK
    assert filled.called() == []
    assert len(filled.manifest()) == 5
    assert (filled.data / "ads.csv").read_bytes() == ads


@pytest.mark.parametrize("garbage", [b"\0" * 500, b""])
def test_a_manifest_a_power_cut_emptied_is_rebuilt(filled: Command, garbage: bytes) -> None:
    (filled.data / "manifest.csv").write_bytes(garbage)
    assert filled.run(*RANGE) == Exit.OK
    assert len(filled.manifest()) == 5
    assert "torn" in filled.err


def test_a_lost_manifest_is_rebuilt(filled: Command) -> None:
    (filled.data / "manifest.csv").unlink()
    assert filled.run(*RANGE) == Exit.OK
    assert filled.called() == []
    assert len(filled.manifest()) == 5


@pytest.mark.parametrize("text", ["id,name\n1,x\n", "date,clicks\n2023-01-01,3\n", "\u00ff\u00fe"])
def test_a_foreign_file_of_that_name_is_left_alone(command: Command, text: str) -> None:
    command.data.mkdir()
    (command.data / "manifest.csv").write_text(text)
    assert command.run(*RANGE) == Exit.FOLDER
    assert "not a manifest" in command.err
    assert (command.data / "manifest.csv").read_text() == text
    assert command.everything() == {"manifest.csv"}


def test_lines_that_make_no_sense_are_not_believed(filled: Command) -> None:
    manifest = filled.data / "manifest.csv"
    lines = manifest.read_text().splitlines()
    lines[1] = lines[1].replace("complete", "splendid")
    lines[2] = lines[2].replace(",1,", ",many,", 1)
    lines[3] = '"' + lines[3]
    manifest.write_text("\n".join(lines) + "\n")
    assert filled.run(*RANGE) == Exit.OK
    assert {row["status"] for row in filled.manifest().values()} == {"complete"}


@pytest.mark.parametrize(
    "text", ["", "date,a\r\n", "date,a\r\n2023-01-06,1\r\n2023-01-0", "date,a\r\n2023-01-07,1\r\n", "x"]
)
def test_a_day_file_nobody_knows_is_taken_in_only_if_it_is_whole(filled: Command, text: str) -> None:
    filled.day("2023-01-06").write_bytes(text.encode())
    filled.run("2023-01-06", "2023-01-06")
    assert filled.called() == ([] if text == "date,a\r\n" else ["2023-01-06"])


def test_a_day_taken_in_is_provisional_if_its_file_is_older_than_its_end(filled: Command) -> None:
    (filled.data / "manifest.csv").unlink()
    noon = dt.datetime(2023, 1, 3, 12, tzinfo=dt.timezone.utc).timestamp()
    os.utime(filled.day("2023-01-03"), (noon, noon))
    filled.run(*RANGE, "--timezone", "UTC")
    assert filled.called() == ["2023-01-03"]
