"""A headless Chromium, spoken to over its debugging pipe, and the real program for it to look at."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inventory_api import make_schema, merge, open_database, read_products
from tests.api.conftest import quoted, running

WHY_NOT = "no Chromium on this machine: THE PAGE IS NOT TESTED"
PATIENCE = 20.0  # seconds, for one answer of the browser, and for what a test waits to see
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36, "ArrowUp": 38, "ArrowDown": 40}
SHIFT = 8


class Chromium:
    """The DevTools protocol over two pipes: JSON messages, each ended by a NUL, on its descriptors 3 and 4."""

    def __init__(self, program: str, profile: Path) -> None:
        reads, self._commands = os.pipe()
        self._messages, writes = os.pipe()
        flags = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
        flags += ["--disable-gpu", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND,EXCLUDE 127.0.0.1"]
        if os.getuid() == 0:
            flags.append("--no-sandbox")  # it has none for root
        # The shell gives the pipes' ends the numbers that the browser looks for.
        command = ["bash", "-c", f'exec "$@" 3<&{reads} 4>&{writes}', "bash", program, *flags, "about:blank"]
        self._process = subprocess.Popen(
            command, env={"PATH": os.environ["PATH"], "HOME": str(profile)}, pass_fds=(reads, writes),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(reads)
        os.close(writes)
        self._unread, self._last_id = b"", 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of one command; events that come before it are kept in `events`."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._last_id:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            if not select.select([self._messages], [], [], PATIENCE)[0]:
                raise TimeoutError("the browser does not answer")
            if not (piece := os.read(self._messages, 1 << 20)):
                raise RuntimeError("the browser has ended")
            self._unread += piece
        message, _, self._unread = self._unread.partition(b"\0")
        received: dict[str, Any] = json.loads(message)
        return received

    def close(self) -> None:
        try:
            self.send("Browser.close")
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._commands)
            os.close(self._messages)


@dataclass
class Tab:
    """A tab with nothing remembered from others, used as a person would: by keys, clicks and looks."""

    browser: Chromium
    session: str

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **parameters)

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && document.querySelector('#list')?.ariaBusy === 'false'")

    def look(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.look(expression):
            if time.monotonic() > deadline:
                raise AssertionError(f"never true: {expression}\n{self.look('document.body.innerText')}")
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        return str(self.look(f"document.querySelector({json.dumps(selector)}).innerText.trim()"))

    def texts(self, selector: str) -> list[str]:
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return [str(text) for text in self.look(f"{found}.map((element) => element.innerText.trim())")]

    def wait_for_text(self, selector: str, part: str) -> None:
        self.wait(f"document.querySelector({json.dumps(selector)})?.innerText.includes({json.dumps(part)})")

    def click(self, selector: str) -> None:
        """A click of the mouse on the middle of an element, whatever lies over it."""
        box = self.look(
            f"""(() => {{
                const element = document.querySelector({json.dumps(selector)});
                element.scrollIntoView({{block: "center"}});
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str, times: int = 1, modifiers: int = 0) -> None:
        event = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": modifiers}
        for _ in range(times):
            self.send("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": "\r"} if key == "Enter" else {}))
            self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Type in place of what is in the field that has the focus."""
        self.look("document.activeElement.select()")
        self.send("Input.insertText", text=text)

    def tab_to(self, selector: str, backwards: bool = False) -> None:
        """Press Tab until an element has the focus."""
        for _ in range(60):
            if self.look(f"document.activeElement.matches({json.dumps(selector)})"):
                return
            self.press("Tab", modifiers=SHIFT if backwards else 0)
        raise AssertionError(f"Tab does not lead to {selector}")

    def search(self, name: str) -> None:
        self.click("[name=name]")
        self.type(name)
        self.press("Enter")

    def back(self, steps: int = -1) -> None:
        self.look(f"history.go({steps})")

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.send("Emulation.setDeviceMetricsOverride", **size, mobile=width < 600)

    def photograph(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """What the console says, but for answers that are errors: they are the tests' own doing."""
        self.look("1")  # what was said before is received by now
        mine = [event for event in self.browser.events if event.get("sessionId") == self.session]
        entries = [event["params"]["entry"] for event in mine if event["method"] == "Log.entryAdded"]
        said = [entry["text"] for entry in entries if entry["source"] != "network" and entry["level"] != "verbose"]
        return said + [str(event) for event in mine if event["method"] == "Runtime.exceptionThrown"]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A running browser; the test is skipped, or fails, where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        if os.environ.get("REQUIRE_CHROMIUM"):
            pytest.fail(WHY_NOT)
        pytest.skip(WHY_NOT)
    browser = Chromium(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@contextmanager
def new_tab(browser: Chromium) -> Iterator[Tab]:
    """A tab in a context of its own. Afterwards nothing may be found in its console: a broken policy, a bug."""
    context = browser.send("Target.createBrowserContext")["browserContextId"]
    target = browser.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
    tab = Tab(browser, browser.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
    for domain in ("Page", "Runtime", "Log"):
        tab.send(f"{domain}.enable")
    tab.resize(1280, 900)
    yield tab
    complaints = tab.complaints()
    browser.send("Target.disposeBrowserContext", browserContextId=context)
    browser.events.clear()
    assert complaints == []


@pytest.fixture
def tab(chromium: Chromium) -> Iterator[Tab]:
    with new_tab(chromium) as opened:
        yield opened


@dataclass
class Shop:
    """A running program and its database."""

    url: str
    database_url: str

    def execute(self, sql: str, **parameters: Any) -> list[Any]:
        """Plain SQL, as another program would do it."""
        other = open_database(self.database_url)
        try:
            return other.write(lambda execute: execute(sql, **parameters))
        finally:
            other.close()


OpenShop = Callable[..., Shop]


@pytest.fixture
def open_shop(tmp_path: Path) -> Iterator[OpenShop]:
    """Start the program with products (name, price, stock), their ids from 1 on, and with these variables."""
    with ExitStack() as stack:

        def start(products: Iterable[tuple[str, str, int]], **env: str) -> Shop:
            url = f"sqlite:///{tmp_path}/inventory.db"
            database = open_database(url)
            make_schema(database, with_samples=False)
            lines = [f"{quoted(name)},{price},{stock}\n" for name, price, stock in products]
            rows = read_products(["name,price,stock_level\n", *lines])
            database.write(lambda execute: merge(database, execute, rows))
            database.close()
            # A browser keeps its connections: no test needs to wait for what may still come over them.
            environ = {"DATABASE_URL": url, "DRAIN_TIMEOUT": "0", **env}
            base, _ = stack.enter_context(running(cwd=tmp_path, env=environ))
            return Shop(base, url)

        yield start
