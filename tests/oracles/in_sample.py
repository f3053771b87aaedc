"""SQL, EQL and XQL from the equations of their papers, in plain numpy and float64: an oracle that shares no code with brpo.

Symbols are the papers': alpha and beta are what brpo calls temperature. m stands for the constant by which the authors' code
divides the whole loss of V, `max(max z, -1)`; no gradient flows into it, so it can be given.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Layers = list[tuple[Array, Array]]  # weight (in, out) and bias of each linear layer


def network(layers: Layers, inputs: Array) -> Array:
    """A perceptron with ReLU between the layers."""
    for weight, bias in layers[:-1]:
        inputs = np.maximum(inputs @ weight + bias, 0)
    return inputs @ layers[-1][0] + layers[-1][1]


def log_density(mean: Array, log_std: Array, actions: Array) -> Array:
    """Log-density of a Gaussian with independent dimensions."""
    z = (actions - mean) / np.exp(log_std)
    return np.sum(-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi), axis=-1)


def largest(z: Array) -> float:
    """The constant m."""
    return max(float(z.max()), -1.0)


# --- Loss of V (arXiv:2303.15810 for SQL and EQL, arXiv:2301.02328, Eq. 11, for XQL) ---------------------------------------


def sql_value_loss(q: Array, v: Array, alpha: float) -> float:
    return float(np.mean(np.where(1 + (q - v) / (2 * alpha) > 0, (1 + (q - v) / (2 * alpha)) ** 2, 0) + v / alpha))


def eql_value_loss(q: Array, v: Array, alpha: float, clip: float, m: float) -> float:
    z = np.minimum((q - v) / alpha, clip)
    return float(np.mean((np.exp(z) + v / alpha) / np.exp(m)))


def xql_value_loss(q: Array, v: Array, beta: float, clip: float, m: float) -> float:
    z = np.minimum((q - v) / beta, clip)
    return float(np.mean((np.exp(z) - z - 1) / np.exp(m)))


# --- Weight of the policy's regression, and the regression ----------------------------------------------------------------


def sql_weight(q: Array, v: Array, alpha: float) -> Array:
    return np.minimum(np.maximum(1 + (q - v) / (2 * alpha), 0), 100)


def sql_weight_of_the_code(q: Array, v: Array, alpha: float) -> Array:
    return np.clip(q - v, 0, 100)


def eql_weight(q: Array, v: Array, alpha: float) -> Array:
    return np.minimum(np.exp(10 * (q - v) / alpha), 100)


def xql_weight(q: Array, v: Array, inverse_temperature: float) -> Array:
    return np.minimum(np.exp(inverse_temperature * (q - v)), 100)


def policy_loss(weight: Array, log_prob: Array) -> float:
    return float(-np.mean(weight * log_prob))


# --- Q --------------------------------------------------------------------------------------------------------------------


def q_target(rewards: Array, terminated: Array, next_v: Array, discount: float) -> Array:
    return rewards + discount * np.where(terminated == 1, 0.0, next_v)


def squared(error: Array) -> Array:
    return error**2


def huber(error: Array, delta: float = 20.0) -> Array:
    return np.where(np.abs(error) <= delta, 0.5 * error**2, delta * (np.abs(error) - 0.5 * delta))


def finite_differences(loss, parameters: list[Array], step: float = 1e-6) -> list[Array]:
    """Central differences of `loss()` in every entry of the arrays, which it reads anew each time."""
    gradients = []
    for array in parameters:
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            above = loss()
            array[index] = kept - step
            gradient[index] = (above - loss()) / (2 * step)
            array[index] = kept
        gradients.append(gradient)
    return gradients
