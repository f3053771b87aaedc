from typing import Any

import pytest
import torch

from brpo.errors import UserError
from brpo.types import Batch
from tests.helpers import make_algorithm, make_spec, random_batch


def test_it_learns_a_mean_and_a_spread() -> None:
    """Actions N(0.4, 0.2): samples spread as they do, though they are made of N(0, 1) in five steps."""
    cloning: Any = make_algorithm(
        "diffusion_bc", "algo.optimizer.lr=1e-2", "algo.polyak=0.05", spec=make_spec(action=1), dtype=torch.float32,
        sizes={"steps": 5},
    )  # fmt: skip
    actions = 0.4 + 0.2 * torch.randn(1, 256, 1, generator=torch.Generator().manual_seed(0))
    nothing, zeros = torch.zeros(1, 256, 3), torch.zeros(1, 256)
    for _ in range(200):
        cloning.step(Batch(nothing, actions, zeros, nothing, actions, zeros))
    sampled = cloning.act(nothing, deterministic=False)
    assert sampled.mean().item() == pytest.approx(0.4, abs=0.08)
    assert sampled.std().item() == pytest.approx(0.2, abs=0.05)


def test_its_loss_by_hand() -> None:
    """A network that predicts nothing leaves the noise itself: with noise 2 in every entry the loss is 4."""
    cloning: Any = make_algorithm("diffusion_bc")
    with torch.no_grad():
        for parameter in cloning.actor.parameters():
            parameter.zero_()
    cloning.normal = lambda name, like: torch.full_like(like, 2.0)
    assert cloning.actor_loss(random_batch()).tolist() == [4.0]


def test_it_predicts_at_the_observation_and_every_step_from_1_to_n() -> None:
    """The error by hand where the prediction is the observation's first entries and there is no noise: their mean square."""
    cloning: Any = make_algorithm("diffusion_bc", sizes={"steps": 3})
    batch, seen = random_batch(size=64), []
    cloning.normal = lambda name, like: torch.zeros_like(like)
    cloning.actor.forward = lambda observations, noisy, n: (seen.append(n), observations[..., :2])[1]
    assert cloning.actor_loss(batch).item() == pytest.approx(batch.observations[..., :2].square().mean().item())
    assert set(seen[0].flatten().tolist()) == {1, 2, 3}


def test_the_average_of_the_weights_acts() -> None:
    cloning: Any = make_algorithm("diffusion_bc")
    observations = random_batch().observations
    before = cloning.act(observations), cloning.act(observations, False)
    with torch.no_grad():
        for parameter in cloning.actor.parameters():
            parameter.zero_()
    assert torch.equal(cloning.act(observations), before[0])
    assert torch.equal(cloning.act(observations, False), before[1])
    cloning.actor_target.follow(cloning.actor, 1.0)
    assert not torch.equal(cloning.act(observations), before[0])


def test_its_model_is_one_of_bdpos_behaviour() -> None:
    """The same names and shapes: the average can be loaded as BDPO's behaviour model."""
    cloning: Any = make_algorithm("diffusion_bc")
    bdpo: Any = make_algorithm("bdpo")
    bdpo.behavior.load_state_dict(cloning.actor_target.module.state_dict())
    batch = random_batch()
    n = torch.ones(1, 8, dtype=torch.int64)
    predicted = [module(batch.observations, batch.actions, n) for module in (bdpo.behavior, cloning.actor_target.module)]
    assert torch.equal(*predicted)


def test_refusal() -> None:
    with pytest.raises(UserError, match="algo.polyak=0 is not allowed"):
        make_algorithm("diffusion_bc", "algo.polyak=0")
