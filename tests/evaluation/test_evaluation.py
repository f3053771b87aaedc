import dataclasses
import importlib
import json
import os
import signal
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from brpo.evaluation import environments, rollout, scores
from brpo.evaluation.processes import ProcessEnvs
from brpo.evaluation.rollout import Rollouts


class Countdown(gymnasium.Env):
    """Reward 1 a step, ends after as many steps as the reset's seed says; the observation is the step.

    Reset without a seed, as it restarts by itself, it pays NaN.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.left, self.step_number = (seed if seed is not None else 99), 0
        self.reward = 1.0 if seed is not None else np.nan
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        self.step_number += 1
        terminated = self.left == 0 and self.step_number % 2 == 0
        return np.full(1, float(self.step_number)), self.reward, terminated, self.left == 0 and not terminated, {}


def test_rollouts_count_first_episodes_only_and_share_their_starts() -> None:
    """Episodes of 3, 4 and 5 steps for each of two policies; environments that are done do not add rewards."""
    rollouts = Rollouts(Countdown, seeds=2, episodes=3, seed=3)
    seen: list[int] = []

    def act(observations: np.ndarray, step: int) -> np.ndarray:
        assert observations.shape == (2, 3, 1)
        seen.append(step)
        return np.zeros((2, 3, 1), np.float32)

    episodes = rollouts.run(act, discount=0.5)
    assert episodes.returns.tolist() == [[3, 4, 5], [3, 4, 5]]
    assert episodes.lengths.tolist() == [[3, 4, 5], [3, 4, 5]]
    assert seen == [0, 1, 2, 3, 4]
    # a reward of 1 in each step: 1 + 1/2 + 1/4
    assert episodes.discounted[0].tolist() == episodes.discounts[0].tolist() == pytest.approx([1.75, 1.875, 1.9375])
    assert episodes.last_observations.tolist() == [[[3], [4], [5]]] * 2
    assert episodes.following.tolist() == [[1 / 8, 0, 1 / 32]] * 2  # an even number of steps terminates, others are cut off
    assert rollouts.run(act).returns.tolist() == episodes.returns.tolist()  # the next evaluation starts alike
    rollouts.close()


def test_environments_that_are_done_are_left_alone() -> None:
    """Until the slowest ends; and none of those that have no episode."""
    stepped: list[int] = []

    class Counted(Countdown):
        def step(self, action: Any) -> Any:
            assert self.left > 0
            stepped.append(self.left)
            return super().step(action)

    rollouts = Rollouts(Counted, seeds=2, episodes=3, seed=3)
    rollouts.run(lambda observations, step: np.zeros((2, 3, 1), np.float32))
    rollouts.close()
    assert len(stepped) == 2 * (3 + 4 + 5)


def test_many_episodes_run_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven of two policies in four environments: the same episodes as in fourteen, and no step's number comes twice."""

    def run(most: int) -> tuple[rollout.Episodes, list[int], int]:
        monkeypatch.setattr(rollout, "MOST", most)
        rollouts, steps = Rollouts(Countdown, seeds=2, episodes=7, seed=3), []

        def act(observations: np.ndarray, step: int) -> np.ndarray:
            assert observations.shape == (2, rollouts.at_once, 1)
            steps.append(step)
            return observations.astype(np.float32)

        found = rollouts.run(act, discount=0.5)
        rollouts.close()
        return found, steps, len(rollouts.envs.envs)  # pyright: ignore

    (all_at_once, _, fourteen), (some, steps, four) = run(512), run(5)
    assert (fourteen, four) == (14, 4)
    for field in dataclasses.fields(some):
        assert np.array_equal(getattr(some, field.name), getattr(all_at_once, field.name)), field.name
    assert some.lengths.tolist() == [[3, 4, 5, 6, 7, 8, 9]] * 2
    assert len(set(steps)) == len(steps) == 4 + 6 + 8 + 9


class Failing(Countdown):
    def step(self, action: Any) -> Any:
        raise ValueError("out of order")


def test_processes_roll_out_as_one() -> None:
    """Five environments in two processes: the same episodes; an error comes through; nothing is left behind."""

    def act(observations: np.ndarray, step: int) -> np.ndarray:
        return observations.astype(np.float32)

    episodes = {}
    for processes in (1, 2):
        rollouts = Rollouts(Countdown, seeds=1, episodes=5, seed=3, processes=processes)
        episodes[processes] = [rollouts.run(act, discount=0.9) for _ in range(2)]
        started = list(getattr(rollouts.envs, "processes", []))
        rollouts.close()
        assert not any(process.is_alive() for process in started)
    for one, two in zip(episodes[1], episodes[2], strict=True):
        for field in dataclasses.fields(one):
            assert np.array_equal(getattr(one, field.name), getattr(two, field.name)), field.name
    failing = Rollouts(Failing, seeds=1, episodes=2, processes=2)
    with pytest.raises(RuntimeError, match="an evaluation environment failed: ValueError: out of order"):
        failing.run(act)
    failing.close()


def test_a_process_that_failed_at_its_start_says_why() -> None:
    """Minutes before it is asked for the first time; its connection is closed by then."""

    def make() -> gymnasium.Env:
        raise LookupError("no such simulator")

    envs = ProcessEnvs(make, 2, 1)
    for process in envs.processes:
        process.join()
    with pytest.raises(RuntimeError, match="an evaluation environment failed: LookupError: no such simulator"):
        for _ in range(2):  # the first request may still find room in the pipe
            envs.reset([0, 1])
    envs.close()


def test_a_process_that_died_since_its_last_answer_is_named() -> None:
    envs = ProcessEnvs(Countdown, 2, 1)
    envs.reset([0, 1])
    envs.processes[0].kill()
    envs.processes[0].join()
    with pytest.raises(RuntimeError, match="a process with evaluation environments has ended"):
        for _ in range(2):  # the first request may still find room in the pipe
            envs.reset([0, 1])
    envs.close()


def test_processes_outlive_a_signal_that_reaches_all() -> None:
    """As SLURM sends it, in the middle of an evaluation: the leading process gives it up in order."""
    envs = ProcessEnvs(Countdown, 2, 1)
    envs.reset([3, 3])
    for process in envs.processes:
        os.kill(process.pid, signal.SIGTERM)
    assert envs.step(np.zeros((2, 1), np.float32), np.array([True, False]))[0].tolist() == [[1.0], [0.0]]
    started = list(envs.processes)
    envs.close()
    assert not any(process.is_alive() for process in started)


@pytest.mark.parametrize(("environments", "cores", "processes"), [(10, 2, 1), (4, 64, 1), (10, 8, 2), (160, 16, 15)])
def test_processes_where_there_are_cores_for_them(environments: int, cores: int, processes: int) -> None:
    assert rollout.useful_processes(environments, cores) == processes


def test_normalized_score_by_hand() -> None:
    assert scores.normalized(np.array([10.0, 60.0]), 10.0, 110.0).tolist() == [0.0, 50.0]  # pyright: ignore
    assert scores.normalized(np.array([10.0]), None, None) is None


def test_spread_by_hand() -> None:
    """An environment may pay NaN."""
    assert scores.spread([1.0, 3.0, 8.0], 2) == "4.00 ± 2.94"  # sqrt((9 + 1 + 16) / 3)
    assert scores.spread([3.0, float("nan")]) == "nan ± nan"
    assert (scores.spread([2.25]), scores.spread([])) == ("2.2", "")


def test_cvar_by_hand() -> None:
    """The worst tenth of 20 episodes is two; of 5 episodes one."""
    assert scores.cvar(np.arange(20.0)[None]).tolist() == [0.5]
    assert scores.cvar(np.array([[5.0, 3.0, 9.0, 1.0, 2.0]])).tolist() == [1.0]
    assert scores.cvar(np.arange(10.0)) == 0.0
    assert np.isnan(scores.cvar(np.array([[1.0, np.nan], [1.0, 2.0]]))).tolist() == [True, False]


def spec(**values: Any) -> str:
    return json.dumps({"id": "Pendulum-v1", "entry_point": None, "kwargs": {}, "additional_wrappers": [], **values})


def test_environment_is_made_by_its_registered_id() -> None:
    env = environments.maker(spec(kwargs={"g": 5.0, "render_mode": "human"}, max_episode_steps=7))()
    assert env.unwrapped.g == 5.0  # type: ignore[attr-defined]
    assert env.spec is not None
    assert env.spec.max_episode_steps == 7
    env.close()


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        (None, "names no environment"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (spec(id="os:system"), "names a module to import"),
        (spec(id=3), "names a module to import"),
        (spec(id="NoSuchEnv-v0"), "NoSuchEnv-v0 is not registered here"),
        (spec(id="CartPole-v1"), r"CartPole-v1 has the action space Discrete\(2\); it must be continuous"),
        (spec(additional_wrappers=[{"name": "x", "entry_point": "os:system", "kwargs": {}}]), "wrapper"),
        (spec(kwargs={"no_such_argument": 1}), "cannot be made"),
        (spec(kwargs={"xml_file": "/etc/passwd"}), "asks for files"),
        (spec(max_episode_steps=-1), "the step limit -1"),
    ],
)
def test_unavailable_environments(specification: str | None, message: str) -> None:
    with pytest.raises(environments.EnvironmentUnavailable, match=message):
        environments.maker(specification)


def test_a_simulator_that_cannot_be_imported_takes_its_own_environments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MuJoCo with a MUJOCO_GL that it does not know, or whose library is missing: Pendulum needs none."""

    real, needing_it = importlib.import_module, ("mujoco", "gymnasium_robotics")

    def import_module(name: str, package: str | None = None) -> Any:
        if name in needing_it:
            raise RuntimeError("invalid value for environment variable MUJOCO_GL: foo")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in needing_it)
    environments._quiet_mujoco.cache_clear()
    environments.maker(spec())().close()
    with pytest.raises(
        environments.EnvironmentUnavailable, match="cannot be made .RuntimeError: invalid value .* MUJOCO_GL: foo"
    ):
        environments.maker('{"id": "AntMaze_UMaze-v4"}')
    environments._quiet_mujoco.cache_clear()


@pytest.mark.parametrize(
    ("backend", "advice"),
    [("osmesa", "MUJOCO_GL=egl renders without a screen, too"), ("egl", "install that library or unset it"), (None, "")],
)
def test_a_library_for_rendering_that_is_missing_is_named(
    backend: str | None, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where MuJoCo finds no OSMesa: PyOpenGL's words name neither it nor the variable."""

    def make(*_: Any, **__: Any) -> Any:
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    if backend:
        monkeypatch.setenv("MUJOCO_GL", backend)
    monkeypatch.setattr(gymnasium, "make", make)
    monkeypatch.setattr(environments, "_quiet_mujoco", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "mujoco")
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    with pytest.raises(environments.EnvironmentUnavailable) as caught:
        environments.maker(spec())
    asked = f"; MuJoCo cannot load what MUJOCO_GL={backend} asks it to render with: {advice}" if backend else ""
    assert str(caught.value).endswith(
        f"cannot be made (AttributeError: 'NoneType' object has no attribute 'glGetError'){asked}"
    )


def test_an_environment_of_other_sizes_is_unavailable() -> None:
    environments.maker(spec(), sizes=(3, 1))
    with pytest.raises(environments.EnvironmentUnavailable, match=r"of sizes \(3, 1\), the data \(5, 1\)"):
        environments.maker(spec(), sizes=(5, 1))


def test_an_episode_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "MAX_STEPS", 7)
    rollouts = Rollouts(Countdown, seeds=1, episodes=1, seed=1000)
    episodes = rollouts.run(lambda observations, step: np.zeros((1, 1, 1), np.float32), discount=0.5)
    assert (episodes.lengths.tolist(), episodes.following.tolist()) == ([[7]], [[1 / 128]])
    rollouts.close()


def test_entry_point_of_a_file_is_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    """A file may claim any code as its entry point; the registered one is made."""
    env = environments.maker(spec(entry_point="builtins:print", kwargs={}))()
    assert type(env.unwrapped).__name__ == "PendulumEnv"
    assert capsys.readouterr().out == ""
    env.close()


def test_goal_observations_are_flattened_as_the_data_are() -> None:
    class Goal(gymnasium.Env):
        box = gymnasium.spaces.Box(-1, 1, (2,), np.float64)
        observation_space = gymnasium.spaces.Dict({"observation": box, "desired_goal": box, "achieved_goal": box})
        action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return {
                "observation": np.array([1.0, 2]),
                "desired_goal": np.array([3.0, 4]),
                "achieved_goal": np.full(2, 9.0),
            }, {}

    env = environments.FlattenGoal(Goal())
    assert env.reset()[0].tolist() == [1, 2, 9, 9, 3, 4]
    assert env.observation_space.shape == (6,)
