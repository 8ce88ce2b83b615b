"""The pages in a real Chromium, against a real server whose classes and sensors have hostile names, and a route a long one."""

import dataclasses
import io
import shutil
import subprocess
import sys
import time
from contextlib import closing

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.responses import JSONResponse

from restnet_export.writer import RouteSource, write_bundle
from restnet_runtime.access import Access, Token
from restnet_runtime.api import create_app
from restnet_runtime.budget import Budget
from restnet_runtime.bundle import open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.controller import Controller
from restnet_runtime.executor import Executor
from restnet_runtime.models import Backend
from restnet_runtime.reading import Reading
from restnet_runtime.sessions import SessionSettings
from restnet_runtime.settings import ServeSettings

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
EVIL_NAME = "b~+2"
EVIL = '<img src=x onerror="window.pwned=1">'
LONG = "large" + "-and-longer" * 20
SCRIPT = '"><script>window.pwned=1</script>'
WAIT_MS = 15_000


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the pages are tested with playwright, of the dev extra")
    if BROWSER is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


class Device:
    """Sensors that read something else each time."""

    beats = 0

    def read(self):
        self.beats += 1
        return Reading(
            memory_available_bytes=10**12 + self.beats,  # more than all the tests before have left in this process
            own_memory_bytes=60_000_000,
            cpu_percent=20.0 + self.beats % 7,
            temperature_c=55.5,
            temperature_zone=EVIL,
            throttled=(SCRIPT,),
        )


class Served:
    def __init__(self, bundle, cache_root, **settings):
        self.executor = Executor(bundle, Compiler.for_bundle(bundle, cache_root), SessionSettings(threads=1))
        for route in bundle.routes:
            self.executor.load(route.name)
        self.controller = Controller(self.executor, Device(), interval_s=0.2)
        self.controller.start()
        self.settings = ServeSettings(workers=2, **settings)

    def app(self):
        return create_app(Backend(self.executor, self.controller), self.settings)

    def close(self):
        self.controller.stop()
        self.executor.close()


@pytest.fixture(scope="module")
def hostile(family_source, tmp_path_factory):
    routes = (*family_source.routes[:-1], RouteSource(LONG, family_source.routes[-1].segments, 0.95))
    source = dataclasses.replace(family_source, name="shapes", classes=(EVIL, SCRIPT, "square"), routes=routes)
    return open_bundle(write_bundle(source, tmp_path_factory.mktemp("hostile") / "bundle").path)


@pytest.fixture(scope="module")
def shared(hostile, cache_root, serve_app):
    served = Served(hostile, cache_root)
    with serve_app(served.app()) as client:
        served.client = client
        yield served
    served.close()


@pytest.fixture
def served(shared):
    yield shared
    shared.controller.pin = None
    shared.controller.budget = Budget()


class Visit:
    """One page, with all that it asked for and complained of."""

    def __init__(self, browser, url, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = url
        self.page.goto(url)

    def live(self):
        self.page.wait_for_selector('#connection[data-state="live"]')
        self.wait("document.querySelectorAll('#routes tr').length > 0 && document.querySelectorAll('#times svg').length > 0")
        return self.page

    def text(self, selector):
        return self.page.inner_text(selector)

    def wait(self, expression, arg=None):
        """Until it is true. Asked from here: what a page evaluates by itself later, its policy forbids."""
        deadline = time.monotonic() + WAIT_MS / 1e3
        while not self.page.evaluate(expression, arg):
            assert time.monotonic() < deadline, expression
            self.page.wait_for_timeout(30)

    def until(self, selector, text):
        self.wait("([selector, text]) => document.querySelector(selector).textContent.includes(text)", [selector, text])


@pytest.fixture
def visit(browser, served):
    visits = []

    def visit(path="/", base=None, **options):
        visits.append(Visit(browser, f"{base or str(served.client.base_url).rstrip('/')}{path}", **options))
        return visits[-1]

    yield visit
    for one in visits:
        one.context.close()


def png():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12), dtype=np.uint8)).save(stream, "PNG")
    return {"name": "shape.png", "mimeType": "image/png", "buffer": stream.getvalue()}


def test_it_shows_what_serves_and_asks_nobody_else(visit, served):
    page = visit()
    page.live()
    page.until("#route", LONG)
    assert page.text("#bundle") == "shapes"
    assert "95.0 %" in page.text("#fact-accuracy")
    assert page.text("#precision") == "fp32"
    assert "fits the budget (none)" in page.text("#verdict")
    page.page.set_input_files("#file", png())
    page.page.wait_for_selector("#answer:not([hidden])")
    page.until("#times", "55.5 °C")
    assert page.complaints == []
    assert {url.split("/")[2] for url in page.requests if not url.startswith("blob:")} == {str(served.client.base_url).split("/")[2]}


def test_the_curve_lights_the_route_that_serves_and_marks_the_front(visit, served):
    page = visit()
    page.live()
    assert page.page.get_attribute("#curve svg", "aria-label") == (
        f"Accuracy over cost of 4 routes. {LONG} serves: 95.0 % at {page.text('#fact-cost')}."
    )
    assert page.page.locator("#curve .point").count() == 4
    assert page.page.locator("#curve .point.lit").count() == 1
    assert page.page.locator("#curve .front").count() == 1
    served.client.put("/pin", json={"route": "small"}).raise_for_status()
    page.until("#route", "small")
    page.wait("document.querySelector('#curve svg').getAttribute('aria-label').includes('small serves: 80.0 %')")


def test_nothing_that_the_server_says_is_taken_for_html(visit, served):
    page = visit()
    page.live()
    page.page.set_input_files("#file", png())
    page.page.wait_for_selector("#answer:not([hidden])")
    served.client.put("/pin", json={"route": "small"})
    page.until("#log", f"{LONG} → small")
    served.client.put("/pin", json={"route": LONG})
    page.until("#log", f"small → {LONG}")
    page.until("#times", SCRIPT)
    assert {EVIL, SCRIPT, "square"} == set(page.page.locator("#top .class").all_inner_texts())
    assert page.page.evaluate("window.pwned") is None
    assert page.page.locator("img").count() == 1  # the preview
    assert page.page.locator("main script").count() == 0
    assert page.complaints == []


def test_a_budget_is_set_and_refused_in_words(visit, served):
    page = visit()
    page.live()
    macs = served.client.get("/routes").json()["routes"][0]["macs"]
    page.page.fill("#limit-macs", str(macs / 1e6))
    page.page.fill("#limit-latency", "250")
    page.page.click("text=Set budget")
    page.until("#control-message", "New budget: new budget: small is the most accurate that fits")
    budget = served.client.get("/budget").json()["budget"]
    assert (budget["macs"], budget["latency_ms"], budget["memory_bytes"]) == (macs, 250.0, None)
    page.until("#route", "small")
    page.until("#announce", "small serves now")
    assert "limit" in page.text("#curve")
    page.page.fill("#limit-latency", "soon")
    page.page.click("text=Set budget")
    page.until("#control-message", "Latency: soon is no number")
    page.page.fill("#limit-latency", "-3")
    page.page.click("text=Set budget")
    page.until("#control-message", "must be above zero")
    assert served.client.get("/budget").json()["budget"] == budget
    page.page.click("text=No limits")
    page.until("#route", LONG)
    page.wait("document.getElementById('limit-macs').value === ''")
    page.until("#announce", f"{LONG} serves now")
    assert page.page.locator("#log li").count() == len(served.client.get("/status").json()["switches"])


def test_the_slider_moves_the_budget_from_the_keyboard(visit, served):
    page = visit()
    page.live()
    page.page.focus("#cost-slider")
    page.page.keyboard.press("Home")
    page.until("#route", "small")
    assert served.client.get("/budget").json()["budget"]["macs"] == served.client.get("/routes").json()["routes"][0]["macs"]
    assert page.page.get_attribute("#cost-slider", "aria-valuetext") == page.text("#cost-output")
    page.page.keyboard.press("End")
    page.until("#route", LONG)
    assert served.client.get("/budget").json()["budget"]["text"] == "none"


def test_a_route_is_pinned_and_let_go(visit, served):
    page = visit()
    page.live()
    page.page.select_option("#pin-route", "small")
    page.page.click("text=Pin it")
    page.page.wait_for_selector("#pinned:not([hidden])")
    assert served.client.get("/pin").json()["pin"] == "small"
    page.page.click("text=Let the budget decide")
    page.page.wait_for_selector("#pinned", state="hidden")
    assert served.client.get("/pin").json()["pin"] is None


def test_an_image_is_answered_with_its_route(visit):
    page = visit()
    page.live()
    page.page.set_input_files("#file", png())
    page.until("#answer-text", f"says {LONG} in ")
    assert "within the budget" in page.text("#answer-text")
    page.page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no image"})
    page.page.wait_for_selector('#answer-text[data-state="bad"]')
    assert "image" in page.text("#answer-text")


def test_an_image_can_be_dropped(visit):
    page = visit()
    page.live()
    page.page.evaluate(
        """(bytes) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "shape.png", { type: "image/png" }));
          document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        }""",
        list(png()["buffer"]),
    )
    page.until("#answer-text", f"says {LONG} in ")


def test_it_comes_back_with_the_server(browser, hostile, cache_root, serve_app):
    served = Served(hostile, cache_root)
    try:
        with serve_app(served.app()) as client:
            port = client.base_url.port
            page = Visit(browser, str(client.base_url))
            page.live()
        page.page.wait_for_selector('#connection[data-state="lost"]')
        assert "no connection" in page.text("#connection")
        served.controller.pin = "small"
        with serve_app(served.app(), port):
            page.live()
            page.until("#route", "small")
            page.page.wait_for_selector("#pinned:not([hidden])")
        page.context.close()
    finally:
        served.close()


def test_a_read_only_server_shows_no_controls_that_work(visit, hostile, cache_root, serve_app):
    served = Served(hostile, cache_root, read_only=True)
    try:
        with serve_app(served.app()) as client:
            page = visit(base=str(client.base_url).rstrip("/"))
            page.live()
            page.page.wait_for_selector("#read-only:not([hidden])")
            assert page.page.is_disabled("text=Set budget")
            assert page.page.is_disabled("#cost-slider")
            assert page.page.is_disabled("text=Pin it")
            assert page.page.is_enabled("#file")
            page.context.close()
    finally:
        served.close()


def test_a_server_that_wants_a_token_for_changes_is_given_it(visit, hostile, cache_root, serve_app):
    class Guarded:
        """What a proxy in front of the server may do."""

        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            if scope.get("method") == "PUT" and (b"authorization", b"Bearer open") not in scope["headers"]:
                await JSONResponse({"error": "a token is wanted"}, 401)(scope, receive, send)
            else:
                await self.app(scope, receive, send)

    served = Served(hostile, cache_root)
    app = served.app()
    app.add_middleware(Guarded)
    try:
        with serve_app(app) as client:
            page = visit(base=str(client.base_url).rstrip("/"))
            page.live()
            page.page.fill("#limit-latency", "40")
            page.page.click("text=Set budget")
            page.until("#control-message", "a token is wanted")
            page.page.fill("#token", "open")
            page.page.click("text=Set budget")
            page.until("#control-message", "New budget")
            assert client.get("/budget").json()["budget"]["latency_ms"] == 40
            page.context.close()
    finally:
        served.close()


def test_a_server_that_wants_a_token_for_everything_is_given_it(visit, hostile, cache_root, serve_app):
    secret = "0123456789abcdef0123456789abcdef"
    served = Served(hostile, cache_root, access=Access(token=Token(secret), require="all"))
    try:
        with serve_app(served.app()) as client:
            page = visit(base=str(client.base_url).rstrip("/"))
            page.until("#token-message", "This server asks for a token.")
            page.page.fill("#token", secret[:-1])
            page.page.press("#token", "Enter")
            page.until("#token-message", "The token is wrong.")
            page.page.fill("#token", secret)
            page.page.click("text=Use it")
            page.live()
            page.page.fill("#limit-latency", "40")
            page.page.click("text=Set budget")
            page.until("#control-message", "New budget")
            budget = client.get("/budget", headers={"Authorization": f"Bearer {secret}"}).json()["budget"]
            assert budget["latency_ms"] == 40
            served.controller.budget = Budget.parse("50ms")
            served.controller.tick()
            page.until("#verdict", "50 ms")  # told by the stream
            page.context.close()
    finally:
        served.close()


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_phone_does_not_scroll_sideways(visit, path):
    page = visit(path, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    if path == "/":
        page.live()
        page.page.set_input_files("#file", png())
        page.page.wait_for_selector("#answer:not([hidden])")
        page.page.click("summary")
    else:
        page.page.wait_for_selector(".card")
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 360
    small = page.page.evaluate(
        """[...document.querySelectorAll("button, select, .choose, input:not([type=file]):not([type=checkbox])")]
          .filter((one) => one.offsetParent && one.getBoundingClientRect().height < 28).map((one) => one.id || one.textContent)"""
    )
    assert small == []


CONTRAST = """() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return { rgb: n.slice(0, 3), a: n.length > 3 ? n[3] : 1 }; };
  const light = ({ rgb }) => rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let one = node; one; one = one.parentElement) { const c = parse(getComputedStyle(one).backgroundColor); if (c.a === 1) return c; }
    return { rgb: [255, 255, 255] };
  };
  const low = [];
  for (const node of document.querySelectorAll("body *")) {
    if (node.closest(":disabled") || !node.getClientRects().length || node.closest(".unseen, .skip, noscript, option")) continue;
    if (![...node.childNodes].some((one) => one.nodeType === 3 && one.textContent.trim())) continue;
    const style = getComputedStyle(node), colour = node instanceof SVGElement ? style.fill : style.color;
    const ink = light(parse(colour)), back = light(behind(node));
    const ratio = (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05);
    if (ratio < 4.5) low.push(`${node.tagName} ${node.getAttribute("class")} ${node.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(visit, served, scheme):
    page = visit(color_scheme=scheme)
    page.live()
    served.client.put("/budget", json={"macs": 1, "min_accuracy": 0.9})
    page.page.wait_for_selector('#verdict[data-state="bad"]')
    page.page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no image"})
    page.page.wait_for_selector('#answer-text[data-state="bad"]')
    page.page.click("summary")
    dark = page.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 20, 27)"
    assert dark == (scheme == "dark")
    assert page.page.evaluate(CONTRAST) == []


def test_the_keyboard_reaches_everything_visibly(visit):
    page = visit()
    page.live()
    page.page.keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement.className") == "skip"
    reached, unseen = [], []
    for _ in range(60):
        page.page.keyboard.press("Tab")
        name, outline = page.page.evaluate(
            """(() => { const one = document.activeElement; if (one === document.body) return ["", true];
              const shown = one.closest(".choose") || one, style = getComputedStyle(shown);
              return [one.id || one.textContent.trim(), style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2]; })()"""
        )
        if not name or name in reached:
            break  # once around
        reached.append(name)
        unseen += [] if outline else [name]
    for wanted in ("cost-slider", "limit-macs", "limit-latency", "limit-memory", "limit-accuracy", "no-limits", "pin-route", "file", "log"):
        assert wanted in reached
    assert {"Set budget", "Pin it", "All routes as a table"} <= set(reached)
    assert unseen == []


def test_a_screen_reader_finds_names_and_places(visit):
    page = visit()
    page.live()
    unnamed = page.page.evaluate(
        """[...document.querySelectorAll("input, select, button, progress")]
          .filter((one) => !(one.labels && one.labels.length) && !one.textContent.trim() && !one.ariaLabel).map((one) => one.id)"""
    )
    assert unnamed == []
    assert page.page.locator("main").count() == page.page.locator("h1").count() == 1
    assert page.page.evaluate("document.documentElement.lang") == "en"
    assert page.page.evaluate(
        "[...document.querySelectorAll('main > section')].every((one) => document.getElementById(one.getAttribute('aria-labelledby')))"
    )
    assert page.page.get_attribute("#announce", "aria-live") == "polite"
    charts = page.page.evaluate(
        "[...document.querySelectorAll('.chart svg')].map((one) => [one.getAttribute('role'), one.getAttribute('aria-label')])"
    )
    assert len(charts) == 6
    assert all(role == "img" and label for role, label in charts)


def test_the_description_is_readable_without_a_network(visit, served):
    page = visit("/docs")
    page.page.wait_for_selector(".card")
    described = served.client.get("/openapi.json").json()["paths"]
    operations = [f"{method.upper()}{path}" for path, methods in described.items() for method in methods]
    assert [title.replace("\n", "").strip() for title in page.page.locator(".doc h2").all_inner_texts()] == operations
    assert "curl -sS -F image=@seven.png" in page.text("main")
    assert page.complaints == []
    assert {url.split("/")[2] for url in page.requests} == {str(served.client.base_url).split("/")[2]}


# Without a browser


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/web/style.css", "/web/common.js", "/web/charts.js", "/web/dashboard.js", "/web/docs.js", "/web/icon.svg"]
)
def test_pages_allow_nothing_from_elsewhere(served, path):
    answer = served.client.get(path)
    assert answer.status_code == 200
    policy = dict(entry.strip().split(" ", 1) for entry in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "//" not in answer.text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")
    if path in ("/", "/docs"):
        assert not any(word in answer.text for word in (" style=", "<style", "onclick", "javascript:"))
    again = served.client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = served.client.head(path)
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("path", ["/web/", "/web/../metrics.py", "/web/%2e%2e/api.py", "/web/dashboard.html", "/web/style.css/"])
def test_no_other_file_is_to_be_had(served, path):
    assert served.client.get(path).status_code == 404


def test_one_model_of_several_is_chosen_and_everything_is_asked_of_it(browser, hostile, family_bundle, cache_root, serve_app):
    first, second = Served(hostile, cache_root), Served(family_bundle, cache_root)
    backends = {"shapes": Backend(first.executor, first.controller), EVIL_NAME: Backend(second.executor, second.controller)}
    chosen = "name => document.querySelector('#model').value === name"  # the list of models comes after the route
    with closing(first), closing(second), serve_app(create_app(backends, first.settings)) as client:
        base = str(client.base_url).rstrip("/")
        page = Visit(browser, base)
        page.live()
        page.until("#route", LONG)
        page.wait(chosen, "shapes")
        assert page.page.locator("#model option").all_inner_texts() == ["shapes", EVIL_NAME]
        page.page.select_option("#model", EVIL_NAME)
        page.until("#route", "large")
        page.until("#routes", "small[0-1]>large[2-4]")
        assert page.page.url == f"{base}/?model=b~%2B2"
        page.page.fill("#limit-macs", "0.001")
        page.page.click("#budget button[type=submit]")
        page.until("#control-message", "New budget")
        assert (str(first.controller.budget), second.controller.budget.macs) == ("none", 1000)
        page.page.set_input_files("#file", png())
        page.page.wait_for_selector("#answer:not([hidden])")
        page.until("#answer-text", "small")
        page.page.reload()
        page.live()
        page.until("#route", "small")
        page.wait(chosen, EVIL_NAME)
        assert page.complaints == []
        page.page.goto(f"{base}/?model=gone")
        page.until("#route", LONG)
        page.wait(chosen, "shapes")  # a model that there is not any more gives way to the first
        page.context.close()


def test_one_model_alone_is_no_choice(visit):
    page = visit()
    page.live()
    assert page.page.locator("#model-line").is_hidden()


def test_steps_of_a_new_bundle_are_told(browser, family_path, cache_root):
    code = "import sys; from restnet_runtime.cli import serve; sys.exit(serve())"
    command = [sys.executable, "-c", code, str(family_path), "--port", "0", "--cache", str(cache_root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            base = next(line.split()[-1] for line in process.stdout if line.startswith("listening on "))
            page = Visit(browser, base)
            page.live()
            page.until("#route", "large")
            assert page.text("#log").count("New bundle") == 0
            httpx.post(f"{base}/v2/repository/models/shapes/load", trust_env=False, timeout=60)
            page.until("#log", "unchanged")  # what lies at the path is what serves
            assert page.text("#log").count("New bundle") >= 1
            assert page.complaints == []
            page.context.close()
        finally:
            process.terminate()
