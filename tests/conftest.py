"""Fixtures: small data sets made on the spot, and a command-line runner. No network, no GPU, no shared files."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer

from tests.commands import Command, CommandServer

ROOT = Path(__file__).resolve().parents[1]
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # under nohup and in a shell's background; processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "GITHUB_ACTIONS"):
    os.environ.pop(name, None)  # they colour what is not a terminal
os.environ["COLUMNS"] = "200"  # tables do not depend on the terminal
torch.set_num_threads(1)  # results do not depend on the machine, and small networks gain nothing from more


def random_episode(
    rng: np.random.Generator, steps: int, *, observation: int = 3, action: int = 1, end: str = "truncated"
) -> dict[str, Any]:
    """One episode of random numbers; `end` is terminated, truncated or neither."""
    flags = np.zeros(steps, bool)
    last = flags.copy()
    last[-1:] = True
    return {
        "observations": rng.normal(size=(steps + 1, observation)),
        "actions": rng.uniform(-2, 2, size=(steps, action)).astype(np.float32),
        "rewards": rng.normal(size=steps),
        "terminations": last if end == "terminated" else flags,
        "truncations": last if end == "truncated" else flags,
    }


def write_dataset(
    root: Path,
    dataset_id: str,
    episodes: Sequence[dict[str, Any]],
    *,
    env: str | None = "Pendulum-v1",
    observation_space: gymnasium.Space | None = None,
    action_space: gymnasium.Space | None = None,
    references: tuple[float, float] | None = (-1500.0, 0.0),
) -> None:
    """Write a Minari data set below `root`."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    options: dict[str, Any] = {"env": env, "eval_env": env} if env else {}
    if references:
        options |= {"ref_min_score": references[0], "ref_max_score": references[1]}
    try:
        minari.create_dataset_from_buffers(
            dataset_id,
            [EpisodeBuffer(id=number, **episode) for number, episode in enumerate(episodes)],
            observation_space=observation_space,
            action_space=action_space,
            algorithm_name="random",
            author="tests",
            author_email="tests@example.org",
            code_permalink="none",
            **options,
        )
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tests/pendulum/tiny-v0`: 12 episodes of a random policy's shape, for Pendulum-v1."""
    root = tmp_path_factory.mktemp("minari")
    rng = np.random.default_rng(0)
    write_dataset(root, "tests/pendulum/tiny-v0", [random_episode(rng, 20) for _ in range(12)])
    return root


@pytest.fixture
def datasets(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`MINARI_DATASETS_PATH` set to `data_root`, and a network that says no at once."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(data_root))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return data_root


Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., Command]


@pytest.fixture(scope="session")
def commands() -> Iterator[CommandServer]:
    """A process that is forked for each command."""
    server = CommandServer()
    yield server
    server.close()


@pytest.fixture
def variables(data_root: Path) -> dict[str, str]:
    """The environment of a command: the data sets of the tests, and no network."""
    others = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return {**os.environ, "MINARI_DATASETS_PATH": str(data_root), **others}


@pytest.fixture
def cli(commands: CommandServer, variables: dict[str, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run `train.py` or `brpo` in a process of its own, in an empty folder, without a network."""

    def run(
        *arguments: str, program: str = "train.py", cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        streams = tmp_path_factory.mktemp("streams")
        return commands.run(program, arguments, cwd or tmp_path, {**variables, **environment}, streams)

    return run


@pytest.fixture
def start(
    commands: CommandServer, variables: dict[str, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Start:
    """Start `train.py`, as `cli` runs it, and go on."""

    def run(*arguments: str, **options: Any) -> Command:
        return commands.start("train.py", arguments, tmp_path, variables, tmp_path_factory.mktemp("streams"), **options)

    return run
