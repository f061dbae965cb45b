"""Group relative policy optimisation of policy heads (GRPO, arXiv:2402.03300): clipped, without a
critic, and as in RAPID3 without a divergence from a reference policy.

n decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Beta

if TYPE_CHECKING:
    from ditbench.acceleration.policies.deciding import Choice

CLIP, ENTROPY = 0.2, 1e-3
"""Change of an action's probability beyond which it is no more rewarded; weight of the entropy that
keeps policies from settling too soon. RAPID3's are not known; these are ours."""


def surrogate(ratio: Tensor, advantage: Tensor) -> Tensor:
    """[n] min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)


def loss_of(modules: nn.ModuleDict, drawn: Sequence[Choice], advantage: Tensor) -> Tensor:
    """What is minimised: minus the mean surrogate over all decisions, each with its own ratio, less
    the entropies. `advantage`: of each sample that decided.

    A head that was not asked (the attention's, where a sample reused) has no part in it.
    """
    total, count = torch.zeros(()), sum(len(choice.samples) for choice in drawn)
    for name, head in modules.items():
        mine = [choice for choice in drawn if choice.head == name]
        if not mine:
            continue
        policy = head.policy(  # type: ignore[operator]
            torch.cat([c.seen for c in mine]), torch.cat([c.time for c in mine])
        )
        action, before = (torch.cat([getattr(c, x) for c in mine]) for x in ("action", "chance"))
        which = torch.tensor([sample for c in mine for sample in c.samples])
        ratio = (policy.log_prob(action) - before).exp()
        gain = surrogate(ratio, advantage.to(ratio)[which.to(ratio.device)]).sum()
        # a Beta's is differential: it falls without end, and would outweigh a choice's
        entropy = 0.0 if isinstance(policy, Beta) else policy.entropy().sum()
        total = total - (gain + ENTROPY * entropy).cpu() / count
    return total
