"""Behaviour cloning by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from brpo import training
from brpo.engine.runner import EagerRunner
from tests.algorithms.test_iql import constant_output, three_transitions
from tests.conftest import random_episode, write_dataset
from tests.helpers import compose_config, make_algorithm, make_spec


def test_loss_by_hand() -> None:
    """One action dimension, mean tanh(0.5), standard deviation e^-1: -log N(a) = ((a - m) e)^2 / 2 - 1 + log(2 pi) / 2."""
    bc, batch = make_algorithm("bc", spec=make_spec(action=1)), three_transitions()
    constant_output(bc.actor, 0.5)
    with torch.no_grad():
        bc.actor.log_std.fill_(-1.0)
    actions = batch.actions[..., :1]
    distances = [(action - math.tanh(0.5)) * math.e for action in actions.flatten().tolist()]
    expected = sum(0.5 * d**2 - 1.0 + 0.5 * math.log(2 * math.pi) for d in distances) / 3
    batch = type(batch)(batch.observations, actions, batch.rewards, batch.next_observations, actions, batch.terminated)
    assert bc.actor_loss(batch).item() == pytest.approx(expected)


def test_the_fit_goes_to_mean_and_spread_of_the_data() -> None:
    """Maximum likelihood of the same actions in every state: their mean and their standard deviation."""
    bc = make_algorithm("bc", "algo.optimizer.lr=0.02", "algo.schedule={}", spec=make_spec(action=1))
    batch = three_transitions()
    observations = torch.zeros_like(batch.observations)
    actions = torch.tensor([[[-0.2], [0.1], [0.4]]], dtype=torch.float64)
    batch = type(batch)(observations, actions, batch.rewards, observations, actions, batch.terminated)
    for _ in range(600):
        bc.step(batch)
    assert bc.actor.mode(observations)[0, 0, 0].item() == pytest.approx(0.1, abs=1e-3)
    assert bc.actor.log_std.exp().item() == pytest.approx(math.sqrt(0.06), rel=1e-2)


def test_the_better_episodes_are_cloned_where_batches_are_theirs(datasets: Path) -> None:
    """Three of four episodes do the worse of two actions: their mean, and with `data.return_temperature` the better one."""
    rng, action_of = np.random.default_rng(0), {0.0: -1.0, 1.0: 1.0}  # of a reward; bounds are -2 and 2
    kinds = [random_episode(rng, 10) for _ in range(20)]
    for number, episode in enumerate(kinds):
        reward = float(number % 4 == 0)
        episode["observations"][:], episode["rewards"][:], episode["actions"][:] = 0.0, reward, action_of[reward]
    write_dataset(datasets, "tests/two-kinds-v0", kinds)
    cloned = {}
    for temperature in ("null", "0.1"):
        config = compose_config("algo=bc", "dataset=tests/two-kinds-v0", f"data.return_temperature={temperature}")
        datamodule = training.make_datamodule({**config, "data": {**config["data"], "heldout": 0.0}})
        options = ("algo.optimizer.lr=0.02", "algo.schedule={}")
        bc = make_algorithm("bc", *options, spec=datamodule.spec, dtype=torch.float32)
        EagerRunner(datamodule.train_transitions, 64).run(bc, 0, 400)
        cloned[temperature] = bc.actor.mode(torch.zeros(1, 1, 3)).item()
    assert cloned["null"] == pytest.approx(-0.25, abs=0.08)  # of actions scaled to [-1, 1]
    assert cloned["0.1"] == pytest.approx(0.5, abs=0.02)
