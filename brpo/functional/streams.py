"""Counter-based random numbers: each is a function of (seed, update, purpose, position) alone.

A resumed run, a run with another chunk size and a seed trained in a group therefore meet the same numbers. It is plain
int64 tensor arithmetic, so it runs on any device and inside a CUDA graph.

Source: the SplitMix64 finalizer (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"), used as a
hash of a counter. Chaining it over the words of a key is ours; `tests/functional/test_streams.py` tests uniformity and
independence.
"""

import math
import zlib

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer."""
    return value - (1 << 64) if value >= (1 << 63) else value


_INCREMENT = _signed(0x9E3779B97F4A7C15)
_INVERSE = _signed(pow(0x9E3779B97F4A7C15, -1, 1 << 64))  # of the increment, modulo 2^64
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """Logical shift: torch's int64 shift keeps the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def splitmix64(counter: Tensor) -> Tensor:
    """Hash int64 counters to int64 bits, a bijection on 64 bits (any shape)."""
    bits = counter + _INCREMENT
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)


@torch.compiler.assume_constant_result
def purpose(name: str) -> int:
    """A number for the name of a use, so that two uses in one update draw different numbers."""
    return zlib.crc32(name.encode())


def key(seeds: Tensor, *words: Tensor | int) -> Tensor:
    """Hash seeds (int64, any shape) and further words, which broadcast against them, into keys of the joint shape."""
    result = splitmix64(seeds)
    for word in words:
        result = splitmix64(result ^ word)
    return result


def bits(keys: Tensor, count: int) -> Tensor:
    """`count` hashes for each key: (..., count), int64; those of `key + position * increment`.

    The key enters before the product: compilers for GPUs take positions for int32, and a product of them with 64-bit
    numbers would overflow.
    """
    positions = torch.arange(count, device=keys.device)
    return splitmix64((positions + (keys * _INVERSE).unsqueeze(-1)) * _INCREMENT)


def integers(keys: Tensor, count: int, high: int) -> Tensor:
    """Uniform integers in [0, high), int64, shape (..., count). The bias is below high / 2^32.

    Raises:
        ValueError: `high` is not in [1, 2^31).
    """
    if not 1 <= high < 1 << 31:
        raise ValueError(f"high must be in [1, 2^31), got {high}")
    return (_shift_right(bits(keys, count), 32) * high) >> 32


def uniform(keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers of shape (*keys.shape, *shape): in (0, 1) in float64, rounded to the type asked for."""
    return _open_uniform(keys, shape).to(dtype)


def normal(keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers of shape (*keys.shape, *shape), by inversion in float64."""
    return torch.special.ndtri(_open_uniform(keys, shape)).to(dtype)


def _open_uniform(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """52 random bits as float64, moved by half a step off zero; with 53 the largest would round to 1."""
    drawn = _shift_right(bits(keys, math.prod(shape)), 12).to(torch.float64)
    return ((drawn + 0.5) * 2.0**-52).reshape(*keys.shape, *shape)
