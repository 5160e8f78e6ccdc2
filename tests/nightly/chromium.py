"""A headless Chromium, spoken to over the DevTools protocol by a pipe: it shows a page and says
what is wrong with it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cqlray.storage.locations import AnyPath

EXECUTABLE = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
TIMEOUT = 60.0  # seconds that an answer may take
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
)

BROKEN_IMAGES = """Promise.all(
    [...document.images].map(image => image.decode().then(() => 0, () => 1)))
    .then(broken => broken.reduce((sum, one) => sum + one, 0))"""
# It reads descriptor 3 and writes descriptor 4.
_LAUNCHER = """import fcntl, os, sys
ours = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for place, number in enumerate(ours, 3):
    os.dup2(number, place)
os.execv(sys.argv[3], sys.argv[3:])"""


@dataclass(frozen=True)
class Shown:
    """What became of a page."""

    complaints: list[str]  # console errors, refused loads, exceptions
    width: int  # CSS pixels that its content takes
    height: int
    broken_images: int
    background: str  # of the body, as CSS has it
    screenshot: bytes  # PNG of the whole page, or of its first `most_height` pixels


class Chromium:
    """One browser; `show` opens each page in a tab of its own."""

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self.process, self.write, self.read = process, write, read
        self.count, self.held = 0, b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Ask and wait for the answer; events that come before it are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params} | (
            {"sessionId": session} if session else {}
        )
        os.write(self.write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT
        while (answer := self._message(deadline)).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self.held:
            assert time.monotonic() < deadline, "Chromium did not answer"
            try:
                part = os.read(self.read, 1 << 20)
            except BlockingIOError:
                time.sleep(0.005)
                continue
            assert part, "Chromium ended"
            self.held += part
        message, _, self.held = self.held.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def show(
        self,
        page: AnyPath,
        width: int,
        scheme: str = "light",
        scale: float = 1.0,
        most_height: int = 6000,
    ) -> Shown:
        """Open a file in a window of `width` CSS pixels, as a reader with that colour scheme sees
        it.
        """
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        tab = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable", tab)
        screen = {"width": width, "height": 900, "deviceScaleFactor": scale, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", tab, **screen)
        self.call(
            "Emulation.setEmulatedMedia",
            tab,
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.events = []
        self.call("Page.navigate", tab, url=Path(str(page)).absolute().as_uri())
        self._wait_for("Page.loadEventFired")
        shown = Shown(
            broken_images=self._evaluate(tab, BROKEN_IMAGES),
            width=self._evaluate(tab, "document.documentElement.scrollWidth"),
            height=(height := self._evaluate(tab, "document.documentElement.scrollHeight")),
            background=self._evaluate(tab, "getComputedStyle(document.body).backgroundColor"),
            screenshot=self._screenshot(tab, width, min(height, most_height)),
            complaints=self._complaints(),
        )
        self.call("Target.closeTarget", targetId=target)
        return shown

    def _wait_for(self, method: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._message(deadline))

    def _evaluate(self, tab: str, expression: str) -> Any:
        return self.call("Runtime.evaluate", tab, expression=expression, awaitPromise=True)[
            "result"
        ]["value"]

    def _screenshot(self, tab: str, width: int, height: int) -> bytes:
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        taken = self.call(
            "Page.captureScreenshot", tab, format="png", clip=clip, captureBeyondViewport=True
        )
        return base64.b64decode(taken["data"])

    def _complaints(self) -> list[str]:
        found = []
        for event in self.events:
            match event.get("method"):
                case "Log.entryAdded" if event["params"]["entry"]["level"] in ("error", "warning"):
                    found.append(event["params"]["entry"]["text"])
                case "Runtime.exceptionThrown":
                    found.append(event["params"]["exceptionDetails"]["text"])
                case "Runtime.consoleAPICalled" if event["params"]["type"] in (
                    "error",
                    "warning",
                    "assert",
                ):
                    found.append(str(event["params"]["args"]))
        return found


@contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    """A browser with a profile of its own, ended when the block ends."""
    assert EXECUTABLE is not None
    our_read, their_write = os.pipe()
    their_read, our_write = os.pipe()

    launcher = [sys.executable, "-c", _LAUNCHER, str(their_read), str(their_write)]
    command = [
        *launcher,
        EXECUTABLE,
        *FLAGS,
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    quiet: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    process = subprocess.Popen(
        command, pass_fds=(their_read, their_write), start_new_session=True, **quiet
    )
    os.close(their_read)
    os.close(their_write)
    os.set_blocking(our_read, False)
    try:
        yield Chromium(process, our_write, our_read)
    finally:
        os.close(our_write)
        os.close(our_read)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
