"""A run as a frozen dataclass, from flags or a TOML file; every error names the key it is about. No
torch."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.metrics.margins import MARGINS, read_margins
from ditbench.records.settings import CHOICES, DEFAULTS, OPTIONS, WORKLOADS, Settings
from ditbench.runner.devices import check_devices, check_engine_settings
from ditbench.suggest import suggest

if TYPE_CHECKING:
    from ditbench.method.preparing import Preparing

SPECS = Path(__file__).parent / "specs"
DTYPES = ("float32", "bfloat16", "float16")
DTYPE_NAMES = {
    "fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "float": "float32", "half": "float16",
}  # fmt: skip
"""Other names of the dtypes, as torch and papers have them."""


ON_OOM = ("auto", "halve", "fail")
UNNAMED: dict[str, Any] = {
    "out": "", "references": (), "batches": (), "on_oom": "auto", "workers": 1, "devices": (),
    "engine": "local", "address": "", "profile": False,
}  # fmt: skip
"""Keys, with their defaults, that a run folder is not named after."""


@dataclass(frozen=True, kw_only=True)
class Spec(Settings):
    """What is run: settings, models, stacks and the run folder. The baseline `none` is always
    run too."""

    models: tuple[str, ...] = ("tiny",)
    """Names or groups (`tiny`, `full`)."""
    methods: tuple[str, ...] = ()
    """Stacks: `fora(interval=3)+int8`."""
    out: str = ""
    """Run folder; a name of its own under runs/ when empty."""
    plugins: tuple[str, ...] = ()
    """Python files with methods of your own."""
    own_models: tuple[str, ...] = ()
    """`NAME=FAMILY:FOLDER`: a diffusers folder that is sampled as a model of the table."""
    lora: tuple[str, ...] = ()
    """`[MODEL=]FILE[@SCALE]`: low-rank updates that are merged into the transformer."""
    margins: tuple[tuple[str, float], ...] = MARGINS
    """Metric -> how small a difference counts as none, in the metric's unit; in TOML a table
    `[margins]`, whose keys replace those of these or are added. Stated before the run, and fixed
    with its folder: by them a stack is called equivalent."""
    time_limit: int = 6 * 3600
    """Seconds that one round of a cell may take, loading included; it fails after."""
    stop_after: int = 0
    """Seconds after which nothing more is begun; 0: all is run. The same command goes on."""
    training_prompts: str = ""
    """What `prepare --prompts` was given for full-size text models; the bundled captions when
    empty. It tells which artefacts are looked for."""
    batches: tuple[str, ...] = ()
    """`MODEL=N`: batch sizes that were chosen where none was requested; they stand in the records
    as if they had been."""
    on_oom: str = "auto"
    """What becomes of a cell whose memory runs out: `fail`, a failed record; `halve`, it is measured
    again with half the batch; `auto`: halve where the batch was chosen, else fail."""
    workers: int = 1
    """Processes that make shards at the same time on the CPU; what is timed is timed alone."""
    devices: tuple[str, ...] = ()
    """GPUs that make shards, one process each; the first is `device`, where everything is timed."""
    engine: str = "local"
    """What carries out rounds and shards: `local`, processes of this machine; `ray`, tasks on the
    nodes of a Ray cluster."""
    address: str = ""
    """Of the Ray cluster; empty: the one that this machine is a node of, else one of its own."""
    profile: bool = False
    """Whether one more call of each cell is profiled: where the time of the loop goes."""
    references: tuple[str, ...] = ()
    """Reference files for metrics that look through an extractor: FILE for all models, or
    MODEL=FILE."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_samples", 1, 1_000_000),
            ("batch_size", 1, 4096),
            ("rounds", 1, 100),
            ("seed", 0, 100_000),
            ("threads", 0, 4096),
            ("shard", 1, 1_000_000),
            ("workers", 1, 256),
            ("stop_after", 0, 30 * 24 * 3600),
            ("time_limit", 1, 30 * 24 * 3600),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}: {value} is not between {low} and {high}")
        if self.dtype not in DTYPES:
            raise ValueError(
                f"dtype: {self.dtype!r} is none of {', '.join((*DTYPES, *DTYPE_NAMES))}"
            )
        check_devices(self.device, self.devices, self.workers)
        check_engine_settings(self.engine, self.address, self.device, self.devices, self.workers)
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name}: {value!r} is none of {', '.join(choices)}")
        if self.offload != "none" and self.device == "cpu":
            raise ValueError(
                f"offload: {self.offload!r} moves weights between a GPU and the host, and the device "
                "is cpu"
            )
        if self.on_oom not in ON_OOM:
            raise ValueError(f"on_oom: {self.on_oom!r} is none of {', '.join(ON_OOM)}")
        if not self.models:
            raise ValueError("models: none given")
        if self.weights not in ("bundled", "hub", "random") and not (
            self.weights and Path(self.weights).is_dir()
        ):
            raise ValueError(
                f"weights: {self.weights!r} is none of bundled, hub, random and no folder either"
            )
        for metric, margin in self.margins:
            if not 0 < margin < float("inf"):
                raise ValueError(f"margins.{metric}: {margin} is not above 0")
        for reference in self.references:
            file = reference.rpartition("=")[2]
            if not Path(reference).is_file() and not Path(file).is_file():
                raise ValueError(f"references: there is no file {file!r}")
        for plugin in self.plugins:
            if not Path(plugin).is_file():
                raise ValueError(f"plugins: there is no file {plugin!r}")

    def of_model(self, name: str) -> Spec:
        """The spec with the batch size that was chosen for a model, where one was."""
        chosen = dict(text.rsplit("=", 1) for text in self.batches)
        return replace(self, batch_size=int(chosen[name])) if name in chosen else self

    def halves(self, name: str) -> bool:
        """Whether a model's cells are measured again with half the batch where memory runs out."""
        return self.on_oom == "halve" or (self.on_oom == "auto" and self.of_model(name) is not self)

    @property
    def preparing(self) -> Preparing:
        """How what it needs is prepared."""
        from ditbench.method.preparing import Preparing

        return Preparing(device=self.device, dtype=self.dtype, prompts=self.training_prompts)

    @property
    def folder(self) -> Path:
        """The run folder: `out`, or `runs/` and a name that follows from what is run, so that the
        same command resumes it."""
        if self.out:
            return Path(self.out)
        if replace(self, **UNNAMED) == read_toml("default"):
            return Path("runs/default")
        named_after = {
            k: v
            for k, v in asdict(self).items()
            if k not in UNNAMED
            and (v or k not in ("own_models", "lora"))
            and k not in ("time_limit", "stop_after")
            and (k, v)
            not in (("margins", MARGINS), ("prompts", ""), ("threads", 0), ("training_prompts", ""))
            and (k not in OPTIONS or v != DEFAULTS[k])
        }
        digest = hashlib.sha256(json.dumps(named_after, sort_keys=True).encode()).hexdigest()[:8]
        return Path("runs") / f"{'-'.join(self.models)[:40]}-{self.num_samples}-{digest}"


def read_toml(name: str) -> Spec:
    """A spec from a TOML file, or from a named one in `specs/`; ValueError gives the path of the
    key."""
    path = Path(name)
    if not path.is_file():
        path = SPECS / f"{name}.toml"
    if not path.is_file():
        known = suggest(name, [p.stem for p in SPECS.glob("*.toml")])
        raise ValueError(f"spec: there is no file {name!r}, nor a named spec of that name; {known}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        return from_table(table, Spec())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def states(name: str, key: str) -> bool:
    """Whether a TOML file, or a named spec, has a key itself."""
    path = Path(name) if Path(name).is_file() else SPECS / f"{name}.toml"
    return key in tomllib.loads(path.read_text(encoding="utf-8"))


def from_table(table: dict[str, Any], start: Spec) -> Spec:
    """`start` with the keys of `table` in place of its own; ValueError for an unknown key or a
    value of the wrong type."""
    types = {f.name: type(f.default) for f in fields(Spec)}
    replaced: dict[str, Any] = {}
    for key, value in table.items():
        if key not in types:
            raise ValueError(f"{key}: no such key; {suggest(key, types)}")
        kind = types[key]
        if key in WORKLOADS:
            from ditbench.models.workload import as_text

            try:
                value = as_text(value)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        if key == "margins":
            value = tuple((dict(start.margins) | read_margins(value)).items())
        elif kind is tuple:
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"{key}: expected a list of strings, got {value!r}")
            for i, item in enumerate(value):
                if not isinstance(item, str):
                    raise ValueError(f"{key}[{i}]: expected a string, got {item!r}")
            value = tuple(value)
        elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            expected = {int: "a whole number", bool: "true or false"}.get(kind, "a string")
            raise ValueError(f"{key}: expected {expected}, got {value!r}")
        replaced[key] = DTYPE_NAMES.get(value, value) if key == "dtype" else value
    if replaced.get("devices"):
        replaced.setdefault("device", replaced["devices"][0])
    return replace(start, **replaced)


def check_writable(folder: Path) -> None:
    """ValueError when a run could not be written to `folder`, or a published one lies there; makes
    nothing."""
    from ditbench.records.record import check_not_published

    check_not_published(folder)
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise ValueError(f"out: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"out: {folder} cannot be written to (no permission for {parent})")
