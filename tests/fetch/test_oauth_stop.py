"""Refused credentials: stop at once, keep what is in flight."""

import datetime as dt

from fetch_ads import Exit, Kind, Outcome, days_between

from .conftest import OK, Command, World

DAYS = days_between(dt.date(2023, 1, 1), dt.date(2023, 1, 31))
REFUSED = Outcome(Kind.OAUTH, 1.0, error="RefreshError: invalid_grant")


def test_no_call_starts_after_it_and_those_in_flight_are_kept(world: World) -> None:
    world.answer = lambda day, now: (1.0, REFUSED) if day == DAYS[-1] else (3.0, OK)
    world.run(DAYS, workers=4)
    assert len(world.starts) == 4
    assert sorted(outcome.kind.name for _, outcome in world.finished) == ["DONE", "DONE", "DONE", "OAUTH"]
    assert world.tally.stops == {Exit.OAUTH: REFUSED.error}


def test_the_command_exits_3_and_says_what_to_do(command: Command) -> None:
    command.fetcher("raise fetch_ads.OAuthError('token expired')", head="import fetch_ads")
    assert command.run("2023-01-01", "2023-01-31", "--workers", "2") == Exit.OAUTH
    assert len(command.called()) == 2
    assert "renew" in command.err
    assert "token expired" in command.err


def test_after_the_credentials_are_renewed_the_rest_is_fetched(command: Command) -> None:
    command.fetcher("raise OAuthError()", head="class OAuthError(Exception): pass")
    assert command.run("2023-01-01", "2023-01-05") == Exit.OAUTH
    command.fetcher("return []")
    assert command.run("2023-01-01", "2023-01-05") == Exit.OK
    assert len(command.manifest()) == 5
