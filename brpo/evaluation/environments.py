"""Making the environment that a data set names, without running code that the file names."""

import functools
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeGuard

import gymnasium
import numpy as np

from brpo.outside import VARIABLE, import_own
from brpo.types import goal_keys

CONTINUOUS = "a one-dimensional Box of floating-point numbers"


class EnvironmentUnavailable(RuntimeError):
    """The environment cannot be made here. Training goes on without rollouts."""


def is_continuous(actions: Any) -> TypeGuard[gymnasium.spaces.Box]:
    """Whether a space of actions can be trained on and acted in."""
    box = isinstance(actions, gymnasium.spaces.Box) and np.issubdtype(actions.dtype, np.floating)
    return box and len(actions.shape) == 1 and actions.shape[0] > 0


class FlattenGoal(gymnasium.ObservationWrapper):
    """Goal observations as one vector, joined as those of the data, see `goal_keys`."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, gymnasium.spaces.Dict)
        self.keys = goal_keys(env.observation_space.spaces)
        parts = [env.observation_space[name] for name in self.keys]
        size = sum(int(np.prod(part.shape or ())) for part in parts)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)

    def observation(self, observation: Any) -> np.ndarray:
        """Join the vectors."""
        return np.concatenate([observation[name] for name in self.keys])


@functools.cache
def _quiet_mujoco() -> None:
    """MuJoCo would print a warning about Gymnasium's own models, and write a log into the working folder."""
    if importlib.util.find_spec("mujoco") is None:
        return
    try:
        mujoco: Any = importlib.import_module("mujoco")
    except Exception:  # a wrong MUJOCO_GL, a library that is missing: an environment that needs it will say so
        return

    def forward(message: str) -> None:
        if "settotalmass" not in message:
            warnings.warn(f"MuJoCo: {message}", stacklevel=2)

    mujoco.set_mju_user_warning(forward)


def _register_optional(name: str) -> None:
    """Register the environments of gymnasium-robotics (PointMaze, AntMaze) for one that is not known without them."""
    if name not in gymnasium.registry and importlib.util.find_spec("gymnasium_robotics") is not None:
        gymnasium.register_envs(importlib.import_module("gymnasium_robotics"))


def describe(specification: str | None) -> dict[str, Any]:
    """Id and keyword arguments of an environment specification in JSON, as data sets and checkpoints hold it.

    Nothing else of it is used: its entry point and its wrappers name code.

    Raises:
        EnvironmentUnavailable: there is none, or it is not one that is made by its registered id alone.
    """
    if not specification:
        raise EnvironmentUnavailable("the data set names no environment")
    try:
        parsed = json.loads(specification)
        name, arguments = parsed["id"], dict(parsed.get("kwargs") or {})
        arguments.pop("render_mode", None)  # a window, or pictures, of the recording
        wrappers = parsed.get("additional_wrappers") or []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnvironmentUnavailable(f"the environment specification cannot be read ({error})") from error
    if not isinstance(name, str) or ":" in name:  # "module:id" would import the module
        raise EnvironmentUnavailable(
            f"the environment id {name!r} names a module to import, which is not done: "
            f"give the id alone, and name the package in the shell, {VARIABLE}=PACKAGE"
        )
    if wrappers:
        raise EnvironmentUnavailable(f"{name} was recorded under {len(wrappers)} wrapper(s), which are not rebuilt")
    files = [key for key in arguments if str(key).endswith(("file", "path", "dir"))]
    if files:
        raise EnvironmentUnavailable(f"{name} asks for files ({', '.join(files)}), which a data set may not name")
    limit = parsed.get("max_episode_steps")
    if limit is not None and not (isinstance(limit, int) and limit >= 1):
        raise EnvironmentUnavailable(f"{name} has the step limit {limit!r}; it must be a whole number of at least 1")
    return {"id": name, "kwargs": arguments, "max_episode_steps": limit}


def _cannot_be_made(name: str, error: Exception) -> EnvironmentUnavailable:
    """What an environment's own code raised; MuJoCo does where it cannot be imported with a library for rendering."""
    words = f"{name} cannot be made ({type(error).__name__}: {error})"
    backend = os.environ.get("MUJOCO_GL")
    if backend and "mujoco" not in sys.modules and importlib.util.find_spec("mujoco") is not None:
        others = "install that library or unset it" if backend == "egl" else "MUJOCO_GL=egl renders without a screen, too"
        words += f"; MuJoCo cannot load what MUJOCO_GL={backend} asks it to render with: {others}"
    return EnvironmentUnavailable(words)


def maker(
    specification: str | None, render: bool = False, sizes: tuple[int, int] | None = None
) -> Callable[[], gymnasium.Env]:
    """A function that makes the environment of a specification; `sizes` of observation and action are compared.

    Raises:
        EnvironmentUnavailable: it is not registered here, or cannot be made.
        UserError: a package that `BRPO_IMPORT` names cannot be imported.
    """
    wanted = describe(specification)
    import_own()
    try:
        _register_optional(wanted["id"])
    except Exception as error:  # whatever its simulator raises
        raise _cannot_be_made(wanted["id"], error) from error
    if wanted["id"] not in gymnasium.registry:
        raise EnvironmentUnavailable(
            f"{wanted['id']} is not registered here; install the package that has it "
            f"(gymnasium-robotics for PointMaze and AntMaze), and name one of your own in the shell, {VARIABLE}=PACKAGE"
        )

    options = {"max_episode_steps": wanted["max_episode_steps"], **wanted["kwargs"]}
    if render:
        options["render_mode"] = "rgb_array"

    def make() -> gymnasium.Env:
        _quiet_mujoco()
        import_own()  # here too: it may be called in another process
        _register_optional(wanted["id"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an environment's age is the data set's matter
            try:
                # Gymnasium's MuJoCo models have a camera that follows the body; without its name the body runs away.
                env = gymnasium.make(wanted["id"], **{"camera_name": "track", **options} if render else options)
            except TypeError:
                env = gymnasium.make(wanted["id"], **options)
        return FlattenGoal(env) if isinstance(env.observation_space, gymnasium.spaces.Dict) else env

    try:
        env = make()
        spaces = env.observation_space, env.action_space
        env.close()
    except Exception as error:  # whatever the simulator raises: training can do without it
        raise _cannot_be_made(wanted["id"], error) from error
    if not is_continuous(spaces[1]):
        raise EnvironmentUnavailable(
            f"{wanted['id']} has the action space {spaces[1]}; it must be continuous ({CONTINUOUS})"
        )
    found = tuple(int(np.prod(space.shape or ())) for space in spaces)
    if sizes is not None and found != sizes:
        raise EnvironmentUnavailable(f"{wanted['id']} has observations and actions of sizes {found}, the data {sizes}")
    return make
