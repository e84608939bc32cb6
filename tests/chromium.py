"A headless Chromium for the tests that open pages; they are skipped, visibly, where there is none."

import os
import shutil
import tempfile
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --proxy-server=direct:// --window-size=1280,900"
)


@contextmanager
def open_chromium(what: str):
    "A driver whose console is kept; `what` says in the reason for skipping what was not opened."
    if not (CHROMIUM and DRIVER):
        pytest.skip(f"no chromium and chromedriver on the PATH: {what} was not opened")
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        driver = selenium.Chrome(options=options, service=Service(DRIVER))
        driver.set_page_load_timeout(30)
        yield driver
        driver.quit()
