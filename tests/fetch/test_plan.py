"""Which days are wanted, and which of them are missing."""

import datetime as dt

import pytest

from fetch_ads import UsageError, days_between, missing_days, parse_range, spans, two_years

TODAY = dt.date(2026, 3, 1)
JANUARY = days_between(dt.date(2023, 1, 1), dt.date(2023, 1, 31))


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%Y%m%d", "%Y/%m/%d"])
def test_three_forms_of_dates_are_understood(form: str) -> None:
    first, last = dt.date(2024, 2, 28), dt.date(2024, 3, 1)
    assert parse_range(f"{first:{form}}", f"{last:{form}}", TODAY) == (first, last)


@pytest.mark.parametrize(
    ("first", "last", "complaint"),
    [
        ("2023-02-29", "2023-03-01", "does not exist"),
        ("2023-13-01", "2023-13-02", "does not exist"),
        ("0000-01-01", "2023-01-01", "does not exist"),
        ("01.02.2023", "2023-02-02", "is not a date"),
        ("2023-1-1", "2023-1-2", "is not a date"),
        ("2023-01/01", "2023-01-02", "is not a date"),
        ("2023-01-01T00", "2023-01-02", "is not a date"),
        ("\u0662\u0660\u0662\u0663-01-01", "2023-01-02", "is not a date"),
        ("2023-01-01", "20230102", "two forms"),
        ("2023-01-02", "2023-01-01", "before the start"),
        ("2026-03-01", "2026-03-02", "in the future"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused_with_its_reason(first: str, last: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_range(first, last, TODAY)


def test_today_may_be_asked_for() -> None:
    assert parse_range("2026-03-01", "2026-03-01", TODAY) == (TODAY, TODAY)


@pytest.mark.parametrize(
    ("today", "start", "days"),
    [
        ("2026-11-23", "2024-11-23", 730),
        ("2026-02-10", "2024-02-10", 731),
        ("2024-03-01", "2022-03-01", 731),
        ("2024-02-29", "2022-03-01", 730),
    ],
)
def test_two_years_end_yesterday_and_have_730_or_731_days(today: str, start: str, days: int) -> None:
    first, last = two_years(dt.date.fromisoformat(today))
    assert (str(first), last) == (start, dt.date.fromisoformat(today) - dt.timedelta(days=1))
    assert len(days_between(first, last)) == days


def test_a_range_has_its_leap_day() -> None:
    assert dt.date(2024, 2, 29) in days_between(dt.date(2024, 2, 1), dt.date(2024, 3, 1))


def test_missing_is_wanted_minus_complete() -> None:
    assert missing_days(JANUARY, set(JANUARY[3:]), 0, False) == JANUARY[:3]


def test_refresh_adds_the_last_days_and_force_all() -> None:
    assert missing_days(JANUARY, set(JANUARY), 2, False) == JANUARY[-2:]
    assert missing_days(JANUARY, set(JANUARY), 99, False) == JANUARY
    assert missing_days(JANUARY, set(JANUARY), 0, True) == JANUARY


def test_neighbouring_days_are_told_as_one_span() -> None:
    days = [*JANUARY[:3], JANUARY[5]]
    assert list(spans(days)) == ["2023-01-01 to 2023-01-03 (3 days)", "2023-01-06"]
