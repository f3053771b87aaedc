"""What every algorithm in conf/algo must keep. A new yaml file is tested without editing this one."""

import contextlib
import copy
import dataclasses
import io
from typing import Any

import pytest
import torch

from brpo.algorithms.base import OfflineAlgorithm
from brpo.datasets.datamodule import Transitions, batch_indices
from brpo.datasets.minari_io import Columns
from brpo.engine.runner import EagerRunner
from brpo.modules.actors import DeterministicActor
from brpo.modules.target import Target
from brpo.types import Batch
from tests.helpers import ALGORITHMS, PRETRAINING, make_algorithm, make_spec, random_batch

every_algorithm = pytest.mark.parametrize("algo", ALGORITHMS)
SFAC_VARIANTS = [
    ["algo.value_loss=sample"],
    ["algo.value_loss=softmax"],
    ["algo.omega=exp", "algo.value_loss=expectile"],
    ["algo.policy_order=4"],
    ["algo.ratio=behavior"],
    ["algo.epsilon_schedule=spread"],
    ["algo.divergence=jensen_shannon", "algo.regularizer.loss_order=3", "algo.regularizer.epsilon=0.5"],
    ["actor=squashed"],
    ["actor=student_t", "algo.actor.learn_degrees_of_freedom=true", "algo.value_loss=sample"],
    ["actor=mixture", "algo.actor.state_dependent_std=true", "algo.value_loss=sample"],
    ["actor@algo.behavior=mixture", "algo.target_divergence=alpha:0.5"],
]
VARIANTS = [
    *[("sfac", variant) for variant in SFAC_VARIANTS],
    ("bc", ["actor=mixture"]),
    ("awac", ["algo.omega=softmax"]),
    ("sql", ["algo.omega=advantage"]),
    ("xql", ["algo.subtract_max=false"]),
    ("bdpo", ["algo.behavior_training=joint"]),
]
every_variant = pytest.mark.parametrize(("algo", "overrides"), [(algo, []) for algo in ALGORITHMS] + VARIANTS)


def transitions(size: int = 200, dtype: torch.dtype = torch.float64) -> Transitions:
    spec, generator = make_spec(), torch.Generator().manual_seed(1)
    columns = Columns(spec.observation_dim, spec.action_dim)
    rows = torch.randn(size, sum(columns.widths), generator=generator, dtype=dtype).clamp(-1, 1)
    rows[:, columns.slices[3]] = (rows[:, columns.slices[3]] > 0.9).to(dtype)
    return Transitions(rows, columns)


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def train(algorithm: OfflineAlgorithm, updates: int = 4, start: int = 0) -> OfflineAlgorithm:
    dtype = algorithm.observation_mean.dtype
    EagerRunner(transitions(dtype=dtype), 16).run(algorithm, start, start + updates)
    return algorithm


@every_variant
def test_seeds_together_equal_seeds_alone(algo: str, overrides: list[str]) -> None:
    """The same batches and noise, float64: to 1e-9."""
    together = state(train(make_algorithm(algo, *overrides, seeds=(3, 7, 11))))
    for member, seed in enumerate((3, 7, 11)):
        alone = state(train(make_algorithm(algo, *overrides, seeds=(seed,))))
        for name, value in alone.items():
            if name.startswith(("observation", "action", "updates")):
                continue
            assert torch.allclose(together[name][member], value[0], rtol=0, atol=1e-9), name


@every_variant
def test_an_update_changes_the_trained_parts_and_targets_only(algo: str, overrides: list[str]) -> None:
    algorithm = make_algorithm(algo, *overrides)
    before = state(algorithm)
    algorithm.step(random_batch())
    targets = {name for name, part in algorithm.named_children() if isinstance(part, Target)}
    targets -= {f"{part}_target" for part in algorithm.pretrained if part not in algorithm.trained}  # of a model that stays
    for name, value in algorithm.state_dict().items():
        part = name.split(".")[0]
        changed = not torch.equal(value, before[name])
        if part in algorithm.trained or part in targets or name == "updates":
            continue
        assert not changed, name
    for part in (*algorithm.trained, *targets):
        moved = [not torch.equal(v, before[n]) for n, v in algorithm.state_dict().items() if n.startswith(f"{part}.")]
        assert any(moved), part


@every_algorithm
def test_targets_move_by_their_own_step(algo: str) -> None:
    """target + polyak (source - target), the source as its own step left it."""
    algorithm: Any = make_algorithm(algo)
    before = state(algorithm)
    algorithm.step(random_batch())
    after = state(algorithm)
    for target in [name for name, part in algorithm.named_children() if isinstance(part, Target)]:
        source = target.removesuffix("_target")
        polyak = getattr(algorithm, f"{source}_polyak", algorithm.polyak)
        assert 0 < polyak < 1
        for name in getattr(algorithm, source).state_dict():
            old, new = before[f"{target}.module.{name}"], after[f"{source}.{name}"]
            moved = after[f"{target}.module.{name}"]
            assert torch.allclose(moved, old + polyak * (new - old), rtol=0, atol=1e-12), f"{target}.{name}"


@every_variant
def test_losses_are_one_finite_number_for_each_seed(algo: str, overrides: list[str]) -> None:
    algorithm = make_algorithm(algo, *overrides, seeds=(0, 1))
    algorithm.step(random_batch(seeds=2))
    records = algorithm.take_records()
    assert {f"loss/{part}" for part in algorithm.trained} <= set(records)
    assert {f"gradient_norm/{part}" for part in algorithm.trained} <= set(records)
    for name, values in records.items():
        assert len(values) == 2, name
        assert all(torch.isfinite(torch.tensor(values))), name


@every_variant
def test_bfloat16_autocast_gives_finite_losses_in_float32(algo: str, overrides: list[str]) -> None:
    algorithm = make_algorithm(algo, *overrides, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        algorithm.step(random_batch(dtype=torch.float32))
    assert all(value.dtype == torch.float32 for _, recorded in algorithm.history for value in recorded.values())
    algorithm.take_records()  # raises if anything is not finite


@every_variant
def test_same_seed_same_weights_and_other_seed_other_weights(algo: str, overrides: list[str]) -> None:
    first, again = state(train(make_algorithm(algo, *overrides))), state(train(make_algorithm(algo, *overrides)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = state(train(make_algorithm(algo, *overrides, seeds=(1,))))
    assert any(not torch.equal(first[name], other[name]) for name in first if name.startswith("actor"))


every_pretraining = pytest.mark.parametrize("algo", PRETRAINING)


def make_pretraining(algo: str, **options: Any) -> OfflineAlgorithm:
    algorithm = make_algorithm(algo, "algo.pretrain_updates=4", **options)
    algorithm.begin_pretraining()
    return algorithm


@every_pretraining
def test_pretraining_of_seeds_together_equals_that_of_seeds_alone(algo: str) -> None:
    """Across its end: 4 updates before the training, 2 in it."""
    together, *alone = (make_pretraining(algo, seeds=seeds) for seeds in ((3, 7), (3,), (7,)))
    for algorithm in (together, *alone):
        train(algorithm, 4, -4).end_pretraining()
        assert (algorithm.update_count, int(algorithm.updates), algorithm.pretraining) == (0, 0, False)
        train(algorithm, 2)
    for member, algorithm in enumerate(alone):
        for name, value in algorithm.named_parameters():
            assert torch.allclose(dict(together.named_parameters())[name][member], value[0], rtol=0, atol=1e-9), name


@every_pretraining
def test_pretraining_changes_the_pretrained_parts_only(algo: str) -> None:
    """On a batch without rewards, and with finite records for each part and seed."""
    algorithm = make_pretraining(algo, seeds=(0, 1))
    before = state(algorithm)
    batch = random_batch(seeds=2)
    nothing = torch.full_like(batch.rewards, float("nan"))
    algorithm.step(dataclasses.replace(batch, rewards=nothing, terminated=nothing))
    records = algorithm.take_records()
    assert {f"{kind}/{part}" for kind in ("loss", "gradient_norm") for part in algorithm.pretrained} <= set(records)
    assert all(len(values) == 2 for values in records.values())
    moved = {name.split(".")[0] for name, value in algorithm.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {*algorithm.pretrained, *algorithm.pretrained_also, "updates"}


@every_pretraining
def test_after_pretraining_leaves_the_pretrained_parts(algo: str) -> None:
    """It begins from them, whether they were trained or taken from a file."""
    algorithm = train(make_pretraining(algo), 4, -4)
    parts = (*algorithm.pretrained, *algorithm.pretrained_also)
    before = {name: value for name, value in state(algorithm).items() if name.split(".")[0] in parts}
    algorithm.end_pretraining()
    assert all(torch.equal(value, algorithm.state_dict()[name]) for name, value in before.items())
    assert not any(optimizer.state for optimizer in algorithm.optimizers_by_part.values())


@every_pretraining
def test_pretraining_stays_on_its_device(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    test_an_update_stays_on_its_device(algo, ["algo.pretrain_updates=4"], monkeypatch, pretraining=True)


@every_algorithm
def test_chunks_do_not_matter(algo: str) -> None:
    whole = state(train(make_algorithm(algo), 6))
    parts = make_algorithm(algo)
    for start, updates in ((0, 1), (1, 3), (4, 2)):
        train(parts, updates, start)
    assert all(torch.equal(whole[name], value) for name, value in state(parts).items())


@every_variant
def test_an_update_stays_on_its_device(
    algo: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch, pretraining: bool = False
) -> None:
    """On a device without values: reading one fails, and so does mixing in a tensor that was made elsewhere."""
    algorithm = make_algorithm(algo, *overrides, seeds=(0, 1)).to("meta")
    if pretraining:
        algorithm.begin_pretraining()
    algorithm.configure_optimizers()
    monkeypatch.setattr(algorithm, "_step_optimizer", lambda *_: None)  # torch's own; its fused kernel needs values
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which does not know the device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    batch = random_batch(seeds=2)
    moved = Batch(*(getattr(batch, name).to("meta") for name in Batch.__slots__))
    for _ in range(2):
        algorithm.step(moved)
    assert {value.device.type for _, recorded in algorithm.history for value in recorded.values()} == {"meta"}


@every_algorithm
def test_a_transition_order_does_not_matter(algo: str) -> None:
    """Losses are means over the batch: no silent broadcasting of (batch, 1) against (batch,).

    Noise belongs to a position in the batch and would not move with the transition, so it is left out.
    """
    batch = random_batch(size=6)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    shuffled = Batch(*(getattr(batch, name)[:, order] for name in Batch.__slots__))
    first, second = make_algorithm(algo), make_algorithm(algo)
    for algorithm in (first, second):
        algorithm.normal = lambda name, like: torch.zeros_like(like)  # type: ignore[method-assign]
        algorithm.uniform = lambda name, like: torch.full_like(like, 0.3)  # type: ignore[method-assign]
        algorithm.integers = lambda name, count, high: torch.ones(1, count, dtype=torch.int64)  # type: ignore[method-assign]
    first.step(batch)
    second.step(shuffled)
    records = second.take_records()
    for name, values in first.take_records().items():
        assert records[name] == pytest.approx(values, rel=1e-6), name


@every_algorithm
def test_save_and_load_give_the_same_actions(algo: str) -> None:
    algorithm = train(make_algorithm(algo, seeds=(0, 1)))
    checkpoint: dict[str, Any] = {"state_dict": algorithm.state_dict(), "loops": {}}
    algorithm.on_save_checkpoint(checkpoint)
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    fresh = make_algorithm(algo, seeds=(5, 6))
    fresh.load_state_dict(loaded["state_dict"])
    fresh.on_load_checkpoint(loaded)
    observations = torch.randn(2, 4, 3, dtype=torch.float64)
    for deterministic in (True, False):
        assert torch.equal(algorithm.act(observations, deterministic, 3), fresh.act(observations, deterministic, 3))
    assert fresh.update_count == 4
    assert "loops" not in loaded


@every_algorithm
def test_act_speaks_environment_units(algo: str) -> None:
    """Observations are normalized inside; actions stay within the environment's bounds, sampled ones too."""
    spec = make_spec(
        observation_mean=(10.0,) * 3, observation_std=(5.0,) * 3, action_low=(-2.0, 0.0), action_high=(2.0, 10.0)
    )
    algorithm = make_algorithm(algo, spec=spec)
    observations = 10 + 5 * torch.randn(1, 50, 3, dtype=torch.float64)
    for deterministic in (True, False):
        actions = algorithm.act(observations, deterministic)
        assert actions.shape == (1, 50, 2)
        assert (actions >= algorithm.action_low).all()
        assert (actions <= algorithm.action_high).all()
        assert torch.allclose(algorithm.to_environment(algorithm.from_environment(actions)), actions)
    plain = make_algorithm(algo)
    expected = plain.act((observations - 10) / 5)
    assert torch.allclose(algorithm.from_environment(algorithm.act(observations)), expected)


@every_algorithm
def test_values_are_of_environment_observations(algo: str) -> None:
    """Those of the normalized ones, of the smallest critic or as the algorithm aggregates; None without a critic."""
    algorithm: Any = make_algorithm(algo, spec=make_spec(observation_mean=(10.0,) * 3, observation_std=(5.0,) * 3))
    batch = random_batch()
    values = algorithm.value_estimate(batch.observations, batch.actions)
    if "critic" not in algorithm.trained:
        assert values is None
        return
    q = algorithm.critic((batch.observations - 10) / 5, batch.actions)
    aggregate = getattr(algorithm, "aggregate", lambda q: q.amin(1))
    assert torch.allclose(values, aggregate(q))


@every_algorithm
def test_sampled_actions_depend_on_the_step_and_the_seed_alone(algo: str) -> None:
    algorithm = make_algorithm(algo, seeds=(0, 1))
    observations = torch.zeros(2, 3, 3, dtype=torch.float64)
    first = algorithm.act(observations, False, 0)
    assert torch.equal(first, algorithm.act(observations, False, 0))
    deterministic = isinstance(algorithm.actor, DeterministicActor)  # its sample is its mode
    assert torch.equal(first, algorithm.act(observations, False, 1)) == deterministic
    alone = make_algorithm(algo, seeds=(1,))
    assert torch.allclose(alone.act(observations[1:], False, 0)[0], first[1])


@every_algorithm
def test_diagnostics_are_per_transition(algo: str) -> None:
    algorithm = make_algorithm(algo, seeds=(0, 1))
    with torch.no_grad():
        batch = random_batch(seeds=2, size=9)
        values, pretrained = algorithm.diagnose(batch), algorithm.diagnose_pretrained(batch)
    assert all(value.shape == (2, 9) for value in values.values())
    assert bool(pretrained) == bool(algorithm.pretrained)
    assert all(torch.equal(value, values[name]) for name, value in pretrained.items())  # the same, told earlier


@every_algorithm
def test_an_algorithm_can_be_copied(algo: str) -> None:
    algorithm = make_algorithm(algo)
    assert copy.deepcopy(algorithm).state_dict().keys() == algorithm.state_dict().keys()


def test_batch_stream_is_what_the_runner_trains_on() -> None:
    """The runner's batches are those of the stream, in order."""
    seen = []

    class Spy:
        seeds = stream_seeds = torch.tensor([4])
        pretraining, device = False, torch.device("cpu")

        def step(self, batch: Batch) -> None:
            seen.append(batch.rewards)

    data = transitions()
    EagerRunner(data, 5).run(Spy(), 2, 4)  # type: ignore[arg-type]
    indices = batch_indices(torch.tensor([4]), torch.arange(2, 4), 5, data)
    assert torch.equal(torch.stack(seen), torch.stack([data.gather(row).rewards for row in indices]))


@pytest.mark.parametrize(
    ("algo", "overrides", "samples"),
    [
        ("awac", [], "sample"),
        ("td3_bc", [], "target_actions"),
        ("sfac", ["algo.value_loss=sample"], "sampled_q"),
        ("bdpo", [], "sampled_path"),
    ],
)
@pytest.mark.parametrize("reason", ["one_step", "discount"])
def test_where_nothing_follows_no_next_action_is_sampled(
    algo: str, overrides: list[str], samples: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights as with the sampling, whose result is multiplied by 0."""
    batch = random_batch()
    ended = Batch(*(getattr(batch, name) for name in Batch.__slots__[:-1]), torch.ones_like(batch.terminated))
    slow = make_algorithm(algo, *overrides)
    if reason == "one_step":
        quick: Any = make_algorithm(algo, *overrides, spec=make_spec(one_step=True))
    else:
        quick = make_algorithm(algo, *overrides, "algo.discount=0")
    sample = getattr(quick, samples)

    def in_other_places(first: torch.Tensor, *rest: Any) -> Any:
        assert not torch.equal(first[:, :1], batch.next_observations[:, :1]), "a next action was sampled"
        return sample(first, *rest)

    monkeypatch.setattr(quick, samples, in_other_places)
    for _ in range(3):
        slow.step(ended)
        quick.step(ended)
    left, right = slow.state_dict(), quick.state_dict()
    assert all(torch.equal(value, right[name]) for name, value in left.items())
