"""Distances between samples of points, and drawing from re-weighted data."""

import numpy as np

PROJECTIONS = 64


def directions(count: int = PROJECTIONS) -> np.ndarray:
    """Unit vectors in the plane at even angles over half a turn, (count, 2); the other half gives the same distances."""
    angles = np.pi * (np.arange(count) + 0.5) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def sliced_wasserstein(left: np.ndarray, right: np.ndarray, projections: int = PROJECTIONS) -> float:
    """Mean over fixed directions of the Wasserstein-1 distance between the projections of two samples.

    Source: Bonneel et al. (2015), "Sliced and Radon Wasserstein barycenters of measures", section 3; even angles instead
    of random ones, and the order 1 instead of 2, are ours.

    Args:
        left: points (n, 2).
        right: as many points (n, 2). In one dimension the distance is then the mean gap of the sorted samples.
        projections: number of directions.

    Returns:
        The distance, in the unit of the points. A shift by v gives about 2/pi |v|.

    Raises:
        ValueError: the samples have other shapes.
    """
    if left.shape != right.shape or left.ndim != 2 or left.shape[1] != 2:
        raise ValueError(f"both samples must have the shape (n, 2) with one n, got {left.shape} and {right.shape}")
    along = directions(projections)
    sorted_left, sorted_right = (np.sort(points.astype(np.float64) @ along.T, axis=0) for points in (left, right))
    return float(np.abs(sorted_left - sorted_right).mean())


def tilted_weights(energies: np.ndarray, temperature: float) -> np.ndarray:
    """`exp(e_i / temperature)` over its sum, float64 (n,): `p* ~ p_data exp(energy / eta)` on the data's points."""
    exponent = energies.astype(np.float64) / temperature
    weights = np.exp(exponent - exponent.max())
    return weights / weights.sum()


def resample(weights: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Indices drawn with these weights (sum 1), one for each uniform number in (0, 1): by inversion."""
    cumulated = np.cumsum(weights)
    return np.searchsorted(cumulated / cumulated[-1], uniforms).clip(max=len(weights) - 1)
