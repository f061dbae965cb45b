"""The page in a real browser: its script is run by headless Chromium, and what the document then
is, is read back."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
from report_runs import STACKS, write_run

from ditbench import reports

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
PUBLISHED = Path(__file__).parents[1] / "reports/published"
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; apt-get install chromium"
)


HOSTILE = "\"><script>window.errors.push('script')</script><img src=x onerror=\"window.errors.push('image')\"> & '</option>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = write_run(
        tmp_path_factory.mktemp("page") / "run",
        models=("pixart-tiny", "wan-tiny"),
        n=12,
        prompt=HOSTILE,
    )
    return reports.build([run]).page


def seen(page, script):
    """What `script`, run in the page after its own, leaves in `out`; errors of either are in it
    too. In virtual time."""
    probe = f"""<script>const out = {{}}; try {{ {script} }} catch (error) {{ out.error = String(error); }}
    const pre = document.createElement("pre"); pre.id = "probe";
    pre.textContent = JSON.stringify({{...out, errors: window.errors}}); document.body.append(pre);</script></body>"""
    first = """<script>window.errors = []; window.onerror = (message) => { window.errors.push(message); };
    console.error = console.warn = (...told) => { window.errors.push(told.join(" ")); };</script></head>"""
    path = page.with_name("probe.html")
    path.write_text(page.read_text().replace("</head>", first).replace("</body>", probe))
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = json.loads(
        unescape(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S).group(1))
    )
    assert found.pop("errors") == [] and "error" not in found, found
    return found


STACK_NAMES = "[...table.tBodies[0].rows].map((row) => row.cells[0].textContent.split(' ')[0])"


def test_a_click_sorts_a_table_and_the_baseline_stays_on_top(page):
    found = seen(page, f"""
      const table = document.querySelector("section.model table");
      const heads = [...table.tHead.rows[0].cells];
      const column = heads.findIndex((head) => head.textContent.replace(/\\s/g, "").startsWith("speedup_flops"));
      const values = () => [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[column]?.textContent));
      out.before = {STACK_NAMES};
      heads[column].querySelector("button").click();
      out.down = values(); out.told = heads[column].getAttribute("aria-sort"); out.stacks = {STACK_NAMES};
      heads[column].querySelector("button").click();
      out.up = values();
      heads[0].querySelector("button").click();
      out.names = {STACK_NAMES}; out.left = heads[column].getAttribute("aria-sort");
    """)  # fmt: skip
    ran = sum(status == "ok" for _, status in STACKS)
    assert (
        found["before"][0] == found["stacks"][0] == found["names"][0] == "none"
        and found["told"] == "descending"
    )
    down, up = found["down"][1:ran], found["up"][1:ran]
    assert (
        down == sorted(down, reverse=True)
        and up == sorted(up)
        and sorted(down) == up
        and len(set(up)) > 2
    )
    assert sorted(found["before"]) == sorted(found["stacks"]) and found["left"] is None
    assert found["names"][1:] == sorted(found["names"][1:])


def test_every_row_has_its_command_to_copy_and_its_key_to_hover(page):
    found = seen(page, """
      const code = document.querySelector("code.command"), button = code.parentElement.querySelector("button");
      button.click();
      out.commands = [...document.querySelectorAll("code.command")].map((c) => c.textContent);
      out.selected = getSelection().toString(); out.told = button.textContent; out.first = code.textContent;
      out.keys = [...document.querySelectorAll("section.model table")[0].tBodies[0].rows].map((row) => row.cells[0].title);
    """)  # fmt: skip
    assert (len(found["commands"]) == 2 * len(STACKS) and found["selected"] == "") or found[
        "selected"
    ] == found["first"]
    assert all(c.startswith("python run_bench.py run --models ") for c in found["commands"])
    assert found["keys"][0] == "pixart-tiny--none" and all(found["keys"])


def test_a_picture_opens_from_the_page_itself_wherever_its_file_is(page):
    found = seen(page, """
      const blobs = [], opened = [];
      URL.createObjectURL = (blob) => { blobs.push(blob); return "blob:" + blobs.length; };
      window.open = (url) => { opened.push(url); };
      const links = [...document.querySelectorAll("a.whole")], pictures = [...document.querySelectorAll("figure > .scroll > img")];
      links.forEach((link) => link.click());
      out.opened = opened; out.types = blobs.map((blob) => blob.type); out.sizes = blobs.map((blob) => blob.size);
      out.held = pictures.map((picture) => picture.src.length);
    """)  # fmt: skip
    assert (
        found["opened"] == [f"blob:{i + 1}" for i in range(len(found["held"]))]
        and len(found["held"]) > 4
    )
    assert set(found["types"]) <= {"image/png", "image/webp"}
    assert all(
        abs(size - 0.75 * held) < 40
        for size, held in zip(found["sizes"], found["held"], strict=True)
    )


def test_one_model_can_be_shown_alone(page):
    found = seen(page, """
      const choice = document.querySelector("nav select"), models = [...document.querySelectorAll("section.model")];
      out.options = [...choice.options].map((option) => option.text);
      choice.value = models[1].id; choice.dispatchEvent(new Event("change"));
      out.hidden = models.map((model) => model.hidden);
      choice.value = ""; choice.dispatchEvent(new Event("change"));
      out.again = models.map((model) => model.hidden);
    """)  # fmt: skip
    assert found["options"] == ["all models", "pixart-tiny", "wan-tiny"]
    assert found["hidden"] == [True, False] and found["again"] == [False, False]


VIEWER = """
  const viewer = document.querySelector(`section.model[id$="${model}"] figure.viewer`);
  const of = (name) => viewer.querySelector(`.${name}`), say = (element) => element.dispatchEvent(new Event("input", {bubbles: true}));
"""


def test_the_slider_moves_the_edge_between_the_unaccelerated_and_a_chosen_stack(page):
    found = seen(page, f"""
      const model = "pixart-tiny"; {VIEWER}
      const edge = () => getComputedStyle(of("over")).clipPath, shown = (name) => of(name).style.backgroundImage;
      out.names = [of("left"), of("right")].map((choice) => choice.selectedOptions[0].text);
      out.before = edge(); of("split").value = 25; say(of("split")); out.after = edge();
      of("split").focus(); out.focused = document.activeElement === of("split");
      const sprite = shown("under"); of("right").selectedIndex = 1; say(of("right")); out.changed = shown("under") !== sprite;
      of("sample").selectedIndex = 2; say(of("sample")); out.place = of("over").style.backgroundPosition;
      of("difference").click(); out.difference = getComputedStyle(of("over")).mixBlendMode;
      out.options = of("right").options.length; out.asked = of("sample").options[0].text; out.moving = of("play") !== null;
    """)  # fmt: skip
    assert found["names"] == ["none", "fora(interval=3)"] and found["options"] == sum(
        status == "ok" for _, status in STACKS
    )
    assert (found["before"], found["after"]) == ("inset(0px 50% 0px 0px)", "inset(0px 75% 0px 0px)")
    assert found["focused"] and found["changed"] and not found["moving"]
    assert found["place"].endswith(" 66.6667%") and found["difference"] == "difference"
    assert found["asked"] == " ".join(f"1: {HOSTILE} 0".split())


def test_videos_play_and_pause_frame_by_frame_in_both_stacks_at_once(page):
    found = seen(page, f"""
      const model = "wan-tiny"; {VIEWER}
      const tick = window.setInterval; let turn = null; window.setInterval = (f) => {{ turn = f; return 7; }};
      let stopped = null; window.clearInterval = (which) => {{ stopped = which; }};
      of("play").click(); out.playing = of("play").textContent; turn(); turn();
      out.frame = of("frame").value; out.places = ["over", "under"].map((name) => of(name).style.backgroundPosition);
      of("play").click(); out.paused = of("play").textContent; out.stopped = stopped;
      out.strips = [...viewer.querySelectorAll(".strip")].map((strip) => strip.style.backgroundImage.slice(0, 20));
    """)  # fmt: skip
    assert (found["playing"], found["frame"], found["paused"], found["stopped"]) == (
        "pause",
        "2",
        "play",
        7,
    )
    assert found["places"] == ["25% 0%", "25% 0%"]  # the third of nine frames
    assert found["strips"] == ['url("data:image/webp'] * 2


def test_the_page_is_one_file_without_anything_remote_and_text_in_it_stays_text(page):
    found = seen(page, """
      out.links = [...document.querySelectorAll("[src]")].map((e) => e.getAttribute("src").slice(0, 11));
      out.scripts = [...document.querySelectorAll("script")].length;
      out.loaded = [...document.images].every((image) => image.loading === "lazy" && image.alt);
      out.remote = performance.getEntriesByType("resource").map((e) => e.name.slice(0, 5)).filter((name) => name !== "data:");
    """)  # fmt: skip
    assert set(found["links"]) == {"data:image/"} and found["remote"] == [] and found["loaded"]
    assert found["scripts"] == 3  # the page's, and the two that this test puts in


WORK = """
  out.elements = document.querySelectorAll("*").length;
  out.eager = [...document.images].filter((image) => image.loading !== "lazy").length;
  out.script = [...document.scripts].map((script) => script.textContent.length).reduce((a, b) => a + b);
"""
"""What a browser has to do before it shows the page: elements to lay out, pictures to decode,
characters of script to run. How long that takes is the machine's (`python -m
ditbench.testing.benchmarks`)."""


def test_a_model_with_forty_stacks_takes_a_quarter_of_what_a_page_may_weigh(tmp_path):
    stacks = [("none", "ok"), *((f"fora(interval={i})", "ok") for i in range(2, 41))]
    run = write_run(tmp_path / "run", models=("pixart-tiny",), stacks=stacks, n=9, resolution=64)
    page = reports.build([run]).page
    assert page.stat().st_size <= 15e6 / 4
    found = seen(page, WORK)
    assert found["elements"] <= 20_000 / 4 and found["eager"] == 0 and found["script"] <= 10_000, (
        found
    )


@pytest.mark.parametrize(
    "published", sorted(PUBLISHED.glob("*/spec.json")), ids=lambda path: path.parent.name
)
def test_the_page_of_a_published_run_has_no_dead_link_no_error_and_is_light(published, tmp_path):
    page = reports.build([published.parent], tmp_path / "report").page
    links = set(re.findall(r'<a href="([^"#][^"]*)"', page.read_text()))
    assert links and not [link for link in links if not (page.parent / unquote(link)).is_file()]
    assert page.stat().st_size <= 15e6
    rows = len((published.parent / "records.jsonl").read_text().splitlines())
    found = seen(page, WORK)
    assert found["elements"] <= 20_000 * max(1, rows / 112) and found["eager"] == 0, found
    assert found["script"] <= 10_000
