"""What the exceptions of real clients mean, told without their libraries."""

import datetime as dt
import email.message
import urllib.error
from types import SimpleNamespace
from typing import Any

import pytest
import requests

import fetch_ads
from fetch_ads import Kind, classify, reason, retry_after

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)


def named(name: str, message: str = "", base: type[Exception] = Exception, **attributes: Any) -> Exception:
    """An exception of a library that is not here."""
    error: Exception = type(name, (base,), attributes)(message)
    return error


def http(status: int, **headers: str) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers)
    response._content = b""
    return requests.HTTPError(f"{status} of the server", response=response)


def urllib_error(status: int) -> urllib.error.HTTPError:
    error = urllib.error.HTTPError("http://localhost", status, "no", email.message.Message(), None)
    error.close()
    return error


def grpc_error(name: str, message: str = "") -> Exception:
    return named("RpcError", message, code=lambda self: SimpleNamespace(name=name))


def google_ads_error(name: str) -> Exception:
    inner = SimpleNamespace(code=lambda: SimpleNamespace(name=name))
    failure = SimpleNamespace(errors=[SimpleNamespace(message="Too many requests.")])
    return named("GoogleAdsException", "sixteen\nlines", error=inner, failure=failure)


def api_core(name: str, code: int, grpc: str, message: str = "") -> Exception:
    return named(name, message, code=code, grpc_status_code=SimpleNamespace(name=grpc))


DEAD_TOKEN = "503 Getting metadata from plugin failed with error: ('invalid_grant: Token has been expired')"
NO_TOKEN_SERVER = "503 Getting metadata from plugin failed with error: ('Unable to acquire', '503')"


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError(),
        requests.ConnectTimeout(),
        requests.ReadTimeout(),
        requests.ConnectionError(),
        urllib.error.URLError("timed out"),
        *map(http, (408, 500, 502, 503, 504)),
        urllib_error(503),
        *map(grpc_error, ("DEADLINE_EXCEEDED", "UNAVAILABLE", "INTERNAL", "ABORTED")),
        google_ads_error("INTERNAL"),
        api_core("DeadlineExceeded", 504, "DEADLINE_EXCEEDED"),
        api_core("Aborted", 409, "ABORTED"),
        api_core("ServiceUnavailable", 503, "UNAVAILABLE", NO_TOKEN_SERVER),
        named("TransportError", retryable=False),
        named("RefreshError", retryable=True),
    ],
)
def test_transient(error: BaseException) -> None:
    assert classify(error) is Kind.TRANSIENT


@pytest.mark.parametrize(
    "error",
    [
        fetch_ads.RateLimitError(30),
        named("RateLimitError", retry_after=30),
        http(429),
        urllib_error(429),
        grpc_error("RESOURCE_EXHAUSTED"),
        google_ads_error("RESOURCE_EXHAUSTED"),
        api_core("ResourceExhausted", 429, "RESOURCE_EXHAUSTED"),
    ],
)
def test_rate_limit(error: BaseException) -> None:
    assert classify(error) is Kind.RATE_LIMIT


@pytest.mark.parametrize(
    "error",
    [
        fetch_ads.OAuthError("expired"),
        named("RefreshError", retryable=False),
        named("RefreshError"),
        http(401),
        http(403),
        urllib_error(401),
        grpc_error("UNAUTHENTICATED"),
        google_ads_error("PERMISSION_DENIED"),
        api_core("ServiceUnavailable", 503, "UNAVAILABLE", DEAD_TOKEN),
        ValueError("invalid_grant: Bad Request"),
    ],
)
def test_oauth(error: BaseException) -> None:
    assert classify(error) is Kind.OAUTH


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), OSError("other"), http(400), http(404), urllib_error(404), grpc_error("INVALID_ARGUMENT"),
     google_ads_error("INVALID_ARGUMENT"), SystemExit(1), named("Odd", code=lambda self, more: None)],
)  # fmt: skip
def test_anything_else_fails_its_day(error: BaseException) -> None:
    assert classify(error) is Kind.FAILED


def test_a_wrapped_error_means_what_it_was_raised_from() -> None:
    error = RuntimeError("cannot fetch")
    error.__cause__ = TimeoutError()
    assert classify(error) is Kind.TRANSIENT


def test_an_exception_that_cannot_be_printed_is_classified() -> None:
    error = named("Mute", base=ConnectionError, __str__=lambda self: 1 / 0)
    assert classify(error) is Kind.TRANSIENT
    assert reason(error) == "Mute"


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (fetch_ads.RateLimitError(2.5), 2.5),
        (fetch_ads.RateLimitError(), None),
        (named("RateLimitError", retry_after=-1), 0.0),
        (named("RateLimitError", retry_after=float("nan")), None),
        (http(429, **{"Retry-After": "7"}), 7.0),
        (http(429, **{"Retry-After": "Thu, 01 Jan 2026 00:01:00 GMT"}), 60.0),
        (http(429, **{"Retry-After": "Thu, 01 Jan 2015 00:01:00 GMT"}), 0.0),
        (http(429, **{"Retry-After": "soon"}), None),
        (http(429), None),
        (grpc_error("RESOURCE_EXHAUSTED"), None),
    ],
)
def test_the_delay_asked_for(error: BaseException, seconds: float | None) -> None:
    assert retry_after(error, NOW) == seconds


def test_a_reason_is_one_printable_line() -> None:
    assert reason(ValueError("two\r\nlines\x1b[31m and\u2028more")) == "ValueError: two lines [31m and more"
    assert len(reason(ValueError("x" * 10_000))) == 300
    assert reason(google_ads_error("INTERNAL")) == "GoogleAdsException: Too many requests."
    assert reason(KeyError()) == "KeyError"
