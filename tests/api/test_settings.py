"""Flags and variables: what they set, and one line about each that is not allowed."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from inventory_api import BadSetting, Settings, read_settings
from tests.api.conftest import running

Run = Callable[..., subprocess.CompletedProcess[str]]
SETTINGS: list[tuple[str, str, str, object]] = [
    ("DATABASE_URL", "sqlite:///shop.db", "database_url", "sqlite:///shop.db"),
    ("DATABASE_URL", "sqlite:////srv/shop.db", "database_url", "sqlite:////srv/shop.db"),
    ("DATABASE_URL", "postgresql://user@host/db", "database_url", "postgresql://user@host/db"),
    ("DATABASE_URL", "postgresql:///db?host=/tmp", "database_url", "postgresql:///db?host=/tmp"),
    ("HOST", "0.0.0.0", "host", "0.0.0.0"),
    ("HOST", "::1", "host", "::1"),
    ("PORT", "8080", "port", 8080),
    ("PORT", "65535", "port", 65535),
    ("THREADS", "2", "threads", 2),
    ("CACHE_SIZE", "0", "cache_size", 0),
    ("CACHE_SIZE", "500", "cache_size", 500),
    ("CACHE_TTL", "0", "cache_ttl", 0.0),
    ("CACHE_TTL", "2.5", "cache_ttl", 2.5),
    ("RATE_LIMIT", "0", "rate_limit", 0.0),
    ("RATE_LIMIT", "0.5", "rate_limit", 0.5),
    ("RATE_BURST", "5", "rate_burst", 5),
    ("API_KEY", "open-sesame", "api_key", "open-sesame"),
    ("TRUSTED_PROXY", "10.0.0.1", "trusted_proxy", "10.0.0.1"),
    ("TRUSTED_PROXY", "::1", "trusted_proxy", "::1"),
    ("LOG_LEVEL", "WARNING", "log_level", "WARNING"),
]
NO_NUMBERS = [
    "",
    " ",
    "abc",
    "-1",
    "+5",
    "1_0",
    " 5",
    "5 ",
    "٥",
    "5\n",
    "nan",
    "inf",
    "1e3",
    "0x5",
    "9" * 30,
    "1" * 5000,
    "5,5",
    "--",
]
BAD: dict[str, list[str]] = {
    "DATABASE_URL": [
        "", "inventory.db", "sqlite:", "sqlite://", "sqlite:///", "sqlite://inventory.db", "sqlite:///:memory:",
        "SQLITE:///x.db", "sqlite:////srv/",
        "mysql://user@host/db", "postgres:/x", "postgresql:db", "postgresql://host/db?nonsense=1",
        "postgresql://h:port/%zz", "http://host/",
    ],
    "HOST": ["", " ", "a b", "http://127.0.0.1", "127.0.0.1/8", "é", "a\nb", "x" * 300],
    "PORT": [*NO_NUMBERS, "65536", "80.0", "8000.5"],
    "THREADS": [*NO_NUMBERS, "0", "1", "2.5"],
    "CACHE_SIZE": [*NO_NUMBERS, "1.5"],
    "CACHE_TTL": NO_NUMBERS,
    "RATE_LIMIT": NO_NUMBERS,
    "RATE_BURST": [*NO_NUMBERS, "0", "4", "5.5"],
    "API_KEY": ["", " ", "a b", "ключ", "a\nb"],
    "TRUSTED_PROXY": ["", "proxy", "10.0.0", "10.0.0.0/8", "10.0.0.1,10.0.0.2", "300.1.1.1", " 10.0.0.1"],
    "LOG_LEVEL": ["", "verbose", "info", "5", "TRACE"],
}  # fmt: skip
BAD_VALUES = [(variable, text) for variable, texts in BAD.items() for text in texts]


def test_the_defaults_are_those_that_are_promised() -> None:
    chosen = read_settings([], {})
    assert chosen == Settings(
        database_url="sqlite:///inventory.db", host="127.0.0.1", port=8000, threads=8, cache_size=10_000,
        cache_ttl=30.0,
        rate_limit=100.0, rate_burst=200, api_key=None, trusted_proxy=None, log_level="INFO", load=None,
        database_named=False,
    )  # fmt: skip


@pytest.mark.parametrize(("variable", "text", "field", "value"), SETTINGS)
def test_a_variable_is_read(variable: str, text: str, field: str, value: object) -> None:
    assert getattr(read_settings([], {variable: text}), field) == value


@pytest.mark.parametrize(
    ("variable", "first"), [("DATABASE_URL", "sqlite:///a.db"), ("HOST", "::1"), ("PORT", "81"), ("THREADS", "3")]
)
@pytest.mark.parametrize("other", ["the default", "", "nonsense \n"])
def test_a_flag_wins_over_its_variable_however_bad(variable: str, first: str, other: str) -> None:
    flag = "--" + variable.lower().replace("_", "-")
    for argv in ([flag, first], [f"{flag}={first}"]):
        assert read_settings(argv, {variable: other}) == read_settings([], {variable: first})


def test_a_database_is_named_by_flag_or_variable_even_by_the_defaults_own_url() -> None:
    default = "sqlite:///inventory.db"
    assert not read_settings(["--port", "81"], {"HOST": "::1"}).database_named
    assert read_settings(["--database-url", default], {}).database_named
    assert read_settings([], {"DATABASE_URL": default}).database_named


@pytest.mark.parametrize(("variable", "text"), BAD_VALUES, ids=lambda text: ascii(text)[:30])
def test_a_bad_value_is_named_with_what_is_allowed(variable: str, text: str) -> None:
    with pytest.raises(BadSetting) as raised:
        read_settings([], {variable: text})
    said = str(raised.value)
    assert said.startswith(f"{variable}: ")
    assert "\n" not in said
    assert repr(text) in said
    assert len(said.removeprefix(f"{variable}: ").replace(repr(text), "")) > 10  # what is allowed


@pytest.mark.parametrize("variable", ["DATABASE_URL", "HOST", "PORT", "THREADS"])
def test_a_bad_flag_is_named_as_its_variable_is(variable: str) -> None:
    with pytest.raises(BadSetting, match=f"^{variable}: "):
        read_settings(["--" + variable.lower().replace("_", "-"), "a b"], {})


@pytest.mark.parametrize(
    "argv", [["--nonsense"], ["--port"], ["extra"], ["--por", "81"], ["--api-key", "x"], ["--load"], ["-p", "81"]]
)
def test_an_unknown_or_incomplete_flag_is_one_line(argv: list[str]) -> None:
    with pytest.raises(BadSetting) as raised:
        read_settings(argv, {})
    assert "\n" not in str(raised.value)


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


# ---------------------------------------------------------------- the program itself


def lines(output: str) -> list[str]:
    return output.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "variable"),
    [(["--port", "x"], "PORT"), (["--non\nsense"], "--non"), ([], "RATE_BURST"), (["--port=1\n2"], "PORT")],
)
def test_a_bad_value_stops_the_program_with_one_line(
    run_program: Run, tmp_path: Path, arguments: list[str], variable: str
) -> None:
    ended = run_program(*arguments, RATE_BURST="4" if variable == "RATE_BURST" else "5")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = lines(ended.stderr)
    assert variable in line
    assert list(tmp_path.iterdir()) == []


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
def test_a_port_in_use_is_one_line(run_program: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_program(PORT=str(port))
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = lines(ended.stderr)
    assert str(port) in line


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


@pytest.mark.slow
def test_samples_are_made_only_where_no_database_was_named(tmp_path: Path) -> None:

    for url, there in ((None, 200), ("sqlite:///inventory2.db", 404)):
        with running(cwd=tmp_path, env={"DATABASE_URL": url} if url else {}) as (base, _):
            assert requests.get(f"{base}/products/1000", timeout=10).status_code == there
