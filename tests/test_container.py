"""The Dockerfile and what stands around it, as far as they can be checked without a container engine."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from inventory_api import QUERY_DEADLINE, read_settings

ROOT = Path(__file__).parents[1]
Instruction = tuple[str, str]  # its name and the rest of its line


@pytest.fixture(scope="module")
def dockerfile() -> list[Instruction]:
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", "")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


@pytest.fixture(scope="module")
def services() -> Any:
    yaml = pytest.importorskip("yaml", reason="no PyYAML: compose.yaml is not looked at")
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def values(dockerfile: list[Instruction], wanted: str) -> list[str]:
    return [rest for name, rest in dockerfile if name == wanted]


def copied(dockerfile: list[Instruction]) -> set[str]:
    words = [word for rest in values(dockerfile, "COPY") for word in rest.split()[:-1]]
    return {word for word in words if not word.startswith("--")}


def test_what_is_copied_exists_and_is_all_that_the_context_holds(dockerfile: list[Instruction]) -> None:
    assert {name for name in copied(dockerfile) if not (ROOT / name).is_file()} == set()
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules[1:] if rule[0] == "!"} == copied(dockerfile)
    assert len(rules) == len(copied(dockerfile)) + 1


def test_all_files_that_the_programs_read_from_beside_them_are_copied(dockerfile: list[Instruction]) -> None:
    text = (ROOT / "inventory_api.py").read_text() + (ROOT / "fetch_ads.py").read_text()
    assert set(re.findall(r'with_name\("([^"]+)"\)', text)) <= copied(dockerfile)


def test_the_packages_of_the_image_are_those_that_the_programs_import(dockerfile: list[Instruction]) -> None:
    """At the versions of requirements.txt, and no version is said twice."""
    (pattern,) = re.findall(r"grep -Ev '([^']+)' /app/requirements.txt", values(dockerfile, "RUN")[0])
    pinned = (ROOT / "requirements.txt").read_text().splitlines()
    kept = {re.split(r"\W", line)[0] for line in pinned if not re.search(pattern, line)}
    tree = ast.parse((ROOT / "inventory_api.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert kept == {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert "==" not in (ROOT / "Dockerfile").read_text()


def test_it_runs_as_a_numbered_user_who_is_not_root(dockerfile: list[Instruction]) -> None:
    (user,) = values(dockerfile, "USER")
    assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", user)
    assert f"--uid {user.split(':')[0]} " in values(dockerfile, "RUN")[1]


def test_the_program_is_the_first_process_and_checks_its_own_health(dockerfile: list[Instruction]) -> None:
    """In exec form: a shell in between would not pass SIGTERM on."""
    (entry,), (check,) = values(dockerfile, "ENTRYPOINT"), values(dockerfile, "HEALTHCHECK")
    command = json.loads(entry)
    assert command[-1] == "/app/inventory_api.py"
    assert json.loads(check.partition(" CMD ")[2]) == [*command, "--check-health"]


def test_its_settings_are_allowed(dockerfile: list[Instruction]) -> None:
    (variables,) = values(dockerfile, "ENV")
    settings = read_settings([], dict(re.findall(r"(\w+)=(\S+)", variables)))
    (volume,) = values(dockerfile, "VOLUME")
    assert settings.database_url == f"sqlite:///{volume}/inventory.db"
    assert (settings.host, str(settings.port)) == ("0.0.0.0", values(dockerfile, "EXPOSE")[0])


def test_compose_starts_the_api_once_the_database_can_be_used(services: Any) -> None:
    settings = read_settings(
        services["api"]["command"], {"DATABASE_URL": services["api"]["environment"]["DATABASE_URL"]}
    )
    assert settings.processes == 2
    assert settings.database_url.partition("@")[2].split("/")[0] in services
    assert services["api"]["depends_on"] == {"db": {"condition": "service_healthy"}}
    assert "healthcheck" in services["db"]
    assert services["db"]["image"] == "postgres:17"


def test_compose_lets_the_api_drain(services: Any) -> None:
    grace = float(services["api"]["stop_grace_period"].removesuffix("s"))
    assert grace > float(services["api"]["environment"]["DRAIN_TIMEOUT"]) + QUERY_DEADLINE + 3


def test_compose_asks_for_the_secrets_and_opens_one_port_of_this_machine(services: Any) -> None:
    assert services["api"]["environment"]["API_KEY"].startswith("${API_KEY:?")
    (port,) = services["api"]["ports"]
    assert port.startswith("127.0.0.1:")
    assert "ports" not in services["db"]
    assert (services["api"]["read_only"], services["api"]["cap_drop"]) == (True, ["ALL"])
