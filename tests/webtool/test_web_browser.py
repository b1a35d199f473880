"""The page in a real browser: what a user sees and clicks.

``SIMGEN_SCREENSHOTS=folder`` keeps pictures of what was seen.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ase
import pytest
from conftest import Guest

pytest.importorskip("playwright")
from playwright.sync_api import Browser, Locator, Page, TimeoutError, sync_playwright
from zndraw.geometries import Curve

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning",
        "ignore::ResourceWarning",
        # ZnDraw's client gives up waiting for news after 10 s, which a busy machine may take.
        "ignore::pytest.PytestUnhandledThreadExceptionWarning",
    ),
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
FEW_PICTURES = """
    window.requestAnimationFrame = (draw) => setTimeout(() => draw(performance.now()), 1000);
    window.cancelAnimationFrame = (number) => clearTimeout(number);
    const getContext = HTMLCanvasElement.prototype.getContext;
    HTMLCanvasElement.prototype.getContext = function (kind, options) {
        return getContext.call(this, kind, { ...options, antialias: false });
    };
"""
"""A rough picture a second: drawn in software, as many as there can be would take all cores."""
NEXT_PICTURE = "() => new Promise((f) => requestAnimationFrame(() => requestAnimationFrame(f)))"
SCREENSHOTS = os.environ.get("SIMGEN_SCREENSHOTS")
WIDTH, HEIGHT = (1200, 760) if SCREENSHOTS else (1000, 640)
"""Of the page: what looks well, or few points to draw."""
WAIT = 300.0
"""Seconds until a wait fails: on a busy machine everything takes its time."""


class User:
    """A page of its own, and a client that looks into its room."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
        self.context.add_init_script(FEW_PICTURES)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(1000 * WAIT)
        self.clicked = time.monotonic()
        self.page.goto(url)
        self.page.wait_for_selector("canvas")
        self.page.wait_for_url("**/rooms/*")
        self.room = self.page.url.rsplit("/", 1)[1]
        self.guest = Guest(url, self.room)
        self.vis = self.guest.vis

    def until(self, true: Callable[[], Any]) -> None:
        """Wait until something is true, while the page goes on."""
        end = time.monotonic() + WAIT
        while not true():
            assert time.monotonic() < end, f"not true after {WAIT:.0f} s"
            self.page.wait_for_timeout(100)

    def points(self) -> list[list[float]]:
        """What is drawn, as the server knows it."""
        answer = self.guest.request("GET", f"/api/rooms/{self.room}/geometries/curve")
        if answer.status_code == 404:
            return []
        points: list[list[float]] = answer.json()["geometry"]["data"]["position"]
        return points

    def draw(self, places: list[tuple[float, float]]) -> None:
        """Draw a curve through places on the page, relative to its width and height."""
        self.page.get_by_label("toggle drawing mode").click()
        self.page.get_by_text("Drawing on: curve").wait_for()
        for number, (right, down) in enumerate(places, start=1):
            x, y = right * WIDTH, down * HEIGHT
            self.page.mouse.move(x - 8, y - 8)
            self.page.mouse.move(x, y)
            self.page.evaluate(NEXT_PICTURE)  # a click hits what was drawn under the mouse
            self.page.mouse.click(x, y)
            self.until(lambda number=number: len(self.points()) >= number)  # type: ignore[misc]
        self.page.get_by_label("toggle drawing mode").click()
        self.page.get_by_text("Drawing on: curve").wait_for(state="hidden")

    def run(
        self, tool: str, *, sliders: Mapping[str, int] | None = None, **texts: str
    ) -> dict[str, Any]:
        """Fill a form, run its tool and return the job.

        Parameters
        ----------
        tool : str
            What it is called in the menu.
        sliders : mapping of str to int, optional
            How many places to move sliders up from their left ends, by label.
        **texts : str
            What to write where, by label or by what is there instead of one.
        """
        n_jobs = len(self.jobs())
        panel = self.page.get_by_role("button", name="Modifier tools")
        menu = self.page.get_by_role("combobox").first

        def opens() -> bool:
            panel.click()
            with suppress(TimeoutError):
                menu.wait_for(timeout=20_000)
            return menu.is_visible()

        self.until(opens)  # a click may be lost while the page is busy
        menu.click()
        self.page.get_by_role("option", name=tool, exact=True).click()
        for label, places in (sliders or {}).items():
            for key in ["Home", *["ArrowRight"] * places]:
                self.slider(label).press(key)
        for label, text in texts.items():
            field = self.page.get_by_label(label, exact=True)
            field.or_(self.page.get_by_placeholder(label)).first.fill(text)
            self.page.wait_for_timeout(1000)  # the form takes notice when one stops writing
        self.clicked = time.monotonic()
        self.page.get_by_role("button", name="Run Extension").click()
        self.until(lambda: len(self.jobs()) > n_jobs)
        panel.click()
        return max(self.jobs(), key=lambda job: job["created_at"])

    def seconds(self) -> float:
        """How long it is since the page was opened, or a tool was last run."""
        return time.monotonic() - self.clicked

    def slider(self, label: str) -> Locator:
        """The slider beneath a label, which does not name it."""
        words = self.page.locator("label", has_text=re.compile(f"^{label}$"))
        return words.locator("xpath=../..").get_by_role("slider")

    def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.guest.request(
            "GET", f"/api/rooms/{self.room}/jobs"
        ).json()
        return found

    def ends(self, job: dict[str, Any]) -> str:
        """Wait for the end of a job and return what became of it."""
        self.until(lambda: self.guest.job(job["id"])["status"] in ("completed", "failed"))
        return str(self.guest.job(job["id"])["status"])

    def picture(self, name: str) -> None:
        """Keep what is seen, if that is wanted; painting lags behind."""
        if SCREENSHOTS:
            self.page.mouse.move(500, 60)
            self.page.wait_for_timeout(4000)
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.fail("expected chromium for the browser tests, found none; apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=OPTIONS, timeout=1000 * WAIT
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def arrive(browser: Browser, server: Any) -> Iterator[Callable[[], User]]:
    """Let a new user open the page."""
    users: list[User] = []

    def make() -> User:
        users.append(User(browser, server.url))
        return users[-1]

    yield make
    for user in users:
        user.context.close()
        user.vis.disconnect()


@pytest.fixture(scope="module")
def somebody(arrive: Callable[[], User]) -> User:
    """A user whom the tests share that do not mind what is in the room."""
    return arrive()


def test_from_a_drawing_to_saved_molecules(arrive: Callable[[], User]) -> None:
    user = arrive()
    print(f"page ready after {user.seconds():.1f} s")
    page, vis = user.page, user.vis
    help_text = page.get_by_role("note", name="How to begin")
    assert "Draw a shape" in help_text.inner_text()
    assert len(vis) == 1
    user.draw([(0.30, 0.36), (0.36, 0.29), (0.44, 0.28), (0.5, 0.36)])
    points = user.points()
    assert len(points) == 4
    assert max(abs(y) for _, y, _ in points) < 0.05  # on the floor
    assert points[0][0] < points[1][0] < points[2][0] < points[3][0]
    user.picture("web-welcome")
    page.get_by_label("Close the help").click()
    help_text.wait_for(state="hidden")

    n_before = len(vis)
    job = user.run("Generate", sliders={"Atoms": 9}, Seed="7")
    assert (job["data"]["atoms"], job["data"]["seed"]) == (9, 7)
    assert user.ends(job) == "completed"
    print(f"four molecules of 9 heavy atoms after {user.seconds():.1f} s")
    assert 1 not in vis[n_before].numbers  # it streamed in
    assert len(vis) > n_before + 4
    assert any("**Generate** made 4" in words for words in user.guest.chat())
    page.locator('header button:has-text("Generate")').click(trial=True)  # nothing lies on it

    # The plot comes by itself, with the frame that is shown marked.
    points_of_plot = page.locator(".scatterlayer .trace").first.locator(".point")
    points_of_plot.first.wait_for()
    user.picture("web-molecules")
    vis.step = 0
    user.until(lambda: page.locator(".scatterlayer .point").count() == points_of_plot.count())
    box = points_of_plot.last.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 3, y - 3)
    page.mouse.move(x, y)
    label = page.locator(".hovertext .name")
    label.wait_for()
    frame = int((label.text_content() or "").removeprefix("frame "))  # SVG has no inner text
    assert frame > n_before
    page.mouse.click(x, y)
    user.until(lambda: vis.step == frame)

    example = vis[0]
    vis.append(ase.Atoms(example.numbers, example.positions)[example.numbers > 1])
    vis.step = len(vis) - 1
    assert user.ends(user.run("Hydrogenate")) == "completed"
    hydrogenated = vis[vis.step]
    assert hydrogenated.get_chemical_formula() == example.get_chemical_formula()
    assert user.ends(user.run("Relax")) == "completed"
    assert abs(vis[vis.step].positions - hydrogenated.positions).max() > 1e-3

    assert user.ends(user.run("Save")) == "completed"
    page.get_by_label("toggle chat").click()
    user.picture("web-chat")
    with page.expect_download() as download:
        page.get_by_role("link", name=".zip").click()
    assert download.value.suggested_filename.endswith(".zip")


def test_stop_ends_what_the_toolbar_began(somebody: User) -> None:
    # So many atoms that it goes on for longer than anybody takes to stop it.
    somebody.vis.geometries["curve"] = Curve(position=[(-20, 0, 0), (20, 0, 0)])
    n_before = len(somebody.vis)
    somebody.page.locator('header button:has-text("Generate")').click()
    somebody.until(lambda: len(somebody.vis) > n_before)
    (job,) = (job for job in somebody.jobs() if job["extension"] == "Generate")
    assert somebody.ends(somebody.run("Stop")) == "completed"
    assert somebody.ends(job) == "failed"
    assert "**Generate**: stopped" in somebody.guest.chat()
    n_frames = len(somebody.vis)
    somebody.page.wait_for_timeout(1500)
    assert len(somebody.vis) == n_frames


def test_an_error_is_shown_in_words(somebody: User) -> None:
    job = somebody.run("Load molecules", SMILES="this")
    assert somebody.ends(job) == "failed"
    words = somebody.page.get_by_text("not a SMILES string").first

    def shows() -> bool:
        somebody.page.get_by_label("toggle chat").click()
        with suppress(TimeoutError):
            words.wait_for(timeout=20_000)
        return words.is_visible()

    somebody.until(shows)  # a click may be lost while the page is busy
    assert "Traceback" not in somebody.page.content()
    somebody.page.get_by_label("toggle chat").click()


def test_the_question_mark_explains_the_tools(somebody: User) -> None:
    page = somebody.page
    page.get_by_label("Help", exact=True).click()
    page.frame_locator("iframe").get_by_text("Join the fragments of this frame").wait_for()
    page.get_by_role("dialog").get_by_label("close", exact=True).click()
    page.locator("iframe").wait_for(state="detached")


def test_two_users_have_rooms_of_their_own(arrive: Callable[[], User], somebody: User) -> None:
    other = arrive()
    assert somebody.room != other.room
    n_frames, n_words = len(other.vis), len(somebody.guest.chat())
    assert somebody.ends(somebody.run("Load molecules", SMILES="CC")) == "completed"
    assert len(other.vis) == n_frames == 1
    assert other.ends(other.run("Hydrogenate")) == "completed"
    assert any("no hydrogen missing" in words for words in other.guest.chat())
    assert not any("Hydrogenate" in words for words in somebody.guest.chat()[n_words:])


def test_a_file_is_uploaded(somebody: User, tmp_path: Path) -> None:
    file = tmp_path / "pair.smi"
    file.write_text("C#N first\nCC=O second\n")
    page = somebody.page
    page.locator('input[type="file"][accept*=".smi"]').set_input_files(file)
    page.wait_for_url("**/rooms/pair-*")
    page.wait_for_selector("canvas")
    visitor = Guest(somebody.guest.url, page.url.rsplit("/", 1)[1].split("?")[0])
    somebody.until(lambda: len(visitor.vis) == 2)
    visitor.vis.disconnect()


def test_a_full_server_says_so(
    browser: Browser, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.rooms, "limit", 1)
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(1000 * WAIT)
    page.goto(server.url)
    alert = page.locator("#simgen-refusal")
    alert.wait_for()
    assert "expected fewer than 1 rooms" in alert.inner_text()
    context.close()
