"""The page in a real Chromium: keys change frames, modes, take-over, recording, reconnecting, and all of it quietly.

Needs playwright (`pip install -e '.[browser]'`) and a Chromium of the system's; skipped where either is missing.
"""

import io
import os
import shutil
import time
import zipfile

import pytest
from play_server import TOKEN, Running


playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on the PATH")


class Watched:
    """A page, and everything that it did not do quietly."""

    def __init__(self, browser, running, **options):
        self.context = browser.new_context(viewport={"width": 1100, "height": 900}, **options)
        self.page, self.running, self.noise, self.foreign = self.context.new_page(), running, [], []
        self.page.on("console", lambda m: self.noise.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.noise.append(str(error)))
        home = (f"http://{running.host}/", f"ws://{running.host}/", "data:", "blob:")
        watch = lambda request: None if request.url.startswith(home) else self.foreign.append(request.url)  # noqa: E731
        self.page.on("request", watch)
        self.page.on("websocket", watch)

    def open(self, token=TOKEN):
        self.page.goto(f"http://{self.running.host}/#token={token}")
        return self

    def until(self, expression):
        # Not by wait_for_function, which evaluates strings in the page: its policy forbids that.
        deadline = time.monotonic() + 300
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, expression
            self.page.wait_for_timeout(20)

    def ready(self):
        self.until("moment !== null && moment.time === 0")
        return self

    def pixels(self, name):
        return self.page.evaluate("name => Array.from(moment.arrays[name].data)", name)

    def shown(self, name):
        """Returns the pixels on the screen, one for each pixel of the frame."""
        return self.page.evaluate(
            """name => {
                const canvas = document.querySelector(`#screen-${name} canvas`);
                const [height, width] = moment.arrays[name].shape;
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height), out = [];
                for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
                    const row = Math.floor((y + .5) * canvas.height / height);
                    const at = 4 * (row * canvas.width + Math.floor((x + .5) * canvas.width / width));
                    out.push(...data.slice(at, at + 3));
                }
                return out;
            }""",
            name,
        )


@pytest.fixture(scope="module")
def running():
    with Running() as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def watched(browser, running):
    watched = Watched(browser, running)
    yield watched
    watched.context.close()
    assert (watched.noise, watched.foreign) == ([], [])


def test_it_shows_the_game_and_the_dream_pixel_by_pixel(watched):
    watched.open().ready()
    assert watched.page.title() == "Catch-bsuite · dreamer4"
    for name in ("game", "dream"):
        assert watched.shown(name) == watched.pixels(name)


def test_keys_change_frames_and_buttons_do_too(watched):
    watched.open().ready()
    page = watched.page
    first = watched.pixels("game")
    page.keyboard.press("ArrowLeft")
    watched.until("moment.time >= 1")
    assert page.evaluate("past[0].action.discrete") == [0] and page.evaluate("past[0].by") == "player"
    assert watched.pixels("game") != first
    page.keyboard.press("Space")
    watched.until("!playing")
    page.keyboard.press("r")
    watched.ready()
    page.keyboard.press("n")
    watched.until("moment.time === 1 && !waiting")
    assert page.evaluate("[moment.action.discrete[0], playing]") == [1, False]
    page.locator(".act", has_text="right").click()
    watched.until("past.some(step => step.action.discrete[0] === 2)")
    assert page.evaluate("performance.getEntriesByName('key-to-frame').length") >= 2


def test_one_request_at_a_time(watched):
    watched.page.add_init_script(
        """window.open_ = 0; window.most = 0;
        const send = WebSocket.prototype.send;
        WebSocket.prototype.send = function (x) { open_ += 1; most = Math.max(most, open_); send.call(this, x); };
        const set = Object.getOwnPropertyDescriptor(WebSocket.prototype, "onmessage").set;
        Object.defineProperty(WebSocket.prototype, "onmessage", {
            set(f) { set.call(this, e => { open_ = Math.max(0, open_ - 1); f(e); }); } });"""
    )
    watched.open().ready()
    watched.page.evaluate("document.getElementById('speed').value = 60")
    for key in ("ArrowLeft", "g", "ArrowRight", "c", "g", "t", "n", "g", "c"):
        watched.page.keyboard.press(key)
    watched.until("!waiting && queue.length === 0")
    assert watched.page.evaluate("most") == 1


def test_modes(watched):
    watched.open().ready()
    for name, screens in (("game", ["game"]), ("dream", ["dream"]), ("both", ["game", "dream"])):
        watched.page.click(f"#modes [data-mode={name}]")
        watched.until(f"mode === '{name}' && !waiting")
        assert [n for n in ("game", "dream") if watched.page.is_visible(f"#screen-{n}")] == screens
    watched.page.click("#step")
    watched.until("moment.first_difference !== null")  # an untrained dream differs at once
    watched.until("document.getElementById('screen-dream').classList.contains('wrong')")
    assert "differs from step 1" in watched.page.inner_text("#screen-dream")


def test_watching_and_taking_over(watched):
    watched.open().ready()
    watched.page.click("#players [data-by=policy]")
    watched.until("moment.time >= 2 && moment.by === 'policy'")
    watched.page.keyboard.press("ArrowRight")
    watched.until("past.some(step => step.by === 'player' && step.action.discrete[0] === 2)")
    assert watched.page.get_attribute("#players [data-by=player]", "aria-pressed") == "true"


def test_starts_and_settings(watched):
    watched.open().ready()
    page = watched.page
    page.click("#passes [data-k='8']")
    page.select_option("#episode", "1")
    watched.ready()
    assert page.is_visible("#passed-row")
    page.evaluate("() => { passed.value = 6; passed.dispatchEvent(new Event('change')); }")
    watched.until("!waiting && moment.time === 0")
    before = watched.pixels("dream")
    page.click("#next")
    watched.until("!waiting && moment.time === 0")
    assert page.input_value("#episode") == "0" and watched.pixels("dream") != before
    page.click("#step")
    watched.until("moment.time === 1")
    assert not page.is_visible("#banner")


def test_recording(watched):
    watched.open().ready()
    page = watched.page
    page.click("#record")
    watched.until("recording")
    page.click("#step")
    watched.until("filmed === 2")
    page.click("#record")
    watched.until("!recording && !waiting")
    for kind, magic in (("gif", b"GIF8"), ("episode", b"PK")):
        with page.expect_download() as download:
            page.click(f"#fetch-{kind}")
        with open(download.value.path(), "rb") as file:
            content = file.read()
        assert content.startswith(magic)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert {"game/dataset.json", "dream/dataset.json"} <= set(file.namelist())


def test_a_second_draw_is_made_as_long_as_it_is_asked_for(watched):
    watched.open().ready()
    watched.page.click("#step")
    watched.until("moment.time === 1 && moment.warnings.disagreement > 0")
    watched.page.uncheck("#twice")
    watched.page.click("#step")
    watched.until("moment.time === 2 && moment.warnings.disagreement === null")


def test_a_lost_connection_comes_back(browser):
    running = Running()
    with running:
        watched = Watched(browser, running)
        watched.open().ready()
    watched.until("!document.getElementById('banner').hidden")
    with running:  # on the same port
        watched.until("document.getElementById('banner').hidden")
        watched.ready().page.keyboard.press("ArrowLeft")  # no key counts before the first frame is there
        watched.until("moment.time >= 1")
        watched.context.close()
    assert watched.foreign == []


@pytest.mark.parametrize("token", ["", "wrong-token-012345678"])
def test_without_the_link_it_says_what_is_missing(browser, running, token):
    watched = Watched(browser, running).open(token)
    watched.until("!document.getElementById('banner').hidden")
    assert "link" in watched.page.inner_text("#banner")
    assert watched.page.evaluate("hello") is None
    watched.context.close()


def test_a_phone_needs_no_sideways_scrolling(browser, running):
    watched = Watched(browser, running, has_touch=True)
    watched.page.set_viewport_size({"width": 360, "height": 740})
    watched.open().ready()
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 360
    act = watched.page.locator(".act", has_text="left")
    box = act.bounding_box()
    assert box["y"] + box["height"] <= 740 and min(box["width"], box["height"]) >= 44  # in reach of a thumb
    act.tap()
    watched.until("past.some(step => step.action.discrete[0] === 0)")
    watched.context.close()
    assert (watched.noise, watched.foreign) == ([], [])
