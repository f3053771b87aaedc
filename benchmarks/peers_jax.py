"""IQL in JAX: weights as plain pytrees, optax, one jitted `lax.scan` over many updates with the sampling inside.

The update is brpo's (V, then the actor and Q with the new V); `peers.py --check` holds it to that. BDPO's is in
peers_jax_bdpo.py.
"""

import functools
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from peers_workload import Peer, Unavailable, Workload

Layers = list[tuple[jax.Array, jax.Array]]  # weight (inputs, outputs) and bias of each
Batch = dict[str, jax.Array]
PRECISIONS = {"highest": "highest", "high": "tensorfloat32", "medium": "bfloat16"}  # torch's word to JAX's


class State(NamedTuple):
    """What an update changes: weights by part, the target critics, the optimizers' moments by part, the random key."""

    parameters: dict[str, Any]
    target: list[Layers]
    moments: dict[str, Any]
    key: jax.Array


def draw_layers(key: jax.Array, sizes: tuple[int, ...]) -> Layers:
    """Uniform in +-1/sqrt(inputs)."""
    layers = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        key, weight, bias = jax.random.split(key, 3)
        bound = 1.0 / math.sqrt(inputs)
        shapes = ((weight, (inputs, outputs)), (bias, (outputs,)))
        layers.append(tuple(jax.random.uniform(k, shape, minval=-bound, maxval=bound) for k, shape in shapes))
    return layers


def mlp(layers: Layers, inputs: jax.Array) -> jax.Array:
    """Affine maps with ReLU between them."""
    *inner, (last_weight, last_bias) = layers
    for weight, bias in inner:
        inputs = jax.nn.relu(inputs @ weight + bias)
    return inputs @ last_weight + last_bias


def q_values(critics: list[Layers], batch: Batch) -> list[jax.Array]:
    """Q of each critic, (batch,)."""
    inputs = jnp.concatenate([batch["observations"], batch["actions"]], axis=-1)
    return [mlp(layers, inputs).squeeze(-1) for layers in critics]


def v_values(layers: Layers, observations: jax.Array) -> jax.Array:
    """V, (batch,)."""
    return mlp(layers, observations).squeeze(-1)


class IQL:
    """Implicit Q-learning, arXiv:2110.06169. `options` are those of conf/algo/iql.yaml."""

    def __init__(self, options: dict[str, Any], max_updates: int) -> None:
        rate = options["optimizer"]["lr"]
        self.options = options
        self.optimizers = {
            "value": optax.adam(rate),
            "actor": optax.adam(optax.cosine_decay_schedule(rate, max_updates)),
            "critic": optax.adam(rate),
        }

    def draw(self, workload: Workload, seed: int = 0) -> dict[str, Any]:
        """Weights to start from."""
        sizes = workload.sizes
        value, actor, first, second = jax.random.split(jax.random.key(seed), 4)
        inputs, hidden = sizes.observation + sizes.action, sizes.hidden
        return {
            "value": draw_layers(value, (sizes.observation, *hidden, 1)),
            "actor": {
                "layers": draw_layers(actor, (sizes.observation, *hidden, sizes.action)),
                "log_std": jnp.zeros(sizes.action),
            },
            "critic": [draw_layers(key, (inputs, *hidden, 1)) for key in (first, second)],
        }

    def start(self, parameters: dict[str, Any], seed: int = 0) -> State:
        """The state before the first update."""
        moments = {name: optimizer.init(parameters[name]) for name, optimizer in self.optimizers.items()}
        target = jax.tree.map(jnp.copy, parameters["critic"])
        return State(parameters, target, moments, jax.random.key(seed))

    def update(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        """One update; gives the losses."""
        parameters, moments = dict(state.parameters), dict(state.moments)

        def descend(name: str, loss_of: Callable[[Any], jax.Array]) -> jax.Array:
            loss, gradient = jax.value_and_grad(loss_of)(parameters[name])
            step, moments[name] = self.optimizers[name].update(gradient, moments[name])
            parameters[name] = optax.apply_updates(parameters[name], step)
            return loss

        q = jnp.minimum(*q_values(state.target, batch))
        losses = {"value": descend("value", lambda value: self.value_loss(value, batch, q))}
        losses["actor"] = descend("actor", lambda actor: self.actor_loss(actor, parameters["value"], batch, q))
        losses["critic"] = descend("critic", lambda critic: self.critic_loss(critic, parameters["value"], batch))
        target = optax.incremental_update(parameters["critic"], state.target, self.options["polyak"])
        return State(parameters, target, moments, state.key), losses

    def value_loss(self, value: Layers, batch: Batch, q: jax.Array) -> jax.Array:
        """Expectile regression."""
        error = q - v_values(value, batch["observations"])
        return (jnp.where(error < 0, 1.0 - self.options["expectile"], self.options["expectile"]) * error**2).mean()

    def actor_loss(self, actor: dict[str, Any], value: Layers, batch: Batch, q: jax.Array) -> jax.Array:
        """Advantage-weighted regression."""
        exponent = self.options["inverse_temperature"] * (q - v_values(value, batch["observations"]))
        weight = jnp.exp(jnp.minimum(exponent, math.log(self.options["max_weight"])))
        bounds = self.options["actor"]["min_log_std"], self.options["actor"]["max_log_std"]
        log_std = jnp.clip(actor["log_std"], *bounds)
        standardized = (batch["actions"] - jnp.tanh(mlp(actor["layers"], batch["observations"]))) * jnp.exp(-log_std)
        log_prob = (-0.5 * standardized**2 - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)
        return -(weight * log_prob).mean()

    def critic_loss(self, critic: list[Layers], value: Layers, batch: Batch) -> jax.Array:
        """TD on V, both critics added."""
        bootstrap = self.options["discount"] * (1.0 - batch["terminated"]) * v_values(value, batch["next_observations"])
        target = batch["rewards"] + bootstrap
        return sum(((q - target) ** 2).mean() for q in q_values(critic, batch))


@functools.partial(jax.jit, static_argnums=(0, 3, 4), donate_argnums=1)
def scan(learner: Any, state: Any, data: Batch, count: int, batch_size: int) -> tuple[Any, dict[str, jax.Array]]:
    """`count` updates on batches drawn from the data; gives the mean losses of the updates in which a part was due."""

    def body(state: Any, _: None) -> tuple[Any, dict[str, jax.Array]]:
        key, drawn = jax.random.split(state.key)
        indices = jax.random.randint(drawn, (batch_size,), 0, len(data["rewards"]))
        batch = {name: field[indices] for name, field in data.items()}
        return learner.update(state._replace(key=key), batch)

    state, losses = jax.lax.scan(body, state, length=count)
    return state, jax.tree.map(jnp.nanmean, losses)


def learner_of(algo: str, options: dict[str, Any], max_updates: int) -> Any:
    """What makes the updates of an algorithm."""
    if algo == "iql":
        return IQL(options, max_updates)
    if algo == "bdpo":
        from peers_jax_bdpo import BDPO  # which takes its layers from here

        return BDPO(options, max_updates)
    raise Unavailable(f"the JAX loop is written for iql and bdpo alone, not {algo}")


def make(workload: Workload) -> Peer:
    """The learner with its data on JAX's CPU, or on its GPU where the device is `cuda`."""
    config, device = workload.config, pick_device(workload)
    learner = learner_of(workload.algo, workload.options, config["max_updates"])
    data = {name: jax.device_put(tensor.cpu().numpy(), device) for name, tensor in workload.fields().items()}
    state = jax.device_put(learner.start(learner.draw(workload)), device)
    precision = PRECISIONS[config["engine"]["matmul_precision"]]

    def run(updates: int) -> None:
        nonlocal state
        with jax.default_matmul_precision(precision):
            for _ in range(updates // workload.scan):
                state, losses = scan(learner, state, data, workload.scan, workload.batch_size)
        jax.block_until_ready((state, losses))

    note = "JAX's CPU products are float32 whatever the precision" if device.platform == "cpu" else ""
    return Peer(f"JAX {jax.__version__} scan of {workload.scan}", run, note)


def pick_device(workload: Workload) -> jax.Device:
    """The device of the workload in JAX's words. Must come before JAX has started: threads are set at its start."""
    if workload.config["engine"]["threads"] == 1:
        one = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {one}".strip()
    platform = {"cpu": "cpu", "cuda": "gpu"}[workload.device]
    try:
        return jax.devices(platform)[0]
    except RuntimeError as error:
        raise Unavailable(f"JAX sees no {platform} ({' '.join(str(error).split())})") from error
