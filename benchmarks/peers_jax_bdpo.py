"""BDPO in JAX: weights as plain pytrees, ensembles through `vmap`, optax, one jitted `lax.scan` over many updates.

The update is brpo's (Q and V, then actor and behaviour where they are due); `peers.py --check` holds it to that. As in the
code of BDPO's authors, the time features of a row are computed for that row, and the library's Mish is used.

A network is `{"time": Layers, "layers": Layers, "norms": Layers}`: those of the time features, the hidden ones and the
output's, scale and shift of each layer norm. Where a part has no such thing, the list is empty.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from peers_jax import Batch, Layers, draw_layers
from peers_workload import Unavailable, Workload

from brpo.functional import diffusion

Network = dict[str, Layers]
Noise = dict[str, jax.Array]
NORM_EPSILON = 1e-6  # flax's
PARTS = ("critic", "value", "actor", "behavior")


class State(NamedTuple):
    """What an update changes."""

    parameters: dict[str, Network]
    targets: dict[str, Network]
    moments: dict[str, Any]
    updates: jax.Array
    key: jax.Array


class Step(NamedTuple):
    """The reverse step n -> n-1 (see `brpo.functional.diffusion.ReverseStep`): numbers, or (batch, 1) of them."""

    signal: Any
    noise: Any
    from_clean: Any
    from_noisy: Any
    std: Any
    penalty: Any


def run(network: Network, inputs: jax.Array) -> jax.Array:
    """The hidden layers, Mish after each, and the output."""
    *inner, (last_weight, last_bias) = network["layers"]
    for k, (weight, bias) in enumerate(inner):
        inputs = inputs @ weight + bias
        if network["norms"]:
            scale, shift = network["norms"][k]
            inputs = jax.nn.standardize(inputs, epsilon=NORM_EPSILON) * scale + shift
        inputs = jax.nn.mish(inputs)
    return inputs @ last_weight + last_bias


def run_at(network: Network, positions: jax.Array, inputs: jax.Array) -> jax.Array:
    """`run` on (inputs, time features), these from the sines and cosines (batch, size) of each row's step."""
    for weight, bias in network["time"]:
        positions = jax.nn.mish(positions @ weight + bias)
    return run(network, jnp.concatenate([inputs, positions], axis=-1))


def draw_network(key: jax.Array, inputs: int, outputs: int, options: dict[str, Any], time_inner: int = 0) -> Network:
    """A network to start from; without time features where `time_inner` is 0."""
    key, time = jax.random.split(key)
    size = options["time_dim"] if time_inner else 0
    norms = [(jnp.ones(size), jnp.zeros(size)) for size in options["hidden"] if options.get("layer_norm")]
    return {
        "time": draw_layers(time, (size, time_inner, size)) if time_inner else [],
        "layers": draw_layers(key, (inputs + size, *options["hidden"], outputs)),
        "norms": norms,
    }


class BDPO:
    """Behaviour-regularized diffusion policy optimization, arXiv:2502.04778. `options` are those of conf/algo/bdpo.yaml."""

    def __init__(self, options: dict[str, Any], max_updates: int) -> None:
        for part in ("actor", "critic", "value"):
            if options[part]["activation"] != "mish":
                raise Unavailable(f"the JAX loop of BDPO is written for algo.{part}.activation=mish alone")
        self.options, actor = options, options["actor"]
        schedule = diffusion.Schedule.of(actor["noise_schedule"], actor["steps"], actor["variance_interpolation"])
        self.steps = schedule.steps
        self.path = [(n, Step(*schedule.step(n))) for n in range(self.steps, 0, -1)]
        self.table = schedule.table().numpy()
        self.positions = diffusion.positional(self.steps, actor["time_dim"]).numpy()
        self.joint = options["behavior_training"] == "joint"
        clip = options["gradient_clip"]
        self.optimizer = optax.chain(optax.clip_by_global_norm(clip) if clip else optax.identity(), optax.scale_by_adam())
        self.rates = {part: rate_of(part, options, max_updates) for part in PARTS}

    def draw(self, workload: Workload, seed: int = 0) -> dict[str, Network]:
        """Weights to start from, an ensemble's stacked; the actor is a copy of the behaviour."""
        spec, options = workload.algorithm.spec, self.options
        critic, value, behavior = jax.random.split(jax.random.key(seed), 3)
        inputs, size = spec.observation_dim + spec.action_dim, options["actor"]["time_dim"]

        def ensemble(key: jax.Array, part: dict[str, Any], inner: int) -> Network:
            return jax.vmap(lambda key: draw_network(key, inputs, 1, part, inner))(jax.random.split(key, part["critics"]))

        policy = draw_network(behavior, inputs, spec.action_dim, options["actor"], size)
        return {
            "critic": ensemble(critic, options["critic"], 0),
            "value": ensemble(value, options["value"], 2 * size),
            "actor": jax.tree.map(jnp.copy, policy),
            "behavior": policy,
        }

    def start(self, parameters: dict[str, Network], targets: dict[str, Network] | None = None, seed: int = 0) -> State:
        """The state before the first update."""
        moments = {part: self.optimizer.init(parameters[part]) for part in PARTS}
        targets = jax.tree.map(jnp.copy, targets or parameters)
        return State(parameters, targets, moments, jnp.zeros((), jnp.int32), jax.random.key(seed))

    def noise(self, key: jax.Array, batch: Batch) -> Noise:
        """The random numbers of an update, by the names that brpo gives them."""
        (rows, size), samples = batch["actions"].shape, self.options["samples"]
        normal = {"q_target": (rows * samples, self.steps * size), "behavior/forward": (rows, size)}
        for part in ("value", "actor"):
            normal |= {f"{part}/forward": (rows, size), f"{part}/reverse": (rows * samples, size)}
        whole = [f"{part}/n" for part in ("value", "actor", "behavior")]
        keys = dict(zip([*normal, *whole], jax.random.split(key, len(normal) + len(whole)), strict=True))
        drawn = {name: jax.random.normal(keys[name], shape, batch["actions"].dtype) for name, shape in normal.items()}
        return drawn | {name: jax.random.randint(keys[name], (rows,), 0, self.steps) for name in whole}

    def update(self, state: State, batch: Batch, noise: Noise | None = None) -> tuple[State, dict[str, jax.Array]]:
        """One update with given noise, or with its own; gives the losses, NaN for a part that is not due."""
        if noise is None:
            key, own = jax.random.split(state.key)
            state, noise = state._replace(key=key), self.noise(own, batch)
        state, losses = self.update_critics(state, batch, noise)
        due = (state.updates >= self.options["critic_only"]) & (state.updates % self.options["policy_delay"] == 0)
        policies = ("actor", "behavior") if self.joint else ("actor",)
        waiting = {part: jnp.full_like(losses["critic"], jnp.nan) for part in policies}
        state, others = jax.lax.cond(
            due, lambda state: self.update_policies(state, batch, noise), lambda state: (state, waiting), state
        )
        return state._replace(updates=state.updates + 1), losses | others

    def update_critics(self, state: State, batch: Batch, noise: Noise) -> tuple[State, dict[str, jax.Array]]:
        """Q and V, then their averages."""
        losses = {}
        q = self.q_target(state.targets, batch, noise["q_target"])
        state, losses["critic"] = self.descend(state, "critic", partial(self.critic_loss, target=q, batch=batch))
        noisy, positions, v = self.one_step_back(state.targets, state.targets["actor"], batch, noise, "value")
        state, losses["value"] = self.descend(
            state, "value", partial(self.value_loss, target=v, batch=batch, noisy=noisy, positions=positions)
        )
        return self.follow(self.follow(state, "critic", "polyak"), "value", "polyak"), losses

    def update_policies(self, state: State, batch: Batch, noise: Noise) -> tuple[State, dict[str, jax.Array]]:
        """The actor, then the behaviour model unless it is fixed, and their averages."""
        losses = {}
        state, losses["actor"] = self.descend(
            state, "actor", lambda actor: -self.one_step_back(state.targets, actor, batch, noise, "actor")[2].mean()
        )
        state = self.follow(state, "actor", "actor_polyak")
        if not self.joint:
            return state, losses
        state, losses["behavior"] = self.descend(state, "behavior", partial(self.behavior_loss, batch=batch, noise=noise))
        return self.follow(state, "behavior", "behavior_polyak"), losses

    def descend(self, state: State, part: str, loss_of: Callable[[Network], jax.Array]) -> tuple[State, jax.Array]:
        """One gradient step of a part; gives the loss."""
        loss, gradient = jax.value_and_grad(loss_of)(state.parameters[part])
        direction, moments = self.optimizer.update(gradient, state.moments[part])
        rate = self.rates[part](state.updates)
        moved = jax.tree.map(lambda weight, step: weight - rate * step, state.parameters[part], direction)
        parameters, moments = state.parameters | {part: moved}, state.moments | {part: moments}
        return state._replace(parameters=parameters, moments=moments), loss

    def follow(self, state: State, part: str, polyak: str) -> State:
        """Move the average of a part."""
        average = optax.incremental_update(state.parameters[part], state.targets[part], self.options[polyak])
        return state._replace(targets=state.targets | {part: average})

    # --- Losses -------------------------------------------------------------------------------------------------------

    def critic_loss(self, critic: Network, target: jax.Array, batch: Batch) -> jax.Array:
        """Squared error of every Q."""
        return ((self.q(critic, batch["observations"], batch["actions"]) - target) ** 2).mean()

    def q_target(self, targets: dict[str, Network], batch: Batch, noise: jax.Array) -> jax.Array:
        """The reward and the discounted Q of sampled actions less the pathwise KL, (batch,)."""
        observations = self.repeated(batch["next_observations"])
        noisy, *noises = jnp.split(noise, self.steps, axis=-1)
        penalty = 0.0
        for (n, step), drawn in zip(self.path, [*noises, 0.0], strict=True):
            positions = jnp.broadcast_to(self.positions[n], (len(noisy), len(self.positions[n])))
            predicted = self.predicted(targets["actor"], observations, noisy, positions)
            reference = self.predicted(targets["behavior"], observations, noisy, positions)
            penalty += step.penalty * ((predicted - reference) ** 2).sum(-1)
            noisy = self.mean_back(noisy, predicted, step) + step.std * drawn
        q = self.by_sample(self.q(targets["critic"], observations, noisy))
        q = self.aggregated(q.max(-1) if self.options["over_samples"] == "max" else q.mean(-1))
        bootstrap = q - self.options["eta"] * self.by_sample(penalty).mean(-1)
        return batch["rewards"] + self.options["discount"] * (1.0 - batch["terminated"]) * bootstrap

    def value_loss(
        self, value: Network, target: jax.Array, batch: Batch, noisy: jax.Array, positions: jax.Array
    ) -> jax.Array:
        """Squared error of every V_n."""
        return ((self.v(value, batch["observations"], noisy, positions) - target) ** 2).mean()

    def one_step_back(
        self, targets: dict[str, Network], actor: Network, batch: Batch, noise: Noise, name: str
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x_n, the sines and cosines of n, and the value of the actor's step to x_{n-1}, (batch,)."""
        observations, n = batch["observations"], 1 + noise[f"{name}/n"]
        step, positions = self.steps_at(n), jnp.asarray(self.positions)[n]
        noisy = step.signal * batch["actions"] + step.noise * noise[f"{name}/forward"]
        predicted = self.predicted(actor, observations, noisy, positions)
        reference = self.predicted(targets["behavior"], observations, noisy, positions)
        penalty = (step.penalty * (predicted - reference) ** 2).sum(-1)
        previous = self.repeated(self.mean_back(noisy, predicted, step))
        previous += self.repeated(step.std) * noise[f"{name}/reverse"]
        observations, before = self.repeated(observations), self.repeated(jnp.asarray(self.positions)[n - 1])
        v = self.aggregated(self.by_sample(self.v(targets["value"], observations, previous, before)).mean(-1))
        q = self.aggregated(self.by_sample(self.q(targets["critic"], observations, previous)).mean(-1))
        return noisy, positions, jnp.where(n == 1, q, v) - self.options["eta"] * penalty

    def behavior_loss(self, behavior: Network, batch: Batch, noise: Noise) -> jax.Array:
        """Squared error of the predicted noise."""
        n, drawn = 1 + noise["behavior/n"], noise["behavior/forward"]
        step = self.steps_at(n)
        noisy = step.signal * batch["actions"] + step.noise * drawn
        predicted = self.predicted(behavior, batch["observations"], noisy, jnp.asarray(self.positions)[n])
        return ((predicted - drawn) ** 2).mean()

    # --- Networks, steps, samples -------------------------------------------------------------------------------------

    def predicted(self, policy: Network, observations: jax.Array, noisy: jax.Array, positions: jax.Array) -> jax.Array:
        """The noise in x_n, (batch, action)."""
        return run_at(policy, positions, jnp.concatenate([observations, noisy], axis=-1))

    def q(self, critics: Network, observations: jax.Array, actions: jax.Array) -> jax.Array:
        """Q of every critic, (critics, batch)."""
        inputs = jnp.concatenate([observations, actions], axis=-1)
        return jax.vmap(run, in_axes=(0, None))(critics, inputs).squeeze(-1)

    def v(self, critics: Network, observations: jax.Array, noisy: jax.Array, positions: jax.Array) -> jax.Array:
        """V_n of every critic, (critics, batch)."""
        inputs = jnp.concatenate([observations, noisy], axis=-1)
        return jax.vmap(run_at, in_axes=(0, None, None))(critics, positions, inputs).squeeze(-1)

    def aggregated(self, values: jax.Array) -> jax.Array:
        """(critics, batch) to (batch,)."""
        if self.options["over_critics"] == "min":
            return values.min(0)
        return values.mean(0) - self.options["rho_lcb"] * jnp.sqrt(jnp.maximum(values.var(0), 1e-20))

    def mean_back(self, noisy: jax.Array, predicted: jax.Array, step: Step) -> jax.Array:
        """The mean of x_{n-1}."""
        clean, clip = (noisy - step.noise * predicted) / step.signal, self.options["actor"]["clip"]
        return step.from_clean * (clean if clip is None else jnp.clip(clean, -clip, clip)) + step.from_noisy * noisy

    def steps_at(self, n: jax.Array) -> Step:
        """The reverse step of each row."""
        return Step(*(column[:, None] for column in jnp.asarray(self.table)[n].T))

    def repeated(self, rows: jax.Array) -> jax.Array:
        """Each row once for each sample."""
        return jnp.repeat(rows, self.options["samples"], axis=0)

    def by_sample(self, rows: jax.Array) -> jax.Array:
        """(..., batch x samples) as (..., batch, samples)."""
        return rows.reshape(*rows.shape[:-1], -1, self.options["samples"])


def rate_of(part: str, options: dict[str, Any], max_updates: int) -> Callable[[Any], Any]:
    """The learning rate of a part by update."""
    rate = options["learning_rates"].get(part, options["optimizer"]["lr"])
    if options["schedule"].get(part) == "cosine":
        return optax.cosine_decay_schedule(rate, max_updates)
    return optax.constant_schedule(rate)
