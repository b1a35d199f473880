"""The page in a real browser: what a user sees and clicks.

``SIMGEN_SCREENSHOTS=folder`` keeps pictures of what was seen.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Guest

pytest.importorskip("playwright")
from playwright.sync_api import Page, Playwright, sync_playwright

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]

CHROMIUM = shutil.which("chromium")
OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Nothing but the server is needed: no request to anywhere else can succeed.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
WAIT = 120_000
"""Milliseconds: drawing in software on a busy machine takes its time."""


class User:
    """A browser with a page of its own, and a client that looks into its room."""

    def __init__(self, playwright: Playwright, url: str, folder: Path) -> None:
        self.context = playwright.chromium.launch_persistent_context(
            folder,
            executable_path=CHROMIUM,
            headless=True,
            args=OPTIONS,
            viewport={"width": 1100, "height": 720},
        )
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.goto(url)
        self.page.wait_for_selector("canvas")
        self.page.wait_for_url("**/rooms/*")
        self.room = self.page.url.rsplit("/", 1)[1]
        self.guest = Guest(url, self.room)
        self.until(lambda: len(self.guest.vis) > 0)

    def until(self, true: Callable[[], Any], seconds: float = 120.0) -> None:
        """Wait until something is true."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"not true after {seconds} s"
            self.page.wait_for_timeout(200)

    def points(self) -> int:
        answer = self.guest.request("GET", f"/api/rooms/{self.room}/geometries/curve").json()
        return len(answer.get("geometry", answer).get("data", {}).get("position", []))

    def draw(self, places: list[tuple[int, int]]) -> None:
        """Draw a curve through places on the page."""
        self.page.get_by_label("toggle drawing mode").click()
        self.page.get_by_text("Drawing on: curve").wait_for()
        for number, (x, y) in enumerate(places, start=1):

            def click(x: int = x, y: int = y, number: int = number) -> bool:
                if self.points() < number:
                    self.page.mouse.move(x - 8, y - 8)
                    self.page.wait_for_timeout(400)
                    self.page.mouse.move(x, y)
                    self.page.wait_for_timeout(600)
                    self.page.mouse.click(x, y, delay=50)
                    self.page.wait_for_timeout(800)
                return self.points() >= number

            self.until(click)
        self.page.get_by_label("toggle drawing mode").click()
        self.page.get_by_text("Drawing on: curve").wait_for(state="hidden")

    def run(self, tool: str, **fields: str) -> None:
        """Fill a form and run its tool."""
        panel = self.page.get_by_role("button", name="Modifier tools")
        panel.click()
        self.page.get_by_role("combobox").first.click()
        self.page.get_by_role("option", name=tool, exact=True).click()
        for label, value in fields.items():
            self.page.get_by_label(label).first.fill(value)
            self.page.wait_for_timeout(300)
        self.page.get_by_role("button", name="Run Extension").click()
        panel.click()

    def picture(self, name: str) -> None:
        """Keep what is seen, if that is wanted; painting lags behind."""
        if folder := os.environ.get("SIMGEN_SCREENSHOTS"):
            self.page.wait_for_timeout(4000)
            self.page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    if CHROMIUM is None:
        pytest.fail("expected chromium for the browser tests, found none; apt-get install chromium")
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture
def arrive(playwright: Playwright, server: Any, tmp_path: Path) -> Iterator[Callable[[], User]]:
    """Let a new user open the page."""
    users: list[User] = []

    def make() -> User:
        users.append(User(playwright, server.url, tmp_path / str(len(users))))
        return users[-1]

    yield make
    for user in users:
        user.context.close()


def test_from_a_drawing_to_saved_molecules(arrive: Callable[[], User]) -> None:
    user = arrive()
    page, vis = user.page, user.guest.vis
    help_text = page.get_by_role("note", name="How to begin")
    assert "Draw a shape" in help_text.inner_text()
    user.picture("web-welcome")
    page.get_by_label("Close the help").click()
    help_text.wait_for(state="hidden")

    user.draw([(430, 285), (490, 215), (600, 210), (670, 275)])
    assert user.points() == 4
    user.run("Show shape")
    user.until(
        lambda: "shape" in user.guest.request("GET", f"/api/rooms/{user.room}/geometries").text
    )
    user.picture("web-shape")

    n_before = len(vis)
    user.run("Generate", Seed="7")
    user.until(lambda: len(vis) > n_before)  # it streams in
    assert 1 not in vis[-1].numbers
    page.get_by_text("Molecules", exact=True).wait_for(timeout=4 * WAIT)
    assert 1 in vis[-1].numbers
    assert "made 4" in user.guest.chat()[-1]
    user.picture("web-molecules")

    n_before = len(vis)
    user.run("Relax")
    user.until(lambda: len(vis) > n_before)
    user.run("Save")
    user.until(lambda: "**Save**" in user.guest.chat()[-1])
    page.get_by_label("toggle chat").click()
    with page.expect_download() as download:
        page.get_by_role("link", name=".zip").click()
    assert download.value.suggested_filename.endswith(".zip")


def test_the_toolbar_generates_and_stop_ends_it(arrive: Callable[[], User]) -> None:
    user = arrive()
    user.page.locator('header button:has-text("Generate")').click()
    user.until(lambda: len(user.guest.vis) > 2)
    user.run("Stop")
    user.until(lambda: any("stopped" in words for words in user.guest.chat()))
    n_frames = len(user.guest.vis)
    user.page.wait_for_timeout(1500)
    assert len(user.guest.vis) == n_frames


def test_an_error_is_shown_in_words(arrive: Callable[[], User]) -> None:
    user = arrive()
    user.run("Load molecules", SMILES="this is no molecule")
    user.page.get_by_label("toggle chat").click()
    user.page.get_by_text("not a SMILES string").first.wait_for()
    assert "Traceback" not in user.page.content()


def test_two_users_have_rooms_of_their_own(arrive: Callable[[], User]) -> None:
    one, other = arrive(), arrive()
    assert one.room != other.room
    one.run("Load molecules", SMILES="CC")
    one.until(lambda: len(one.guest.vis) == 2)
    assert len(other.guest.vis) == 1
    other.run("Hydrogenate")
    other.until(lambda: "no hydrogen missing" in "".join(other.guest.chat()))
    assert not any("Hydrogenate" in words for words in one.guest.chat())
