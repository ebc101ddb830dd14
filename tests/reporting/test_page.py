"""The report is one page that stands on its own."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

import craftopt as co
from craftopt.reporting.page import report_page


class Page(HTMLParser):
    """Collect ids, what labels point to, inputs and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def values(self, name: str, *tags: str) -> list[str]:
        return [
            found[name]
            for tag, found in self.elements
            if found.get(name) is not None and (not tags or tag in tags)
        ]


@pytest.fixture(scope="module")
def loads() -> co.Loads:
    tokens = np.random.default_rng(0).multinomial(400, np.arange(1, 9) / 36, size=(8, 2))
    return co.Loads(tokens, window_names=[f"</script><b>{w}" for w in range(8)])


@pytest.fixture(scope="module")
def text(loads) -> str:
    found = co.diagnose(loads, 4, 2, workers=1)
    today = co.solve(co.Problem(loads, 4, nodes=2, slots="even"), "trivial").plan
    return report_page(loads, found, {"today": today}, workers=1)


def test_the_page_loads_nothing_from_elsewhere(text):
    page = Page(text)
    assert not re.findall(r"https?://|url\(|@import", text)
    assert not page.values("src") + page.values("href")


def test_ids_are_unique_and_every_input_has_a_label(text):
    page = Page(text)
    ids = page.values("id")
    assert max(Counter(ids).values()) == 1
    assert set(page.values("id", "input", "select")) <= set(page.values("for", "label"))
    assert set(page.values("aria-labelledby")) <= set(ids)
    assert len(page.values("aria-label", "svg")) == sum(tag == "svg" for tag, _ in page.elements)


def test_the_verdict_comes_first_and_every_gpu_of_every_layer_is_shown_twice(text, loads):
    assert text.index('id="verdict"') < text.index("<h2")
    assert sum(tag == "rect" for tag, _ in Page(text).elements) == 2 * 4 * loads.layers


def test_names_of_windows_are_text_and_nothing_else(text):
    assert text.count("</script>") == 2
    assert "<b>" not in text


def test_a_single_window_is_reported_too(loads):
    single = loads.total()
    today = co.solve(co.Problem(single, 4, slots="even"), "trivial").plan
    page = report_page(single, co.diagnose(single, 4), {"today": today}, workers=1)
    assert "collect more windows first" in page


def test_a_large_model_fits_into_two_megabytes():
    tokens = np.random.default_rng(0).integers(1, 2000, (12, 58, 256))
    loads = co.Loads(tokens)
    today = co.solve(co.Problem(loads, 64, nodes=8, slots="even"), "trivial").plan
    found = co.diagnose(loads.total(), 64, 8)
    page = report_page(loads, found, {"today": today, "same": today})
    assert len(page.encode()) <= 2_000_000


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Runs in a page around the report, which is in a frame 390 px wide.
CHECKS = """
const page = frame.contentDocument, found = [];
const check = (promise, kept) => { if (!kept) found.push(promise); };
const all = selector => [...page.querySelectorAll(selector)];
const fire = (element, event) => element.dispatchEvent(event);
check("it fits into 390 px", page.documentElement.scrollWidth <= 390);
const colours = () => all("svg rect").map(cell => cell.getAttribute("class")).join();
const before = colours(), view = page.getElementById("view");
view.value = "2";
fire(view, new Event("change"));
check("another window has other colours", colours() !== before);
fire(page.getElementById("map0"), new KeyboardEvent("keydown", {key: "ArrowRight"}));
check("arrow keys tell values", page.getElementById("said").textContent.includes("GPU 1:"));
const rows = () => all("#layers tbody tr");
const button = page.querySelector("#layers th button");
button.click();
button.click();
check("tables sort", rows()[0].cells[0].textContent === "1");
const filter = page.getElementById("f-windows");
filter.value = "held out";
fire(filter, new Event("input"));
check("tables filter", all("#windows tbody tr:not([hidden])").length === 4);
document.getElementById("found").textContent = "broken: " + [...errors, ...found].join("; ");
"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; install it")
def test_the_page_works_in_a_browser(text, tmp_path):
    watch = "<script>onerror = said => parent.errors.push(said)</script>"
    inner = html.escape(text.replace("<head>", f"<head>{watch}"))
    (tmp_path / "around.html").write_text(
        "<p id=found>not run</p><script>const errors = []</script>"
        f'<iframe id="frame" style="width:390px;border:0" srcdoc="{inner}"></iframe>'
        f"<script>frame.onload = () => {{ {CHECKS} }}</script>"
    )
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    flags += "--disable-background-networking --disable-component-update --virtual-time-budget=5000"
    done = subprocess.run(
        [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         (tmp_path / "around.html").as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert '<p id="found">broken: </p>' in done.stdout, done.stdout[:300]
