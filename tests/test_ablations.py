"""The sweeps of conf/sweep: every job of every file is a training that can be made, and a sweep ends with a report."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from brpo import launch
from brpo.config import check_config, register_resolvers, to_plain
from brpo.errors import UserError
from brpo.runs import RunFolder
from brpo.sweeps import callback as sweeps
from brpo.sweeps import plan
from brpo.sweeps.folder import Job, Status, SweepFolder
from brpo.training import make_algorithm
from tests.helpers import ROOT, make_spec, shrink
from tests.reports.fabricated import make_run

SWEEPS = sorted(path.stem for path in (ROOT / "conf" / "sweep").glob("*.yaml"))


@pytest.mark.parametrize("name", SWEEPS)
def test_every_job_can_be_trained(name: str) -> None:
    """The file holds overrides alone: what a job was told says all of it, and its run can be continued without the file."""
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=[f"+sweep={name}"], return_hydra_config=True)
        assert str(config.hydra.launcher["_target_"]).endswith("JoblibLauncher")  # as without the file
        assert to_plain(config) == to_plain(compose("train"))
        jobs = plan.planned_jobs(config)
        assert 1 < len(jobs) < 12 and len({tuple(job) for job in jobs}) == len(jobs)
        for job in jobs:
            plain = to_plain(compose("train", overrides=job))
            check_config(plain)
            shrink(plain["algo"])
            make_algorithm(plain["algo"], make_spec(), seeds=[0], max_updates=10)


def test_the_run_of_a_job_can_be_continued(tmp_path: Path) -> None:
    register_resolvers()
    folder = RunFolder(tmp_path)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["algo=sfac", "algo.temperature=5", "+sweep=temperature", "max_updates=10"]
        folder.create(to_plain(compose("train", overrides=overrides)), overrides)
        config, kept = launch._continued_config(folder, ["max_updates=20"])
    assert kept == ["algo=sfac", "algo.temperature=5", "max_updates=10", "max_updates=20"]
    assert (config["algo"]["temperature"], config["max_updates"]) == (5, 20)


def test_another_algorithm_for_a_run_is_refused_with_what_it_has(tmp_path: Path) -> None:
    register_resolvers()
    folder = RunFolder(tmp_path)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["algo=sfac", "algo.pretrain_updates=2"]
        folder.create(to_plain(compose("train", overrides=overrides)), overrides)
        with pytest.raises(
            UserError, match="was started with: algo=sfac algo.pretrain_updates=2.*algo=iql.*may change only"
        ):
            launch._continued_config(folder, ["algo=iql"])


def test_a_run_with_a_group_of_its_algorithm_can_be_continued(tmp_path: Path) -> None:
    """`algo/size=paper` is an option of `algo`; the group of another part of the program is still refused."""
    register_resolvers()
    folder, overrides = RunFolder(tmp_path), ["algo=bdpo", "algo/size=paper"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = to_plain(compose("train", overrides=overrides))
        folder.create(composed, overrides)
        assert launch._continued_config(folder, ["resume=here"]) == (composed, overrides)
        folder.create(composed, ["hydra/launcher=basic"])
        with pytest.raises(UserError, match="holds the override 'hydra/launcher=basic'"):
            launch._continued_config(folder, [])


def test_a_run_keeps_the_defaults_that_it_was_started_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Sf-AC's runs of raw observations; what is typed counts, and options that the run lacks are today's."""
    register_resolvers()
    folder, overrides = RunFolder(tmp_path), ["algo=sfac", "seeds=[3]"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        stored = to_plain(compose("train", overrides=overrides))
        stored["data"]["normalize_observations"] = False
        stored["algo"]["temperature"], stored["run_dir"] = 3.0, "elsewhere"
        del stored["algo"]["max_ratio"]
        folder.create(stored, overrides)
        stored["max_updates"], stored["eval"]["every"] = 7, 3
        folder.create(stored, overrides)
        config, _ = launch._continued_config(folder, ["algo.temperature=2", "max_updates=30000", "eval.every=5000"])
    assert (config["data"]["normalize_observations"], config["algo"]["temperature"]) == (False, 2)
    assert (config["max_updates"], config["eval"]["every"]) == (30_000, 5_000)  # typed, though they are today's defaults
    assert (config["algo"]["max_ratio"], config["run_dir"], config["seeds"]) == (20.0, None, [3])
    says = "note: data.normalize_observations=False, as the run was started; today's default is True\n"
    assert capsys.readouterr().out == says


def test_a_resumed_run_keeps_its_length_unless_another_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    """As one with `algo/size=paper`, which had 30,000 updates before that file brought the paper's number."""
    config: dict[str, Any] = {"max_updates": 2_000_000}
    launch._keep_the_length(config, {"max_updates": 30_000}, ["algo/size=paper", "max_updates=2000000"])
    assert (config["max_updates"], capsys.readouterr().out) == (2_000_000, "")
    launch._keep_the_length(config, {"max_updates": 30_000}, ["algo/size=paper"])
    assert config["max_updates"] == 30_000
    assert capsys.readouterr().out == "note: max_updates=30000, as the run was started; today's default is 2000000\n"


def sweep_of_two(tmp_path: Path, **second: object) -> SweepFolder:
    folder = SweepFolder(tmp_path / "sweep")
    folder.create([["algo.temperature=1"], ["algo.temperature=3"]], [])
    for number, options in enumerate([{"temperature": 1.0}, {"temperature": 3.0, **second}]):
        make_run(tmp_path / str(number), {0: [1.0 + number], 1: [2.0 + number]}, algo="sfac", **options)  # type: ignore
        folder.write(Job(number, [], "sfac", "tests/one-v0", Status.done, run_dir=f"../{number}"))
    return folder


def test_a_sweep_ends_with_a_picture_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep_of_two(tmp_path)
    assert sweeps.Sweep(folder, folder.read_plan()[0], local=True).close(0) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| sfac temperature=3 | 2.5 ± 0.5 |" in lines
    assert lines[-3:] == [f"report: {folder.report}/report.md", "2 of 2 jobs done", f"brpo collect {folder.path}"]
    assert {"report.md", "curves.png", "scores.csv"} <= {path.name for path in folder.report.iterdir()}


def test_jobs_that_cannot_be_compared_are_no_failed_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep_of_two(tmp_path, digest="b" * 64)
    assert sweeps.Sweep(folder, folder.read_plan()[0], local=True).close(0) == 0
    assert "no report: tests/one-v0 stands for two data sets" in capsys.readouterr().err


def test_a_sweep_without_a_result_ends_without_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep_of_two(tmp_path)
    for number in (0, 1):
        (tmp_path / str(number) / "result.json").unlink()
    assert sweeps.Sweep(folder, folder.read_plan()[0], local=True).close(0) == 0
    assert "no report: No run is finished" in capsys.readouterr().err
