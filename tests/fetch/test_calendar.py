"""--check: what is there, day by day."""

import json

from fetch_ads import Exit

from .conftest import Command


def test_marks_of_every_kind(command: Command) -> None:
    command.fetcher("return None if day.day == 3 else [{'a': 1}]")
    command.run("2023-01-30", "2023-02-06")
    command.day("2023-02-01").write_text("edited")
    command.called()
    assert command.run("--check", "2023-01-30", "2023-02-08") == 1
    lines = command.out.splitlines()
    assert lines[1] == "2023-01" + " " * 31 + "##"
    assert lines[2] == "2023-02  !#x###.."
    assert "missing: 2023-02-07 to 2023-02-08 (2 days)" in lines
    assert "failed: 2023-02-03: RowError: fetch_data returned NoneType, not rows" in lines
    assert any(line.startswith("damaged: 2023-02-01: its file") for line in lines)
    assert command.called() == []


def test_without_a_range_it_goes_from_the_first_to_the_last_day(command: Command) -> None:
    command.run("2023-01-02", "2023-01-03")
    assert command.run("--check") == Exit.OK
    command.run("2023-01-05", "2023-01-05")
    assert command.run("--check") == 1
    assert "missing: 2023-01-04" in command.out


def test_a_provisional_day_is_no_gap(command: Command) -> None:
    import datetime as dt

    today = str(dt.datetime.now(dt.timezone.utc).date())
    command.run(today, today, "--timezone", "UTC")
    assert command.run("--check", "--timezone", "UTC") == Exit.OK
    assert f"provisional: {today}" in command.out


def test_an_absent_folder_is_nothing_but_gaps_and_is_not_made(command: Command) -> None:
    assert command.run("--check") == 1
    assert command.out.startswith("no days in ")
    assert command.run("--check", "2023-01-01", "2023-01-02") == 1
    assert not command.data.exists()


def test_an_empty_folder_stays_empty(command: Command) -> None:
    command.data.mkdir()
    assert command.run("--check") == 1
    assert command.everything() == set()


def test_json(command: Command) -> None:
    command.run("2023-01-01", "2023-01-01")
    assert command.run("--check", "2023-01-01", "2023-01-02", "--json") == 1
    assert json.loads(command.out) == {"exit_code": 1, "days": {"2023-01-01": "complete", "2023-01-02": "missing"}}


def test_a_foreign_manifest_is_reported(command: Command) -> None:
    command.data.mkdir()
    (command.data / "manifest.csv").write_text("a,b\n")
    assert command.run("--check") == Exit.FOLDER
