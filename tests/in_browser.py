"""A real browser for tests: headless Chromium, driven by Playwright, with its screenshots in `screenshots/`.

Debian's `chromium` (`.ci/run` installs it) or Google Chrome; without one, or without Playwright, a test skips and says
what is missing.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

SCREENSHOTS = ROOT / "screenshots"
"""Kept after the tests, to be looked at; git ignores it."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120_000
"""Milliseconds until a page that does nothing is given up: machines are slow, and loaded."""


@contextlib.contextmanager
def browser_page(**options: Any) -> Iterator[Any]:
    """A page of a new browser, whose errors fail the test; `options` are of Playwright's `new_page`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs a browser: apt-get install chromium")
    errors: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])  # CI is root
        page = browser.new_page(**options)
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        browser.close()
    assert errors == []


def another(page: Any) -> Any:
    """A new page of the same browser: a process drives one at a time."""
    other = page.context.browser.new_page()
    other.set_default_timeout(PATIENCE)
    return other


def screenshot(page: Any, name: str) -> Path:
    """Keep what the page shows, whole, as a PNG file."""
    SCREENSHOTS.mkdir(exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    return path


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder served over http, on this machine alone: its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
