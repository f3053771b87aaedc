"""The table of divergences against TensorFlow Probability's, whose numpy substrate does without TensorFlow."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from brpo.functional.divergences import get_divergence

reason = "TensorFlow Probability is not installed; `make oracle` does that"
vi: Any = pytest.importorskip("tensorflow_probability.substrates.numpy", reason=reason, exc_type=ImportError).vi

LOG_T = np.linspace(-3.0, 3.0, 61)  # what its functions take


def amari(parameter: float) -> Callable[[np.ndarray], Any]:
    return lambda log_t: vi.amari_alpha(log_t, alpha=parameter, self_normalized=True)


def jensen_shannon(log_t: np.ndarray) -> Any:
    return vi.jensen_shannon(log_t, self_normalized=True)


ORACLES: dict[str, Callable[[np.ndarray], Any]] = {
    "kl": vi.kl_forward,
    "reverse_kl": vi.kl_reverse,
    "chi2": vi.pearson,  # its chi_square is t^2 - 1
    "hellinger": vi.squared_hellinger,
    "le_cam": vi.triangular,
    "total_variation": vi.total_variation,
    "jeffreys": lambda log_t: 2.0 * vi.jeffreys(log_t),  # it carries a factor 1/2
    "jensen_shannon": jensen_shannon,
    "gan": lambda log_t: jensen_shannon(log_t) + (1.0 - np.exp(log_t)) * np.log(2.0),  # its modified_gan is another
    "neyman_chi2": lambda log_t: 2.0 * amari(-1.0)(log_t),
    **{f"alpha:{parameter:g}": amari(parameter) for parameter in (-1.0, 0.0, 0.5, 1.0, 3.0)},
}


@pytest.mark.parametrize("name", ORACLES)
def test_f_equals_the_oracle(name: str) -> None:
    ours = get_divergence(name).f(torch.from_numpy(np.exp(LOG_T))).numpy()
    np.testing.assert_allclose(ours, ORACLES[name](LOG_T), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jeffreys", "hellinger", "alpha:0.5"])
def test_exchange_of_the_arguments_equals_the_oracles_dual(name: str) -> None:
    """`t f(1/t)`, the function of `D_f(Q || P)`."""
    t = torch.from_numpy(np.exp(LOG_T))
    dual = vi.dual_csiszar_function(LOG_T, ORACLES[name])
    np.testing.assert_allclose((t * get_divergence(name).f(1.0 / t)).numpy(), dual, rtol=1e-9, atol=1e-11)
