"""Flags and variables."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:hunter2@host/db",
        "mysql://user:hun:hunter2@host/db",
        "mysql://user:hunter2:ter@host/db",
        "mysql://user:hunter2@ter@host/db",
        "mysql://user:hunter2/ter@host/db",
        "mysql://user:ter/hunter2@host/db",
        "mysql://user:ter@hunter2@host/db",
        "mysql://user:hunter2?x@host/db",
        "mysql://user:hunter2 x@host/db",
        "mysql://:hunter2@host/db",
        "mysql://host/db?user=u&password=hunter2",
        "postgresql://host/db?password=hunter2&nonsense=1",
        "postgresql://host/db?sslpassword=hunter2&nonsense=1",
        "postgresql://user:hunter2@host/db?nonsense=1",
    ],
)  # fmt: skip
def test_no_password_is_told_with_a_bad_url(url: str) -> None:
    with pytest.raises(BadSetting) as raised:
        read_settings([], {"DATABASE_URL": url})
    assert "hunter2" not in str(raised.value)


def lines(output: str) -> list[str]:
    return output.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@127.0.0.1:1/db",
        "postgresql://user:a:hunter2@127.0.0.1:1/db",
        "postgresql://user@127.0.0.1:1/db?password=hunter2",
        "postgresql://user:hunter2@no.such.host.invalid/db",
        "sqlite:///no/such/folder/inventory.db",
        "sqlite:////dev/null/inventory.db",
    ],
)
@pytest.mark.parametrize("load", [[], ["--load", "products.csv"]], ids=["serve", "load"])
def test_an_unreachable_database_is_one_line_without_its_password(
    run_program: Run, tmp_path: Path, url: str, load: list[str]
) -> None:
    (tmp_path / "products.csv").write_text("name,price,stock_level\nLamp,1,1\n")
    ended = run_program(*load, DATABASE_URL=url, PORT="0")
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = lines(ended.stderr)
    assert "hunter2" not in line
    assert "database" in line


@pytest.mark.slow
def test_a_file_that_is_no_database_is_one_line_and_left_alone(run_program: Run, tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("Dear customer, this is not a database. " * 100)
    before = file.read_bytes()
    ended = run_program(DATABASE_URL=f"sqlite:///{file}", PORT="0")
    assert (ended.returncode, ended.stdout, len(lines(ended.stderr))) == (1, "", 1)
    assert file.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_ours_is_one_line(run_program: Run, host: str) -> None:
    ended = run_program("--host", host, PORT="0")
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = lines(ended.stderr)
    assert host in line


@pytest.mark.slow
def test_help_names_every_flag(run_program: Run) -> None:
    told = run_program("--help")
    assert told.returncode == 0
    assert all(flag in told.stdout for flag in ("--database-url", "--host", "--port", "--threads", "--load"))


@pytest.mark.slow
@pytest.mark.parametrize("password", ["password=hunter2", "sslpassword=hunter2"])
def test_the_start_line_keeps_the_password_to_itself(postgres_url: str, tmp_path: Path, password: str) -> None:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parents[2] / "inventory_api.py")],
        cwd=tmp_path, env={"PATH": os.environ["PATH"], "PORT": "0", "DATABASE_URL": f"{postgres_url}&{password}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = process.stdout.readline() + process.stdout.readline()
        assert " at http://127.0.0.1:" in said
        assert "hunter2" not in said
    finally:
        process.terminate()
        process.communicate(timeout=20)
