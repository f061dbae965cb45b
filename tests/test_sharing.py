"""Runs sent, fetched, joined and checked: nothing of the machine is told, nothing lands outside its
folder, and what does not follow from the records is named."""

import getpass
import io
import json
import platform
import shutil
import tarfile

import pytest
from command import command
from report_runs import STACKS, edit, write_run

from ditbench.records.files import write_json
from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder
from ditbench.records.scores import read_scores
from ditbench.reports.publishing import archive, private, sharing
from ditbench.reports.publishing.documents import rewritten
from ditbench.reports.publishing.merging import merge_runs
from ditbench.reports.publishing.private import private_strings
from ditbench.reports.publishing.records import publish
from ditbench.reports.publishing.sharing import pull, share
from ditbench.reports.publishing.verifying import differences
from ditbench.reports.sections.section import read_sections

FEW = STACKS[:4]
SETTINGS = {"num_samples": 90, "seed": 0, "rounds": 3, "dtype": "float32"}


@pytest.fixture(scope="module", autouse=True)
def tables_alone(undrawn):
    """No figures."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("whole") / "run", n=90, stacks=FEW)


@pytest.fixture(scope="module")
def published(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "run"
    share(run, str(folder))
    return folder


def content_of(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


class Hub:
    """A hub of the test's own: what was sent to it, by name."""

    def __init__(self, folder):
        self.folder, self.made = folder, []

    def HfApi(self):
        return self

    def create_repo(self, name, repo_type, exist_ok):
        assert repo_type == "dataset" and exist_ok
        self.made.append(name)

    def upload_folder(self, repo_id, folder_path, repo_type, commit_message):
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, name, repo_type, local_dir, allow_patterns):
        if not (self.folder / name).is_dir():
            raise OSError(f"404 Client Error\nno {name}")
        shutil.copytree(self.folder / name, local_dir, dirs_exist_ok=True)


@pytest.mark.parametrize("kind", ["folder", "archive", "hub"])
def test_a_run_comes_back_as_it_was_published(run, published, tmp_path, monkeypatch, kind):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(sharing, "_hub", lambda: hub)
    if kind == "archive":
        pytest.importorskip("zstandard")
    to = {
        "folder": str(tmp_path / "there"), "archive": str(tmp_path / "run.tar.zst"),
        "hub": "hf://datasets/someone/results",
    }[kind]  # fmt: skip
    assert command("publish", run, "--to", to).returncode == 0
    back = command("pull", to, "--out", tmp_path / "back", "--json")
    assert json.loads(back.stdout.splitlines()[-1]) == {"run": str(tmp_path / "back")}
    assert content_of(tmp_path / "back") == content_of(published)
    again = command("pull", to, "--out", tmp_path / "back")
    assert again.returncode == 2 and "is there already; name another folder" in again.stderr
    assert hub.made == (["someone/results"] if kind == "hub" else [])


def test_a_run_that_was_just_scored_is_published_under_another_name_and_follows(tmp_path):
    made = command(
        "run", "--models", "dit-tiny", "--methods", "none", "--steps", "2", "--num-samples", "2",
        "--batch-size", "2", "--rounds", "1", "--out", tmp_path / "mine",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    done = command("publish", tmp_path / "mine", "--to", tmp_path / "other")
    assert done.returncode == 0, done.stderr
    assert command("pull", tmp_path / "other", "--out", tmp_path / "third").returncode == 0
    for name in ("other", "third"):
        verified = command("verify", tmp_path / name)
        assert verified.returncode == 0, verified.stdout
    assert "mine" in (tmp_path / "third" / "tables" / "speed.md").read_text()


def test_the_same_run_is_the_same_archive_and_has_no_owner(published, tmp_path):
    zstandard = pytest.importorskip("zstandard")
    for name in "ab":
        archive.pack(published, tmp_path / f"{name}.tar.zst")
    assert (tmp_path / "a.tar.zst").read_bytes() == (tmp_path / "b.tar.zst").read_bytes()
    with zstandard.open(tmp_path / "a.tar.zst") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:  # fmt: skip
        assert {(m.uid, m.uname, m.mtime) for m in tar} == {(0, "", 0)}


def test_without_the_package_an_archive_is_refused_in_a_sentence(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    done = command("publish", run, "--to", tmp_path / "run.tar.zst")
    assert done.returncode == 2 and "needs the package zstandard" in done.stderr
    assert not (tmp_path / "run.tar.zst").exists()


@pytest.mark.parametrize("to", ["hf://someone/results", "hf://datasets/results", "s3://bucket/run"])
def test_other_places_are_refused(run, tmp_path, to):
    for words in (("publish", run, "--to", to), ("pull", to, "--out", tmp_path / "x")):
        done = command(*words)
        assert done.returncode == 2 and "hf://datasets/OWNER/NAME" in done.stderr
    assert not (tmp_path / "x").exists()


def test_what_the_hub_does_not_give_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "_hub", lambda: Hub(tmp_path))
    done = command("pull", "hf://datasets/no/body", "--out", tmp_path / "x")
    assert done.returncode == 2 and "the hub did not give no/body (404 Client Error)" in done.stderr


def member(name, kind=tarfile.REGTYPE, link=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        member("../out"), member("/out"), member("a/../../out"), member("C:\\out"),
        member("spec.json", tarfile.SYMTYPE, "/etc/hosts"),
        member("spec.json", tarfile.LNKTYPE, "records.jsonl"), member("pipe", tarfile.FIFOTYPE),
    ],
)  # fmt: skip
def test_nothing_of_an_archive_lands_outside_its_folder(tmp_path, entry):
    zstandard = pytest.importorskip("zstandard")
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        tar.addfile(entry, io.BytesIO(b"evil"))
    path = tmp_path / "run.tar.zst"
    path.write_bytes(zstandard.compress(raw.getvalue()))
    with pytest.raises(ValueError, match=r"outside the folder|no file"):
        pull(str(path), tmp_path / "in" / "run")
    assert not (tmp_path / "out").exists() and not list((tmp_path / "in").iterdir())


def test_an_archive_that_is_too_large_or_none_is_refused(published, tmp_path, monkeypatch):
    pytest.importorskip("zstandard")
    path = tmp_path / "run.tar.zst"
    archive.pack(published, path)
    monkeypatch.setattr(archive, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="no published run does"):
        pull(str(path), tmp_path / "run")
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"is damaged, or no \.tar\.zst"):
        pull(str(path), tmp_path / "run")
    with pytest.raises(ValueError, match="there is no file"):
        pull(str(tmp_path / "other.tar.zst"), tmp_path / "run")
    (tmp_path / "empty").mkdir()
    archive.pack(tmp_path / "empty", path)
    with pytest.raises(ValueError, match="is no run folder") as error:
        pull(str(path), tmp_path / "run")
    assert str(error.value).startswith(str(path))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_as_published_is_not_fetched(run, published, tmp_path):
    with pytest.raises(ValueError, match="is no published run"):
        pull(str(run), tmp_path / "x")
    copy = shutil.copytree(published, tmp_path / "copy")
    (copy / "records.jsonl").write_text((copy / "records.jsonl").read_text() + "\n")
    with pytest.raises(ValueError, match=r"records\.jsonl not as published"):
        pull(str(copy), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="is a run folder; a published run needs another"):
        share(published, str(run))


SECRET = "hf_" + "a" * 30


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"failed with {SECRET}", "a token of the Hugging Face hub"),
        ("see https://me:secret@example.org/x", "a password in an address"),
        ("key AKIAABCDEFGHIJKLMNOP", "a key of AWS"),
        ("in ~/weights/a.pt", "a folder of this machine"),
        ("measured by somebody", "the user's name"),
        ("on node-17.cluster", "the host's name"),
        ("with longpassword1", "environment variable MY_API_TOKEN"),
    ],
)
def test_what_must_not_be_told_is_not_sent(run, tmp_path, monkeypatch, text, words):
    monkeypatch.setattr(getpass, "getuser", lambda: "somebody")
    monkeypatch.setattr(platform, "node", lambda: "node-17.cluster")
    monkeypatch.setenv("MY_API_TOKEN", "longpassword1")
    copy = shutil.copytree(run, tmp_path / "run")
    edit(copy, lambda record: record.update(reason=text), stack="int8")
    done = command("publish", copy, "--to", tmp_path / "out")
    assert done.returncode == 2 and words in done.stderr and "records.jsonl, line" in done.stderr
    assert not (tmp_path / "out").exists()


def test_names_that_say_nothing_and_words_of_prompts_are_no_secrets(published, monkeypatch):
    assert private_strings(published) == []
    monkeypatch.setattr(getpass, "getuser", lambda: "circle")  # a word of the prompts
    assert private_strings(published) == []
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    assert not private._names().get("the user's name")


def test_folders_in_reasons_of_scores_are_not_published(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    from dataclasses import replace

    from ditbench.records.scores import read_file, write_file

    path = next((copy / "scores").glob("*int8.safetensors"))
    scores = read_file(path)
    reasons = {**scores.reasons, "clip100.openai_vit_l14": "no file /home/me/weights/a.pt"}
    write_file(path, replace(scores, reasons=reasons))
    publish(copy, tmp_path / "out")
    assert (
        read_scores(tmp_path / "out")[path.stem].reasons["clip100.openai_vit_l14"] == "no file a.pt"
    )


def test_tables_follow_from_the_records_or_are_named(published, tmp_path):
    good = command("verify", published)
    assert good.returncode == 0 and "every table follows from the records" in good.stdout
    copy = shutil.copytree(published, tmp_path / "run")
    table = copy / "tables" / "quality.csv"
    lines = table.read_text().splitlines()
    lines[2] = lines[2].replace("0.9", "0.99", 1)
    table.write_text("\n".join(lines) + "\n")
    (copy / "tables" / "other.csv").write_text("")
    (copy / "tables" / "speed.md").unlink()
    assert differences(copy) == [
        "tables/other.csv is none of the tables that are made of records",
        "tables/quality.csv does not follow from the records (line 3)",
        "tables/speed.md is missing",
    ]
    assert command("verify", published, copy).returncode == 1
    assert command("verify", tmp_path).returncode == 2


def test_a_readme_and_files_of_a_published_run_are_checked(published, tmp_path):
    copy = shutil.copytree(published, tmp_path / "theirs")
    (copy / "README.md").write_text("<!-- table: run run -->\n\nmade up\n<!-- end of table -->\n")
    assert differences(copy) == ["README.md has a table that does not follow from the records"]
    marker = f"run {published.name}"
    text = f"<!-- table: {marker} -->\n\n<!-- end of table -->\n"
    (copy / "README.md").write_text(rewritten(text, published.parent))
    assert differences(copy) == []  # though its folder has another name
    shutil.rmtree(copy / "tables")  # nothing says any more what the run was called
    (sentence,) = differences(copy)
    assert sentence.startswith(f"README.md: table {marker!r}: ")
    (copy / "scores.zip").write_bytes(b"")
    assert any("scores.zip" in sentence for sentence in differences(copy))


def part(tmp_path, name, stacks, seed=0, settings=SETTINGS, models=("dit-tiny",), session="a"):
    """A run of some stacks, timed by a command of its own."""
    folder = write_run(tmp_path / name, n=90, stacks=stacks, models=models, seed=seed)
    spec = json.loads((folder / "spec.json").read_text())
    write_json(folder / "spec.json", spec | {"settings": settings})

    def timed(record):
        for call in record["timing"]:
            call["session"] = session

    edit(folder, timed)
    return folder


def test_cells_of_two_runs_stand_in_one_with_the_ratios_of_their_own_baselines(tmp_path):
    one = part(tmp_path, "one", FEW[:2])
    two = part(tmp_path, "two", [FEW[0], FEW[2], FEW[1]], seed=1, session="b")
    done = command("merge", one, two, "--out", tmp_path / "both", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["in_several"] == [
        "dit-tiny none is in several: its times are put together",
        f"dit-tiny {FEW[1][0]} is in several: taken from {one}",
    ]
    (both,), (first,), (second,) = (read_sections([p]) for p in (tmp_path / "both", one, two))
    speeds = [{r["stack"]: r["speedup_call"] for r in s.rows} for s in (both, first, second)]
    assert speeds[0][FEW[1][0]] == speeds[1][FEW[1][0]]
    assert speeds[0][FEW[2][0]] == speeds[2][FEW[2][0]]
    assert [r["stack"] for r in read_run(tmp_path / "both").records] == [s for s, _ in FEW[:3]]
    assert not both.damaged and differences(tmp_path / "both") == []
    again = command("merge", one, two, "--out", tmp_path / "both")
    assert again.returncode == 2 and "is there already" in again.stderr


def test_models_of_two_runs_stand_in_one(tmp_path):
    one = part(tmp_path, "one", FEW[:2])
    two = part(tmp_path, "two", FEW[:2], models=("wan-tiny",))
    publish(two, tmp_path / "published")
    assert merge_runs([one, tmp_path / "published"], tmp_path / "both") == []
    (both,) = read_sections([tmp_path / "both"])
    assert list(both.models) == ["dit-tiny", "wan-tiny"] and not both.damaged


def test_models_that_were_asked_for_other_steps_stand_in_one(tmp_path):
    def asked(name, model, text):
        wanted = SETTINGS | {"steps": text}
        return part(tmp_path, name, FEW[:2], models=(model,), settings=wanted)

    one, two = asked("one", "dit-tiny", "6"), asked("two", "wan-tiny", "20,wan-tiny=10")
    assert merge_runs([one, two], tmp_path / "both") == []
    steps = read_run(tmp_path / "both").spec["settings"]["steps"]
    assert steps == "dit-tiny=6,wan-tiny=10"
    own = asked("own", "pixart-tiny", "")
    assert merge_runs([tmp_path / "both", own], tmp_path / "three") == []
    assert read_run(tmp_path / "three").spec["settings"]["steps"] == steps
    with pytest.raises(ValueError, match="differ in sampler steps"):
        merge_runs([one, asked("four", "dit-tiny", "")], tmp_path / "no")
    with pytest.raises(ValueError, match="differ in sampler steps"):  # a model nobody knows
        merge_runs([one, asked("five", "wan-tiny", "nobody=3")], tmp_path / "no")


def test_a_run_from_before_a_setting_was_there_has_its_default(tmp_path):
    def made(name, model, **more):
        settings = {k: v for k, v in (SETTINGS | more).items() if v is not None}
        return part(tmp_path, name, FEW[:2], models=(model,), settings=settings)

    before = made("before", "dit-tiny", row_kernels=None)
    after = made("after", "wan-tiny", row_kernels="auto")
    assert merge_runs([before, after], tmp_path / "both") == []
    with pytest.raises(ValueError, match=r"differ in row kernels \(auto, torch\)"):
        merge_runs([before, made("torch", "wan-tiny", row_kernels="torch")], tmp_path / "no")


def test_a_model_that_the_first_run_has_not_is_asked_for_the_same_steps_by_all_others(tmp_path):
    def asked(name, model, steps):
        wanted = SETTINGS | {"steps": steps}
        return part(tmp_path, name, FEW[:2], models=(model,), settings=wanted)

    one, two, three = (
        asked(*words)
        for words in (("a", "dit-tiny", "6"), ("b", "wan-tiny", "4"), ("c", "wan-tiny", "5"))
    )
    with pytest.raises(
        ValueError, match=r"b and .*c are no one protocol: they differ in sampler steps"
    ):
        merge_runs([one, two, three], tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("what", ["seed", "version", "weights", "samples"])
def test_runs_of_other_protocols_are_not_merged(tmp_path, what):
    one = part(tmp_path, "one", FEW[:2])
    settings = SETTINGS | ({"seed": 7} if what == "seed" else {})
    two = part(tmp_path, "two", FEW[:2], settings=settings, session="b")
    if what == "version":
        edit(two, lambda record: record["environment"].update(ditbench="0.2.0"))
    if what == "weights":
        edit(two, lambda record: record["run"].update(model_sha256="other"))
    if what == "samples":
        from dataclasses import replace

        from ditbench.records.scores import read_file, write_file

        path = RunFolder(two).scores("dit-tiny--none")
        write_file(path, replace(read_file(path), samples_sha256="other"))
    words = {
        "seed": "they differ in seed (0, 7)", "version": 'ditbench ("0.1.0"; "0.2.0")',
        "weights": "weights of dit-tiny", "samples": "the baselines of dit-tiny have other samples",
    }[what]  # fmt: skip
    done = command("merge", one, two, "--out", tmp_path / "both")
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "both").exists()


def test_one_run_is_not_merged(run, tmp_path):
    done = command("merge", run, "--out", tmp_path / "both")
    assert done.returncode == 2 and "at least two runs" in done.stderr


def test_the_leaderboard_has_a_table_for_each_model_and_machine_and_names_the_runs(tmp_path):
    one = part(tmp_path, "one", FEW)
    two = part(tmp_path, "two", FEW[:2], models=("dit-tiny", "wan-tiny"), seed=1)
    edit(two, lambda record: record["environment"].update(processor="Other <&> 4000"))
    done = command("leaderboard", one, two, "--out", tmp_path / "board", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout.splitlines()[-1])["files"]) == 3
    text = (tmp_path / "board" / "leaderboard.md").read_text()
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert [head.split(",")[0] for head in heads] == [
        "## dit-tiny on Imaginary 3000", "## dit-tiny on Other <&> 4000",
        "## wan-tiny on Other <&> 4000",
    ]  # fmt: skip
    assert "kept apart from one, for they differ in processor" in text
    rows = (tmp_path / "board" / "leaderboard.csv").read_text().splitlines()
    assert len(rows) == 1 + len(FEW) + 2 + 2
    assert sum(row.endswith(",one") for row in rows) == len(FEW)
    assert "Other <&> 4000" not in (tmp_path / "board" / "leaderboard.html").read_text()
    nothing = command("leaderboard", tmp_path, "--out", tmp_path / "other")
    assert nothing.returncode == 2 and "is no run folder" in nothing.stderr
