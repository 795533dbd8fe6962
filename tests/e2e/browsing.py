"""Debian's Chromium without a window, driven by selenium; and what it did and said."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
# No name resolves: what is not stopped by the page's policy ends here.
OPTIONS = [
    "--headless=new",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--window-size=1280,900",
]


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A driver; skips the test where there is no browser."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium with chromedriver; apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    for option in [*OPTIONS, *root, f"--user-data-dir={profile}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SE_OFFLINE", "true")
        environment.setenv("SE_AVOID_STATS", "true")
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def requests(driver: Any) -> list[str]:
    """The addresses that were asked for since the last call.

    Those of data are left out, and those that the page's policy held back: the console has them.
    """
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    held_back = {
        event["params"]["requestId"]
        for event in events
        if event["method"] == "Network.loadingFailed"
        and event["params"].get("blockedReason") == "csp"
    }
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    urls = [one["request"]["url"] for one in sent if one["requestId"] not in held_back]
    # The browser's own pages, such as that of a new tab, ask nothing of anybody.
    own = ("data:", "chrome:", "chrome-untrusted:", "chrome-search:")
    return [url for url in urls if not url.startswith(own)]


def complaints(driver: Any) -> list[str]:
    """The lines of the console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser")]
