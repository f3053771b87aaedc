"""Policies as files that act without brpo."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from brpo import cli, export, saved_runs
from brpo.engine.checkpoint_io import encode
from brpo.errors import UserError
from brpo.exits import exit_code_of_command
from tests.helpers import compose_config, make_algorithm, make_spec, shrink

SPEC = make_spec(
    observation=3, action=2, action_low=(-2.0, 0.0), action_high=(2.0, 0.5), observation_mean=(1.0, -3.0, 0.0),
    observation_std=(2.0, 0.1, 1.0),
)  # fmt: skip
NO_NOISE = {"candidates": 0}
OBSERVATIONS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def checkpoint(folder: Path, *overrides: str, algo: str = "sfac", **spec: Any) -> tuple[Path, np.ndarray]:
    """A run with untrained policies of two seeds, 4 and 7, and their mean actions (BDPO: no noise), (seeds, 5, action)."""
    known = make_spec(**{**SPEC.to_dict(), **spec}) if spec else SPEC
    algorithm = make_algorithm(algo, *overrides, spec=known, seeds=[4, 7], dtype=torch.float32)
    with torch.no_grad():
        for parameter in algorithm.policy.parameters():
            parameter.mul_(0.4)  # else untrained diffusion policies act at the bounds alone
    config = compose_config(f"algo={algo}", *overrides)
    shrink(config["algo"])
    config["seeds"] = [4, 7]
    path = folder / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    content = {"config": config, "spec": known.to_dict(), "updates": 3}
    path.write_bytes(encode({"state_dict": algorithm.state_dict(), "brpo": content}))
    acting = NO_NOISE if algo == "bdpo" else None
    actions = saved_runs.load_algorithm(path, acting)[0].act(torch.as_tensor(OBSERVATIONS).expand(2, -1, -1))
    return path, actions.detach().numpy()


def need_onnx() -> Any:
    """Skips where one of the packages is not here."""
    return [pytest.importorskip(name) for name in ("onnxruntime", "onnxscript", "onnx")][-1]


@pytest.mark.parametrize("ending", export.FORMATS)
@pytest.mark.parametrize(
    ("algo", "overrides"),
    [
        ("sfac", ["actor=mixture"]),
        ("iql", ["actor=squashed"]),
        ("td3_bc", []),
        ("bdpo", []),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_file_acts_as_the_policy_of_its_seed(ending: str, algo: str, overrides: list[str], tmp_path: Path) -> None:
    if ending == ".onnx":
        need_onnx()
    path, actions = checkpoint(tmp_path, *overrides, algo=algo)
    target = tmp_path / f"policy{ending}"
    found = export.export(path, target, seed=7, acting=NO_NOISE if algo == "bdpo" else None)
    assert found.difference < 1e-5
    act = export.FORMATS[ending][1](target.read_bytes())
    assert np.abs(actions[0] - actions[1]).max() > 1e-3  # the seeds differ
    np.testing.assert_allclose(act(OBSERVATIONS), actions[1], atol=1e-5)
    np.testing.assert_allclose(act(OBSERVATIONS[2:3]), actions[1][2:3], atol=1e-5)
    if ending == ".pt2":  # neither critics nor a second copy of the weights
        program = torch.export.load(target)
        units = {"observation_mean", "observation_std", "action_low", "action_high"}
        assert {name.split(".")[0] for name in program.state_dict} == {"network", *units}
        assert not [name for name, value in program.constants.items() if isinstance(value, torch.Tensor) and value.dim() > 2]


def test_rounding_leads_no_action_out_of_its_bounds() -> None:
    """In float32 -3 + (0.2 - -3) is above 0.2: a policy that is at its bound, and what is exported of it."""
    low, high = np.array([-3.0, 0.1], np.float32), np.array([0.2, 0.7], np.float32)
    spec = make_spec(action_low=tuple(low.tolist()), action_high=tuple(high.tolist()))
    algorithm = make_algorithm("iql", spec=spec, dtype=torch.float32)
    with torch.no_grad():
        for parameter in algorithm.policy.parameters():
            parameter.mul_(100.0)
    observations = torch.as_tensor(OBSERVATIONS)
    sampled = algorithm.act(observations.expand(1, -1, -1), deterministic=False)[0]
    for actions in (sampled, algorithm.act(observations.expand(1, -1, -1))[0], export.Policy(algorithm)(observations)):
        assert all(gymnasium.spaces.Box(low, high).contains(action) for action in actions.numpy())


def test_what_stands_in_the_file_and_nothing_of_ours_is_needed_to_act(tmp_path: Path) -> None:
    path, actions = checkpoint(tmp_path)
    found = export.export(path, tmp_path / "policy.pt2")
    assert {key: found.provenance[key] for key in ("algorithm", "dataset", "seed", "update", "action")} == {
        "algorithm": "SfAC", "dataset": SPEC.dataset_id, "seed": 4, "update": 3, "action": "mean",
    }  # fmt: skip
    np.save(tmp_path / "observations.npy", OBSERVATIONS)
    script = (
        "import sys, json, numpy, torch; held = {'policy.json': ''}; "
        "policy = torch.export.load('policy.pt2', extra_files=held).module(); "
        "numpy.save('actions.npy', policy(torch.as_tensor(numpy.load('observations.npy'))).detach().numpy()); "
        "assert 'brpo' not in sys.modules; print(held['policy.json'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(found.provenance))
    np.testing.assert_allclose(np.load(tmp_path / "actions.npy"), actions[0], atol=1e-5)


def test_provenance_in_onnx(tmp_path: Path) -> None:
    onnx = need_onnx()
    found = export.export(checkpoint(tmp_path)[0], tmp_path / "policy.onnx")
    model = onnx.load(tmp_path / "policy.onnx")
    assert {item.key: json.loads(item.value) for item in model.metadata_props} == json.loads(json.dumps(found.provenance))


@pytest.mark.parametrize(
    ("file", "options", "overrides", "message"),
    [
        ("policy.bin", {}, [], "policy.bin has no ending that says what to write. Allowed are .onnx and .pt2."),
        ("policy.pt2", {"seed": 5}, [], "has no seed 5. It has 4, 7."),
        ("policy.pt2", {"acting": {"candidates": 0}}, [], "has no choice of candidates"),
        ("run/checkpoints/last.ckpt/policy.pt2", {}, [], "policy.pt2 cannot be written \\(File exists: .*last.ckpt\\)"),
        ("policy.pt2", {}, ["algo.acting.candidates=3"], "acts by the best of .* samples by Q.*: --candidates 0"),
        ("policy.pt2", {"acting": {"candidates": 1}}, ["algo.acting.candidates=3"], "acts by a sample, .*: --candidates 0"),
    ],
)
def test_refusals(file: str, options: dict[str, Any], overrides: list[str], message: str, tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, *overrides, algo="bdpo" if overrides else "bc")
    with pytest.raises(UserError, match=message):
        export.export(path, tmp_path / file, **options)
    assert [item.name for item in tmp_path.iterdir()] == ["run"]


def test_toy_policies_are_sampled_ones(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, dataset_id="toy/moons")
    with pytest.raises(
        UserError, match="A policy on toy/moons acts by samples, and a file has no random numbers. Act with it in Python"
    ):
        export.export(path, tmp_path / "policy.pt2")


def test_what_acts_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, _ = export.FORMATS[".pt2"]
    monkeypatch.setitem(export.FORMATS, ".pt2", (write, lambda content: lambda o: np.zeros((len(o), 2), np.float32)))
    (tmp_path / "policy.pt2").write_text("an older one")
    with pytest.raises(UserError, match="acts otherwise than the policy: by"):
        export.export(checkpoint(tmp_path)[0], tmp_path / "policy.pt2")
    assert (tmp_path / "policy.pt2").read_text() == "an older one"


def test_onnx_without_its_packages_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"ONNX files need onnx: pip install -c constraints.txt -e '.\[onnx\]'"):
        export.export(checkpoint(tmp_path)[0], tmp_path / "policy.onnx")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = checkpoint(tmp_path, "algo.acting.candidates=3", algo="bdpo")
    target = tmp_path / "policy.pt2"
    run = str(path.parent.parent)
    monkeypatch.setattr("sys.argv", ["brpo", "export", run, str(target), "--candidates", "0", "--seed", "7"])
    assert exit_code_of_command(cli.app) == 0
    out = capsys.readouterr().out
    assert f"{target}: the mean action of BDPO on {SPEC.dataset_id}, seed 7, last.ckpt, update 3 of " in out
    assert target.exists()
    need_onnx()
    monkeypatch.setattr("sys.argv", ["brpo", "export", run, "--candidates", "0"])
    assert exit_code_of_command(cli.app) == 0
    assert (Path(run) / "policy.onnx").exists()
