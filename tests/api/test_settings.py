"""Flags and variables."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from inventory_api import BadSetting, Settings, read_settings

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_defaults() -> None:
    assert read_settings([], {}) == Settings()


def test_variables_are_read() -> None:
    settings = read_settings(
        [], {"PORT": "0", "CACHE_TTL": "0.5", "RATE_LIMIT": "0", "API_KEY": "k", "TRUSTED_PROXY": "*"}
    )
    assert (settings.port, settings.cache_ttl, settings.rate_limit, settings.api_key) == (0, 0.5, 0.0, "k")
    assert settings.trusted_proxy == "*"


def test_a_flag_wins_over_its_variable() -> None:
    argv = ["--port", "9000", "--host=::1", "--threads", "2", "--database-url", "sqlite:////tmp/x.db"]
    settings = read_settings(argv, {"PORT": "x", "HOST": "0.0.0.0", "THREADS": "0", "DATABASE_URL": "x"})
    assert (settings.port, settings.host, settings.threads) == (9000, "::1", 2)
    assert (settings.database_url, settings.database_named) == ("sqlite:////tmp/x.db", True)


@pytest.mark.parametrize(
    "url", ["sqlite:///inventory.db", "sqlite:///a b.db", "postgresql://u@h:5/d?sslmode=disable", "postgresql://"]
)
def test_a_database_that_is_named_is_known_to_be(url: str) -> None:
    assert read_settings([], {"DATABASE_URL": url}).database_named


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(
            ("DATABASE_URL", url)
            for url in ("", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///x?y", "mysql://h/d")
        ),
        *(("DATABASE_URL", url) for url in ("inventory.db", "sqlite:///dir/", "postgresql://h/%zz")),
        *(("PORT", port) for port in ("", "x", "-1", "65536", "80.5", "8_0", " 80", "٨٠", "9" * 5000)),
        *(("THREADS", threads) for threads in ("1", "0", "-8", "x", "")),
        *(("CACHE_SIZE", size) for size in ("-1", "1.5", "x", "")),
        *(("CACHE_TTL", ttl) for ttl in ("-1", "nan", "inf", "1e3", "")),
        *(("RATE_LIMIT", rate) for rate in ("-1", "nan", "inf", "")),
        *(("RATE_BURST", burst) for burst in ("4", "0", "5.5", "")),
        *(("API_KEY", key) for key in ("", " ", "a b", "é")),
        *(("TRUSTED_PROXY", proxy) for proxy in ("", "proxy.example", "1.2.3", "10.0.0.0/8")),
        *(("HOST", host) for host in ("", "a b", "http://x")),
        *(("LOG_LEVEL", level) for level in ("", "info", "LOUD")),
    ],
)
def test_a_bad_value_is_told_with_variable_value_and_what_is_allowed(variable: str, value: str) -> None:
    with pytest.raises(BadSetting, match=f"^{variable}: ") as told:
        read_settings([], {variable: value})
    assert repr(value) in str(told.value)
    assert " is not " in str(told.value)


def test_a_password_is_not_told() -> None:
    with pytest.raises(BadSetting) as told:
        read_settings([], {"DATABASE_URL": "mysql://user:hunter2@host/db"})
    assert "hunter2" not in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "env", "named"),
    [
        ([], {"PORT": "abc"}, "PORT: 'abc' is not an integer from 0 to 65535"),
        (["--port", "abc"], {}, "PORT: 'abc' is not an integer from 0 to 65535"),
        (["--nonsense"], {}, "--nonsense"),
        (["--port"], {}, "--port"),
        (["stray"], {}, "stray"),
    ],
)
def test_a_bad_setting_stops_the_program_with_one_line(
    run_program: Run, arguments: list[str], env: dict[str, str], named: str
) -> None:
    result = run_program(*arguments, **env)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert named in result.stderr
