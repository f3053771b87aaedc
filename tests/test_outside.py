"""Code outside the clone, named by BRPO_IMPORT: an algorithm, the one of docs/extending.md, and an environment."""

import re
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from brpo import config
from brpo.code import of_classes
from brpo.errors import UserError
from brpo.evaluation import environments
from brpo.outside import import_own
from tests.conftest import ROOT, Run, random_episode, write_dataset

REGISTER = (
    "gymnasium.register('OwnPendulum-v0', entry_point='gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=20)"
)


def recipe() -> tuple[str, str]:
    """The class and the options on the page."""
    text = (ROOT / "docs" / "extending.md").read_text()
    (code,), (options,) = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("python", "yaml"))
    return code, options


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package `research`, which registers an environment, and with options of its algorithm."""
    root, (code, options) = tmp_path_factory.mktemp("outside"), recipe()
    (root / "research").mkdir()
    (root / "research" / "__init__.py").write_text(f"import gymnasium\n{REGISTER}\n")
    (root / "research" / "cql.py").write_text(f"import os\n{code}")
    (root / "conf" / "algo").mkdir(parents=True)
    small = options.replace("brpo.algorithms.cql", "research.cql").replace("[256, 256]", "[16, 16]")
    (root / "conf" / "algo" / "cqlout.yaml").write_text(small)
    return root


def test_train_resume_and_evaluate(outside: Path, cli: Run, tmp_path: Path, data_root: Path) -> None:
    exec(REGISTER, {"gymnasium": gymnasium})
    try:
        episodes = [random_episode(np.random.default_rng(0), 20) for _ in range(4)]
        write_dataset(data_root, "tests/helper-v0", episodes, env="OwnPendulum-v0")
    finally:
        del gymnasium.registry["OwnPendulum-v0"]
    named = {"PYTHONPATH": str(outside), "BRPO_IMPORT": "research"}
    conf = ["--config-dir", str(outside / "conf")]
    options = [*conf, "algo=cqlout", "dataset=tests/helper-v0", "trainer=smoke", "run_dir=run", "eval.processes=2"]

    refused = cli(*options, PYTHONPATH=str(outside))
    assert refused.returncode == 2
    assert "only classes of brpo and torch.optim are built from files" in refused.stderr
    assert "BRPO_IMPORT=PACKAGE (docs/extending.md, 'Outside the clone')" in refused.stderr

    trained = cli(*options, "eval.episodes=2", **named)
    assert trained.returncode == 0, trained.stderr
    assert "final: return -" in trained.stdout
    forgotten = cli("resume=run", "max_updates=4", **named)
    assert forgotten.returncode == 2
    assert "A run that was started with --config-dir wants it again." in forgotten.stderr
    resumed = cli(*conf, "resume=run", "max_updates=4", **named)
    assert resumed.returncode == 0, resumed.stderr
    assert "from update 2" in resumed.stdout

    evaluated = cli("evaluate", "run", "--episodes", "1", program="brpo", **named)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "CQL on tests/helper-v0" in evaluated.stdout
    refused = cli("evaluate", "run", program="brpo", PYTHONPATH=str(outside))
    assert refused.returncode == 2
    assert "those of packages that BRPO_IMPORT names in the shell" in refused.stderr
    missing = cli("evaluate", "run", program="brpo", BRPO_IMPORT="nothing_here")
    assert missing.returncode == 2
    (line,) = missing.stderr.splitlines()
    assert line.startswith("error: BRPO_IMPORT=nothing_here: nothing_here cannot be imported (ModuleNotFoundError")


@pytest.fixture
def importable(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(outside))
    monkeypatch.setenv("BRPO_IMPORT", " research, ")
    yield outside
    gymnasium.registry.pop("OwnPendulum-v0", None)
    for name in ("research", "research.cql"):
        sys.modules.pop(name, None)


def test_what_files_may_name(importable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes of the named packages, not what they import, and nothing that begins alike."""
    config.check_trusted({"_target_": "research.cql.CQL"})
    (importable / "researchers.py").write_text("class Mine: ...")
    (importable / "research" / "broken.py").write_text("raise RuntimeError('two\\nlines')")
    for target in ("research.cql.os.system", "research.cql.losses", "researchers.Mine", "subprocess.Popen"):
        with pytest.raises(UserError, match="only classes of brpo and torch.optim are built from files, and those of"):
            config.check_trusted({"_target_": target})
    with pytest.raises(UserError, match=r"It cannot be imported: two lines\.$"):
        config.check_trusted({"_target_": "research.broken.Mine"})
    monkeypatch.delenv("BRPO_IMPORT")
    with pytest.raises(config.Untrusted, match="BRPO_IMPORT"):
        config.check_trusted({"_target_": "research.cql.CQL"})


def test_the_code_of_outside_classes_is_hashed(importable: Path) -> None:
    """Where such an algorithm is pre-trained, another text of it takes no model of the earlier one."""
    from research.cql import CQL  # pyright: ignore[reportMissingImports]

    unknown = type("Unknown", (), {"__module__": "nowhere"})
    assert of_classes([CQL]) not in (of_classes([unknown]), of_classes([CQL.__mro__[1]]))


def test_an_environment_of_a_named_package_is_made(importable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specification = '{"id": "OwnPendulum-v0"}'
    with monkeypatch.context() as patch:
        patch.delenv("BRPO_IMPORT")
        with pytest.raises(environments.EnvironmentUnavailable, match="not registered here.* BRPO_IMPORT=PACKAGE"):
            environments.maker(specification)
    environments.maker(specification, sizes=(3, 1))().close()
    with pytest.raises(environments.EnvironmentUnavailable, match=r"give the id alone, and name .* BRPO_IMPORT=PACKAGE"):
        environments.maker('{"id": "research:OwnPendulum-v0"}')
    monkeypatch.setenv("BRPO_IMPORT", "research,nothing_here")
    with pytest.raises(UserError, match="^BRPO_IMPORT=research,nothing_here: nothing_here cannot be imported"):
        environments.maker(specification)


def test_unset_it_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRPO_IMPORT", raising=False)
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(name))
    import_own()
