"""Gradient norms of parts whose parameters all lead with the seed axis."""

from collections.abc import Sequence

import torch
from torch import Tensor


def norm_per_seed(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all parameters, for each seed: (seeds,)."""
    if gradients[0].is_cuda:  # few kernels instead of one for each parameter
        return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).norm(dim=1)
    if gradients[0].shape[0] == 1 and not torch.compiler.is_compiling():  # one kernel for all of them
        norms = torch._foreach_norm(list(gradients))  # pyright: ignore[reportPrivateImportUsage]
        return torch.stack(norms).norm().unsqueeze(0)
    return torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)


def clip_per_seed(gradients: Sequence[Tensor], norms: Tensor, max_norm: float) -> list[Tensor]:
    """Scale each seed's gradient so that its norm is at most `max_norm`; seeds do not see each other."""
    factors = (max_norm / norms.clamp(min=1e-12)).clamp(max=1.0)
    return [gradient * factors.view(-1, *[1] * (gradient.dim() - 1)) for gradient in gradients]
