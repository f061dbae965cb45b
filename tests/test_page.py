"""The page in a real browser: its script is run by headless Chromium, and what the document then is, is read back."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest
from report_runs import STACKS, write_run

from ditbench import reports

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("page") / "run", models=("dit-tiny", "pixart-tiny"), n=12)
    return reports.build([run]).page


def seen(page, script):
    """What `script`, run in the page after its own, leaves in `out`; errors of either are in it too."""
    probe = f"""<script>const out = {{}}; try {{ {script} }} catch (error) {{ out.error = String(error); }}
    const pre = document.createElement("pre"); pre.id = "probe";
    pre.textContent = JSON.stringify({{...out, errors: window.errors}}); document.body.append(pre);</script></body>"""
    first = (
        "<script>window.errors = []; window.onerror = (message) => { window.errors.push(message); };</script></head>"
    )
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
    found = json.loads(unescape(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S).group(1)))
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
    assert found["before"][0] == found["stacks"][0] == found["names"][0] == "none" and found["told"] == "descending"
    down, up = found["down"][1:ran], found["up"][1:ran]
    assert down == sorted(down, reverse=True) and up == sorted(up) and sorted(down) == up and len(set(up)) > 2
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
    assert (len(found["commands"]) == 2 * len(STACKS) and found["selected"] == "") or found["selected"] == found[
        "first"
    ]
    assert all(c.startswith("python run_bench.py run --models ") for c in found["commands"])
    assert found["keys"][0] == "dit-tiny--none" and all(found["keys"])


def test_one_model_can_be_shown_alone(page):
    found = seen(page, """
      const choice = document.querySelector("nav select"), models = [...document.querySelectorAll("section.model")];
      out.options = [...choice.options].map((option) => option.text);
      choice.value = models[1].id; choice.dispatchEvent(new Event("change"));
      out.hidden = models.map((model) => model.hidden);
      choice.value = ""; choice.dispatchEvent(new Event("change"));
      out.again = models.map((model) => model.hidden);
    """)  # fmt: skip
    assert found["options"] == ["all models", "dit-tiny", "pixart-tiny"]
    assert found["hidden"] == [True, False] and found["again"] == [False, False]
