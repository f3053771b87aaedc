"""What BDPO does beside the recorded step: pre-training, acting, its options, one-step data, a small bandit."""

import copy
from typing import Any

import pytest
import torch

from brpo.algorithms.base import OfflineAlgorithm
from brpo.config import check_config
from brpo.errors import UserError
from brpo.functional import diffusion
from brpo.training import idle_options
from brpo.types import Batch
from tests.algorithms.test_contract import state
from tests.algorithms.test_iql import constant_output
from tests.helpers import compose_config, make_algorithm, make_spec, random_batch, set_apart


def make(*overrides: str, **options: Any) -> Any:
    return make_algorithm("bdpo", *overrides, **options)


def test_pretraining_moves_the_behaviour_alone_and_the_actor_starts_from_its_average() -> None:
    bdpo = make()
    before = state(bdpo)
    bdpo.pretrain(random_batch())
    moved = {name.split(".")[0] for name, value in state(bdpo).items() if not torch.equal(value, before[name])}
    assert moved == {"behavior", "behavior_target"}
    bdpo.after_pretraining()
    after = state(bdpo)
    for part in ("actor.", "actor_target.module."):
        for name, value in bdpo.behavior_target.module.state_dict().items():
            assert torch.equal(after[part + name], value)
    assert not torch.equal(after["actor.network.network.layers.0.weight"], before["actor.network.network.layers.0.weight"])


def test_the_pathwise_kl_starts_at_zero() -> None:
    bdpo = make()
    bdpo.critic_loss(random_batch())
    assert bdpo.latest["kl/pathwise"].tolist() == [0.0]


@pytest.mark.parametrize(("steps", "shown"), [(1, 1), (5, 5), (10, 10), (15, 8), (50, 10)])
def test_ten_steps_of_the_kl_are_recorded_at_most(steps: int, shown: int) -> None:
    """The chain begins at n = N, so its last penalty is that of n = 1."""
    bdpo = make(sizes={"steps": 2, "critic_only": 0})
    bdpo.steps = steps
    bdpo.record_penalties(torch.arange(1.0, steps + 1).view(-1, 1, 1).expand(-1, 1, 3))
    assert bdpo.latest.pop("kl/pathwise").tolist() == [steps * (steps + 1) / 2]
    assert len(bdpo.latest) == shown
    assert bdpo.latest["kl/step_1"].tolist() == [steps]
    assert all(value.tolist() == [steps + 1 - int(name.removeprefix("kl/step_"))] for name, value in bdpo.latest.items())


@pytest.mark.parametrize("training", ["joint", "fixed"])
def test_actor_and_behaviour_wait(training: str) -> None:
    """Critics alone before update 3, then the others in every second update, the behaviour model unless it is fixed."""
    options = ["algo.critic_only=3", "algo.policy_delay=2", f"algo.behavior_training={training}"]
    bdpo = make(*options, sizes={"critic_only": 3})
    seen = []
    for _ in range(7):
        before = state(bdpo)
        bdpo.step(random_batch())
        seen.append({n.split(".")[0] for n, value in state(bdpo).items() if not torch.equal(value, before[n])} - {"updates"})
    critics = {"critic", "critic_target", "value", "value_target"}
    behavior = {"behavior", "behavior_target"} if training == "joint" else set()
    everything = critics | {"actor", "actor_target"} | behavior
    assert seen == [critics, critics, critics, critics, everything, critics, everything]


def test_samples_are_aggregated_by_their_mean_or_their_maximum() -> None:
    batch = random_batch()
    mean, largest = (make(f"algo.over_samples={how}", "algo.rho_lcb=0").q_target(batch) for how in ("mean", "max"))
    alive = batch.terminated == 0
    assert (largest >= mean)[alive].all()
    assert (largest > mean)[alive].any()
    assert torch.equal(largest[~alive], batch.rewards[~alive])


def test_v_and_the_actor_take_the_mean_over_samples_whatever_the_q_target_takes() -> None:
    """From n = 2 on; the step from n = 1 has no noise, and all samples of it are one."""
    batch = random_batch()
    mean, largest = (make(f"algo.over_samples={how}").one_step_back(batch, make().actor, "value") for how in ("mean", "max"))
    assert set(mean[1].flatten().tolist()) == {1, 2}
    assert torch.equal(mean[2], largest[2])


def test_the_best_candidate_is_taken_and_a_plain_sample_is_the_first() -> None:
    bdpo = make()
    observations, keys = random_batch().observations, torch.tensor([4])
    plain = bdpo.choose(observations, False, keys)
    chosen = bdpo.choose(observations, True, keys)
    q = bdpo.critic_target(observations, chosen).mean(1)
    assert not torch.equal(plain, chosen)
    bdpo.candidates = 1
    assert torch.equal(bdpo.choose(observations, True, keys), plain)
    bdpo.candidates = 0
    assert torch.equal(bdpo.choose(observations, True, keys), bdpo.actor_target.module.mode(observations))
    assert torch.equal(bdpo.choose(observations, False, keys), plain)
    bdpo.candidates = 3
    bdpo.temperature = 1e-9  # the softmax of a cold temperature is the best, that of a hot one is not
    assert torch.equal(bdpo.choose(observations, True, keys), chosen)
    bdpo.temperature = 1e9
    assert (bdpo.critic_target(observations, bdpo.choose(observations, True, keys)).mean(1) < q).any()


def test_candidates_are_compared_by_the_mean_of_the_critics_without_pessimism() -> None:
    """Q = 4 and 0 of the second candidate, 1 and 1 of the others: the larger mean, the smaller lcb."""
    bdpo, observations = make("algo.rho_lcb=1"), torch.zeros(1, 5, 3, dtype=torch.float64)
    q = torch.tensor([[1.0, 4.0, 1.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    bdpo.critic_target.forward = lambda observations, actions: q.repeat(1, 5).unsqueeze(0)
    keys = torch.tensor([4])
    candidates = OfflineAlgorithm.choose(bdpo, observations.repeat_interleave(3, dim=1), False, keys)
    assert torch.equal(bdpo.choose(observations, True, keys), candidates.unflatten(1, (-1, 3))[:, :, 1])


def test_candidates_are_drawn_by_the_softmax_of_their_q() -> None:
    """Q = 0, 0, 2 at temperature 1; of two candidates alone Gumbel noise of the wrong sign would draw the same shares."""
    bdpo, rows = make("algo.acting.temperature=1"), 4000
    q = torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64)
    bdpo.critic_target.forward = lambda observations, actions: q.repeat(rows).expand(1, 2, -1)
    observations, keys = torch.zeros(1, rows, 3, dtype=torch.float64), torch.tensor([4])
    candidates = OfflineAlgorithm.choose(bdpo, observations.repeat_interleave(3, dim=1), False, keys)
    chosen = bdpo.choose(observations, True, keys)
    drawn = (candidates.unflatten(1, (-1, 3)) == chosen.unsqueeze(2)).all(-1)
    assert drawn.double().mean((0, 1)).tolist() == pytest.approx(q.softmax(0).tolist(), abs=0.02)


def test_acting_by_fewer_steps() -> None:
    bdpo = make("algo.acting.sampler=ddim", "algo.acting.steps=1")
    assert bdpo.actor_target.module.noise_dim == 2
    assert bdpo.act(torch.zeros(1, 4, 3, dtype=torch.float64)).shape == (1, 4, 2)
    bdpo.step(random_batch())  # training takes all steps all the same
    assert "kl/step_1" in bdpo.history[0][1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo.eta=-1"], "algo.eta=-1 is not allowed; it must be at least 0"),
        (["algo.over_critics=mean"], "algo.over_critics=mean is not allowed; it must be lcb or min"),
        (["algo.samples=0"], "algo.samples=0 is not allowed; it must be a whole number >= 1"),
        (["algo.acting.steps=9"], "1 to 5 steps"),
        (["algo.acting.temperature=-1"], "algo.acting.temperature=-1"),
        (["algo.learning_rates.critic=0"], "algo.learning_rates.critic=0 is not allowed; it must be positive"),
        (["+algo.learning_rates.critics=1"], "must be a mapping from critic, value, actor, behavior"),
        (["algo.actor.noise_schedule=vq"], "Unknown noise schedule 'vq'"),
        (["algo.behavior_training=frozen"], "algo.behavior_training=frozen is not allowed; it must be joint or fixed"),
        (["algo.actor.variance_interpolation=1.5"], "variance_interpolation=1.5 is not allowed"),
    ],
)
def test_refusals(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(*overrides, sizes={"steps": 9} if "acting.steps" in overrides[0] else None)


def test_notices() -> None:
    (notice,) = make("algo/size=paper", sizes={"critic_only": 50_000}).notices()
    assert notice.startswith("algo.critic_only=50000 is not below max_updates=1000: the actor never moves; the paper takes")
    assert make().notices() == []
    joint = make("algo.pretrain_updates=0", "algo.behavior_training=joint")
    assert "behaviour model starts untrained" in joint.notices()[0]
    assert make("algo.pretrain_updates=0", "algo.behavior_training=fixed").notices() == []  # the run refuses to start


def test_options_that_others_make_idle_are_announced() -> None:
    typed = ["algo.optimizer.lr=1", "algo.rho_lcb=2", "algo.over_samples=max", "algo.acting.temperature=1"]
    bdpo = make(*typed, "algo.over_critics=min", sizes={"samples": 1, "candidates": 1})
    assert idle_options(bdpo, typed) == [
        "algo.optimizer.lr has no effect under algo.learning_rates, which has that of every part",
        "algo.over_samples has no effect under algo.samples=1",
        "algo.rho_lcb has no effect under algo.over_critics=min",
        "algo.acting.temperature has no effect under algo.acting.candidates=1",
    ]
    assert idle_options(make(*typed), typed[1:]) == []


def heldout_chain(bdpo: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    noise = bdpo.normal("heldout/chain", torch.empty(*batch.rewards.shape, 2 * bdpo.steps, dtype=torch.float64))
    return bdpo.sampled_path(batch.observations, noise)


@torch.no_grad()
def test_diagnostics_compare_values_with_what_the_chains_achieve() -> None:
    """At the start the KL is zero; values are the targets', at held-out, sampled and noised actions."""
    bdpo, batch = make(seeds=(0, 1)), random_batch(seeds=2, size=9)
    set_apart(bdpo.critic_target)
    set_apart(bdpo.value_target)
    values = bdpo.diagnose(batch)
    n, noise = bdpo.noised_heldout(batch.actions)
    noisy = diffusion.noised(batch.actions, noise, bdpo.actor.steps_at(n))
    expected = {
        "actor/kl": torch.zeros(2, 9, dtype=torch.float64),
        "q/target": bdpo.aggregate(bdpo.critic_target(batch.observations, batch.actions)),
        "q/policy": bdpo.aggregate(bdpo.critic_target(batch.observations, heldout_chain(bdpo, batch)[0])),
        "value/predicted": bdpo.aggregate(bdpo.value_target(batch.observations, noisy, n)),
        "value/gap": values["value/predicted"] - values["value/achieved"],
    }
    assert all(torch.equal(values[name], value) for name, value in expected.items())


@torch.no_grad()
def test_what_a_chain_achieves_by_hand() -> None:
    """Q is 4.5 - 2 * 0.5 everywhere: from x_n a chain gets that less eta (l_n + ... + l_1), one penalty for n = 1."""
    bdpo, batch = make("algo.rho_lcb=2", "algo.eta=0.7", sizes={"steps": 3}), random_batch(size=3)
    constant_output(bdpo.critic_target.module, 5.0, 4.0)
    set_apart(bdpo.actor_target)
    noise = bdpo.normal("chain", torch.empty(1, 3, 6, dtype=torch.float64))
    actor, behavior, schedule = bdpo.actor_target.module, bdpo.behavior_target, bdpo.actor.schedule
    achieved = bdpo.achieved(batch.observations, batch.actions, torch.tensor([[1, 2, 3]]), noise)
    for row in range(3):
        observation, noisy, drawn = (rows[:, row : row + 1] for rows in (batch.observations, batch.actions, noise))
        penalty = 0.0
        for n in range(row + 1, 0, -1):
            predicted, step = actor(observation, noisy, n), schedule.step(n)
            penalty += diffusion.step_kl(predicted, behavior(observation, noisy, n), step).item()
            own = drawn[..., 2 * (4 - n) : 2 * (5 - n)] if n > 1 else None  # x_N's, those of the steps N..2, none at 1
            noisy = actor.back(noisy, predicted, step, own)
        assert penalty > 0
        assert achieved[0, row].item() == pytest.approx(3.5 - 0.7 * penalty, rel=1e-9)


def test_values_and_their_spread_by_hand() -> None:
    """Critics 5 and 4: mean 4.5 and population std 0.5, so with rho 2 a value of 3.5."""
    bdpo, batch = make("algo.rho_lcb=2"), random_batch()
    constant_output(bdpo.critic, 5.0, 4.0)
    assert bdpo.value_estimate(batch.observations, batch.actions).tolist() == [[3.5] * 8]
    bdpo.critic_loss(batch)
    assert bdpo.latest["q/mean"].tolist() == [4.5]
    assert bdpo.latest["q/spread"].tolist() == [0.5]


def test_the_profile_of_the_penalties_on_one_step_data() -> None:
    """Where targets need no chain the held-out one shows it: the steps of a short chain add up to its KL."""
    bdpo, batch = make(spec=make_spec(one_step=True)), random_batch(size=9)
    set_apart(bdpo.actor_target)
    with torch.no_grad():
        values = bdpo.diagnose(batch)
        penalties = heldout_chain(bdpo, batch)[1]  # n = N first
    assert values["actor/kl"].min() > 0
    assert torch.equal(values["actor/kl"], penalties.sum(0))
    assert all(torch.equal(values[f"kl/step_{n}"], penalties[bdpo.steps - n]) for n in range(1, bdpo.steps + 1))
    assert not [name for name in make().diagnose(random_batch()) if name.startswith("kl/")]


def test_sizes_bring_updates_and_chunks_and_what_is_typed_wins() -> None:
    def found(*overrides: str) -> tuple[int, int, int, str]:
        config = compose_config("algo=bdpo", *overrides)
        return config["max_updates"], config["algo"]["pretrain_updates"], config["engine"]["chunk"], config["engine"]["name"]

    assert found() == (20_000, 100_000, 25, "auto")
    assert found("algo/size=paper") == (2_000_000, 2_000_000, 25, "auto")
    assert found("algo/size=paper", "dataset=toy/moons") == (100_000, 100_000, 25, "auto")
    assert found("dataset=toy/moons", "engine=compile") == (5_000, 10_000, 25, "compile")
    typed = ("max_updates=7", "algo.pretrain_updates=3", "engine=eager", "engine.chunk=2")
    assert found("algo/size=paper", *typed) == (7, 3, 2, "eager")


@pytest.mark.parametrize("size", ["small", "paper"])
def test_two_updates_of_smoke_are_of_all_parts(size: str) -> None:
    options = compose_config("algo=bdpo", f"algo/size={size}", "trainer=smoke")
    algo = options["algo"]
    assert (options["max_updates"], algo["pretrain_updates"], algo["critic_only"], algo["policy_delay"]) == (2, 2, 0, 1)
    assert compose_config("algo=bdpo", "trainer=smoke", "algo.pretrain_updates=7")["algo"]["pretrain_updates"] == 7
    assert "pretrain_updates" not in compose_config("algo=iql", "trainer=smoke")["algo"]


def test_observations_are_normalized_but_at_the_papers_sizes_and_what_is_typed_wins() -> None:
    def normalizes(*overrides: str) -> bool:
        return compose_config(*overrides)["data"]["normalize_observations"]

    assert [normalizes("algo=bdpo"), normalizes("algo=diffusion_bc"), normalizes("algo=bdpo", "algo/size=paper")] == [
        True, True, False,
    ]  # fmt: skip
    assert not normalizes("data.normalize_observations=false", "algo=bdpo")
    assert not normalizes("algo=bdpo", "dataset=toy/moons")  # whose observation is one constant
    assert normalizes("data.normalize_observations=true", "algo=bdpo", "algo/size=paper")


def test_step_sizes_by_part() -> None:
    antmaze = compose_config("algo=bdpo", "algo/size=paper", "dataset=D4RL/antmaze/umaze-v1")["algo"]
    assert (antmaze["learning_rates"]["behavior"], antmaze["critic"]["hidden"]) == (1e-4, [512] * 4)
    bdpo = make("algo/size=paper")
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in bdpo.optimizers_by_part.items()}
    assert rates == {"critic": 3e-4, "value": 3e-4, "actor": 1e-5, "behavior": 3e-4}


@pytest.mark.parametrize(
    ("dataset", "eta", "rho", "critics", "candidates", "scale"),
    [
        ("mujoco/halfcheetah/medium-v0", 0.05, 0.5, 10, 10, "return_range"),
        ("mujoco/hopper/medium-v0", 0.2, 2.0, 20, 10, "return_range"),
        ("mujoco/hopper/medium-replay-v0", 0.2, 2.0, 10, 10, "return_range"),
        ("D4RL/antmaze/umaze-diverse-v1", 0.5, 0.8, 10, 1, 100.0),
        ("D4RL/antmaze/medium-play-v1", 0.2, 0.8, 10, 10, 100.0),
        ("D4RL/antmaze/large-play-v1", 1.0, 0.8, 10, 10, 100.0),
    ],
)
def test_values_by_family(dataset: str, eta: float, rho: float, critics: int, candidates: int, scale: Any) -> None:
    config = compose_config("algo=bdpo", "algo/size=paper", f"dataset={dataset}")
    algo = config["algo"]
    found = (algo["eta"], algo["rho_lcb"], algo["critic"]["critics"], algo["acting"]["candidates"])
    assert found == (eta, rho, critics, candidates)
    assert algo["value"]["critics"] == critics
    assert config["data"]["reward_scale"] == scale


def test_sizes() -> None:
    paper, small = compose_config("algo=bdpo", "algo/size=paper")["algo"], compose_config("algo=bdpo")["algo"]
    assert (paper["samples"], paper["critic"]["critics"], paper["actor"]["hidden"]) == (10, 10, [256] * 4)
    assert (small["samples"], small["critic"]["critics"], small["actor"]["hidden"]) == (1, 4, [128] * 3)
    assert (paper["pretrain_updates"], paper["critic_only"], paper["learning_rates"]["actor"]) == (2_000_000, 50_000, 1e-5)
    assert (small["pretrain_updates"], small["critic_only"], small["learning_rates"]["actor"]) == (100_000, 10_000, 1e-4)
    assert [
        compose_config("algo=bdpo", f"dataset=mujoco/{env}/medium-v0")["algo"]["eta"] for env in ("hopper", "walker2d")
    ] == [5, 0.2]
    assert (paper["acting"]["candidates"], small["acting"]["candidates"]) == (10, 0)
    assert (paper["behavior_training"], small["behavior_training"]) == ("joint", "fixed")
    assert (paper["schedule"]["behavior"], small["schedule"]["behavior"]) == ("constant", "cosine")
    assert (paper["actor"]["noise_schedule"], small["actor"]["noise_schedule"]) == ("vp", "geometric")
    assert (paper["critic"]["layer_norm"], small["critic"]["layer_norm"]) == (False, True)
    assert small.keys() == paper.keys()
    assert small["learning_rates"].keys() == paper["learning_rates"].keys()
    assert small["critic"].keys() == paper["critic"].keys()


def test_toy_tasks_have_values_of_their_own() -> None:
    """50 steps in the source's units, no clip; temperature and rewards of the task; the behaviour model is cloning's."""
    composed = compose_config("algo=bdpo", "dataset=toy/rings", "data.eta=0.1", "eval.every=70")
    check_config(composed)
    algo, cloning = composed["algo"], compose_config("algo=diffusion_bc", "dataset=toy/rings")["algo"]
    assert (algo["eta"], algo["rho_lcb"], algo["acting"]["candidates"], composed["data"]["reward_scale"]) == (0.1, 0, 1, 1)
    assert (algo["actor"]["steps"], algo["actor"]["clip"]) == (50, None)
    assert (algo["actor"]["noise_schedule"], algo["actor"]["input_scale"]) == ("vp_toy", 4.5)
    assert (algo["value"]["input_scale"], algo["critic"]["input_scale"]) == (4.5, 4.5)
    assert algo["actor"] == cloning["actor"]
    assert (algo["actor"]["input_frequencies"], algo["samples"]) == ([1, 2, 4, 8], 8)
    assert (composed["batch_size"], composed["eval"]["every"]) == (512, 70)
    spirals = compose_config("algo=bdpo", "dataset=toy/2spirals")
    assert (spirals["batch_size"], spirals["max_updates"]) == (1024, 15_000)
    paper = compose_config("algo=bdpo", "algo/size=paper", "dataset=toy/rings")["algo"]
    assert (paper["actor"]["input_frequencies"], paper["samples"]) == ([], 10)
    plain, other = compose_config("algo=bdpo"), compose_config("algo=bc")
    actor = plain["algo"]["actor"]
    assert (actor["clip"], actor["noise_schedule"], actor["input_scale"]) == (1.0, "geometric", 1.0)
    assert (actor["input_frequencies"], plain["algo"]["samples"]) == ([], 1)
    assert all(plain[key] == other[key] for key in ("batch_size", "eval"))
    assert (plain["max_updates"], compose_config("algo=diffusion_bc")["max_updates"]) == (20_000, 50_000)


def test_paths_end_where_the_policy_acts() -> None:
    """From the noise to the action, with abar from nothing to all; V_n along them, and Q where they end."""
    bdpo = make("algo.acting.sampler=ddim", "algo.acting.steps=2", sizes={"steps": 5}, seeds=(0, 1))
    observations = random_batch(seeds=2).observations
    points, alpha_bars = bdpo.generation_paths(observations)
    assert points.shape == (2, 3, 8, 2)
    schedule = bdpo.actor.schedule
    assert alpha_bars.tolist() == pytest.approx([schedule.alpha_bars[5], schedule.alpha_bars[2], 1.0])
    assert torch.allclose(bdpo.actor_target.module.sample(observations, points[:, 0]), points[:, -1])
    values = [bdpo.generation_value(observations, points[:, k], k) for k in range(3)]
    n = torch.full((2, 8), 2)
    assert torch.allclose(values[1], bdpo.aggregate(bdpo.value_target(observations, points[:, 1], n)))
    assert torch.allclose(values[2], bdpo.aggregate(bdpo.critic_target(observations, points[:, 2])))


def test_the_actor_moves_to_where_the_reward_is() -> None:
    """Bandit, actions N(0, 0.4): the reward prefers positive ones, and the KL holds the actor near the data."""
    generator = torch.Generator().manual_seed(0)
    actions = (0.4 * torch.randn(1, 256, 1, generator=generator)).clamp(-1, 1)
    nothing = torch.zeros(1, 256, 3)
    batch = Batch(nothing, actions, actions.squeeze(-1), nothing, actions, torch.ones(1, 256))
    free = make(
        "algo.eta=0.05", "algo.rho_lcb=0", "algo.learning_rates.critic=1e-2", "algo.learning_rates.value=1e-2",
        "algo.learning_rates.actor=1e-2", "algo.learning_rates.behavior=1e-2", "algo.polyak=0.1", "algo.actor_polyak=0.1",
        "algo.behavior_polyak=0.1", "algo.policy_delay=2", spec=make_spec(action=1, one_step=True), dtype=torch.float32,
    )  # fmt: skip
    for _ in range(100):
        free.pretrain(batch)
        free.updates += 1
    free.after_pretraining()
    held = copy.deepcopy(free)
    held.configure_optimizers()
    held.eta = 100.0
    for _ in range(80):
        free.step(batch)
        held.step(batch)
    assert held.act(nothing, deterministic=False).mean().item() == pytest.approx(0.0, abs=0.1)
    assert free.act(nothing, deterministic=False).mean().item() > 0.25


def test_optimizers_of_parts_that_are_due_later_have_their_state_from_the_first_update() -> None:
    """engine=compile waits until it knows the optimizers of all parts: not for the critics' whole phase."""
    algorithm = make_algorithm("bdpo", sizes={"critic_only": 50})
    algorithm.step(random_batch())
    assert algorithm.known_optimizers()
    assert algorithm.optimizers_by_part["actor"].state[next(algorithm.actor.parameters())]["step"] == 0


def test_v_sees_the_waves_that_the_actor_sees() -> None:
    algo = compose_config("algo=bdpo", "dataset=toy/rings", "algo.actor.input_frequencies=[1,2]")["algo"]
    assert algo["value"]["input_frequencies"] == algo["actor"]["input_frequencies"] == [1, 2]
