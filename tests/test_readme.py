"""README is true: its marked commands give the output it shows, and its tables are what the programs have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

import fetch_ads
import inventory_api
from inventory_api import Monitor, Settings, create_app, open_database
from tests.api.conftest import running

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"<!-- tested: (\w+) -->\n+```console\n(.*?)```", README, re.DOTALL)

# What differs from run to run.
VARYING = (
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME"),
    (r"[0-9a-f]{12}-\d+", "REQUEST-ID"),
    (r"r=\d+;t=\d+", "r=R;t=T"),
    (r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", "DATE"),
    (r"\d+\.\d+ s\b", "SECONDS"),
    (r"[\d.]+ times", "N times"),
    (r"[\d,]+ a second", "N a second"),
)


def commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a block, each with the lines that it is said to print."""
    for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        first, *lines = re.sub(r"\\\n\s*", "", command).rstrip("\n").split("\n")
        yield first, lines


def steady(text: str) -> str:
    for pattern, name in VARYING:
        text = re.sub(pattern, name, text)
    return text


def run(command: str, folder: Path) -> str:
    """What a shell prints for a command; `python` is the one that runs this, the programs are the project's."""
    command = command.replace("curl ", "curl --silent ")
    for program in ("inventory_api.py", "fetch_ads.py"):
        command = command.replace(f"python {program}", f"{sys.executable} {ROOT / program}")
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=60,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
    )  # fmt: skip
    return done.stderr + done.stdout if "fetch_ads" in command else done.stdout


def matches(printed: str, shown: list[str]) -> bool:
    """Whether it was printed as shown; a line `...` stands for any number of lines."""
    pattern = "\n".join(".*" if line == "..." else re.escape(steady(line)) for line in shown)
    return re.fullmatch(pattern, steady(printed.replace("\r", "").rstrip("\n")), re.DOTALL) is not None


@pytest.mark.slow
def test_the_api_answers_as_shown(tmp_path: Path) -> None:
    blocks = [block for kind, block in BLOCKS if kind == "api"]
    assert len(blocks) >= 5
    with running(cwd=tmp_path) as (base, _):
        for block in blocks:
            for command, shown in commands(block):
                printed = run(command.replace("http://127.0.0.1:8000", base), tmp_path)
                assert matches(printed, shown), f"{command}\n{printed}"


@pytest.mark.slow
def test_the_fetcher_prints_what_is_shown(tmp_path: Path) -> None:
    blocks = [block for kind, block in BLOCKS if kind == "fetcher"]
    assert blocks
    for block in blocks:
        for command, shown in commands(block):
            printed = run(command, tmp_path)
            assert matches(printed, shown), f"{command}\n{printed}"


def section(title: str) -> str:
    """The text below a heading, up to the next of its rank."""
    _, text = README.split(f"\n## {title}\n")
    return text.split("\n## ")[0]


def test_the_settings_are_those_of_the_program() -> None:
    rows = re.findall(
        r"^\| `([A-Z_]+)` \| (?:`(--[a-z-]+)`)? ?\| ?(.*?) ?\|", section("Settings of the API"), re.MULTILINE
    )
    assert {variable for variable, _, _ in rows} == set(inventory_api.RULES)
    flags = {"--" + variable.lower().replace("_", "-") for variable in inventory_api.FLAGS}
    assert {flag for _, flag, _ in rows if flag} == flags
    for variable, _, shown in rows:
        default = getattr(Settings(), variable.lower())
        assert shown.strip("`") == ("" if default is None else re.sub(r"\.0$", "", str(default))), variable


def test_the_routes_are_those_of_the_program(tmp_path: Path) -> None:
    app = create_app(Settings(), open_database(f"sqlite:///{tmp_path}/none.db"), Monitor())
    routes = {node.uri_template for root in app._router._roots for node in walk(root) if node.uri_template}
    text = section("The API")
    assert routes == {"/", *re.findall(r"`(?:GET|PATCH)? ?(/[a-z{}./]+)`", text)}


def walk(node: Any) -> Iterator[Any]:
    yield node
    for child in node.children:
        yield from walk(child)


def test_the_options_of_the_fetcher_are_those_of_the_program() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "fetch_ads.py"), "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    shown = set(re.findall(r"^\| `(?:fetch_ads.py )?(--[a-z-]+)", section("The fetcher"), re.MULTILINE))
    assert shown == set(re.findall(r"--[a-z-]+", done.stdout)) - {"--help"}


def test_the_exit_codes_of_the_fetcher_are_those_of_the_program() -> None:
    shown = {int(code) for code in re.findall(r"^\| (\d+) \|", section("The fetcher"), re.MULTILINE)}
    assert shown == {int(code) for code in fetch_ads.Exit}


def test_every_file_at_the_top_is_named() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout.split()
    if not tracked:
        pytest.skip("this is no git checkout")
    top = {path.split("/")[0] + ("/" if "/" in path else "") for path in tracked}
    named = [".gitignore", ".dockerignore", "README.md", *re.findall(r"`([\w./*-]+)`", section("The files"))]
    unnamed = {path for path in top if not any(fnmatch(path, name) or name.startswith(path) for name in named)}
    assert unnamed == set()
