"""Chromium without a window, driven by its own protocol (DevTools) over a pipe: it needs no driver and no port."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = Path("/usr/bin/chromium")
SECONDS = 60  # of silence, after which the browser is taken to hang
QUIET = ("background-networking", "component-update", "default-apps", "dev-shm-usage", "extensions", "gpu", "sync")
# Chromium reads commands from descriptor 3 and answers on 4; copies from 5 up cannot be overwritten on the way there.
AS_3_AND_4 = """import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(end), fcntl.F_DUPFD, 5) for end in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])"""


class Browser:
    """One page of a browser; `said` is what went wrong in it: exceptions, messages on the console, failed loads."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers = commands, answers
        self.said: list[str] = []
        self._numbers, self._rest, self._loaded = itertools.count(1), b"", False
        self.session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self._note(answer)
        assert "error" not in answer, answer
        found: dict[str, Any] = answer["result"]
        return found

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self.answers], [], [], SECONDS)
            part = os.read(self.answers, 1 << 20) if ready else b""
            assert part, f"the browser ended, or was silent for {SECONDS} seconds"
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        self._loaded |= event.get("method") == "Page.loadEventFired"
        if event.get("method") in {
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Log.entryAdded",
            "Network.loadingFailed",
        }:
            self.said.append(json.dumps(event["params"]))

    def show(self, file: Path, width: int, scheme: str) -> None:
        """Load a page anew, as a screen of that width and the colour scheme "light" or "dark" shows it."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._loaded = False
        self.call("Page.navigate", url=file.resolve().as_uri())
        while not self._loaded:
            self._note(self._next())

    def run(self, script: str) -> Any:
        """The value, as JSON, of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser that is gone afterwards, and its profile with it."""
    (from_us, commands), (answers, to_us) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--no-first-run", "--remote-debugging-pipe"]
        options += [f"--user-data-dir={profile}", *(f"--disable-{what}" for what in QUIET)]
        command = [sys.executable, "-S", "-c", AS_3_AND_4, str(from_us), str(to_us), str(CHROMIUM), *options]
        ends = (from_us, to_us)
        process = subprocess.Popen(command, pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in ends:
            os.close(end)
        try:
            yield Browser(commands, answers)
        finally:
            os.close(commands)  # it ends with its pipe
            os.close(answers)
            process.wait(timeout=20)
