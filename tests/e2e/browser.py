"""
One page of a headless Chromium, driven over the DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/ (domains Page, Runtime, Network, Emulation)
"""

import base64
import contextlib
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e import tools
from tests.running import wait_for
from websockets.sync.client import ClientConnection, connect

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--mute-audio",
    "--window-size=900,860",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)


class Page:
    """A page, and what it has complained of."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._last = 0
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Load *url* and wait for its modules to have run."""
        self._call("Page.navigate", url=url)
        loaded = "document.readyState === 'complete' && location.href !== 'about:blank'"
        wait_for(lambda: self.evaluate(loaded) or None, f"the page {url}", 60)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def fill(self, selector: str, text: str) -> None:
        """Type *text* in place of what a field holds."""
        self.evaluate(f"{_find(selector)}.focus(); {_find(selector)}.select()")
        self._call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Press the mouse button in the middle of an element, as a person would."""
        box = self.evaluate(
            f"(() => {{ const e = {_find(selector)}; e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=box[0],
                y=box[1],
                button="left",
                clickCount=1,
            )

    def text(self, selector: str) -> str:
        """The visible text of an element."""
        return str(self.evaluate(f"{_find(selector)}.innerText"))

    def wait(self, expression: str, what: str, timeout: float = 30.0) -> None:
        """Wait until an expression holds."""
        wait_for(lambda: bool(self.evaluate(expression)) or None, what, timeout)

    def emulate(self, **features: str) -> None:
        """Media features: `prefers_color_scheme="dark"`."""
        said = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self._call("Emulation.setEmulatedMedia", features=said)

    def accessible(self) -> list[tuple[str, str]]:
        """Role and name of everything that assistive technology is told of."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    def screenshot(self, path: Path) -> None:
        """The page as a PNG."""
        data = self._call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def _call(self, method: str, **parameters: Any) -> Any:
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("id") == self._last:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._hear(message)

    def _hear(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(event["params"]["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded":
            entry = event["params"]["entry"]
            # A refused request is told of by the network, and shown by the page itself.
            if entry["level"] == "error" and entry["source"] != "network":
                self.complaints.append(entry["text"])


def _find(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"


@contextlib.contextmanager
def browse(folder: Path) -> Iterator[Page]:
    """A browser with a profile of its own in *folder*; the page is blank."""
    profile = folder / "chromium"
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [tools.chromium(), *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        told = profile / "DevToolsActivePort"
        port = wait_for(lambda: _port(told, process), "Chromium", 90)
        target = wait_for(lambda: _page(port), "a page of Chromium", 30)
        with connect(target, max_size=None, compression=None, open_timeout=30) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(15)


def _port(told: Path, process: "subprocess.Popen[bytes]") -> int | None:
    assert process.poll() is None, f"Chromium ended with {process.returncode}"
    with contextlib.suppress(OSError, ValueError):
        return int(told.read_text().splitlines()[0])
    time.sleep(0.1)
    return None


def _page(port: int) -> str | None:
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as reply,
    ):
        for target in json.load(reply):
            if target["type"] == "page":
                return str(target["webSocketDebuggerUrl"])
    return None
