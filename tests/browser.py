"""A real browser without a window: chromium, told what to do through a pipe (the DevTools protocol).

Reference: https://chromedevtools.github.io/devtools-protocol/ ; `--remote-debugging-pipe` speaks it over the file
descriptors 3 and 4, each message ended by a zero byte, so that no port and no further library is needed.
"""

import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needed = pytest.mark.skipif(PROGRAM is None, reason="no chromium is installed")

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio",
    "--no-default-browser-check", "--window-size=1280,1600", "--remote-debugging-pipe",
]  # fmt: skip


class Browser:
    """A browser with one page; a context manager.

    Attributes:
        said: what the page's console and the browser's log said so far: (level, text, address) each.
        asked: the addresses that the page has asked for.
    """

    def __init__(self) -> None:
        self.said: list[tuple[str, str, str]] = []
        self.asked: list[str] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        high = [fcntl.fcntl(each, fcntl.F_DUPFD, 16) for each in (theirs_in, theirs_out)]

        def hand_over() -> None:
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._process = subprocess.Popen(
            [PROGRAM, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            preexec_fn=hand_over, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for each in (theirs_in, theirs_out, *high):
            os.close(each)
        self._number, self._buffer, self._loaded = 0, b"", False
        target = self._call("Target.createTarget", session=None, url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", session=None, targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)
        self._profile.cleanup()

    def open(self, address: str, seconds: float = 300) -> None:
        """Open a page and wait until it is loaded; what was said and asked before is forgotten."""
        self.said, self.asked, self._loaded = [], [], False
        self._call("Page.navigate", url=address)
        end = time.monotonic() + seconds
        while not self._loaded:
            self._take(end)

    @contextmanager
    def phone(self, width: int, height: int = 780) -> Iterator[None]:
        """A small screen for the block."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=True)
        try:
            yield
        finally:
            self._call("Emulation.clearDeviceMetricsOverride")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 300) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds} s: {expression}; the page said {self.said}")
            time.sleep(0.1)
        return value

    @property
    def errors(self) -> list[tuple[str, str, str]]:
        return [each for each in self.said if each[0] == "error"]

    def _call(self, method: str, session: str | None = "", **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 300
        while True:
            answer = self._take(end)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _take(self, end: float) -> dict[str, Any]:
        """The browser's next message; events are noted."""
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            more = os.read(self._in, 2**20)
            if not more:
                raise ConnectionError("the browser has ended")
            self._buffer += more
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event: str | None, what: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            self.asked.append(what["request"]["url"])
        elif event == "Log.entryAdded":
            entry = what["entry"]
            self.said.append((entry["level"], entry["text"], entry.get("url", "")))
        elif event == "Runtime.exceptionThrown":
            details = what["exceptionDetails"]
            said = details.get("exception", {}).get("description", details["text"])
            self.said.append(("error", said, details.get("url", "")))
        elif event == "Runtime.consoleAPICalled":
            text = " ".join(str(each.get("value", each.get("description", ""))) for each in what["args"])
            self.said.append((what["type"], text, ""))
