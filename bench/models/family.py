"""A transformer family: all that ditbench has to know of a transformer class and its pipeline, in
one object; and the table of families. Never imports torch."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ditbench.declarations import Registry, calling_module
from ditbench.suggest import suggest

if TYPE_CHECKING:
    from ditbench.models.sampling import Request, Sampling

Guidance = Literal[
    "batched, conditional first", "batched, conditional last", "two calls", "embedded"
]
"""How classifier-free guidance is computed: both passes in one batch, one call of the transformer
for each pass (conditional first), or one pass that is given the guidance scale."""

Grid = tuple[int, int, int]
"""Frames, rows and columns of image tokens."""
Architecture = Mapping[str, Mapping[str, Any]]
"""Part of a pipeline -> its class and sizes (`architecture.describe`)."""
Part = tuple[str, str, str]
"""Kind of a sub-layer; its module inside the block, "" for the block itself; the norm called before
it, "" where it is given the residual stream itself. A part whose module is None in a block is left
out there."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of sub-layer: which of its linear layers see which tokens."""

    stream: str
    """Tokens whose rows can be chosen: `image`, `text`, or `both`."""
    rows: tuple[str, ...]
    """Linear layers that see the chosen rows."""
    all: tuple[str, ...] = ()
    """Linear layers that see every row of the stream, whatever is chosen: keys and values."""
    text: tuple[str, ...] = ()
    """Linear layers that see the text."""
    keys: str = ""
    """What the chosen rows attend to: `own` stream, `text`, or `both`; empty where there is no
    attention."""
    pair: bool = False
    """Whether the output is a pair (image, text)."""
    modules: tuple[str, ...] = ()
    """The submodules it consists of, where it is not the whole module."""
    giving: str = ""
    """The submodule whose output is the sub-layer's, where it is not the module's."""


KINDS: dict[str, Kind] = {
    "self": Kind(stream="image", rows=("to_q", "to_out.0"), all=("to_k", "to_v"), keys="own"),
    "cross": Kind(stream="image", rows=("to_q", "to_out.0"), text=("to_k", "to_v"), keys="text"),
    "mlp": Kind(stream="image", rows=("net.0.proj", "net.2")),
    "context_mlp": Kind(stream="text", rows=("net.0.proj", "net.2")),
    "joint": Kind(
        stream="image", rows=("to_q", "to_out.0"), all=("to_k", "to_v"),
        text=("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"), keys="both", pair=True,
    ),
    "single": Kind(
        stream="both", rows=("attn.to_q", "proj_mlp", "proj_out"),
        all=("attn.to_k", "attn.to_v"), keys="own",
        modules=("attn", "proj_mlp", "act_mlp", "proj_out"), giving="proj_out",
    ),
}  # fmt: skip
"""The kinds that methods know, with the names diffusers gives to their linear layers."""


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """How the blocks of a family make scale, shift and gate of time and condition."""

    conditions: tuple[str, ...]
    """Arguments of the transformer that they depend on besides `timestep`; those that are None do not
    count."""
    embeddings: Callable[[Any, Any, Mapping[str, Any], Any], Callable[[Any], Any]]
    """f(transformer, times [R], conditions by name [R,...], dtype of the stream) -> g; g(the norm's own
    embedding module, or None) is the embedding [R,D] that the norm is given, or makes itself."""


def patch_grid(transformer: Any, hidden: Any, _arguments: Mapping[str, Any]) -> Grid | None:
    """The token grid of a call whose hidden states are [B,C,H,W] or [B,C,T,H,W] latents, by the
    transformer's patch size."""
    patch = getattr(transformer.config, "patch_size", 1)
    frames, high, wide = (1, *hidden.shape[2:])[-3:]
    deep, tall, broad = patch if isinstance(patch, (tuple, list)) else (1, patch, patch)
    return frames // deep, high // tall, wide // broad


def image_token_size(parts: Architecture) -> tuple[int, int]:
    """(Frames, pixels) of a token of an image model: what `AutoencoderKL` reduces times the
    patch."""
    return 1, 2 ** (len(parts["vae"]["block_out_channels"]) - 1) * int(
        parts["transformer"].get("patch_size", 1)
    )


def prompt_call(sampling: Sampling, requests: Sequence[Request]) -> dict[str, Any]:
    """Call arguments of most text-to-image pipelines."""
    return {
        "prompt": [r.prompt for r in requests],
        "height": sampling.height,
        "width": sampling.width,
        "max_sequence_length": sampling.text_tokens,
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """A transformer class and the pipeline that calls it."""

    name: str
    """As in `models.toml`, such as `flux`."""
    title: str
    """As prose has it, such as `FLUX`."""
    pipeline: str
    """Class name of the pipeline."""
    transformer: str
    """Class name of the transformer."""

    stacks: tuple[tuple[str, tuple[Part, ...]], ...]
    """The lists of blocks in the order they run: attribute of the transformer, and the sub-layers of
    a block in the order they run."""
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    """Kinds of sub-layers that differ from `KINDS`, or are not in it."""
    rows: Callable[[], Mapping[str, Callable[..., Any]]] = dict
    """Kind -> how some rows of it are computed: f(module, forward, rows, hidden, *arguments of the
    call). Not needed for kinds that treat every token alone. May import torch."""
    contexts: tuple[str, ...] = ()
    """Kinds whose keys and values may be made of other tokens: their functions of `rows` take
    `rows=None` for all and `context=` (`token_rows.Context`)."""
    reroute: Callable[[], Mapping[str, Callable[..., None]]] = dict
    """Kind -> f(module, route, patch) for kinds that are not rerouted by their module's `forward`.
    May import torch."""
    text_first: bool = True
    """Whether text stands before the image where both attend together."""
    block_outputs: tuple[Literal["image", "text"], ...] = ("image",)
    """The streams a block returns, in its order; with text where blocks change it."""

    deferred: tuple[str, ...] = ("hidden_states", "encoder_hidden_states", "temb", "timestep")
    """Arguments of a block whose norm and modulation wait until a sub-layer is run
    (`pending.Pending`): the streams, and what the modulation is made of. Empty: nothing waits."""
    casts: bool = False
    """Whether its blocks cast the streams to float32 and back around norms and gates."""

    modulation: Modulation | None = None
    """Where every block makes scale, shift and gate by weights of its own (`models.modulation`)."""

    guidance: Guidance
    time_scale: float = 1.0
    """What the pipeline divides timesteps 0..1000 by before it calls the transformer."""
    shared_arguments: tuple[str, ...] = ()
    """Tensor arguments of the transformer without a batch dimension."""
    hidden_by_keyword: bool = False
    """Whether the pipeline hands hidden states to the transformer by keyword."""
    latent_output: bool = True
    """Whether the pipeline can leave out decoding."""
    class_labels: bool = False
    """Whether it is conditioned on ImageNet classes instead of prompts."""
    video: bool = False
    float32_parts: tuple[str, ...] = ()
    """Parts of the pipeline that are in float32 whatever dtype is asked for, as the model's card has
    it."""
    takes_lora: bool = False
    """Whether diffusers reads low-rank updates for the pipeline."""
    single_step: tuple[str, ...] | None = None
    """Schedulers with which the pipeline takes a single step; None: any."""

    call: Callable[[Sampling, Sequence[Request]], dict[str, Any]] = prompt_call
    """Call arguments of the pipeline for some requests, besides steps, guidance scale, generators
    and output type."""
    meta_call: Callable[[Sampling, Any, Callable[..., Any]], dict[str, Any]]
    """f(sampling, the transformer's config, empty) -> call arguments of one sample with encoded
    prompts; `empty(*shape)` makes a tensor [1, *shape] on the meta device."""
    token_size: Callable[[Architecture], tuple[int, int]] = image_token_size
    """(Frames, pixels) of an image token: frames after the first, and pixels of its side."""
    resize: Callable[[str, Architecture, Sampling], Mapping[str, Any]] = (
        lambda model, parts, sampling: {}
    )
    """f(model, parts, sampling) -> changes to the architecture (`part.key`) for a sampling of another
    size than its own; ValueError, naming knob and model, for a size it cannot make."""
    call_grid: Callable[[Any, Any, Mapping[str, Any]], Grid | None] = patch_grid
    """f(transformer, hidden states, keyword arguments) -> the token grid of a call of the
    transformer; None where it cannot be read."""
    grid_by_value: bool = False
    """Whether `call_grid` reads values of tensors, which on a GPU makes the host wait: it is not
    asked where the grid is known."""
    tokenizers: Callable[[Any, Sampling], dict[str, int]] = lambda pipe, sampling: {
        "tokenizer": sampling.text_tokens
    }
    """f(pipeline, sampling) -> tokens that are read, by tokenizer of the pipeline."""
    clean: Callable[[Any, str], str] = lambda pipe, prompt: prompt
    """f(pipeline, prompt) -> the prompt as the pipeline cleans it before it is tokenized."""
    narrow: Callable[[Any], Any] | None = None
    """f(parts) -> an untrained two-layer pipeline for the contract of methods; `parts` is
    `ditbench.zoo.parts`. Imports torch."""

    @property
    def batched(self) -> bool:
        """Whether the guidance passes share a call of the transformer."""
        return self.guidance.startswith("batched")

    @property
    def changes_text(self) -> bool:
        """Whether blocks change the text too."""
        return "text" in self.block_outputs

    @property
    def raw_output(self) -> Literal["latent", "np"]:
        """`output_type` of the least processed samples the pipeline can return."""
        return "latent" if self.latent_output else "np"

    def kind(self, name: str) -> Kind:
        """A kind of sub-layer by name; ValueError for an unknown one."""
        if name in self.kinds:
            return self.kinds[name]
        if name not in KINDS:
            raise ValueError(f"family {self.name}: no kind {name!r} of sub-layer; declare it")
        return KINDS[name]

    def transformer_time(self, timestep: Any) -> Any:
        """What the transformer is called with at a timestep of 0..1000."""
        return timestep if self.time_scale == 1 else timestep / self.time_scale

    def grid(self, model: str, parts: Architecture, sampling: Sampling) -> Grid:
        """The token grid of a sampling; ValueError, naming the model, for a size that is no whole
        number of tokens."""
        period, side = self.token_size(parts)
        for name, length in (("height", sampling.height), ("width", sampling.width)):
            if length % side:
                raise ValueError(f"{name}: {model} makes multiples of {side} pixels, not {length}")
        if (sampling.frames - 1) % period:
            raise ValueError(
                f"frames: {model} makes a multiple of {period} and one, not {sampling.frames}"
            )
        return (
            (sampling.frames - 1) // period + 1,
            sampling.height // side,
            sampling.width // side,
        )


def _built_in() -> dict[str, Family]:
    """A module of `ditbench.models.families` holds the family of its name."""
    package = importlib.import_module("ditbench.models.families")
    names = sorted(
        (module.name for module in pkgutil.iter_modules(package.__path__)),
        key=lambda name: (package.ORDER.index(name) if name in package.ORDER else 99, name),
    )
    return {
        name: importlib.import_module(f"ditbench.models.families.{name}").FAMILY for name in names
    }


REGISTRY: Registry[Family] = Registry("family", "ditbench.families", Family, _built_in)


def families() -> dict[str, Family]:
    """Every family by name: ours, installed packages' and loaded plug-ins'."""
    return REGISTRY.rows()


def family_named(name: str) -> Family:
    """The family of that name; ValueError with the nearest names when there is none."""
    table = families()
    if name not in table:
        raise ValueError(f"no family {name!r}; {suggest(name, table)}")
    return table[name]


def family_of(transformer: Any) -> Family:
    """The family of a transformer, by its class; ValueError for a class of none."""
    name = type(transformer).__name__
    for family in families().values():
        if family.transformer == name:
            return family
    known = sorted(family.transformer for family in families().values())
    raise ValueError(f"{name} has no anatomy; there is one for {', '.join(known)}")


def grid_of(pipeline: Any, sampling: Sampling) -> Grid:
    """The token grid of a sampling, by the sizes of a loaded pipeline's parts; ValueError for a
    size that is no whole number of tokens."""
    parts = {name: dict(getattr(pipeline, name).config) for name in ("transformer", "vae")}
    return family_of(pipeline.transformer).grid(type(pipeline).__name__, parts, sampling)


def no_single_step(pipeline: Any) -> str | None:
    """Why a pipeline cannot take a single step with its scheduler, in one sentence; None when it
    can.

    Which schedulers can, their family says (`Family.single_step`).
    """
    scheduler = type(pipeline.scheduler).__name__
    takes = family_of(pipeline.transformer).single_step
    if takes is not None and scheduler not in takes:
        return f"diffusers' {type(pipeline).__name__} cannot take a single step with {scheduler}"
    return None


def register_family(family: Family) -> Family:
    """Add a family to the table; ValueError for a name, or a transformer class, that is there
    already."""
    module = calling_module()
    for other in families().values():
        if other.transformer == family.transformer and other.name != family.name:
            raise ValueError(
                f"family {family.name}: the transformer {family.transformer} is of the family "
                f"{other.name}"
            )
    REGISTRY.add(family.name, family, module)
    return family
