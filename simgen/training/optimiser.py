"""Muon: momentum steps whose matrices are made orthogonal.

A gradient of a weight matrix has a few strong directions and many weak ones, and a step along it
learns little in the weak ones. Muon takes a step that is equally long in all of them. What
that brought is in docs/experiments.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

SMALLEST_MATRIX = 16
"""Matrices with fewer rows or columns are not worth it: Adam trains them, as it does vectors."""

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan 2024)."""
_N_ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Replace the singular values of matrices by numbers near 1, between 0.68 and 1.14.

    Parameters
    ----------
    matrices : Tensor, shape (..., n_rows, n_columns)

    Returns
    -------
    Tensor
        Of the same shape.

    References
    ----------
    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024),
    kellerjordan.github.io/posts/muon.
    """
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.reshape(-1, *matrices.shape[-2:])
    x = x.mT if is_tall else x
    x = x / (torch.linalg.matrix_norm(x)[:, None, None] + 1e-12)
    for _ in range(_N_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).reshape(matrices.shape)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonal steps, for stacks of matrices of shape (..., n, m).

    ``torch.optim.Muon`` takes single matrices only, and bfloat16 is slow on CPUs.

    Parameters
    ----------
    params : iterable of Tensor
        Weights; their last two dimensions are matrices.
    lr : float
        Root mean square of the change of a weight in one step.
    weight_decay : float
        Weights shrink by this share times the learning rate in each step. Without, a long training
        at a high rate makes them as long as its random walk is, and the network rough.
    momentum : float
        Decay of the mean of the gradients, per step.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move all weights that have a gradient."""
        for group in self.param_groups:
            steps: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["mean"] = torch.zeros_like(weight)
                state["mean"].lerp_(weight.grad, 1 - group["momentum"])
                step = weight.grad.lerp(state["mean"], group["momentum"])
                steps.setdefault(weight.shape[-2:], []).append((weight, step))
            # Matrices of one size together: they are small, and calls would take most of the time.
            for shape, pairs in steps.items():
                stacks = [step.reshape(-1, *shape) for _, step in pairs]
                sizes = [len(stack) for stack in stacks]
                parts = torch.split(orthogonalise(torch.cat(stacks)), sizes)
                for (weight, _), part in zip(pairs, parts, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    # Elements of an orthogonal matrix have a mean square of 1 / longer side.
                    alpha = -group["lr"] * math.sqrt(max(shape))
                    weight.add_(part.view_as(weight), alpha=alpha)


def make_optimisers(
    model: nn.Module, learning_rate: float, adam_learning_rate: float, weight_decay: float = 0.0
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, which decay if wanted, Adam for everything else."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for weight in model.parameters():
        is_matrix = weight.ndim >= 2 and min(weight.shape[-2:]) >= SMALLEST_MATRIX
        (matrices if is_matrix else others).append(weight)
    optimisers: list[torch.optim.Optimizer] = []
    if matrices:
        optimisers.append(Muon(matrices, learning_rate, weight_decay))
    if others:
        optimisers.append(torch.optim.Adam(others, adam_learning_rate, betas=(0.9, 0.99)))
    return optimisers
