"""The raters' page in a real headless browser: filled in, reloaded in the middle, nothing lost."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.core.test_human import export
from visa_core.evaluation.human.answers import read_answers
from visa_core.evaluation.human.server import RatingServer

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed: pip install 'visa-core[dev]'"
)
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no chromium and chromedriver on the path: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


class Page:
    """What a rater does and sees."""

    def __init__(self, browser: webdriver.Chrome, server: RatingServer) -> None:
        self.browser, self.folder = browser, server.book.folder
        self.sheet = server.book.sheet

    def press(self, *keys: str) -> None:
        for key in keys:
            self.browser.switch_to.active_element.send_keys(key)

    def text(self, element: str) -> str:
        return self.browser.find_element(By.ID, element).text

    def item(self) -> str:
        return self.browser.find_element(By.TAG_NAME, "body").get_attribute("data-item")

    def pressed(self) -> set[str]:
        found = self.browser.find_elements(By.CSS_SELECTOR, "[aria-pressed=true][data-name]")
        return {button.get_attribute("data-name") for button in found if button.is_displayed()}

    def on_disk(self) -> dict[str, dict]:
        return read_answers(self.folder, self.sheet).get("anna", {})

    def until(self, what: Callable[[], object], seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"{self.text('state')!r} {self.on_disk()}"
            time.sleep(0.05)

    def saved(self) -> None:
        self.until(lambda: self.text("state") == "saved")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RatingServer]:
    with serving(export(tmp_path, comparison=3, identification=1)) as running:
        yield running


def serving(folder: Path, port: int = 0) -> RatingServer:
    running = RatingServer(folder, port)
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    return running


def test_a_sheet_is_filled_in_across_a_reload(browser, server: RatingServer) -> None:
    page = Page(browser, server)
    browser.get(server.url)
    page.until(lambda: browser.find_element(By.ID, "name").is_displayed())
    browser.find_element(By.ID, "name").send_keys("anna", Keys.ENTER)
    page.until(lambda: page.text("progress") == "0 of 5 answered")
    source = browser.page_source
    assert not [name for name in ("quokka", "wombat", "numbat", "dunnart") if name in source]

    first = page.item()
    page.press(Keys.ENTER)
    assert page.item() == first and "Not all" in page.text("note")
    page.press("1", "2", "3")
    page.saved()
    assert page.on_disk() == {first: {"accuracy": "a", "insight": "b", "overall": "alike"}}
    page.press(Keys.ENTER)
    second = page.item()
    assert second != first and page.text("title") == "Item 2 of 5"
    page.press("2", "1")
    page.saved()
    assert page.on_disk()[second] == {"accuracy": "b", "insight": "a"}

    browser.refresh()
    page.until(lambda: page.text("progress") == "1 of 5 answered")
    assert page.item() == second
    assert page.pressed() == {"accuracy-b", "insight-a"}
    page.press(Keys.ARROW_LEFT)
    assert page.item() == first
    assert page.pressed() == {"accuracy-a", "insight-b", "overall-alike"}

    # A change of mind, by mouse; then on to the end by keys.
    browser.find_element(By.CSS_SELECTOR, "[data-name=accuracy-b]").click()
    page.press(Keys.ENTER, Keys.ARROW_DOWN, Keys.ARROW_DOWN, "3")
    page.saved()
    page.press(Keys.ENTER, "1", "1", "1", Keys.ENTER)
    third = page.item()
    assert "Which 1 to 3 values" in page.text("ask")
    page.press("6", "5", "5", "1", "0")
    assert "At most 3 values" in page.text("note")
    page.press("1", "1")
    assert page.pressed() == {"security-1", "power--1"}
    page.press(Keys.ENTER, "n")
    fourth = page.item()
    page.press(Keys.ENTER)
    page.until(lambda: browser.find_element(By.ID, "done").is_displayed())
    page.saved()

    answers = page.on_disk()
    assert len(answers) == 5
    assert answers[first]["accuracy"] == "b"
    assert answers[second] == {"accuracy": "b", "insight": "a", "overall": "alike"}
    assert answers[third] == {"neutral": False, "values": {"security": 1, "power": -1}}
    assert answers[fourth] == {"neutral": True, "values": {}}
    lines = (server.book.folder / "answers" / "anna.jsonl").read_text().splitlines()
    assert len([line for line in lines if json.loads(line)["key"] == first]) == 4
    browser.refresh()
    page.until(lambda: browser.find_element(By.ID, "done").is_displayed())
    assert not [e for e in browser.get_log("browser") if "favicon" not in e["message"]]


def test_an_answer_waits_for_a_server_that_is_gone(browser, tmp_path: Path) -> None:
    """The page says that it is not saved, and has it on disk once the server is back."""
    server = serving(export(tmp_path, comparison=2, identification=0))
    page = Page(browser, server)
    browser.get(f"{server.url}?rater=anna")
    page.until(lambda: page.text("progress") == "0 of 2 answered")
    port = server.server_address[1]
    server.shutdown()
    server.server_close()
    page.press("1")
    page.until(lambda: page.text("state").startswith("NOT SAVED"))
    assert page.on_disk() == {}
    again = serving(server.book.folder, port)
    page.saved()
    assert page.on_disk() == {page.item(): {"accuracy": "a"}}
    again.shutdown()
    again.server_close()
