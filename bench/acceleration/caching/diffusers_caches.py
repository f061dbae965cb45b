"""Caches that diffusers ships: put on and taken off without a trace, reset before every generation,
their tensors in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment


WHOLE_SINGLE_BLOCKS = {
    "attended-tokens": "reuses the attention inside FLUX's single blocks, which has no keys and "
    "values of other tokens unless the whole block is rerouted",
    "attention-operator": "reuses the attention inside FLUX's single blocks, whose operation is "
    "replaced by rerouting the whole block",
}
"""What caches of attention rely on there (`Method.relies_on`)."""


def why_not(transformer: Any) -> str | None:
    """Why diffusers' block caches cannot take this transformer: they need its cache mix-in and
    blocks they know; None when they can."""
    import diffusers
    from diffusers.hooks._helpers import TransformerBlockRegistry
    from diffusers.models.cache_utils import CacheMixin

    name, here = type(transformer).__name__, f"diffusers {diffusers.__version__}"
    if not isinstance(transformer, CacheMixin):
        return f"{here} has no cache for {name} (it is no CacheMixin)"
    if len(blocks := _blocks(transformer)) < 2:
        return f"{name} has {len(blocks)} blocks, so there is nothing after the first to skip"
    for block in blocks:
        try:
            TransformerBlockRegistry.get(type(block))
        except ValueError:
            return f"{here} does not know the inputs and outputs of {type(block).__name__}"
    return None


def put_on(transformer: Any, at: Attachment, apply: Callable[[], None]) -> None:
    """Run `apply`, which hooks a cache of diffusers' in, so that `at` takes it off again and leaves
    no registry behind."""
    from diffusers.hooks.hooks import HookRegistry

    _drop_empty_registries(transformer)
    patched = {id(module) for module in transformer.modules() if "forward" in vars(module)}
    before = {id(hook) for _, hook in _hooks(transformer)}
    at.undo(_drop_leftovers, transformer, patched)
    at.undo(_remove_hooks, transformer, before)
    root = HookRegistry.check_if_exists_or_initialize(transformer)
    apply()
    root.invalidate_child_registries_cache()  # type: ignore[no-untyped-call]
    at.on_start(lambda: root.reset_stateful_hooks(recurse=True))
    at.holds(lambda: _kept(transformer, before))


def count_shortened(at: Attachment, outer: Any, inner: Any, what: str) -> None:
    """Count the calls of module `outer` in which its part `inner` ran as `<what>_computed`, and the
    others as `<what>_reused`."""
    ran: list[bool] = []
    at.on_start(ran.clear)
    at.undo(inner.register_forward_pre_hook(lambda *_: ran.append(True)).remove)

    def after(*_: Any) -> None:
        at.count(f"{what}_computed" if ran else f"{what}_reused", idle=bool(ran))
        ran.clear()

    at.undo(outer.register_forward_hook(after).remove)


def count_attention(transformer: Any, at: Attachment) -> None:
    """`count_shortened` of every attention module diffusers would cache."""
    from diffusers.hooks._common import _ATTENTION_CLASSES

    for module in transformer.modules():
        if isinstance(module, _ATTENTION_CLASSES) and hasattr(module, "to_q"):
            count_shortened(at, module, module.to_q, "attentions")


def timestep_of(transformer: Any, at: Attachment) -> Callable[[], float]:
    """The timestep of the transformer's current call in 0..1000, which diffusers' caches ask for;
    some pipelines scale it."""
    from ditbench.models.family import family_of

    newest = [0.0]
    scale = family_of(transformer).time_scale

    def before(_module: Any, _args: Any, kwargs: Any) -> None:
        newest[0] = float(kwargs["timestep"].reshape(-1)[0]) * scale

    at.undo(transformer.register_forward_pre_hook(before, with_kwargs=True).remove)
    return lambda: newest[0]


def _blocks(transformer: Any) -> list[Any]:
    """The blocks the caches cover, as diffusers finds them."""
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS as known
    from torch import nn

    lists = [
        part
        for name, part in transformer.named_children()
        if name in known and isinstance(part, nn.ModuleList)
    ]
    return [block for part in lists for block in part]


def _hooks(transformer: Any) -> Iterator[tuple[Any, Any]]:
    """(registry, hook) of everything diffusers has hooked in."""
    for module in transformer.modules():
        registry = vars(module).get("_diffusers_hook")
        if registry is not None:
            yield from ((registry, hook) for hook in registry.hooks.values())


def _remove_hooks(transformer: Any, before: set[int]) -> None:
    for registry, hook in list(_hooks(transformer)):
        if id(hook) not in before:
            name = next(name for name, other in registry.hooks.items() if other is hook)
            registry.remove_hook(name, recurse=False)


def _kept(transformer: Any, before: set[int]) -> Iterator[tuple[Any, ...]]:
    """What the caches keep, tensors and other things, for each guidance pass (diffusers keeps them
    on the hooks)."""
    states: dict[int, Any] = {}
    for _, hook in _hooks(transformer):
        if id(hook) not in before:
            manager = getattr(hook, "state_manager", None)
            found = (
                [getattr(hook, "state", None)] if manager is None else manager._state_cache.values()
            )
            states |= {id(state): state for state in found if state is not None}
    for state in states.values():
        yield tuple(vars(state).values())


def _drop_empty_registries(transformer: Any) -> None:
    """A registry without hooks remembers a list of children that hooks added later are not in:
    forget it."""
    for module in transformer.modules():
        registry = vars(module).get("_diffusers_hook")
        if registry is not None and not registry.hooks:
            del module._diffusers_hook


def _drop_leftovers(transformer: Any, patched: set[int]) -> None:
    """diffusers puts a module's forward back by assignment; where there was none of its own, there
    shall be none."""
    _drop_empty_registries(transformer)
    for module in transformer.modules():
        if id(module) not in patched:
            vars(module).pop("forward", None)
