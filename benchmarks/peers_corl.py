"""Plain eager PyTorch in the manner of CORL's single files: IQL, Sf-AC and TD3+BC as one would first write them.

Modules of `nn.Linear`, torch's Adam as it comes, one optimizer step after another, `.item()` on every loss, a buffer of
tensors with `torch.randint` indices, target networks by a loop over parameters. The updates are brpo's (the same losses
in the same order: V, then the actor and Q with the new V); `peers.py --check` holds them to that. No code of brpo is used.
"""

import copy
import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from peers_workload import Peer, Sizes, Unavailable, Workload
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

Batch = dict[str, Tensor]


class Buffer:
    """Transitions as tensors, one for each field."""

    def __init__(self, fields: Batch) -> None:
        self.fields, self.size = fields, len(fields["rewards"])

    def sample(self, count: int) -> Batch:
        """Transitions drawn with replacement."""
        indices = torch.randint(0, self.size, (count,), device=self.fields["rewards"].device)
        return {name: field[indices] for name, field in self.fields.items()}


def mlp(inputs: int, hidden: Iterable[int], outputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), nn.ReLU()]
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class TwinQ(nn.Module):
    """Two Q functions."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        inputs = sizes.observation + sizes.action
        self.networks = nn.ModuleList(mlp(inputs, sizes.hidden, 1) for _ in range(2))

    def first(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q of the first, (batch,)."""
        return self.networks[0](torch.cat([observations, actions], dim=-1)).squeeze(-1)

    def both(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Q of each, (batch,)."""
        inputs = torch.cat([observations, actions], dim=-1)
        first, second = (network(inputs).squeeze(-1) for network in self.networks)
        return first, second

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The smaller Q, (batch,)."""
        return torch.min(*self.both(observations, actions))


class Value(nn.Module):
    """V."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.network = mlp(sizes.observation, sizes.hidden, 1)

    def forward(self, observations: Tensor) -> Tensor:
        """V, (batch,)."""
        return self.network(observations).squeeze(-1)


class GaussianPolicy(nn.Module):
    """A Gaussian with mean `tanh(network(s))` and one standard deviation for all states."""

    def __init__(self, sizes: Sizes, options: dict[str, Any]) -> None:
        super().__init__()
        self.network = mlp(sizes.observation, sizes.hidden, sizes.action)
        self.log_std = nn.Parameter(torch.zeros(sizes.action))
        self.low, self.high = options["min_log_std"], options["max_log_std"]

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Log-density of actions, (batch,)."""
        std = self.log_std.clamp(self.low, self.high).exp()
        return Normal(torch.tanh(self.network(observations)), std).log_prob(actions).sum(-1)


class DeterministicPolicy(nn.Module):
    """`tanh(network(s))`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.network = mlp(sizes.observation, sizes.hidden, sizes.action)

    def forward(self, observations: Tensor) -> Tensor:
        """Actions, (batch, action)."""
        return torch.tanh(self.network(observations))


def descend(optimizer: Optimizer, loss: Tensor) -> float:
    """One gradient step, and the loss as a number to log."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def follow(target: nn.Module, source: nn.Module, polyak: float) -> None:
    """Move a target network towards its source."""
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.data.copy_((1 - polyak) * slow.data + polyak * fast.data)


def twin_loss(qs: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    """Squared errors of both Q, added."""
    return F.mse_loss(qs[0], target) + F.mse_loss(qs[1], target)


def frozen(module: nn.Module) -> nn.Module:
    """A copy that is not trained."""
    return copy.deepcopy(module).requires_grad_(False)


class IQL:
    """Implicit Q-learning, arXiv:2110.06169. `options` are those of conf/algo/iql.yaml."""

    def __init__(self, sizes: Sizes, options: dict[str, Any], max_updates: int, device: str = "cpu") -> None:
        self.options, rate = options, options["optimizer"]["lr"]
        self.actor = GaussianPolicy(sizes, options["actor"]).to(device)
        self.critic = TwinQ(sizes).to(device)
        self.critic_target = frozen(self.critic)
        self.value = Value(sizes).to(device)
        self.actor_optimizer = Adam(self.actor.parameters(), lr=rate)
        self.critic_optimizer = Adam(self.critic.parameters(), lr=rate)
        self.value_optimizer = Adam(self.value.parameters(), lr=rate)
        self.actor_schedule = CosineAnnealingLR(self.actor_optimizer, max_updates)

    def update(self, batch: Batch) -> dict[str, float]:
        """One update; gives the losses."""
        with torch.no_grad():
            q = self.critic_target(batch["observations"], batch["actions"])
        losses = {"value": self.update_value(batch, q)}
        losses["actor"] = self.update_actor(batch, q)
        losses["critic"] = self.update_critic(batch)
        follow(self.critic_target, self.critic, self.options["polyak"])
        return losses

    def update_value(self, batch: Batch, q: Tensor) -> float:
        """Expectile regression."""
        error = q - self.value(batch["observations"])
        weight = torch.abs(self.options["expectile"] - (error < 0).to(error.dtype))
        return descend(self.value_optimizer, (weight * error**2).mean())

    def update_actor(self, batch: Batch, q: Tensor) -> float:
        """Advantage-weighted regression, and the schedule."""
        with torch.no_grad():
            advantage = q - self.value(batch["observations"])
            weight = torch.exp(self.options["inverse_temperature"] * advantage).clamp(max=self.options["max_weight"])
        log_prob = self.actor.log_prob(batch["observations"], batch["actions"])
        loss = descend(self.actor_optimizer, -(weight * log_prob).mean())
        self.actor_schedule.step()
        return loss

    def update_critic(self, batch: Batch) -> float:
        """TD on V."""
        with torch.no_grad():
            next_value = self.value(batch["next_observations"])
            target = batch["rewards"] + self.options["discount"] * (1.0 - batch["terminated"]) * next_value
        return descend(self.critic_optimizer, twin_loss(self.critic.both(batch["observations"], batch["actions"]), target))


class SfAC(IQL):
    """Symmetric f-divergence actor-critic, arXiv:2508.04225, with the defaults of conf/algo/sfac.yaml.

    Q is IQL's; V normalizes the target's ratio, a behaviour model is fitted, and the actor's loss has the symmetry term.
    """

    WRITTEN_FOR: ClassVar = {
        "divergence": "jeffreys",
        "target_divergence": "jeffreys",
        "epsilon_schedule": "fixed",
        "ratio": "target",
        "omega": "series",
        "policy_order": 2,
        "value_loss": "normalizer",
    }

    def __init__(self, sizes: Sizes, options: dict[str, Any], max_updates: int, device: str = "cpu") -> None:
        for name, value in self.WRITTEN_FOR.items():
            if options[name] != value:
                raise Unavailable(f"the plain Sf-AC loop is written for algo.{name}={value} alone, not {options[name]}")
        super().__init__(sizes, options, max_updates, device)
        self.behavior = GaussianPolicy(sizes, options["behavior"]).to(device)
        self.behavior_optimizer = Adam(self.behavior.parameters(), lr=options["optimizer"]["lr"])
        epsilon = options["regularizer"]["epsilon"]
        self.log_clip = (math.log(max(1.0 - epsilon, 1e-8)), math.log1p(epsilon))

    def update(self, batch: Batch) -> dict[str, float]:
        """One update; gives the losses."""
        log_prob = self.behavior.log_prob(batch["observations"], batch["actions"])
        loss = descend(self.behavior_optimizer, -log_prob.mean())
        return {"behavior": loss, **super().update(batch)}

    def ratio(self, q: Tensor, value: Tensor) -> Tensor:
        """`max(1 + (Q - V) / (2 temperature), 0)`, the target's ratio; Jeffreys' c_2 is 1."""
        return (1.0 + (q - value) / (2.0 * self.options["temperature"])).clamp(min=0.0)

    def update_value(self, batch: Batch, q: Tensor) -> float:
        """The conjugate of the series."""
        value = self.value(batch["observations"])
        loss = self.ratio(q, value) ** 2 - 1.0 + value / self.options["temperature"]
        return descend(self.value_optimizer, loss.mean())

    def update_actor(self, batch: Batch, q: Tensor) -> float:
        """Advantage regression plus `rho h(w / rho)`, and the schedule."""
        with torch.no_grad():
            weight = self.ratio(q, self.value(batch["observations"]))
            weight = weight / weight.mean().clamp(min=1e-30)
            behavior_log_prob = self.behavior.log_prob(batch["observations"], batch["actions"])
        log_prob = self.actor.log_prob(batch["observations"], batch["actions"])
        symmetry = self.symmetry(log_prob - behavior_log_prob, weight).mean()
        loss = -(weight * log_prob).mean() + self.options["symmetry_coefficient"] * symmetry
        logged = descend(self.actor_optimizer, loss)
        self.actor_schedule.step()
        return logged

    def symmetry(self, log_rho: Tensor, weight: Tensor) -> Tensor:
        """`rho h(t)` with t = w / rho clipped, and rho continued by its tangent; (batch,)."""
        bound = math.log(self.options["max_ratio"])
        rho = torch.exp(log_rho.clamp(max=bound)) * (1.0 + (log_rho - bound).clamp(min=0.0))
        excess = torch.exp((weight.log() - log_rho).clamp(*self.log_clip)) - 1.0
        order = self.options["regularizer"]["loss_order"]
        # The conditional symmetry function of Jeffreys is -log t: (-1)^n / n is the coefficient of (t - 1)^n.
        series = sum((-1) ** n / n * excess**n for n in range(2, order + 1))
        return rho * series


class TD3BC:
    """TD3+BC, arXiv:2106.06860. `options` are those of conf/algo/td3_bc.yaml; observations are normalized."""

    def __init__(self, sizes: Sizes, options: dict[str, Any], max_updates: int, device: str = "cpu") -> None:
        self.options, rate = options, options["optimizer"]["lr"]
        self.actor, self.critic = DeterministicPolicy(sizes).to(device), TwinQ(sizes).to(device)
        self.actor_target, self.critic_target = frozen(self.actor), frozen(self.critic)
        self.actor_optimizer = Adam(self.actor.parameters(), lr=rate)
        self.critic_optimizer = Adam(self.critic.parameters(), lr=rate)
        self.updates = 0

    def update(self, batch: Batch) -> dict[str, float]:
        """One update; gives the losses of the parts that were due."""
        losses = {"critic": self.update_critic(batch)}
        if self.updates % self.options["policy_delay"] == 0:
            losses["actor"] = self.update_actor(batch)
            follow(self.critic_target, self.critic, self.options["polyak"])
            follow(self.actor_target, self.actor, self.options["polyak"])
        self.updates += 1
        return losses

    def update_critic(self, batch: Batch) -> float:
        """TD on the smoothed target policy."""
        with torch.no_grad():
            clip = self.options["target_noise_clip"]
            noise = (torch.randn_like(batch["actions"]) * self.options["target_noise"]).clamp(-clip, clip)
            next_actions = (self.actor_target(batch["next_observations"]) + noise).clamp(-1.0, 1.0)
            next_q = self.critic_target(batch["next_observations"], next_actions)
            target = batch["rewards"] + self.options["discount"] * (1.0 - batch["terminated"]) * next_q
        return descend(self.critic_optimizer, twin_loss(self.critic.both(batch["observations"], batch["actions"]), target))

    def update_actor(self, batch: Batch) -> float:
        """Q, scaled to mean magnitude 1, against the squared distance to the data's action."""
        actions = self.actor(batch["observations"])
        q = self.critic.first(batch["observations"], actions)
        scale = self.options["q_coefficient"] / q.abs().mean().detach()
        return descend(self.actor_optimizer, -scale * q.mean() + F.mse_loss(actions, batch["actions"]))


LEARNERS: dict[str, Any] = {"iql": IQL, "sfac": SfAC, "td3_bc": TD3BC}


def make(workload: Workload) -> Peer:
    """The learner of the algorithm and its buffer."""
    if workload.algo not in LEARNERS:
        raise Unavailable(f"no plain loop is written for {workload.algo}; there are {', '.join(LEARNERS)}")
    config, buffer = workload.config, Buffer(workload.fields())
    learner = LEARNERS[workload.algo](workload.sizes, workload.options, config["max_updates"], workload.device)
    logged: dict[str, float] = {}

    def run(updates: int) -> None:
        for _ in range(updates):
            logged.update(learner.update(buffer.sample(workload.batch_size)))

    return Peer("plain PyTorch loop", run)
