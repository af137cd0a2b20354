"""The Chromium that page tests open: where it is, and the flags under which it starts in a container."""

from __future__ import annotations

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def find_chromium() -> str:
    """Return the path of an installed Chromium; without one skip the test, in CI fail it."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    message = f"no browser among {', '.join(NAMES)} is installed; install one, as in `apt-get install chromium`"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
