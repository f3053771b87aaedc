import copy
import dataclasses
import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy import optimize

from brpo.errors import UserError
from brpo.functional import series, weights
from brpo.functional.divergences import DIVERGENCES, Divergence, get_divergence
from brpo.modules.divergence import SeriesDivergence
from brpo.training import idle_options
from brpo.types import Batch
from tests.algorithms.test_iql import constant_output, three_transitions
from tests.helpers import ROOT, compose_config, make_algorithm, make_spec, random_batch, set_apart


def prepared(*overrides: str):
    """Critics at 5 and 4, V at 3: every advantage is 1 before we change it."""
    sfac = make_algorithm("sfac", *overrides)
    constant_output(sfac.critic, 5.0, 4.0)
    constant_output(sfac.critic_target.module, 5.0, 4.0)
    constant_output(sfac.value, 3.0)
    return sfac


def test_it_sees_normalized_observations_unless_others_are_typed() -> None:
    assert compose_config("algo=sfac")["data"]["normalize_observations"] is True
    assert compose_config("data.normalize_observations=false", "algo=sfac")["data"]["normalize_observations"] is False
    assert compose_config("algo=sfac", "actor@algo.behavior=mixture")["algo"]["behavior"]["components"] > 1


def test_weight_by_hand() -> None:
    """Advantages 0, 1, 2 at temperature 1: e^0, e^1, e^2 over their mean, which is recorded, as is Kish's share."""
    sfac = prepared("algo.temperature=1", "algo.omega=exp")
    omega = [1.0, math.e, math.e**2]
    weight = sfac.weight(three_transitions(), torch.tensor([[3.0, 4.0, 5.0]], dtype=torch.float64))
    assert weight.tolist()[0] == pytest.approx([value / (sum(omega) / 3) for value in omega])
    assert sfac.latest["weight/mean_before_normalization"].tolist() == pytest.approx([sum(omega) / 3])
    effective = sum(omega) ** 2 / (3 * sum(value**2 for value in omega))
    assert sfac.latest["weight/effective_share"].tolist() == pytest.approx([effective])
    far_below = torch.tensor([[-997.0, -996.0, -995.0]], dtype=torch.float64)  # where every exponential is 0
    assert torch.allclose(sfac.weight(three_transitions(), far_below), weight)


def test_series_omega_by_hand() -> None:
    """Jeffreys, order 2: 1 + x/2 with x = -4, 0, 2 gives 0, 1, 2; their mean is 1."""
    sfac = prepared("algo.temperature=1", "algo.omega=series", "algo.policy_order=2")
    weight = sfac.weight(three_transitions(), torch.tensor([[-1.0, 3.0, 5.0]], dtype=torch.float64))
    assert weight.tolist()[0] == pytest.approx([0.0, 1.0, 2.0])


def test_symmetry_term_by_hand() -> None:
    """rho = 0.5, 1, 2 and w = 1: t = 2, 1, 0.5; Jeffreys to order 3 with epsilon 0.5 clips t to 1.5, 1, 0.5.

    h(1.5) = 0.125 - 0.125/3, h(1) = 0, h(0.5) = 0.125 + 0.125/3; the mean of rho h, rho = 2 continued beyond 1.8.
    """
    sfac = prepared("algo.regularizer.loss_order=3", "algo.regularizer.epsilon=0.5", "algo.max_ratio=1.8")
    log_rho = torch.tensor([[math.log(0.5), 0.0, math.log(2.0)]], dtype=torch.float64)
    value = sfac.symmetry_loss(log_rho, torch.ones_like(log_rho)).item()
    third = 0.125 / 3
    capped = 1.8 * (1 + math.log(2 / 1.8))
    assert value == pytest.approx((0.5 * (0.125 - third) + 0 + capped * (0.125 + third)) / 3)
    assert sfac.latest["ratio/clipped_share"].tolist() == pytest.approx([1 / 3])
    assert sfac.latest["ratio/above_max_share"].tolist() == pytest.approx([1 / 3])


def test_epsilon_shrinks_with_the_spread_of_the_critics_by_hand() -> None:
    """Critics 5 and 4: population std 0.5; temperature 0.5 halves epsilon 0.5 to 0.25.

    So t = 2 is clipped to 1.25 and t = 0.5 to 0.75.
    """
    sfac = prepared("algo.epsilon_schedule=spread", "algo.temperature=0.5", "algo.regularizer.epsilon=0.5")
    batch = three_transitions()
    shrink = sfac.shrink(sfac.critic_target(batch.observations, batch.actions))
    assert shrink.tolist() == [[0.5, 0.5, 0.5]]
    log_rho = torch.tensor([[math.log(0.5), 0.0, math.log(2.0)]], dtype=torch.float64)
    above, below = (u**2 / 2 - u**3 / 3 + u**4 / 4 for u in (0.25, -0.25))
    expected = (0.5 * above + 0 + 2 * below) / 3
    assert sfac.symmetry_loss(log_rho, torch.ones_like(log_rho), shrink).item() == pytest.approx(expected)
    assert sfac.latest["ratio/clipped_share"].tolist() == pytest.approx([2 / 3])
    assert prepared().shrink(torch.zeros(1, 2, 3)) is None


def test_behavior_ratio_by_hand() -> None:
    """t = rho and no outer rho: h(1.5), h(1), h(0.5) clipped from 2, 1, 0.5."""
    sfac = prepared("algo.ratio=behavior", "algo.regularizer.loss_order=3", "algo.regularizer.epsilon=0.5")
    log_rho = torch.tensor([[math.log(2.0), 0.0, math.log(0.5)]], dtype=torch.float64)
    third = 0.125 / 3
    expected = (0.125 - third + 0.125 + third) / 3
    assert sfac.symmetry_loss(log_rho, torch.ones_like(log_rho)).item() == pytest.approx(expected)


def test_gradient_of_the_symmetry_term() -> None:
    """d/d log pi = rho (h(t) - t h'(t)); clipped samples keep rho h(1 +- epsilon)."""
    sfac = prepared("algo.regularizer.loss_order=3", "algo.regularizer.epsilon=0.5")
    log_rho = torch.tensor([[math.log(0.8), math.log(0.1)]], dtype=torch.float64, requires_grad=True)
    sfac.symmetry_loss(log_rho, torch.ones_like(log_rho)).sum().backward()
    t, h = 1.25, 0.5 * 0.25**2 - 0.25**3 / 3
    slope = 0.25 - 0.25**2
    clipped = 0.1 * (0.5 * 0.25 - 0.125 / 3)
    assert log_rho.grad is not None
    assert log_rho.grad.tolist()[0] == pytest.approx([0.8 * (h - t * slope) / 2, clipped / 2])


@pytest.fixture(scope="module", params=["target", "behavior"])
def either_ratio(request: pytest.FixtureRequest):
    return prepared(f"algo.ratio={request.param}", "algo.max_ratio=2")


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("divergence", [*(n for n, d in DIVERGENCES.items() if d.smooth), "alpha:-0.5", "alpha:1.5"])
def test_policy_gradient_against_finite_differences(either_ratio: Any, divergence: str, exact: bool) -> None:
    """Through the clip, the capped ratio and the importance weight, in float64."""
    sfac, order = either_ratio, 3 if divergence in ("jensen_shannon", "gan") else 4
    sfac.regularizer = SeriesDivergence(divergence, loss_order=order, epsilon=0.7, exact=exact)
    weight = torch.tensor([[0.3, 1.0, 1.7, 2.5, 0.9]], dtype=torch.float64)
    log_rho = torch.tensor([[-0.4, 0.1, 0.3, 1.5, 0.9]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: sfac.symmetry_loss(v, weight), (log_rho,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        ["algo.ratio=behavior", "algo.regularizer.exact=true"],
        ["algo.target_divergence=jensen_shannon", "algo.policy_order=5"],
        ["algo.omega=exp"],
        *([f"actor={actor}", "algo.max_ratio=1.5"] for actor in ("gaussian", "squashed", "student_t", "mixture")),
    ],
)
def test_gradient_of_the_whole_policy_loss_against_finite_differences(options: list[str]) -> None:
    """Along random directions of the policy's parameters, on transitions of which some are clipped or beyond max_ratio."""
    sfac = make_algorithm("sfac", *options, "algo.temperature=1", "algo.symmetry_coefficient=2")
    batch, generator = random_batch(size=64), torch.Generator().manual_seed(0)
    q = sfac.critic_target(batch.observations, batch.actions).amin(1)
    parameters = list(sfac.actor.parameters())
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def move(step: float) -> float:
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(step * direction)
            return sfac.actor_loss(batch, q).item()

    move(0.3)  # away from the behaviour model
    gradients = torch.autograd.grad(sfac.actor_loss(batch, q).sum(), parameters)
    assert 0 < sfac.latest["ratio/clipped_share"].item() < 1
    slope = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))
    h = 1e-7
    ahead, behind = move(h), move(-2 * h)
    assert slope == pytest.approx((ahead - behind) / (2 * h), rel=1e-5, abs=1e-6)


def test_target_and_fit_can_have_divergences_of_their_own() -> None:
    """D_reg Jensen-Shannon to order 2, 1 + 2x at x = -1, 0, 0.5; D_opt Jeffreys to order 4."""
    sfac = prepared("algo.temperature=1", "algo.target_divergence=jensen_shannon")
    weight = sfac.weight(three_transitions(), torch.tensor([[2.0, 3.0, 3.5]], dtype=torch.float64))
    assert weight.tolist()[0] == pytest.approx([0.0, 1.0, 2.0])
    assert sfac.latest["weight/lowest_share"].tolist() == pytest.approx([1 / 3])  # 1 + 2x < 0
    assert sfac.latest["weight/clipped_share"].tolist() == [0.0]  # the branch has no upper end
    assert sfac.regularizer.coefficients[2:] == pytest.approx((1 / 2, -1 / 3, 1 / 4))
    fit = make_algorithm("sfac", "algo.divergence=alpha:0.5", "algo.regularizer.loss_order=3")  # which leaves the target
    assert (fit.regularizer.divergence.name, fit.target_divergence.name) == ("alpha:0.5", "jeffreys")


def test_targets_of_the_ablation_differ_in_more_than_a_temperature() -> None:
    """At equal slopes at 1 all target divergences have one line at order 2, and each its own curve in the ablation."""
    jobs = OmegaConf.load(ROOT / "conf" / "sweep" / "target_divergence.yaml").hydra.sweeper.params
    names, x = jobs["algo.target_divergence"].split(","), torch.tensor([-0.2, 0.3], dtype=torch.float64)
    found = {}
    for order in (2, jobs["algo.policy_order"]):
        slopes = [2 * get_divergence(name).taylor(2)[2] for name in names]  # of 1 / ratio at 1
        branches = [series.branch(get_divergence(name), order) for name in names]
        found[order] = [series.target_ratio(branch, x * slope) for branch, slope in zip(branches, slopes, strict=True)]
    assert all(torch.allclose(ratio, found[2][0]) for ratio in found[2])
    pairs = combinations(found[jobs["algo.policy_order"]], 2)
    assert not any(torch.allclose(first, second, rtol=1e-3) for first, second in pairs)


def test_clipped_share_of_exponential_weights_by_hand() -> None:
    sfac = prepared("algo.temperature=1", "algo.omega=exp", "algo.max_weight=2")
    weight = sfac.weight(three_transitions(), torch.tensor([[3.0, 3.6, 4.0]], dtype=torch.float64))  # e^0, e^0.6, e^1
    assert sfac.latest["weight/clipped_share"].tolist() == pytest.approx([1 / 3])
    assert weight.tolist()[0] == pytest.approx([3 * omega / (3 + math.exp(0.6)) for omega in (1.0, math.exp(0.6), 2.0)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["algo.target_divergence=total_variation", "algo.omega=series"], "'total_variation' is not differentiable at 1"),
        (["algo.target_divergence=chi3", "algo.omega=series"], "Unknown divergence 'chi3'. Known: "),
        (["algo.divergence=total_variation"], "'total_variation' is not differentiable at 1.* gan, alpha:NUMBER."),
        (["algo.divergence=alpha"], "The divergence 'alpha' needs a finite number, as in alpha:0.5."),
        (["algo.divergence=alpha:0.5", "algo.regularizer.epsilon=2", "algo.regularizer.loss_order=3"], "g_3 = -0.0833 is"),
    ],
)
def test_combinations_that_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_algorithm("sfac", *options)


def test_an_f_without_curvature_at_one_is_refused_as_a_target_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit needs g alone."""
    monkeypatch.setitem(DIVERGENCES, "flat", Divergence("flat", "test", lambda t: (t - 1.0) ** 4))
    sfac, batch = prepared("algo.divergence=flat"), random_batch()
    sfac.update(batch)
    assert all(values.isfinite().all() for values in sfac.state_dict().values())
    with pytest.raises(UserError, match=r"'flat' has f''\(1\) = 0, which must be positive"):
        make_algorithm("sfac", "algo.target_divergence=flat")


def test_kl_has_no_symmetry_term_and_coefficient_zero_is_advantage_regression() -> None:
    batch = random_batch()
    for overrides in (["algo.divergence=kl"], ["algo.symmetry_coefficient=0"]):
        sfac = prepared(*overrides, "algo.temperature=1")
        q = sfac.critic_target(batch.observations, batch.actions).amin(1)
        weight, log_prob = sfac.weight(batch, q), sfac.actor.log_prob(batch.observations, batch.actions)
        expected = -(weight * log_prob).mean().item()
        assert sfac.actor_loss(batch, q).item() == pytest.approx(expected)


def test_no_gradient_into_the_behaviour_model_or_the_critic() -> None:
    sfac = prepared()
    batch = random_batch()
    q = sfac.critic_target(batch.observations, batch.actions).amin(1)
    loss = sfac.actor_loss(batch, q).sum()
    for part in (sfac.behavior, sfac.critic, sfac.value):
        grads = torch.autograd.grad(loss, list(part.parameters()), retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in grads)


def test_a_series_beyond_its_radius_is_announced() -> None:
    assert make_algorithm("sfac", "algo.regularizer.epsilon=0.5").notices() == []
    (notice,) = make_algorithm("sfac", "algo.regularizer.epsilon=100").notices()
    assert "epsilon=100 is above the radius 1 of the series: it acts as a penalty" in notice


def test_an_exact_term_that_is_steep_near_0_is_announced() -> None:
    """1/t at the lower end of the clip range, which is 1e-8 from epsilon=1 on; -ln t is small there."""
    steep = ["algo.divergence=neyman_chi2", "algo.regularizer.exact=true"]
    (notice,) = make_algorithm("sfac", *steep, "algo.regularizer.epsilon=1").notices()
    assert "the exact term of neyman_chi2 is 1e+08: each weight of 0 pushes as much" in notice
    assert make_algorithm("sfac", *steep, "algo.regularizer.epsilon=0.9").notices() == []
    assert make_algorithm("sfac", "algo.regularizer.exact=true", "algo.regularizer.epsilon=1").notices() == []


@pytest.mark.parametrize("options", [("algo.divergence=le_cam", "algo.regularizer.loss_order=2"), ("algo.divergence=kl",)])
def test_a_series_of_nothing_is_announced(options: tuple[str, ...]) -> None:
    """g of kl is 0 and Le Cam's g_2 is; there is no penalty to announce then."""
    (notice,) = make_algorithm("sfac", *options, "algo.regularizer.epsilon=2").notices()
    assert "is zero: symmetry_coefficient has no effect" in notice
    assert make_algorithm("sfac", *options, "algo.regularizer.exact=true").notices() == []


def test_weights_that_end_are_announced() -> None:
    """Jeffreys to order 3 has its turning point at 5/3; even orders have none."""
    (notice,) = make_algorithm("sfac", "algo.omega=series", "algo.policy_order=3").notices()
    assert "policy_order=3 gives no ratio above 1.667: the series of jeffreys stops being convex there" in notice
    assert make_algorithm("sfac", "algo.omega=series", "algo.policy_order=4").notices() == []
    (notice,) = make_algorithm(
        "sfac", "algo.omega=series", "algo.policy_order=3", "algo.target_divergence=alpha:4"
    ).notices()
    assert "policy_order=3 gives no ratio below 0.5" in notice  # f_3'(1 + u) = u + u^2, which turns at -1/2


@pytest.mark.parametrize(
    ("overrides", "idle"),
    [
        ([], ["algo.max_weight=0.5", "algo.expectile=0.99", "algo.max_exponent=9"]),
        (["algo.omega=exp"], ["algo.policy_order=5", "algo.target_divergence=chi2"]),
        (["algo.value_loss=expectile"], ["algo.max_exponent=0.01"]),
        (["algo.value_loss=softmax"], ["algo.expectile=0.99"]),
        (["algo.regularizer.exact=true"], ["algo.regularizer.loss_order=2"]),
        (["algo.ratio=behavior"], ["algo.max_ratio=0.1"]),
        (
            ["algo.symmetry_coefficient=0"],
            ["algo.regularizer.epsilon=0.1", "algo.epsilon_schedule=spread", "algo.ratio=behavior", "algo.max_ratio=0.1"]
            + ["algo.divergence=chi2"],
        ),
    ],
)
def test_options_that_others_make_idle_change_nothing_and_are_announced(overrides: list[str], idle: list[str]) -> None:
    def trained(*options: str) -> torch.Tensor:
        sfac = make_algorithm("sfac", *overrides, *options)
        for seed in range(3):
            sfac.step(random_batch(seed=seed))
        return torch.cat([parameter.flatten() for parameter in sfac.parameters()])

    plain = trained()
    for option in idle:
        assert torch.equal(trained(option), plain), option
        said = idle_options(make_algorithm("sfac", *overrides, option), [*overrides, option])
        assert len(said) == 1
        assert all(option.startswith(notice.split(" has no effect under algo.")[0]) for notice in said)
    assert idle_options(make_algorithm("sfac", *overrides), overrides) == []


def test_a_fresh_behavior_model_is_idle_where_none_is_fitted_first() -> None:
    said = ["behavior=fresh has no effect: no behaviour model is fitted before the training"]
    assert idle_options(make_algorithm("sfac"), ["behavior=fresh"]) == said
    assert idle_options(make_algorithm("sfac", "algo.pretrain_updates=5"), ["behavior=fresh"]) == []


@pytest.mark.parametrize("behavior", ["gaussian", "squashed", "student_t", "mixture"])
@pytest.mark.parametrize("actor", ["gaussian", "squashed", "student_t", "mixture"])
def test_any_policy_beside_any_behaviour_model(actor: str, behavior: str) -> None:
    """The ratio is that of the two densities, whatever they are; both models move."""
    sfac, batch = make_algorithm("sfac", f"actor={actor}", f"actor@algo.behavior={behavior}"), random_batch()
    before = [parameter.clone() for part in (sfac.actor, sfac.behavior) for parameter in part.parameters()]
    with torch.no_grad():
        log_prob, behavior_log_prob = (
            part.log_prob(batch.observations, batch.actions) for part in (sfac.actor, sfac.behavior)
        )
        rho = sfac.diagnose(batch)["ratio/rho"]
    assert torch.allclose(rho, (log_prob - behavior_log_prob).exp())
    sfac.step(batch)
    assert all(torch.isfinite(value).all() for value in sfac.latest.values())
    after = [parameter for part in (sfac.actor, sfac.behavior) for parameter in part.parameters()]
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_a_run_shows_of_its_ratios_and_weights() -> None:
    sfac, batch = make_algorithm("sfac"), random_batch()
    sfac.step(batch)
    assert set(sfac.latest) == {
        *(f"{kind}/{part}" for kind in ("loss", "gradient_norm") for part in sfac.trained),
        "actor/regression", "actor/symmetry", "ratio/clipped_share", "ratio/above_max_share", "weight/effective_share",
        "weight/mean_before_normalization", "weight/clipped_share", "weight/lowest_share", "q/mean", "value/mean",
    }  # fmt: skip
    assert set(sfac.constants()) == {"series/remainder", "series/converges"}
    values = sfac.diagnose(batch)
    assert set(values) == {
        "actor/log_prob", "behavior/log_prob", "ratio/rho", "ratio/t", "weight/w", "q/target", "value/v",
    }  # fmt: skip
    assert torch.allclose(values["ratio/t"], values["weight/w"] / values["ratio/rho"])
    assert torch.equal(values["value/v"], sfac.value(batch.observations))


def test_the_narrowed_epsilon_is_shown() -> None:
    """epsilon / (1 + spread / temperature), its mean over the batch and for each held-out transition."""
    sfac, batch = make_algorithm("sfac", "algo.epsilon_schedule=spread", "algo.temperature=0.5"), random_batch()
    critics = sfac.critic_target(batch.observations, batch.actions)
    expected = sfac.regularizer.epsilon / (1.0 + critics.std(1, correction=0) / 0.5)
    assert torch.allclose(sfac.diagnose(batch)["series/epsilon"], expected)
    sfac.step(batch)
    assert torch.allclose(sfac.latest["series/epsilon"], expected.mean(-1))
    assert 0 < sfac.latest["series/epsilon"].item() < sfac.regularizer.epsilon


def test_value_losses_by_hand() -> None:
    """V is 3: for the soft maximum at temperature 0.5, z = 2, -2, 0, and the first of them is clipped to 1.

    e^-m (e^z - z - 1) with m = 1, the largest.
    """
    batch = three_transitions()
    q = torch.tensor([[4.0, 2.0, 3.0]], dtype=torch.float64)
    expectile = prepared("algo.value_loss=expectile", "algo.expectile=0.7")
    assert expectile.value_loss(batch, q).item() == pytest.approx((0.7 + 0.3 + 0) / 3)
    assert expectile.value_loss(batch, q + 1).item() == pytest.approx((0.7 * 4 + 0 + 0.7) / 3)  # not the mirror image
    gumbel = math.exp(-1) * (math.e - 2 + math.exp(-2) + 1 + 0) / 3
    for options in (["algo.value_loss=softmax"], ["algo.omega=exp", "algo.value_loss=normalizer"]):  # that of exp
        softmax = prepared(*options, "algo.temperature=0.5", "algo.max_exponent=1")
        assert softmax.value_loss(batch, q).item() == pytest.approx(gumbel)
        assert softmax.latest["value/clipped_share"].tolist() == pytest.approx([1 / 3])
    sample = prepared("algo.value_loss=sample")
    constant_output(sample.critic, 7.0, 6.0)  # the target's Q_min at a sampled action is 4
    assert sample.value_loss(batch, q).item() == pytest.approx(1.0)
    normalizer = prepared("algo.temperature=0.5")  # c_2 = 1, A / 2T = A
    assert normalizer.value_loss(batch, q).item() == pytest.approx(((2**2 - 1) + (0**2 - 1) + (1**2 - 1)) / 3 + 3 / 0.5)


def test_without_its_symmetry_term_the_second_order_is_sql() -> None:
    """The chi-square's and Jeffreys' second order, V as normalizer: SQL's gradient of V and, with T = alpha, its weights."""
    sfac = make_algorithm("sfac", "algo.temperature=0.7")
    sql = make_algorithm("sql", "algo.temperature=0.7")
    sql.value.load_state_dict(sfac.value.state_dict())
    batch, q = random_batch(), torch.randn(random_batch().rewards.shape)
    ours = torch.autograd.grad(sfac.value_loss(batch, q).sum(), list(sfac.value.parameters()))
    theirs = torch.autograd.grad(sql.value_loss(batch, q).sum(), list(sql.value.parameters()))
    for gradient, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(gradient, expected, atol=1e-6)
    assert torch.allclose(sfac.weight(batch, q), weights.normalize(sql.weight(batch, q)), atol=1e-6)


@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_the_normalizer_makes_the_mean_ratio_one(order: int) -> None:
    """One state, eight actions: where the loss of V is least, the unnormalized ratios have mean 1."""
    branch = series.branch(get_divergence("jeffreys"), order)
    q = torch.linspace(-1.0, 2.0, 8, dtype=torch.float64)

    def loss(value: float) -> float:
        return (series.conjugate(branch, (q - value) / 0.8) + value / 0.8).mean().item()

    value = optimize.minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded", options={"xatol": 1e-10}).x
    assert series.target_ratio(branch, (q - value) / 0.8).mean().item() == pytest.approx(1.0, abs=1e-6)


def test_critic_targets_by_hand() -> None:
    """expectile bootstraps V = 3; sample bootstraps the smaller target critic, 4. The online critics say 7 and 6."""
    batch = three_transitions()
    for value_loss, bootstrap in (("expectile", 3.0), ("sample", 4.0)):
        sfac = prepared(f"algo.value_loss={value_loss}")
        constant_output(sfac.critic, 7.0, 6.0)
        targets = (1 + 0.99 * bootstrap, 2 + 0.99 * bootstrap, 3.0)
        expected = sum((7 - y) ** 2 + (6 - y) ** 2 for y in targets) / 3
        assert sfac.critic_loss(batch).item() == pytest.approx(expected)


@pytest.mark.parametrize("value_loss", ["normalizer", "expectile", "softmax", "sample"])
def test_each_part_meets_what_the_parts_before_it_left(value_loss: str) -> None:
    """Behaviour model, V, actor, Q; V and the actor with the targets' Q of the data."""
    algorithm, reference = (make_algorithm("sfac", f"algo.value_loss={value_loss}") for _ in range(2))
    for each in (algorithm, reference):
        set_apart(each.critic_target)
    batch = random_batch()
    algorithm.step(batch)
    records = algorithm.take_records()
    critics = reference.critic_target(batch.observations, batch.actions)
    q = critics.amin(1)
    for part, loss in (
        ("behavior", lambda: reference.behavior_loss(batch)),
        ("value", lambda: reference.value_loss(batch, q)),
        ("actor", lambda: reference.actor_loss(batch, q, reference.shrink(critics))),
        ("critic", lambda: reference.critic_loss(batch)),
    ):
        value = loss()
        assert records[f"loss/{part}"] == pytest.approx(value.tolist()), part
        reference.descend(part, value)


def test_sample_asks_the_target_critics_at_the_policys_action() -> None:
    """Q of the next observation's, V of the observation's own."""
    sfac, batch = make_algorithm("sfac", "algo.value_loss=sample"), random_batch()
    seen = []
    sfac.critic_target.register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    sfac.critic_loss(batch)
    sfac.value_loss(batch, batch.rewards)
    for (observations, actions), wanted, name in zip(
        seen, (batch.next_observations, batch.observations), ("critic", "value"), strict=True
    ):
        assert torch.equal(observations, wanted)
        assert torch.equal(actions, sfac.actor.sample(wanted, sfac.normal(name, actions)))


def test_sample_weighs_by_the_online_critics() -> None:
    """By their smallest Q, which differs from the targets' by more than a constant: that would leave the weights alone."""
    sfac = make_algorithm("sfac", "algo.value_loss=sample", "algo.omega=exp", "algo.temperature=0.1")
    set_apart(sfac.critic_target)
    batch = random_batch()
    with torch.no_grad():
        advantage = sfac.critic(batch.observations, batch.actions).amin(1) - sfac.value(batch.observations)
    expected = weights.normalize(weights.clipped_exp(advantage / 0.1, 100.0))
    assert torch.allclose(sfac.weight(batch, torch.zeros_like(batch.rewards)), expected)


def bandit(sfac, actions: torch.Tensor, rewards: torch.Tensor) -> Batch:
    zeros = torch.zeros(1, len(actions), sfac.spec.observation_dim, dtype=torch.float64)
    column = actions.view(1, -1, 1)
    return Batch(zeros, column, rewards.view(1, -1), zeros, column, torch.ones(1, len(actions), dtype=torch.float64))


def test_policy_of_a_one_state_problem_is_the_weighted_fit() -> None:
    """One state, actions N(0, 0.3), reward a: pi* ∝ N(0, 0.3) exp(a / temperature) = N(0.09 / temperature, 0.3).

    Advantage regression (coefficient 0) with an exact critic recovers that mean and spread.
    """
    generator = torch.Generator().manual_seed(0)
    actions = (0.3 * torch.randn(4096, generator=generator, dtype=torch.float64)).clamp(-1, 1)
    sfac = make_algorithm(
        "sfac", "algo.symmetry_coefficient=0", "algo.omega=exp", "algo.temperature=0.5", "algo.optimizer.lr=0.02",
        "algo.schedule={}", spec=make_spec(observation=1, action=1),
    )  # fmt: skip
    batch = bandit(sfac, actions, actions)
    constant_output(sfac.value, 0.0)
    q = actions.view(1, -1)
    for _ in range(400):
        sfac.descend("actor", sfac.actor_loss(batch, q))
    mean, log_std = sfac.actor(batch.observations[:, :1])
    assert mean.item() == pytest.approx(0.18, abs=0.02)
    assert log_std.exp().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("divergence", ["jeffreys", "jensen_shannon"])
def test_fit_to_a_bimodal_target_is_the_minimum_of_the_integral(divergence: str) -> None:
    """Modes at +-0.4 of width 0.15 and w = 1: the learned mean and spread are those that scipy finds for the population
    loss `int p_D [-log pi + cap(rho) h(clip(1 / rho))]`, and lie apart from the KL fit's spread of 0.427.
    """
    order, epsilon = (4, 1.0) if divergence == "jeffreys" else (3, 0.5)
    modes = [torch.distributions.Normal(torch.tensor(m, dtype=torch.float64), 0.15) for m in (-0.4, 0.4)]

    def data_log_prob(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([mode.log_prob(x) for mode in modes]).logsumexp(0) - math.log(2)

    sfac = make_algorithm(
        "sfac", f"algo.divergence={divergence}", f"algo.regularizer.loss_order={order}",
        f"algo.regularizer.epsilon={epsilon}", "algo.max_ratio=20", "algo.symmetry_coefficient=1",
        "algo.optimizer.lr=0.01", "algo.schedule={}", spec=make_spec(observation=1, action=1),
    )  # fmt: skip

    grid = torch.linspace(-1.5, 1.5, 3001, dtype=torch.float64)

    def population_loss(parameters: np.ndarray) -> float:
        mean, log_std = parameters
        log_prob = torch.distributions.Normal(mean, math.exp(log_std)).log_prob(grid)
        log_rho = log_prob - data_log_prob(grid)
        symmetry = weights.capped_ratio(log_rho, 20.0) * sfac.regularizer((-log_rho).unsqueeze(0))[0]
        return torch.trapezoid(data_log_prob(grid).exp() * (symmetry - log_prob), grid).item()

    best = optimize.minimize(population_loss, np.array([0.0, math.log(0.4)]), method="Nelder-Mead", options={"xatol": 1e-5})

    class Mixture(torch.nn.Module):
        def log_prob(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            return data_log_prob(actions).sum(-1)

    sfac.behavior = Mixture()
    # Quantiles of the mixture are its sample: equal weights, no sampling noise.
    cumulative = torch.cumulative_trapezoid(data_log_prob(grid).exp(), grid).numpy()
    actions = torch.from_numpy(np.interp((np.arange(4000) + 0.5) / 4000, cumulative, grid[1:].numpy()))
    batch = bandit(sfac, actions, actions)
    constant_output(sfac.value, 0.0)
    for _ in range(600):
        sfac.descend("actor", sfac.actor_loss(batch, torch.zeros(1, 4000, dtype=torch.float64)))
    mean, log_std = sfac.actor(batch.observations[:, :1])
    assert (mean.item(), log_std.item()) == pytest.approx(tuple(best.x), abs=0.02)
    assert abs(math.exp(best.x[1]) - 0.427) > 0.001


def test_ratios_under_bfloat16_agree_within_a_percent() -> None:
    """At narrow policies, where means in bfloat16 would move some densities by more than 2 percent."""
    sfac = make_algorithm("sfac", dtype=torch.float32)
    sfac.behavior.load_state_dict(sfac.actor.state_dict())
    with torch.no_grad():
        for policy, shift in ((sfac.actor, 0.0), (sfac.behavior, 0.01)):
            policy.log_std.fill_(-3.0)
            policy.network.layers[-1].bias.add_(shift)
    batch = random_batch(size=500, dtype=torch.float32)
    near = sfac.actor.mode(batch.observations).detach() + 0.05 * batch.actions
    batch = dataclasses.replace(batch, actions=near)

    def rho() -> torch.Tensor:
        with torch.no_grad():
            return (sfac.log_prob(sfac.actor, batch) - sfac.log_prob(sfac.behavior, batch)).exp()

    expected = rho()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ratios = rho()
        rounded = sfac.actor.log_prob(batch.observations, batch.actions)
    assert ((ratios / expected - 1).abs() < 0.01).all()
    exact = sfac.log_prob(sfac.actor, batch)
    assert ((rounded - exact).abs() > 0.02).any()  # what is guarded against


def test_a_step_under_bfloat16_sees_the_weights_of_the_step_before() -> None:
    """Autocast keeps casts of weights for as long as it is on, which is a whole chunk of updates."""
    plain, uncached = (make_algorithm("sfac", seeds=(0, 1), dtype=torch.float32) for _ in range(2))
    for algorithm, cached in ((plain, True), (uncached, False)):
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):
            for seed in range(5):
                algorithm.step(random_batch(seeds=2, seed=seed, dtype=torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), uncached.parameters(), strict=True))


def test_a_fixed_behavior_model_is_fitted_in_the_pretraining_alone() -> None:
    algorithm = make_algorithm("sfac", "algo.behavior_training=fixed", "algo.pretrain_updates=1")
    start = copy.deepcopy(algorithm.behavior.state_dict())
    algorithm.begin_pretraining()
    algorithm.step(random_batch())
    algorithm.end_pretraining()
    assert set(algorithm.take_records()) == {"loss/behavior", "gradient_norm/behavior"}
    fitted = copy.deepcopy(algorithm.behavior.state_dict())
    assert all(not torch.equal(fitted[name], value) for name, value in start.items())
    algorithm.step(random_batch())
    assert "loss/behavior" not in algorithm.take_records()
    assert all(torch.equal(fitted[name], value) for name, value in algorithm.behavior.state_dict().items())
    with pytest.raises(UserError, match="algo.behavior_training=frozen is not allowed; it must be joint or fixed"):
        make_algorithm("sfac", "algo.behavior_training=frozen")
