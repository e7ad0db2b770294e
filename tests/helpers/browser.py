"""A real headless Chromium for tests, and what they ask of a page."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

TIMEOUT_MS = 120_000
"""Longest wait for a page: on a machine whose cores all work, Chromium starts slowly."""
_LAID_OUT_S = 3.0
"""Seconds that charts get to follow a window that was made smaller: their observers hear of it a frame later."""
_IS_DRAWN = """() => {
  const plots = [...document.querySelectorAll("[data-curve], [data-board]")];
  return plots.length === 0 || plots.some((one) => one.querySelector("canvas"));
}"""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def missing() -> str:
    """Return what is missing for a browser, and how to get it; empty if nothing is."""
    if importlib.util.find_spec("playwright") is None or importlib.util.find_spec("axe_playwright_python") is None:
        return "needs playwright and axe-playwright-python: pip install -e '.[test]'"
    if not any(map(shutil.which, NAMES)):
        return "needs Chromium: apt-get install chromium"
    return ""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium, or skip the test where there is none."""
    if reason := missing():
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # A container has no sandbox of the kernel's, and little shared memory.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=next(filter(None, map(shutil.which, NAMES))), args=options)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Opened:
    """A page that was opened, and what it said and asked for."""

    page: Page
    said: list[str] = field(default_factory=list)
    """Errors and warnings of its console."""
    asked: list[str] = field(default_factory=list)
    """Addresses that it asked for, itself left out."""


@contextmanager
def opened(
    browser: Browser, path: Path, width: int = 1600, theme: str = "light", part: str = "#all", waits: bool = True
) -> Iterator[Opened]:
    """Open a file and, with `waits`, wait for its first chart. With the part `#all` it draws all of them at once."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)  # type: ignore[arg-type]
    try:
        context.set_default_timeout(TIMEOUT_MS)
        found = Opened(context.new_page())
        address = path.as_uri()

        def hear(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                found.said.append(message.text)

        def see(request: Request) -> None:
            if not request.url.startswith((address, "data:")):
                found.asked.append(request.url)

        found.page.on("console", hear)
        found.page.on("pageerror", lambda error: found.said.append(str(error)))
        found.page.on("request", see)
        found.page.goto(address + part)
        if waits:
            found.page.wait_for_function(_IS_DRAWN)
        yield found
    finally:
        context.close()


def overflow(page: Page) -> int:
    """Return by how many pixels a page is wider than its window, also after the time that it takes to be laid out."""
    end = time.monotonic() + _LAID_OUT_S
    while (found := int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))) > 0:
        if time.monotonic() > end:
            break
        page.wait_for_timeout(50)
    return found


def violations(page: Page) -> list[str]:
    """Return what axe-core finds wrong with a page: rule, and the places that break it."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {', '.join(str(node['target']) for node in one['nodes'][:4])}" for one in found]
