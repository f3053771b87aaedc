import math

import pytest
import torch

from brpo.experiments import fit_pictures, mixture_fits, mixtures
from brpo.experiments.mixtures import Grid, Losses, Mixture, Objective, divergence_between, objectives
from brpo.functional.divergences import DIVERGENCES

LINE = mixture_fits.tasks()[0].target
GRID = Grid.cube(8.0, 81, 1)


def gaussian(mean: float, std: float) -> Mixture:
    return mixture_fits.mixture([1.0], [[mean]], [[[std**2]]])


def between(name: str, p: Mixture, q: Mixture, grid: Grid) -> float:
    return float(divergence_between(DIVERGENCES[name], p.log_density(grid.points), q.log_density(grid.points), grid))


def test_integrals_equal_closed_forms_of_two_gaussians() -> None:
    """KL both ways, Jeffreys, squared Hellinger and chi^2 of N(0.3, 0.8^2) against N(-0.2, 1)."""
    (m, s), (n, r) = (0.3, 0.8), (-0.2, 1.0)
    p, q, grid = gaussian(m, s), gaussian(n, r), Grid.cube(12.0, 601, 1)
    forward = math.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5
    backward = math.log(s / r) + (r**2 + (m - n) ** 2) / (2 * s**2) - 0.5
    overlap = math.sqrt(2 * s * r / (s**2 + r**2)) * math.exp(-0.25 * (m - n) ** 2 / (s**2 + r**2))
    squared = r**2 / (s * math.sqrt(2 * r**2 - s**2)) * math.exp((m - n) ** 2 / (2 * r**2 - s**2))  # E_q[(p/q)^2]
    expected = {"kl": forward, "reverse_kl": backward, "jeffreys": forward + backward}
    expected |= {"hellinger": 2 - 2 * overlap, "chi2": squared - 1}
    for name, value in expected.items():
        assert between(name, p, q, grid) == pytest.approx(value, abs=1e-9), name


def test_integrals_in_the_plane_equal_the_closed_form() -> None:
    """KL of two Gaussians with full covariances; the density itself against torch's."""
    a = torch.tensor([[0.5, 0.2], [0.2, 0.4]], dtype=torch.float64)
    b = torch.tensor([[0.8, -0.1], [-0.1, 0.6]], dtype=torch.float64)
    shift = torch.tensor([0.4, -0.3], dtype=torch.float64)
    p = mixture_fits.mixture([1.0], [shift.tolist()], [a.tolist()])
    q = mixture_fits.mixture([1.0], [[0.0, 0.0]], [b.tolist()])
    grid = Grid.cube(6.0, 81, 2)
    oracle = torch.distributions.MultivariateNormal(shift, a)
    assert torch.allclose(p.log_density(grid.points), oracle.log_prob(grid.points), atol=1e-9)
    value = (
        torch.trace(torch.linalg.solve(b, a)) + shift @ torch.linalg.solve(b, shift) - 2 + torch.logdet(b) - torch.logdet(a)
    )
    assert between("kl", p, q, grid) == pytest.approx(0.5 * float(value), abs=1e-9)


def test_forward_kl_matches_moments_and_reverse_kl_takes_one_mode() -> None:
    """The target: 0.6 N(-2, 0.6^2) + 0.4 N(2, 0.8^2), mean -0.4, variance 0.216 + 0.256 + 3.84."""
    chosen = [Objective(DIVERGENCES["kl"]), Objective(DIVERGENCES["reverse_kl"])]
    found, losses = mixtures.fit(LINE, chosen, GRID, components=1, updates=200, restarts=2, seed=0)
    (covering, seeking), (wide, narrow) = found.means.flatten().tolist(), found.factors.flatten().tolist()
    assert covering == pytest.approx(-0.4, abs=5e-3)  # the cube cuts the fit's tails off
    assert wide == pytest.approx(math.sqrt(0.6 * 0.36 + 0.4 * 0.64 + 3.84), abs=5e-3)
    assert seeking == pytest.approx(-2.0, abs=0.05)
    assert narrow == pytest.approx(0.6, abs=0.05)
    assert float(losses[1]) == pytest.approx(-math.log(0.6), abs=0.02)  # all of q under a mode that holds 0.6 of p


def test_the_mixture_family_recovers_the_target_under_every_objective() -> None:
    chosen = objectives([3], 1.0)
    found, _ = mixtures.fit(LINE, chosen, GRID, components=2, updates=150, restarts=2, seed=0)
    log_p, log_q = LINE.log_density(GRID.points), found.log_density(GRID.points)
    left = divergence_between(DIVERGENCES["jensen_shannon"], log_p, log_q, GRID)
    assert float(left.max()) < 1e-4, [(o.divergence.name, o.label, float(d)) for o, d in zip(chosen, left, strict=True)]


def test_truncated_losses_by_hand() -> None:
    """Jeffreys at order 3, clipped to [0.5, 1.5], against a sum written out; the clip alone; both zero at p = q."""
    p, q = GRID.normalized(LINE.log_density(GRID.points)), GRID.normalized(gaussian(-0.4, 2.0).log_density(GRID.points))
    jeffreys = DIVERGENCES["jeffreys"]
    losses = Losses([Objective(jeffreys, None, 0.5), Objective(jeffreys, 3, 0.5)], p, GRID)
    t = (p.exp() / q.exp()).clamp(0.5, 1.5)
    kl = (p.exp() * (p - q)).sum() * GRID.spacing
    clip = kl + (q.exp() * (-t.log() + t - 1)).sum() * GRID.spacing
    series = kl + (q.exp() * ((t - 1) ** 2 / 2 - (t - 1) ** 3 / 3)).sum() * GRID.spacing
    assert torch.allclose(losses(q.expand(2, -1)), torch.stack([clip, series]), atol=1e-10)
    assert torch.allclose(losses(p.expand(2, -1)), torch.zeros(2, dtype=torch.float64), atol=1e-10)


def test_objectives_are_what_each_divergence_has() -> None:
    labels = {(objective.divergence.name, objective.label) for objective in objectives(range(2, 8), 0.5)}
    assert {name for name, label in labels if label == "exact"} == set(DIVERGENCES)
    assert {label for name, label in labels if name in ("kl", "total_variation")} == {"exact"}  # g = 0; no series
    for name in ("jeffreys", "jensen_shannon", "gan", "reverse_kl"):
        assert {label for other, label in labels if other == name} == {"exact", "clipped", *"234567"}
    epsilons = {o.divergence.name: o.epsilon for o in objectives([2], 0.5) if o.order}
    assert (epsilons["jeffreys"], epsilons["jensen_shannon"]) == (0.5, 1.0)


def test_tables_and_pictures_are_complete_and_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture_fits, "ORDERS", range(2, 4))
    for task in mixture_fits.tasks():
        small = mixture_fits.Task(task.target, Grid.cube(5.0, 21, task.dimension), Grid.cube(5.0, 25, task.dimension))
        again = [
            [mixture_fits.fit_family(small, name, clip=1.0, updates=2, seed=1, also=["alpha:3"]) for name in small.families]
            for _ in range(2)
        ]
        found, other = (mixture_fits.rows(results) for results in again)
        assert found == other
        keys = {(row["family"], row["objective"], row["order"]) for row in found}
        assert len(keys) == len(found) == 2 * len(objectives(range(2, 4), 1.0, ["alpha:3"]))
        names = (*DIVERGENCES, "alpha:3")
        assert all(math.isfinite(float(row[name])) for row in found for name in ("loss", "mass", *names))
        assert mixture_fits.table(again[0]).count("| `") == 2 * len(names)
        if task.dimension == 1:
            assert fit_pictures.draw(again[0]).startswith(b"\x89PNG")
            continue
        fits = mixture_fits.fit_family(small, "gaussian", clip=1.0, updates=2, seed=1, also=["alpha:-20"])  # overflows
        assert not all(math.isfinite(float(row["loss"])) for row in mixture_fits.rows([fits]))
        assert fit_pictures.draw([fits]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("option", "value"), [("--clip", "1.5"), ("--updates", "0"), ("--also", "kl"), ("--also", "alpha:x")]
)
def test_wrong_options_are_one_line(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    from brpo.exits import exit_code_of
    from brpo.experiments.fit import app

    assert exit_code_of(lambda: app([option, value], standalone_mode=False)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    says = {"kl": "--also kl is not needed", "alpha:x": "--also: The divergence 'alpha:x' needs a finite number"}
    assert line.startswith(f"error: {says.get(value, f'{option} {value} is not allowed; it must be ')}")
