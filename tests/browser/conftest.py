"""A real browser: Debian's chromium-headless-shell, driven by Playwright, without a network.

Where one of them is missing, tests are skipped; with EXACT_PREP_REQUIRE_BROWSER=1, as in `.ci/run`, they fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = "chromium-headless-shell"


def miss(what: str) -> None:
    if os.environ.get("EXACT_PREP_REQUIRE_BROWSER"):
        pytest.fail(f"{what} is missing, and here a skip is a failure")
    pytest.skip(f"{what} is not installed")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium in a network namespace of its own: whatever it would send has no way out."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        miss("playwright")
    if shutil.which(CHROMIUM) is None:
        miss(CHROMIUM)
    for flags in ("-n", "-rn"):  # as root, and as a user who may make namespaces
        if subprocess.run(["unshare", flags, "true"], capture_output=True, check=False).returncode == 0:
            break
    else:
        miss("the right to make a network namespace (unshare -n)")
    program = tmp_path_factory.mktemp("browser") / "chromium"
    program.write_text(f'#!/bin/sh\nexec unshare {flags} {CHROMIUM} "$@"\n')
    program.chmod(0o755)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(program), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which `.ci/run` fetches from npm."""
    path = Path(os.environ.get("EXACT_PREP_TEST_AXE", "missing"))
    if not path.is_file():
        miss("axe-core (EXACT_PREP_TEST_AXE names its axe.min.js)")
    return path.read_text()


@pytest.fixture
def visit(browser):
    """Open a file in a tab; at the end nothing may have been logged or asked for."""
    opened = []

    @contextmanager
    def open_page(path: Path, *, width: int = 1000, dark: bool = False):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", offline=True
        )
        faults: list[str] = []
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda asked: faults.append(asked.url) if asked.url not in (path.as_uri(), "data:,") else None,
        )
        page.goto(path.as_uri())
        opened.append(path)
        yield page
        page.wait_for_timeout(50)
        context.close()
        assert faults == []

    yield open_page
    assert opened
