"""One whole training step against the values recorded from the authors' code: tests/oracles/bdpo/README.md."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from brpo.algorithms.base import OfflineAlgorithm
from brpo.types import Batch
from tests.helpers import ROOT, make_algorithm, make_spec

# The recorded networks by our parts, and the order of their inputs (o: observation, a: action or x_n, t: time features).
PARTS = {
    "actor": "actor", "actor_target": "actor_target", "behavior": "behavior", "behavior_target": "behavior_target",
    "q0": "critic", "q0_target": "critic_target", "vt": "value", "vt_target": "value_target",
}  # fmt: skip
THEIR_INPUTS = {"actor": "ato", "behavior": "ato", "q0": "oa", "vt": "oat"}
WIDTHS = {"o": 5, "a": 2, "t": 8}
OPTIONS = [
    "algo.eta=0.2", "algo.rho_lcb=0.5", "algo.over_critics=lcb", "algo.over_samples=mean", "algo.discount=0.99",
    "algo.polyak=0.02", "algo.actor_polyak=0.05", "algo.behavior_polyak=0.1", "algo.gradient_clip=1.0",
    "algo.actor.steps=5", "algo.actor.noise_schedule=vp", "algo.actor.variance_interpolation=1.0",
    "algo.learning_rates.critic=3e-3", "algo.learning_rates.value=3e-3", "algo.learning_rates.actor=1e-3",
    "algo.learning_rates.behavior=2e-3", "algo.schedule.behavior=constant", "algo.behavior_training=joint",
    "algo.critic.layer_norm=false",
]  # fmt: skip


class Step:
    """The recorded step: its numbers, and our algorithm with its weights, its batch and its noise."""

    def __init__(self, name: str) -> None:
        self.values = np.load(ROOT / "tests" / "oracles" / "bdpo" / f"{name}.npz")
        clip = "1.0" if name == "clip" else "null"
        self.algorithm: Any = make_algorithm(
            "bdpo", *OPTIONS, f"algo.actor.clip={clip}", spec=make_spec(5, 2), dtype=torch.float32,
            sizes={"critics": 3, "steps": 5, "samples": 3, "candidates": 3},
        )  # fmt: skip
        for theirs, ours in PARTS.items():
            load(getattr(self.algorithm, ours), theirs, self.parameters("params", theirs))
        self.batch = Batch(*(self[f"batch/{key}"].unsqueeze(0) for key in ("obs", "action")), *self.rest())
        self.algorithm.normal, self.algorithm.integers = self.normal, self.integers
        self.noise = {
            "q_target": self.chain_noise("critic_q"),
            "value/forward": self["critic_v/forward_noise"],
            "value/reverse": self["critic_v/noise"],
            "actor/forward": self["actor/forward_noise"],
            "actor/reverse": self["actor/noise"],
            "behavior/forward": self["behavior/forward_noise"],
        }
        self.steps = {"value/n": "critic_v/t", "actor/n": "actor/t", "behavior/n": "behavior/t"}

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.values[name])

    def rest(self) -> list[Tensor]:
        next_observations = self["batch/next_obs"].unsqueeze(0)
        unused = torch.zeros(1, 4, 2)  # next actions
        return [self["batch/reward"].view(1, 4), next_observations, unused, self["batch/terminal"].view(1, 4)]

    def chain_noise(self, part: str) -> Tensor:
        """x_N, and the noise of each step but the last: (batch, samples, N x action)."""
        return torch.cat([self[f"{part}/x"][0], *self[f"{part}/noise"][:-1]], dim=-1)

    def normal(self, name: str, like: Tensor) -> Tensor:
        return self.noise[name].reshape(like.shape)

    def integers(self, name: str, count: int, high: int) -> Tensor:
        assert (count, high) == (4, 5)
        return self[self.steps[name]].view(1, 4).long() - 1

    def parameters(self, kind: str, network: str) -> dict[str, Tensor]:
        prefix = f"{kind}/{network}/"
        return {key.removeprefix(prefix): self[key] for key in self.values.files if key.startswith(prefix)}

    def agrees(self, ours: Tensor, theirs: str) -> None:
        close(ours, self[theirs], theirs)


def close(ours: Tensor, theirs: Tensor, name: str) -> None:
    """To 1e-4 of the largest entry."""
    assert ours.numel() == theirs.numel(), name
    error = (ours.detach().reshape(theirs.shape) - theirs).abs().max() / theirs.abs().max().clamp(min=1e-3)
    assert error < 1e-4, f"{name}: {error:.2g}"


def renamed(part: nn.Module, network: str, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Recorded numbers under our parameters' names, with rows of the first layer where our inputs stand (o, a, t)."""
    names, result = {"kernel": "weight", "bias": "bias", "scale": "scale"}, {}
    for name, _ in part.named_parameters():
        *path, ours = name.removeprefix("module.").split(".")
        if path[-2] == "time":
            layer = f"time_{('first', 'second').index(path[-1])}"
        elif path[-2] == "norms":
            layer, ours = f"norm_{path[-1]}", {"scale": "scale", "shift": "bias"}[ours]
        else:
            layer = ("hidden_0", "hidden_1", "out")[int(path[-1])]
        kind = {ours_: theirs_ for theirs_, ours_ in names.items()}[ours]
        value = theirs[f"{layer}/{kind}"]
        if (layer, kind) == ("hidden_0", "kernel"):
            order = THEIR_INPUTS[network.removesuffix("_target")]
            blocks = dict(zip(order, value.split([WIDTHS[key] for key in order], dim=-2), strict=True))
            value = torch.cat([blocks[key] for key in "oat" if key in blocks], dim=-2)
        result[name] = value
    assert len(result) == len(theirs)
    return result


@torch.no_grad()
def load(part: nn.Module, network: str, theirs: dict[str, Tensor]) -> None:
    values = renamed(part, network, theirs)
    for name, parameter in part.named_parameters():
        parameter.copy_(values[name].unsqueeze(0))


@pytest.fixture(params=["clip", "noclip"])
def step(request: pytest.FixtureRequest) -> Step:
    return Step(request.param)


def test_networks(step: Step) -> None:
    algorithm, n = step.algorithm, step["forward/t"].view(1, 4).long()
    observations, actions = step.batch.observations, step.batch.actions
    with torch.no_grad():
        for theirs, ours in PARTS.items():
            inputs = (observations, actions) if theirs.startswith("q0") else (observations, actions, n)
            step.agrees(getattr(algorithm, ours)(*inputs), f"forward/{theirs}")
        step.agrees(algorithm.actor.network.time(), "embedding/time_features_actor")
        step.agrees(algorithm.value.network.time(), "embedding/time_features_vt")


def test_chain_and_q_target(step: Step) -> None:
    """Noises, penalties and the aggregated target; the intermediate x_n through the steps one by one."""
    algorithm, batch = step.algorithm, step.batch
    actor, observations = algorithm.actor_target.module, algorithm.repeated(batch.next_observations)
    noisy = step["critic_q/x"][0].view(1, 12, 2)
    with torch.no_grad():
        for k, (n, reverse) in enumerate(actor.full_path):
            assert n == int(step["critic_q/t"][k])
            close(noisy, step["critic_q/x"][k], f"x_{n}")
            predicted = actor(observations, noisy, n)
            close(predicted, step["critic_q/eps_actor"][k], f"predicted noise at {n}")
            noise = step["critic_q/noise"][k].view(1, 12, 2) if n > 1 else None
            noisy = actor.back(noisy, predicted, reverse, noise)
        actions, penalties = algorithm.sampled_path(observations, step.normal("q_target", torch.empty(1, 12, 10)))
        step.agrees(actions, "critic_q/x_0")
        close(penalties, step["critic_q/penalty"].sum(-1), "penalty")
        step.agrees(algorithm.critic_target(observations, actions), "critic_q/q_target_values")
        step.agrees(algorithm.q_target(batch), "critic_q/target")
    step.agrees(algorithm.latest["kl/pathwise"], "metrics/misc_q0_penalty")


def test_losses(step: Step) -> None:
    """Both critics by the unmoved targets, the actor by the moved ones, the behaviour model."""
    algorithm, batch = step.algorithm, step.batch
    with torch.no_grad():
        noisy, n, target = algorithm.one_step_back(batch, algorithm.actor_target.module, "value")
    step.agrees(noisy, "critic_v/x_t")
    assert torch.equal(n, step["critic_v/t"].view(1, 4))
    step.agrees(target, "critic_v/target")
    step.agrees(algorithm.critic_loss(batch), "critic_q/loss")
    step.agrees(algorithm.value_loss(batch), "critic_v/loss")
    step.agrees(algorithm.behavior_loss(batch), "behavior/loss")
    for part in ("q0_target", "vt_target"):
        load(getattr(algorithm, PARTS[part]), part, step.parameters("params_after", part))
    step.agrees(algorithm.one_step_back(batch, algorithm.actor, "actor")[2], "actor/objective")
    step.agrees(algorithm.actor_loss(batch), "actor/loss")


def test_a_whole_update(step: Step) -> None:
    """Gradient norms, Adam's first moments (0.1 of the clipped gradients) and all eight networks afterwards."""
    algorithm = step.algorithm
    as_theirs(algorithm)
    algorithm.step(step.batch)
    records = algorithm.take_records()
    for ours, theirs in (("critic", "critic_q"), ("value", "critic_v"), ("actor", "actor"), ("behavior", "behavior")):
        assert records[f"gradient_norm/{ours}"] == pytest.approx([float(step[f"{theirs}/grad_norm"])], rel=1e-4)
    for theirs, ours in PARTS.items():
        part = getattr(algorithm, ours)
        after = renamed(part, theirs, step.parameters("params_after", theirs))
        for name, parameter in part.named_parameters():
            close(parameter, after[name], f"{theirs} {name}")
        if theirs.endswith("_target"):
            continue
        moments = renamed(part, theirs, step.parameters("adam_mu_after", theirs))
        state = algorithm.optimizers_by_part[ours].state
        scale = max(float(moment.abs().max()) for moment in moments.values())
        for name, parameter in part.named_parameters():
            error = (state[parameter]["exp_avg"].reshape(moments[name].shape) - moments[name]).abs().max()
            assert error < 1e-4 * scale, f"{theirs} {name}"


def as_theirs(algorithm: OfflineAlgorithm) -> None:
    """The recorded step clips the behaviour model's gradient at 10, the others at 1."""
    descend: Any = algorithm.descend

    def run(name: str, loss: Tensor) -> None:
        algorithm.gradient_clip = 10.0 if name == "behavior" else 1.0
        descend(name, loss)

    algorithm.descend = run  # type: ignore[method-assign]


def test_acting(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of three candidates by the mean of the target critics; without a clip, x_0 before it is held to [-1, 1]."""
    algorithm, observations = step.algorithm, step.batch.observations
    noise = step.chain_noise("act").reshape(1, 12, 10)
    actor, repeated = algorithm.actor_target.module, algorithm.repeated(observations)
    actions = actor.denoise(repeated, noise)[-1]
    step.agrees(actions, "act/x_0")
    step.agrees(algorithm.critic_target(repeated, actions).mean(1), "act/mean_q")
    monkeypatch.setattr("brpo.algorithms.bdpo.streams.normal", lambda *_: noise)
    chosen = algorithm.choose(observations, True, torch.zeros(1, dtype=torch.int64))
    if actions.abs().max() <= 1:
        step.agrees(chosen, "act/action")
    else:
        assert chosen.abs().max() <= 1
