import pytest
import torch

from brpo.functional import gradients


def test_norm_per_seed_by_hand() -> None:
    """Seed 0: sqrt(9 + 16); seed 1: sqrt(1 + 0)."""
    grads = [torch.tensor([[[3.0]], [[1.0]]]), torch.tensor([[4.0], [0.0]])]
    assert gradients.norm_per_seed(grads).tolist() == pytest.approx([5.0, 1.0])
    assert gradients.norm_per_seed([g[:1] for g in grads]).tolist() == pytest.approx([5.0])


def test_clip_per_seed_scales_only_the_seed_that_is_too_large() -> None:
    grads = [torch.tensor([[[3.0]], [[1.0]]]), torch.tensor([[4.0], [0.0]])]
    clipped = gradients.clip_per_seed(grads, gradients.norm_per_seed(grads), 2.5)
    assert torch.allclose(clipped[0], torch.tensor([[[1.5]], [[1.0]]]))
    assert torch.allclose(clipped[1], torch.tensor([[2.0], [0.0]]))


def test_clip_agrees_with_torch_for_one_seed() -> None:
    grads = [torch.randn(1, 4, 5), torch.randn(1, 5)]
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
    for parameter, gradient in zip(parameters, grads, strict=True):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(parameters, 0.7)
    ours = gradients.clip_per_seed(grads, gradients.norm_per_seed(grads), 0.7)
    assert all(torch.allclose(a, p.grad, atol=1e-6) for a, p in zip(ours, parameters, strict=True) if p.grad is not None)
