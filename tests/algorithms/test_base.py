import functools
import math

import pytest
import torch

from brpo.algorithms.base import OfflineAlgorithm
from brpo.errors import TrainingDiverged, UserError
from brpo.functional.schedules import cosine
from brpo.modules.mlp import StackedLinear
from tests.helpers import make_algorithm, make_spec, random_batch


class Toy(OfflineAlgorithm):
    """Minimizes sum of (x - seed)^2 for each seed."""

    trained = ("x",)

    def __init__(self, **options) -> None:
        defaults = {
            "seeds": [0, 1],
            "max_updates": 10,
            "optimizer": functools.partial(torch.optim.SGD, lr=0.25),
            "schedule": {},
            "gradient_clip": None,
        }
        super().__init__(make_spec(), **{**defaults, **options})
        self.x = torch.nn.Module()
        self.x.weight = torch.nn.Parameter(torch.full((len(self.seeds), 1), 4.0))

    def update(self, batch) -> None:
        self.descend("x", ((self.x.weight - self.seeds.unsqueeze(1)) ** 2).sum(-1))


def test_descend_by_hand() -> None:
    """Gradients 2 (4 - s) = 8 and 6; a step of 0.25 leads to 2 and 2.5."""
    toy = Toy()
    toy.configure_optimizers()
    toy.step(None)
    assert toy.x.weight.flatten().tolist() == [2.0, 2.5]
    records = toy.take_records()
    assert records == {"loss/x": [16.0, 9.0], "gradient_norm/x": [8.0, 6.0]}
    assert (toy.update_count, int(toy.updates)) == (1, 1)


def test_an_algorithm_without_an_update_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Toy, "update")
    toy = Toy()
    toy.configure_optimizers()
    with pytest.raises(UserError, match=r"Toy lacks update\(self, batch\): brpo/algorithms/bc.py is the shortest example"):
        toy.step(None)


def test_clipping_is_for_each_seed() -> None:
    """Norms 8 and 6 are clipped to 2: both move by 0.5."""
    toy = Toy(gradient_clip=2.0)
    toy.configure_optimizers()
    toy.step(None)
    assert toy.x.weight.flatten().tolist() == [3.5, 3.5]


def test_cosine_schedule_by_hand() -> None:
    assert [cosine(p) for p in (0.0, 0.5, 1.0, 1.5)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    toy = Toy(schedule={"x": "cosine"})
    toy.configure_optimizers()
    for _ in range(6):
        toy.step(None)
    rate = toy.optimizers_by_part["x"].param_groups[0]["lr"]
    assert rate == pytest.approx(0.25 * 0.5 * (1 + math.cos(math.pi * 0.5)))  # that of update 5 of 10


def test_due_counts_updates() -> None:
    toy = Toy()
    toy.configure_optimizers()
    due = []
    for _ in range(8):
        due.append(toy.due(3, after=2))
        toy.step(None)
    assert due == [False, False, False, True, False, False, True, False]


def test_records_are_means_over_the_chunk() -> None:
    """Over the updates that recorded a name: `b` was in the second alone."""
    toy = Toy()
    toy.configure_optimizers()
    toy.step(None)  # losses 16 and 9, then 4 and 2.25
    plain_update, toy.update = toy.update, lambda batch: (plain_update(batch), toy.record("b", torch.ones(2)))
    toy.step(None)
    records = toy.take_records()
    assert records["loss/x"] == [10.0, 5.625]
    assert records["b"] == [1.0, 1.0]
    assert toy.take_records() == {}


def test_divergence_names_part_seed_and_update() -> None:
    toy = Toy(seeds=[5, 9])
    toy.configure_optimizers()
    toy.step(None)
    with torch.no_grad():
        toy.x.weight[1] = math.nan
    toy.step(None)
    toy.step(None)
    with pytest.raises(TrainingDiverged, match="loss/x of seed 9 became NaN or infinite at update 1"):
        toy.take_records()


def test_noise_and_whole_numbers_depend_on_seed_update_and_name() -> None:
    toy, alone = Toy(seeds=[0, 1]), Toy(seeds=[1])
    like = torch.empty(2, 4, 3)
    first, even = toy.normal("a", like), toy.uniform("a", like)
    assert torch.equal(first[1], alone.normal("a", like[1:])[0])
    assert not torch.equal(first, toy.normal("b", like))
    assert torch.equal(even[1], alone.uniform("a", like[1:])[0])
    assert even.shape == like.shape
    assert ((even > 0) & (even < 1)).all()
    assert not torch.equal(even, toy.uniform("b", like))
    whole = toy.integers("a", 64, 5)
    assert torch.equal(whole[1], alone.integers("a", 64, 5)[0])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, toy.integers("b", 64, 5))
    toy.updates += 1
    assert not torch.equal(first, toy.normal("a", like))
    assert not torch.equal(even, toy.uniform("a", like))
    assert not torch.equal(whole, toy.integers("a", 64, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clip": 0.0}, "gradient_clip=0.0 is not allowed; it must be positive or null"),
        (
            {"schedule": {"y": "cosine"}},
            r"schedule\.y=cosine is not allowed; it must be left out: schedule is a mapping from x",
        ),
        ({"schedule": {"x": "linear"}}, "schedule.x=linear is not allowed; it must be constant or cosine"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Toy(**options)


@pytest.mark.parametrize(
    ("algo", "override", "message"),
    [
        ("iql", "algo.expectile=1.5", r"algo.expectile=1.5 is not allowed; it must be in \(0, 1\)"),
        ("iql", "algo.discount=1.0", r"algo.discount=1.0 is not allowed; it must be in \[0, 1\)"),
        ("iql", "algo.polyak=0.0", r"algo.polyak=0.0 is not allowed; it must be in \(0, 1\]"),
        ("iql", "algo.inverse_temperature=-1", "algo.inverse_temperature=-1 is not allowed"),
        ("iql", "+algo.expectle=0.5", "^IQL has no option 'expectle'.*Known options: .*expectile.*optimizer"),
        ("bc", "+algo.behavior=5", "^BC has no option 'behavior'.*Known options: "),
        ("sfac", "algo.temperature=abc", "algo.temperature=abc is not allowed; it must be positive"),
        ("sfac", "algo.discount=null", r"algo.discount=None is not allowed; it must be in \[0, 1\)"),
        ("iql", "algo.polyak=null", "algo.polyak=None is not allowed"),
        ("bc", "algo.gradient_clip=abc", "algo.gradient_clip=abc is not allowed; it must be positive or null"),
        ("bc", "algo.schedule=cosine", "algo.schedule=cosine is not allowed; it must be a mapping"),
        ("bc", "algo.optimizer.lr=-1", "algo.optimizer=.* is refused: .*learning rate"),
        ("bc", "algo.optimizer.lr=inf", "algo.optimizer.lr=inf is not allowed; it must be at least 0 and finite.$"),
        ("bc", "+algo.optimizer.betas=[0.9]", "algo.optimizer=.* is refused: .*index out of range"),
        ("bc", "+algo.optimizer.betas=[0.9,0.99,0.999]", "algo.optimizer=.* is refused: too many values to unpack"),
        ("bc", "+algo.learning_rates=5", "algo.learning_rates=5 is not allowed; it must be a mapping from actor"),
        ("bdpo", "algo.critic.critics=0", "algo.critic.critics=0 is not allowed; it must be a whole number >= 1"),
        ("bdpo", "algo.value.critics=0", "algo.value.critics=0 is not allowed; it must be a whole number >= 1"),
        ("sfac", "algo.critic=null", "algo.critic=None is not allowed; it must be a group or a mapping with a _target_"),
        ("sfac", "algo.regularizer=5", "algo.regularizer=5 is not allowed; it must be a group or a mapping with a _target_"),
        ("bc", "algo.actor=null", "algo.actor=None is not allowed; it must be a group or a mapping with a _target_"),
        ("iql", "algo.max_weight=0", "algo.max_weight=0 is not allowed; it must be positive"),
        ("bdpo", "algo.actor.clip=true", "algo.actor.clip=True is not allowed; it must be positive and finite or null"),
        ("bdpo", "algo.acting=fast", "algo.acting=fast is not allowed; it must be a mapping with the keys candidates"),
        ("bdpo", "algo.acting.candidates=-1", "algo.acting.candidates=-1 is not allowed; it must be a whole number >= 0"),
        ("bdpo", "algo.eta=inf", "algo.eta=inf is not allowed; it must be at least 0 and finite"),
        ("bdpo", "algo.discount=false", "algo.discount=False is not allowed"),
        ("diffusion_bc", "algo.acting=null", "algo.acting=None is not allowed; it must be a mapping with the keys sampler"),
        (
            "sfac",
            "algo.regularizer.epsilon=inf",
            "algo.regularizer.epsilon=inf is not allowed",
        ),
        ("sfac", "algo.policy_order=4.0", "algo.policy_order=4.0 is not allowed; it must be 2, 3, 4 or 5"),
        ("sfac", "algo.divergence=alpha:1e200", "series of the divergence 'alpha:1e.200' is not finite up to order 4"),
        ("bc", "+algo.optimizer.foo=1", "algo.optimizer=.* is refused: .*foo"),
        ("sfac", "algo.temperature=0", "algo.temperature=0 is not allowed; it must be positive"),
        ("sfac", "algo.policy_order=6", "algo.policy_order=6 is not allowed; it must be 2, 3, 4 or 5"),
        ("sfac", "algo.omega=exponential", "algo.omega=exponential is not allowed; it must be exp or series"),
        ("sfac", "algo.divergence=jefreys", "Unknown divergence 'jefreys'"),
        (
            "sfac",
            "algo.regularizer.loss_order=1",
            "algo.regularizer.loss_order=1 is not allowed",
        ),
        ("bc", "algo.actor.activation=rellu", "algo.actor.activation=rellu is not allowed; it must be relu or tanh or gelu"),
        (
            "bc",
            "algo.actor.min_log_std=3.0",
            "algo.actor.max_log_std=2.0 is not allowed.* above min_log_std=3.0",
        ),
    ],
)
def test_options_of_algorithms_are_checked_at_construction(algo: str, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_algorithm(algo, override)


@pytest.mark.parametrize(
    ("kind", "seeds", "message"),
    [
        ("Adafactor", (0, 1), "algo.optimizer: Adafactor steps by whole tensors, which hold all seeds: train one at a time"),
        ("Adafactor", (0,), None),
        ("LBFGS", (0,), "algo.optimizer: LBFGS needs what is not here: a loss to call again"),
    ],
)
def test_optimizers_that_mix_seeds_or_want_more_are_refused(kind: str, seeds: tuple[int, ...], message: str | None) -> None:
    overrides = (f"algo.optimizer._target_=torch.optim.{kind}", "~algo.optimizer.fused")
    if message is None:
        make_algorithm("bc", *overrides, seeds=seeds)
        return
    with pytest.raises(UserError, match=message):
        make_algorithm("bc", *overrides, seeds=seeds)


def test_zero_inverse_temperature_is_behaviour_cloning() -> None:
    iql, bc = make_algorithm("iql", "algo.inverse_temperature=0", "algo.schedule={}"), make_algorithm("bc")
    batch = random_batch()
    iql.step(batch)
    bc.step(batch)
    assert iql.take_records()["loss/actor"] == pytest.approx(bc.take_records()["loss/actor"])


class Staged(OfflineAlgorithm):
    """`model` falls to 0 in the pre-training, and counts every third update of each phase; `x` begins as its copy."""

    pretrained = ("model",)
    trained = ("x",)

    def __init__(self, **options) -> None:
        sgd = functools.partial(torch.optim.SGD, lr=0.25, fused=True)
        defaults = {"seeds": [0, 1], "max_updates": 8, "optimizer": sgd, "schedule": {}, "gradient_clip": None}
        super().__init__(make_spec(), **{**defaults, "pretrain_updates": 8, **options})
        for name in ("model", "x"):
            setattr(self, name, torch.nn.Module())
            getattr(self, name).weight = torch.nn.Parameter(torch.full((len(self.seeds), 1), 4.0))
        self.register_buffer("thirds", torch.zeros(()))
        self.register_buffer("noise", torch.zeros(len(self.seeds), 1))

    def pretrain(self, batch) -> None:
        self._step_of("model")

    def update(self, batch) -> None:
        self._step_of("x")

    def _step_of(self, name: str) -> None:
        if self.due(3):
            self.thirds += 1
        self.noise.copy_(self.normal("noise", self.noise))
        self.descend(name, (getattr(self, name).weight ** 2).sum(-1))

    def after_pretraining(self) -> None:
        self.x.load_state_dict(self.model.state_dict())


def test_a_phase_before_update_zero() -> None:
    """A step of 0.25 halves a weight: 4 / 2^8 after 8 pre-training updates, half of it after one update more."""
    staged = Staged()
    staged.configure_optimizers()
    staged.begin_pretraining()
    staged.runner = type("Steps", (), {"run": lambda self, a, start, stop: [a.step(None) for _ in range(start, stop)]})()
    assert [staged.moment(update) for update in (-8, -1, 0)] == [
        "pre-training update 0",
        "pre-training update 7",
        "update 0",
    ]
    staged.training_step((-8, -3), 0)
    noise = staged.noise.clone()
    checkpoint: dict = {}
    staged.on_save_checkpoint(checkpoint)
    assert (checkpoint["brpo"]["updates"], checkpoint["brpo"]["pretrained"]) == (-3, 5)
    assert set(staged.take_records()) == {"loss/model", "gradient_norm/model"}
    staged.training_step((-3, 0), 0)
    assert (staged.update_count, int(staged.updates)) == (0, 0)
    assert staged.x.weight.flatten().tolist() == staged.model.weight.flatten().tolist() == [4 / 2**8] * 2
    assert float(staged.thirds) == 3  # updates 0, 3 and 6 of the pre-training
    staged.training_step((0, 5), 0)
    assert float(staged.thirds) == 5  # and 0 and 3 of the training
    assert staged.x.weight[0].item() == 4 / 2**13
    assert staged.model.weight[0].item() == 4 / 2**8
    assert not torch.equal(noise, staged.noise)


def test_each_phase_has_its_own_schedule_and_numbers() -> None:
    staged = Staged(schedule={"model": "cosine"}, pretrain_updates=4, max_updates=40)
    staged.configure_optimizers()
    assert [staged.rate("model", update) for update in (-4, -2, 0)] == pytest.approx([0.25, 0.125, 0.25])
    staged.begin_pretraining()
    first = staged.normal("x", torch.empty(2, 3))
    staged.updates.zero_()
    assert not torch.equal(first, staged.normal("x", torch.empty(2, 3)))


@pytest.mark.parametrize(("kind", "value"), [(Staged, -1), (Staged, 0.5), (Staged, True), (Toy, 3)])
def test_pretrain_updates_that_cannot_be(kind, value) -> None:
    with pytest.raises(UserError, match=f"pretrain_updates={value} is not allowed"):
        kind(pretrain_updates=value)


def test_divergence_in_the_pretraining_is_named_so() -> None:
    staged = Staged()
    staged.configure_optimizers()
    staged.begin_pretraining()
    staged.step(None)
    with torch.no_grad():
        staged.model.weight[1] = float("nan")
    staged.step(None)
    with pytest.raises(TrainingDiverged, match="loss/model of seed 1 became NaN or infinite at pre-training update 1"):
        staged.take_records()


class Careless(Toy):
    """Makes a mistake of the kind that is asked for."""

    mistake = ""

    def update(self, batch) -> None:
        loss = (self.x.weight - 1.0).square().sum(-1)
        if self.mistake == "mean":
            self.descend("x", loss.mean())
        elif self.mistake == "part":
            self.descend("critic", loss)
        elif self.mistake == "record":
            self.record("size", loss.mean())


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("mean", r"The loss of x is \(\); it must be a number for each seed, \(2,\)"),
        ("part", "Careless has no optimizer for 'critic'; `trained` names the parts: x"),
        ("record", r"size is \(\); what is recorded must be a number for each seed"),
    ],
)
def test_mistakes_in_an_update_are_named(mistake: str, message: str) -> None:
    careless = Careless()
    careless.mistake = mistake
    if mistake != "record":
        with pytest.raises(UserError, match=r"none, before configure_optimizers\(\)"):
            careless.step(None)
    careless.configure_optimizers()
    with pytest.raises(UserError, match=message):
        careless.step(None)


def test_a_policy_without_an_actor_is_named() -> None:
    with pytest.raises(UserError, match="Toy has no part called actor: override `policy`"):
        Toy().act(torch.zeros(2, 1, make_spec().observation_dim))


@pytest.mark.parametrize("came", [(5, 1, 3), (2, 1, 1), (2, 3), (3,), (1, 4, 3)])
@pytest.mark.parametrize("kind", ["act", "value_estimate"])
def test_observations_of_another_shape_are_refused(kind: str, came: tuple[int, ...]) -> None:
    """Some of them would be broadcast, and give the action of another observation."""
    algorithm = make_algorithm("iql", seeds=(0, 5))
    assert algorithm.spec.observation_dim == 3
    arguments = (torch.zeros(came),) if kind == "act" else (torch.zeros(came), torch.zeros(2, 1, algorithm.spec.action_dim))
    with pytest.raises(UserError, match=r"\(2, n, 3\); got \(.*observations.expand\(2, -1, -1\)"):
        getattr(algorithm, kind)(*arguments)
    with pytest.raises(UserError, match="got ndarray"):
        algorithm.act(torch.zeros(2, 1, 3).numpy())


def test_observations_of_another_type_are_converted() -> None:
    algorithm = make_algorithm("iql", seeds=(0,)).float()
    observations = torch.randn(1, 4, 3, dtype=torch.float64)
    assert torch.equal(algorithm.act(observations), algorithm.act(observations.float()))


class Own(torch.nn.Module):
    """Draws weights of its own, as a user's module may."""

    def __init__(self, spec, seeds: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(seeds, 2))
        self.layer = StackedLinear((seeds,), 2, 1)


def test_weights_that_a_part_draws_itself_are_those_of_its_seed() -> None:
    torch.manual_seed(1)
    together = Toy(seeds=[3, 0]).build("own", Own)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    alone = Toy(seeds=[0]).build("own", Own)
    assert torch.equal(together.weight[1], alone.weight[0])
    assert not torch.equal(together.weight[0], together.weight[1])
    assert torch.equal(together.layer.weight[1], alone.layer.weight[0])
    torch.random.set_rng_state(before)
    Own(make_spec(), 1)  # the part itself was built so; the members' numbers took nothing from the user's generator
    expected = torch.random.get_rng_state()
    torch.random.set_rng_state(before)
    Toy(seeds=[0]).build("own", Own)
    assert torch.equal(torch.random.get_rng_state(), expected)


def test_a_weight_without_an_axis_of_seeds_is_refused() -> None:
    def plain(spec, seeds: int) -> torch.nn.Module:
        return torch.nn.Linear(3, 1)

    with pytest.raises(
        UserError, match=r"The own's weight weight is \(1, 3\): an axis of 2 seeds must come first.*StackedLinear"
    ):
        Toy().build("own", plain)


@pytest.mark.parametrize("options", [{"seeds": [0, 0]}, {"seeds": []}, {"seeds": 3}, {"seeds": [-1]}, {"max_updates": 0}])
def test_seeds_and_lengths_that_cannot_be(options: dict) -> None:
    (name,) = options
    with pytest.raises(UserError, match=f"{name}=.* is not allowed"):
        Toy(**options)
