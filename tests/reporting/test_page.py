"""The report is one page that stands on its own."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import re
import shlex
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

import craftopt as co
from craftopt.diagnosis import Cost
from craftopt.evaluation import gpu_loads
from craftopt.reporting import sections
from craftopt.reporting.layers import load_map
from craftopt.reporting.page import COLOURS, report_page
from craftopt.reporting.sections import Shown


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
    return co.Loads(tokens, window_names=[f"</script><b>a long name/{w:050}" for w in range(8)])


@pytest.fixture(scope="module")
def found(loads) -> co.Diagnosis:
    return co.diagnose(loads, 4, 2, workers=1)


@pytest.fixture(scope="module")
def text(loads, found) -> str:
    return report_page(loads, found, {})


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command line in an empty folder."""
    from craftopt import cli  # noqa: PLC0415

    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["craftopt", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        return capsys.readouterr().out

    return run


def commands_of(page: str) -> list[str]:
    """Find craftopt's own commands."""
    scripts = re.findall(r"<pre[^>]*>(.*?)</pre>", html.unescape(page), re.DOTALL)
    joined = re.sub(r"\\\n", "", "\n".join(scripts))
    return [line for line in joined.splitlines() if line.startswith("craftopt")]


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
    page = report_page(single, co.diagnose(single, 4), {})
    assert "collect more windows first" in page
    assert "Nothing to load" in page


def test_what_was_measured_is_in_the_charts(found, text):
    time = found.relative_time * (1 - found.chosen.held_out)
    assert f"held out, {found.replicas_per_layer} copies per layer" in text
    assert f": {time:.3f}" in text


@pytest.mark.parametrize("served", [False, True])
def test_the_first_command_makes_the_plan_shown_of_the_windows_planned(
    served, loads, found, tmp_path, run
):
    part = loads.select(range(1, 8, 2))
    np.savez("part.npz", tokens=part.tokens)
    given = {}
    if served:
        plan = co.solve(co.Problem(loads, 4, nodes=2, slots="uniform"), "eplb").plan
        plan.save("today.json")
        given = {"today.json": plan}
    page = report_page(loads, found, given, "part.npz")
    run(*shlex.split(commands_of(page)[0])[1:])
    made = co.read_plan("plan.json")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    for view, windows in enumerate((part, loads.select(range(0, 8, 2)))):
        cells = 100 * load_map(gpu_loads(made, windows))
        assert data["maps"][1]["loads"][view] == np.rint(cells).astype(int).tolist()


def test_tables_have_a_column_for_every_plan_and_moves_come_in_order(loads, found):
    problem = co.Problem(loads, 4, nodes=2, slots="uniform")
    plans = {name: co.solve(problem, name).plan for name in ("trivial", "eplb", "fast")}
    page = report_page(loads, found, plans)
    for name in plans:
        assert f">{name}, held out</button>" in page
    assert "new plan" not in page
    moved = co.plan_migration(plans["trivial"], plans["fast"]).moves
    assert f"From trivial to fast: {moved} copies" in page
    body = page.split('<table id="moves">')[1].split("</table>")[0]
    rounds = [int(row) for row in re.findall(r"<tr><td>(\d+)<", body)]
    assert len(rounds) == moved
    assert rounds == sorted(rounds)


def test_memory_is_said_in_gib_where_the_model_is_known(loads, found):
    cost = Cost(copy=0.25 * 2**30, memory=0.0, prefill=0.0, decode=0.0, exchange=0.0)
    page = report_page(loads, dataclasses.replace(found, cost=cost), {})
    assert "4 copies per layer (1.00 GiB)" in page


def test_the_gap_of_a_layer_is_to_a_bound_that_holds(loads):
    """All plans of one tiny layer: none is better than the bound that a page shows."""
    tokens = loads.select([1, 3]).with_layers([0], [0])
    scattered = [np.array(gpus) for gpus in itertools.product(range(2), repeat=8)]
    even = [gpus for gpus in scattered if gpus.sum() == 4]
    plans = [co.Plan((gpus == np.arange(2)[:, None]).T[None].astype(np.uint8)) for gpus in even]
    planned = np.ones(2, dtype=bool)
    gaps = [sections.layers(Shown(tokens, planned, {"one": plan})).rows[0][3] for plan in plans]
    times = np.array([co.evaluate(plan, tokens).relative_time for plan in plans])
    shown = np.array([float(gap.rstrip("%")) / 100 for gap in gaps])
    assert (shown >= times / times.min() - 1 - 0.001).all()


def test_a_large_model_fits_into_two_megabytes():
    tokens = np.random.default_rng(0).integers(1, 2000, (12, 58, 256))
    loads = co.Loads(tokens)
    problem = co.Problem(loads, 64, nodes=8, slots="even")
    plans = {name: co.solve(problem, name).plan for name in ("trivial", "eplb-counts")}
    page = report_page(loads, co.diagnose(loads.total(), 64, 8), plans)
    assert len(page.encode()) <= 2_000_000


def test_the_command_line_writes_the_page_and_its_commands_run(tmp_path, run):
    trace = co.load_example_trace("gpt-oss-20b")
    np.savez("trace.npz", topk_ids=trace.topk_ids[:, :3], layer_ids=trace.layer_ids[:3])
    recording = ("trace.npz", "--batch", 9000, "--experts", 32, "--gpus", 8)
    run("plan", *recording, "--replicas", 0, "--method", "trivial", "-o", "today.json")
    said = run("report", "trace.npz", "today.json", *recording[1:], "-o", "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    said = html.escape(" ".join(said.split("\nwrote")[0].split()))
    page = re.sub("</?strong>", "", page)
    assert page.index(said) < page.index("<h2")
    lines = commands_of(page)
    assert len(lines) == 5
    for line in lines:
        run(*shlex.split(line)[1:])
    assert {path.name for path in tmp_path.iterdir()} >= {"location.json", "moe.yaml", "steps.json"}


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Runs in a page around the report, which is in a frame 390 px wide.
CHECKS = """
const page = frame.contentDocument, found = [];
const check = (promise, kept) => { if (!kept) found.push(promise); };
const all = selector => [...page.querySelectorAll(selector)];
const fire = (element, event) => element.dispatchEvent(event);
check("it fits into 390 px", page.documentElement.scrollWidth <= 390);
const colours = () => all("svg rect").map(cell => cell.getAttribute("class").slice(0, 2)).join();
const before = colours(), view = page.getElementById("view");
const shown = {};
for (const option of view.options) {
  view.value = option.value;
  fire(view, new Event("change"));
  shown[colours()] = page.getElementById("time0").textContent;
}
check("planned, held out and every window look different", Object.keys(shown).length > 6);
view.value = "1";
fire(view, new Event("change"));
check("the way back shows the same", colours() === before);
const told = () => page.getElementById("said").textContent;
fire(page.getElementById("map0"), new KeyboardEvent("keydown", {key: "ArrowRight"}));
check("arrow keys tell values", told().includes("layer 0, GPU 1:"));
fire(page.querySelector("#map1 rect:last-of-type"), new MouseEvent("mouseover", {bubbles: true}));
check("pointing tells values", told().includes("layer 1, GPU 3:"));
const rows = () => all("#layers tbody tr");
const button = page.querySelector("#layers th button");
button.click();
button.click();
check("tables sort", rows()[0].cells[0].textContent === "1");
const filter = page.getElementById("f-windows");
filter.value = "held out";
fire(filter, new Event("input"));
check("tables filter", all("#windows tbody tr:not([hidden])").length === 4);
check("filters say how many", page.getElementById("n-windows").textContent === "4 of 8 rows");
document.getElementById("found").textContent = "broken: " + [...errors, ...found].join("; ");
"""


def chromium(folder, page, *flags: str) -> str:
    """Open a file of a folder in a browser without a window; return what it prints."""
    common = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    common += "--disable-background-networking --disable-component-update --hide-scrollbars "
    common += f"--virtual-time-budget=5000 --user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *common.split(), *flags, (folder / page).as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; install it")


@pytest.mark.browser
@in_browser
def test_the_page_works_in_a_browser(text, tmp_path):
    watch = "<script>onerror = said => parent.errors.push(said)</script>"
    inner = html.escape(text.replace("<head>", f"<head>{watch}"))
    (tmp_path / "around.html").write_text(
        "<p id=found>not run</p><script>const errors = []</script>"
        f'<iframe id="frame" style="width:390px;border:0" srcdoc="{inner}"></iframe>'
        f"<script>frame.onload = () => {{ {CHECKS} }}</script>"
    )
    printed = chromium(tmp_path, "around.html", "--dump-dom")
    assert '<p id="found">broken: </p>' in printed, printed[:300]


@pytest.mark.browser
@in_browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (1280, "dark")])
def test_the_page_looks_like_its_colour_scheme(width, scheme, text, tmp_path):
    """Pictures of a `make browser` are in build/browser, to be looked at."""
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    picture = tmp_path / f"{scheme}-{width}.png"
    flags = [f"--screenshot={picture}", f"--window-size={width},2400"]
    flags += ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    chromium(tmp_path, "report.html", *flags)
    shown = pytest.importorskip("matplotlib.pyplot").imread(picture)[..., :3]
    assert shown.shape[1] == width
    assert (np.median(shown) < 0.5) == (scheme == "dark")
    palest, darkest = (
        [int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (COLOURS[0], COLOURS[-1])
    )
    for colour in (palest, darkest):
        assert (abs(255 * shown - colour).max(axis=2) < 2).any(), "a colour of the map is missing"
