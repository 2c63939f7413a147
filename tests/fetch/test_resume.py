"""A second run: what is there stays, what is missing or damaged is fetched."""

import pytest

from fetch_ads import Exit

from .conftest import Command

RANGE = ("2023-01-01", "2023-01-05")
LAST = "2023-01-05"


@pytest.fixture
def filled(command: Command) -> Command:
    assert command.run(*RANGE) == Exit.OK
    assert len(command.called()) == 5
    return command


def test_a_second_run_calls_nothing(filled: Command) -> None:
    before = {path: path.read_bytes() for path in filled.data.rglob("*.csv")}
    assert filled.run(*RANGE) == Exit.OK
    assert filled.called() == []
    assert {path: path.read_bytes() for path in filled.data.rglob("*.csv")} == before


def test_a_longer_range_fetches_only_the_rest(filled: Command) -> None:
    filled.run("2022-12-31", "2023-01-06")
    assert filled.called() == ["2022-12-31", "2023-01-06"]
    assert len(filled.ads()) == 7


def damage_by_deletion(filled: Command) -> None:
    filled.day(LAST).unlink()


def damage_by_cutting(filled: Command) -> None:
    filled.day(LAST).write_bytes(filled.day(LAST).read_bytes()[:-3])


def damage_by_editing(filled: Command) -> None:
    filled.day(LAST).write_bytes(filled.day(LAST).read_bytes().replace(b"5,a", b"6,a"))


DAMAGES = [damage_by_deletion, damage_by_cutting, damage_by_editing]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_day_is_fetched_again(filled: Command, damage: object) -> None:
    ads = (filled.data / "ads.csv").read_bytes()
    assert callable(damage)
    damage(filled)
    assert filled.run(*RANGE) == Exit.OK
    assert filled.called() == [LAST]
    assert (filled.data / "ads.csv").read_bytes() == ads


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_day_elsewhere_is_reported_and_left_out(filled: Command, damage: object) -> None:
    assert callable(damage)
    damage(filled)
    assert filled.run("2023-01-01", "2023-01-02") == Exit.OK
    assert "1 damaged day" in filled.err
    assert [row["date"] for row in filled.ads()] == [f"2023-01-0{n}" for n in range(1, 5)]


def test_force_fetches_the_whole_range_again(filled: Command) -> None:
    filled.run("2023-01-02", "2023-01-03", "--force")
    assert filled.called() == ["2023-01-02", "2023-01-03"]


def test_refresh_days_fetches_the_last_days_again(filled: Command) -> None:
    filled.fetcher("return [{'clicks': 99, 'name': 'b'}]")
    assert filled.run(*RANGE, "--refresh-days", "2") == Exit.OK
    assert filled.called() == ["2023-01-04", "2023-01-05"]
    assert [row["clicks"] for row in filled.ads()] == ["1", "2", "3", "99", "99"]


def test_a_refresh_that_fails_leaves_the_day_and_is_reported(filled: Command) -> None:
    before = filled.manifest()
    filled.fetcher("raise ValueError('bug')")
    assert filled.run(*RANGE, "--refresh-days", "1") == Exit.FAILED
    assert f"{LAST} failed: ValueError: bug" in filled.out
    assert filled.manifest() == before
    assert len(filled.ads()) == 5
    assert filled.run(*RANGE) == Exit.OK


def test_a_failed_day_is_recorded_and_fetched_next_time(command: Command) -> None:
    command.fetcher("if day.day == 3:\n    raise ValueError('two\\nlines')\nreturn [{'a': 1, 'b': 2}]")
    assert command.run(*RANGE) == Exit.FAILED
    row = command.manifest()["2023-01-03"]
    assert (row["status"], row["error"], row["attempts"]) == ("failed", "ValueError: two lines", "1")
    assert not command.day("2023-01-03").exists()
    command.called()
    command.fetcher("return []")
    assert command.run(*RANGE) == Exit.OK
    assert command.called() == ["2023-01-03"]
    assert command.manifest()["2023-01-03"]["status"] == "complete"


def test_a_day_without_rows_is_complete(command: Command) -> None:
    command.fetcher("return []")
    command.run(*RANGE)
    command.called()
    assert command.run(*RANGE) == Exit.OK
    assert command.called() == []
    assert command.day(LAST).read_bytes() == b"date\r\n"
    assert (command.data / "ads.csv").read_bytes() == b"date\r\n"


def test_a_day_not_yet_over_is_provisional_and_fetched_again(command: Command) -> None:
    import datetime as dt

    today = str(dt.datetime.now(dt.timezone.utc).date())
    zone = ("--timezone", "UTC")
    assert command.run(today, today, *zone) == Exit.OK
    assert command.manifest()[today]["status"] == "provisional"
    assert len(command.ads()) == 1
    command.called()
    command.run(today, today, *zone)
    assert command.called() == [today]


def test_temporary_files_of_a_killed_run_are_removed_and_other_files_are_not(filled: Command) -> None:
    (filled.data / "days" / ".2023-01-09.77-1.tmp").write_text("half")
    strange = ["notes.txt", "2023-01-05 copy.csv", "2023-02-30.csv", ".hidden"]
    for name in strange:
        (filled.data / "days" / name).write_text("mine")
    assert filled.run(*RANGE) == Exit.OK
    assert filled.everything() >= {f"days/{name}" for name in strange}
    assert "days/.2023-01-09.77-1.tmp" not in filled.everything()


def test_nothing_but_the_folder_remains(filled: Command) -> None:
    days = {f"days/2023-01-0{n}.csv" for n in range(1, 6)}
    assert filled.everything() == {"ads.csv", "manifest.csv", "days", *days}
