"""The three products of a 256x256 layer on this processor, in turn: torch's BLAS, oneDNN, and precision `medium`.

    python benchmarks/products.py [--threads 2]

`engine.products=auto` and lower precisions go by the processor (brpo/functional/products.py); where these figures contradict
it, set `engine.products=blas` or `onednn`, and tell us.
"""

import statistics

import torch
from common import machine, seconds

from brpo.exits import run_command
from brpo.functional import products

SIZE, TENSORS = 256, 8  # several tensors, so that they are not all in the nearest cache


def main(threads: int = 1, rounds: int = 15) -> None:
    """Print medians and ratios."""
    torch.set_num_threads(threads)
    inputs, gradients, weights = (
        [torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(k)) for _ in range(TENSORS)] for k in range(3)
    )
    bias = torch.zeros(SIZE)
    kinds = {
        "relu(x W + b)": lambda k: products.relu_layer(inputs[k], weights[k], bias),
        "gradient of x": lambda k: products.input_gradient(gradients[k], weights[k]),
        "gradient of W": lambda k: products.weight_gradient(inputs[k], gradients[k]),
    }
    print(machine())
    chosen = products.use("auto")
    print(f"auto takes oneDNN for: {', '.join(name for name, taken in vars(chosen).items() if taken) or 'nothing'}")
    print(f"medium is taken as: {products.precision('medium')}")
    for kind, run in kinds.items():
        times: dict[str, list[float]] = {"blas": [], "onednn": [], "medium": []}
        for _ in range(rounds + 1):
            for name, taken in times.items():
                products.use("onednn" if name == "onednn" else "blas")
                torch.set_float32_matmul_precision("medium" if name == "medium" else "highest")
                taken.append(seconds(lambda run=run: [run(k) for k in range(TENSORS)]) / TENSORS)
        blas, *others = (1e6 * statistics.median(taken[1:]) for taken in times.values())
        ratios = "  ".join(
            f"{name} {other:4.0f} us, {blas / other:.2f} times as fast"
            for name, other in zip(("onednn", "medium"), others, strict=True)
        )
        print(f"{kind:14s}  blas {blas:4.0f} us  {ratios}")


if __name__ == "__main__":
    run_command(main)
