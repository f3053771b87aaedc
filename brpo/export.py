"""A trained policy as a file that acts without brpo: ONNX, or what PyTorch exports programs to.

It holds the mean action of one seed, in the units of the environment: normalizing and scaling are inside.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from brpo import config as configuration
from brpo import saved_runs
from brpo.algorithms.base import OfflineAlgorithm
from brpo.datasets.ids import is_toy
from brpo.errors import UserError
from brpo.evaluation import environments
from brpo.exits import disk_error
from brpo.files import write_atomically
from brpo.functional import units
from brpo.installation import install
from brpo.runs import versions

INPUT, OUTPUT = "observations", "actions"
PROVENANCE = "policy.json"  # name of the provenance in a .pt2 file; in ONNX the model's metadata hold it, key by key
TRIED = 256  # observations on which a file is compared with the policy that it was made from
TOLERANCE = 1e-4  # of the action's range
Acts = Callable[[np.ndarray], np.ndarray]


class Policy(nn.Module):
    """The mean action of an algorithm of one seed: (n, observation) to (n, action), float32, environment units.

    It takes the algorithm's network, which can no longer be trained.
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(self, algorithm: OfflineAlgorithm) -> None:
        super().__init__()
        self.network = algorithm.policy.requires_grad_(False)
        for name in ("observation_mean", "observation_std", "action_low", "action_high"):
            self.register_buffer(name, getattr(algorithm, name).clone())

    def forward(self, observations: Tensor) -> Tensor:
        """Actions for a batch of any size."""
        normalized = (observations - self.observation_mean) / self.observation_std
        return units.to_bounds(self.network.mode(normalized.unsqueeze(0)).squeeze(0), self.action_low, self.action_high)


class Exported(NamedTuple):
    """What was written.

    Attributes:
        provenance: what stands in the file.
        moment: how far the training had come, in words.
        difference: largest difference of an action entry to the policy's own, as a share of its range.
    """

    provenance: dict[str, Any]
    moment: str
    difference: float


def export(
    checkpoint: Path | str, target: Path | str, *, seed: int | None = None, acting: Mapping[str, Any] | None = None
) -> Exported:
    """Export the policy of a checkpoint, compare what was exported with the policy, and write it to a file.

    Args:
        checkpoint: of a run; of a run folder the last one.
        target: `.onnx` or `.pt2`.
        seed: one of the run's; None: its first.
        acting: options of `algo.acting` other than the run's own.

    Raises:
        UserError: the checkpoint cannot be used, the policy draws random numbers to act, the file's kind is unknown or
            cannot be written, or the file acts otherwise than the policy.
    """
    checkpoint, target = saved_runs.checkpoint_of(checkpoint, "last"), Path(target)
    if target.suffix not in FORMATS:
        raise UserError(f"{target} has no ending that says what to write. Allowed are {' and '.join(FORMATS)}.")
    write, read = FORMATS[target.suffix]
    algorithm, config = saved_runs.load_algorithm(checkpoint, acting)
    seed = configuration.seed_list(config["seeds"])[0] if seed is None else seed
    algorithm, config = saved_runs.load_algorithm(checkpoint, acting, seed)
    if is_toy(algorithm.spec.dataset_id):
        raise UserError(
            f"A policy on {algorithm.spec.dataset_id} acts by samples, and a file has no random numbers. Act with it in "
            f"Python: docs/use.md."
        )
    if (count := config["algo"].get("acting", {}).get("candidates", 0)) > 0:
        how = f"the best of {count} samples by Q" if count > 1 else "a sample"
        raise UserError(
            f"The policy of {checkpoint} acts by {how}, and a file has no random numbers. Export the action that comes out "
            f"of no noise: --candidates 0."
        )
    provenance = _provenance(algorithm, config, checkpoint, seed)
    content = write(Policy(algorithm).eval(), provenance)
    difference = _difference(algorithm, read(content))
    if not difference <= TOLERANCE:
        raise UserError(
            f"What was exported from {checkpoint} acts otherwise than the policy: by {difference:.1e} of the range of an "
            f"action, {TOLERANCE:.0e} are allowed. It was not written; please report this."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({disk_error(error)}).") from error
    return Exported(provenance, saved_runs.moment(algorithm, checkpoint), difference)


def _provenance(algorithm: OfflineAlgorithm, config: dict[str, Any], checkpoint: Path, seed: int) -> dict[str, Any]:
    spec, environment = algorithm.spec, None
    with contextlib.suppress(environments.EnvironmentUnavailable):  # logged data may have none
        environment = environments.describe(spec.environment)["id"]
    run, commit = saved_runs.folder_of(checkpoint), None
    with contextlib.suppress(UserError, KeyError):  # a run that has not ended has no result
        commit = run.read_result()["git"]
    return {
        "algorithm": type(algorithm).__name__,
        "dataset": spec.dataset_id,
        "digest": spec.digest,
        "environment": environment,
        "seed": seed,
        "update": algorithm.update_count,
        "run": run.path.name,
        "git": commit,
        "checkpoint": checkpoint.name,
        "action": "mean",
        "acting": config["algo"].get("acting", {}),
        "observation_dim": spec.observation_dim,
        "action_low": list(spec.action_low),
        "action_high": list(spec.action_high),
        "versions": versions(),
    }


@torch.no_grad()
def _difference(algorithm: OfflineAlgorithm, act: Acts) -> float:
    """On normal observations in the network's units, in one batch and the first one alone."""
    spec, generator = algorithm.spec, np.random.default_rng(0)
    drawn = generator.standard_normal((TRIED, spec.observation_dim)).astype(np.float32)
    observations = drawn * algorithm.observation_std.numpy() + algorithm.observation_mean.numpy()
    expected = algorithm.act(torch.as_tensor(observations).unsqueeze(0))[0].numpy()
    width = np.subtract(spec.action_high, spec.action_low)
    found = np.abs(act(observations) - expected) / width, np.abs(act(observations[:1]) - expected[:1]) / width
    return float(max(part.max() for part in found))


# --- The formats ------------------------------------------------------------------------------------------------------


def _program(policy: Policy) -> torch.export.ExportedProgram:
    example = policy.observation_mean.expand(2, -1).clone()
    with torch.no_grad():
        return torch.export.export(policy, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("n")}}, strict=False)


def _write_program(policy: Policy, provenance: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.export.save(_program(policy), file, extra_files={PROVENANCE: json.dumps(provenance)})
    return file.getvalue()


def _read_program(content: bytes) -> Acts:
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda observations: module(torch.as_tensor(observations)).numpy()


def _write_onnx(policy: Policy, provenance: dict[str, Any]) -> bytes:
    _need_onnx()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names the packages that it could do more with
    program = _program(policy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own ways
        model = torch.onnx.export(program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False)
    assert model is not None
    model.model.metadata_props.update({key: json.dumps(value) for key, value in provenance.items()})
    return model.model_proto.SerializeToString()


def _read_onnx(content: bytes) -> Acts:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda observations: np.asarray(session.run([OUTPUT], {INPUT: observations})[0])


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX files need {error.name}: {install('[onnx]')}. Or write a .pt2 file.") from error


FORMATS: dict[str, tuple[Callable[[Policy, dict[str, Any]], bytes], Callable[[bytes], Acts]]] = {
    ".onnx": (_write_onnx, _read_onnx),
    ".pt2": (_write_program, _read_program),
}
