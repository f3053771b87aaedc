"""Records the data sets of docs/results.md: agents act in Gymnasium's environments, and Minari stores what they did.

    python benchmarks/recordings.py FOLDER               # twelve sets of 100,000 transitions: four minutes, 265 MB
    python benchmarks/recordings.py FOLDER --seed 1      # the other recordings, which options were chosen on
    python benchmarks/recordings.py FOLDER --only hopper/medium-v0 --spread 0      # what the agent does without its noise
    MINARI_DATASETS_PATH=FOLDER python benchmarks/grid.py comparison

The agents were published by DLR-RM/rl-trained-agents (MIT, benchmarks/agents/LICENSE), trained with Stable-Baselines3 in the
-v3 environments. benchmarks/agents has their actors and observation statistics as arrays; each file names its `source`.
Walker2d's PPO saw the time that was left, too: it is held at 0.75 there, within the bias.

`medium` is one agent, `expert` another, `medium-expert` half of each, `replay` a mixture of unrelated ones: no buffer of one
training. All act by sampling. Agents take turns by episodes; an episode is cut where an agent has made its transitions.

The same seed gives the same data where MuJoCo and numpy round the same; the digest of each set is compared with those of
docs/results.md. An existing set is left as it is.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import gymnasium
import minari
import mujoco
import numpy as np
import typer
from minari.data_collector import EpisodeBuffer
from rich.progress import track

from brpo.datasets import sources
from brpo.evaluation.scores import spread as scores_in_words
from brpo.exits import run_command

AGENTS = Path(__file__).with_name("agents")
KINDS = ("medium", "expert", "replay", "medium-expert")
LARGEST_LOG_STD, SMALLEST_LOG_STD = 2.0, -20.0  # of agents whose spread depends on the state


class Part(NamedTuple):
    """What one agent does in a data set.

    Attributes:
        agent: its file, or `random`: uniform actions.
        share: of the transitions, relative to the other parts.
        spread: factor on the agent's own standard deviation.
        noise: standard deviation of Gaussian noise on its action, which is clipped then.
    """

    agent: str
    share: float = 1.0
    spread: float = 1.0
    noise: float = 0.0


class Task(NamedTuple):
    """An environment, D4RL's returns of its random and its expert policy, and who acts in it."""

    environment: str
    references: tuple[float, float]
    medium: Part
    expert: Part
    replay: tuple[Part, ...]

    def parts(self, kind: str) -> tuple[Part, ...]:
        """Who acts in the data set of a kind."""
        halves = {"medium": self.medium, "expert": self.expert}
        return self.replay if kind == "replay" else tuple(halves[half] for half in kind.split("-"))


TASKS = {
    "halfcheetah": Task(
        "HalfCheetah-v5",
        (-280.178953, 12135.0),
        Part("ppo"),
        Part("tqc", spread=0.5),
        (
            Part("random", 0.10),
            Part("trpo", 0.15),
            Part("a2c", 0.15),
            Part("ars", 0.10, noise=0.2),
            Part("ppo", 0.15, noise=0.3),
            Part("sac", 0.10, noise=0.5),
            Part("ppo", 0.15),
            Part("sac", 0.10),
        ),
    ),
    "hopper": Task(
        "Hopper-v5",
        (-20.272305, 3234.3),
        Part("sac"),
        Part("trpo", spread=0.5),
        (
            Part("random", 0.10),
            Part("a2c_early", 0.10),
            Part("a2c", 0.15),
            Part("tqc", 0.15, noise=0.5),
            Part("sac", 0.15, noise=0.3),
            Part("sac", 0.15),
            Part("ars", 0.10, noise=0.3),
            Part("ppo", 0.10),
        ),
    ),
    "walker2d": Task(
        "Walker2d-v5",
        (1.629008, 4592.3),
        Part("ppo"),
        Part("tqc", spread=0.5),
        (
            Part("random", 0.10),
            Part("a2c", 0.15),
            Part("ars", 0.15, noise=0.2),
            Part("ppo", 0.15, noise=0.3),
            Part("tqc", 0.10, noise=0.5),
            Part("trpo", 0.15, spread=1.5),  # with its own spread some of its episodes are better than the expert's
            Part("ppo", 0.10),
            Part("sac", 0.10),
        ),
    ),
}
DATASETS = {f"brpo/{name}/{kind}-v0": (name, kind) for name in TASKS for kind in KINDS}
STEPS = 100_000
# Beginnings of the digests with seeds 0 (docs/results.md) and 1 (the other recordings of docs/sfac.md and docs/bdpo.md).
DIGESTS = {
    "brpo/halfcheetah/medium-v0": ("42854046bcf5", "b30fb9808194"),
    "brpo/halfcheetah/expert-v0": ("06ec0a2a8faf", "9a746c48b1ed"),
    "brpo/halfcheetah/replay-v0": ("39a410891ee8", "1d57814db5d0"),
    "brpo/halfcheetah/medium-expert-v0": ("6f8e53c93038", "b5263f7db3fd"),
    "brpo/hopper/medium-v0": ("62037af21ec7", "646e5c3c7f13"),
    "brpo/hopper/expert-v0": ("3fd5b02901a0", "bcade86446c6"),
    "brpo/hopper/replay-v0": ("2beb8d41d925", "e9e0b142dad1"),
    "brpo/hopper/medium-expert-v0": ("10723fc438cd", "ecdc2b198acd"),
    "brpo/walker2d/medium-v0": ("bedfd0d234f1", "065f8ceed25f"),
    "brpo/walker2d/expert-v0": ("3b0afdda6be4", "80da53486175"),
    "brpo/walker2d/replay-v0": ("04c45646eaf2", "cd3336fb1ac3"),
    "brpo/walker2d/medium-expert-v0": ("4b07efc93c9b", "173efdb7d2f6"),
}

Policy = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def policy(name: str, part: Part, space: gymnasium.spaces.Box) -> Policy:
    """Actions float32 (action,) within the space, for an observation float64 (observation,), by a part of a task."""
    if part.agent == "random":
        return lambda observation, rng: rng.uniform(space.low, space.high).astype(np.float32)
    with np.load(AGENTS / f"{name}-{part.agent}.npz") as file:
        agent: dict[str, Any] = dict(file)
    layers = [(agent[f"w{layer}"], agent[f"b{layer}"]) for layer in range(sum(key[0] == "w" for key in agent))]

    def activation(values: np.ndarray) -> np.ndarray:
        return np.maximum(values, 0.0) if agent["activation"] == "relu" else np.tanh(values)

    def act(observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        features, log_std = observation.astype(np.float32), agent.get("log_std")
        if "obs_mean" in agent:
            scaled = (features - agent["obs_mean"]) * (1.0 / np.sqrt(agent["obs_var"] + float(agent["obs_eps"])))
            features = scaled.clip(-float(agent["obs_clip"]), float(agent["obs_clip"]))
        for weight, bias in layers[:-1]:
            features = activation(features @ weight + bias)
        action = features @ layers[-1][0] + layers[-1][1]
        if "std_w" in agent:
            log_std = (features @ agent["std_w"] + agent["std_b"]).clip(SMALLEST_LOG_STD, LARGEST_LOG_STD)
        if log_std is not None:  # ARS has none
            action = action + part.spread * np.exp(log_std) * rng.standard_normal(action.shape)
        if agent["squash"]:
            action = np.tanh(action)
        if part.noise > 0:
            action = action + part.noise * rng.standard_normal(action.shape)
        return action.clip(space.low, space.high).astype(np.float32)

    return act


def shared_out(total: int, shares: Sequence[float]) -> np.ndarray:
    """`total` in whole numbers by shares; those with the largest remainders get what is left."""
    exact = total * np.asarray(shares) / sum(shares)
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts


def episode(env: gymnasium.Env, act: Policy, steps: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One episode of at most `steps` transitions; one that is cut there counts as truncated."""
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    observations, actions, rewards, terminations, truncations = [observation], [], [], [], []
    while len(actions) < steps and not (actions and (terminations[-1] or truncations[-1])):
        action = act(observation, rng)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        for column, value in ((actions, action), (rewards, reward), (terminations, terminated), (truncations, truncated)):
            column.append(value)
    truncations[-1] = truncations[-1] or not terminations[-1]
    return {
        "observations": np.stack(observations),
        "actions": np.stack(actions),
        "rewards": np.array(rewards, np.float64),
        "terminations": np.array(terminations, bool),
        "truncations": np.array(truncations, bool),
    }


def recorded(name: str, kind: str, steps: int, seed: int, spread: float = 1.0) -> list[dict[str, np.ndarray]]:
    """The episodes of a data set: the agent that has most of its share left goes next. `spread` multiplies all spreads."""
    task = TASKS[name]
    rng = np.random.default_rng([seed, list(TASKS).index(name), KINDS.index(kind)])
    env, parts, episodes = (
        gymnasium.make(task.environment),
        [part._replace(spread=spread * part.spread) for part in task.parts(kind)],
        [],
    )
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    policies = [policy(name, part, env.action_space) for part in parts]
    budget = shared_out(steps, [part.share for part in parts])
    left = budget.copy()
    while left.any():
        turn = int(np.argmax(left / np.maximum(budget, 1)))
        episodes.append(episode(env, policies[turn], int(left[turn]), rng))
        left[turn] -= len(episodes[-1]["actions"])
    env.close()
    return episodes


def store(dataset_id: str, episodes: list[dict[str, np.ndarray]], seed: int) -> None:
    """Write a data set to MINARI_DATASETS_PATH."""
    name, kind = DATASETS[dataset_id]
    task = TASKS[name]
    minari.create_dataset_from_buffers(
        dataset_id,
        [EpisodeBuffer(id=number, **each) for number, each in enumerate(episodes)],
        env=task.environment,
        eval_env=task.environment,
        ref_min_score=task.references[0],
        ref_max_score=task.references[1],
        algorithm_name=" + ".join(dict.fromkeys(part.agent for part in task.parts(kind))),
        author="brpo",
        author_email="none",
        code_permalink="none",
        description=f"{kind} behaviour in {task.environment}, seed {seed}: {'; '.join(map(str, task.parts(kind)))}",
    )


def quiet_mujoco(message: str) -> None:
    """Pass MuJoCo's warnings on, but for the one about Gymnasium's own models, which nobody here can act on."""
    if "settotalmass" not in message:
        typer.echo(f"MuJoCo: {message}", err=True)


def beside_known(dataset_id: str, digest: str, steps: int, seed: int) -> str:
    """What the digest is in the docs, in words; nothing where they have no such recording."""
    if steps != STEPS or seed not in (0, 1):
        return ""
    known = DIGESTS[dataset_id][seed]
    return ", as in the docs" if digest.startswith(known) else f", other than in the docs ({known})"


def main(
    folder: Path,
    seed: int = 0,
    steps: Annotated[int, typer.Option(min=1, help="Transitions of a data set.")] = STEPS,
    only: Annotated[str, typer.Option(help="Regular expression for the ids.")] = "",
    spread: Annotated[float, typer.Option(min=0.0, help="Factor on the agents' standard deviations; 0: their means.")] = 1.0,
) -> None:
    """Record what is missing in a folder, and print the score of each data set's episodes and its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["MINARI_DATASETS_PATH"] = str(folder.resolve())  # Minari 0.5.4 does not write to relative paths
    mujoco.set_mju_user_warning(quiet_mujoco)
    wanted = [dataset_id for dataset_id in DATASETS if re.search(only, dataset_id)]
    if not wanted:
        raise typer.BadParameter(f"--only {only}: no data set of that name; there are {', '.join(DATASETS)}")
    for dataset_id in track(wanted, "recording", transient=True):
        there = (folder / dataset_id).exists()
        if not there:
            store(dataset_id, recorded(*DATASETS[dataset_id], steps, seed, spread), seed)
        flat, (low, high) = sources.load(dataset_id), TASKS[DATASETS[dataset_id][0]].references
        scores = scores_in_words((100 * (flat.returns - low) / (high - low)).tolist())
        same = beside_known(dataset_id, flat.digest, steps, seed) if spread == 1.0 else ""
        name = f"{dataset_id} (there already)" if there else dataset_id
        typer.echo(f"{name}: {len(flat.lengths)} episodes, score {scores}, digest {flat.digest[:12]}{same}")


if __name__ == "__main__":
    run_command(main)
