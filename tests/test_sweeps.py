"""Sweeps: what is decided beforehand, devices, records, how a sweep ends, and the table of its results."""

import contextlib
import csv
import errno
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import joblib
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from brpo import cli as commands
from brpo.config import register_resolvers
from brpo.errors import UserError
from brpo.sweeps import callback as sweeps
from brpo.sweeps import collect, plan
from brpo.sweeps import job as sweep_job
from brpo.sweeps.folder import Job, Status, SweepFolder, claim_device
from tests.commands import Command
from tests.conftest import ROOT, Run, Start
from tests.test_train import PATIENCE, wait_for

TINY = ["dataset=tests/pendulum/tiny-v0", "batch_size=16", "algo.actor.hidden=[16,16]"]


def composed(*overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=[], return_hydra_config=True)
    config.hydra.overrides.task = list(overrides)
    return OmegaConf.merge(config, OmegaConf.from_dotlist([o for o in overrides if "," not in o]))  # type: ignore


# --- Before the jobs --------------------------------------------------------------------------------------------------


def test_planned_jobs_are_those_that_hydra_makes() -> None:
    jobs = plan.planned_jobs(composed("algo=bc,iql", "seeds=[0],[1]", "max_updates=3"))
    assert jobs == [
        ["algo=bc", "seeds=[0]", "max_updates=3"],
        ["algo=bc", "seeds=[1]", "max_updates=3"],
        ["algo=iql", "seeds=[0]", "max_updates=3"],
        ["algo=iql", "seeds=[1]", "max_updates=3"],
    ]
    assert plan.planned_jobs(composed("algo=glob(*)")) == []  # Hydra alone knows what that is


def test_what_was_typed_is_resolved_by_each_job_and_what_stands_in_a_file_by_hydra() -> None:
    config = composed("algo=bc", "seeds=[0],[1]", "run_dir=x/${seeds}/${algo._target_}")
    jobs = plan.planned_jobs(config)
    assert jobs == [["algo=bc", f"seeds=[{seed}]", "run_dir=x/${seeds}/${algo._target_}"] for seed in (0, 1)]
    sweeps._refuse_misunderstandings(jobs)
    config.hydra.overrides.task = ["algo=bc"]
    config.hydra.sweeper.params = {"batch_size": "1,2", "run_dir": "x/${batch_size}"}
    jobs = plan.planned_jobs(config)
    assert jobs == [[f"batch_size={size}", "run_dir=x/256", "algo=bc"] for size in (1, 2)]
    with pytest.raises(UserError, match="run_dir=x/256 would be the folder of several jobs"):
        sweeps._refuse_misunderstandings(jobs)


@pytest.mark.parametrize(
    "accelerator, devices, cores, threads, environment, jobs, expected",
    [
        ("auto", ["0", "1"], 16, None, None, 8, 2),  # a job for each GPU
        ("cpu", ["0", "1"], 16, None, None, 8, 8),  # never more than there are jobs
        ("cpu", [], 4, None, None, 8, 4),
        ("auto", [], 16, 4, None, 8, 4),
        ("auto", [], 16, None, "8", 8, 2),
        ("auto", [], 2, 4, None, 8, 1),  # more threads than cores: one at a time
        ("auto", [], 4, "nonsense", None, 8, 4),  # the job refuses it
    ],
)
def test_jobs_at_a_time(
    accelerator: str,
    devices: list[str],
    cores: int,
    threads: Any,
    environment: str | None,
    jobs: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    monkeypatch.setattr(plan, "visible_devices", lambda: devices)
    monkeypatch.setattr(joblib, "cpu_count", lambda: cores)
    config = composed(f"seeds={','.join(f'[{seed}]' for seed in range(jobs))}")
    config.trainer.accelerator, config.engine.threads = accelerator, threads
    assert config.hydra.launcher.n_jobs == expected  # through the resolver


def test_jobs_that_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plan.AT_A_TIME, raising=False)
    assert plan.jobs_at_a_time() == 1
    monkeypatch.setenv(plan.AT_A_TIME, "3")  # by the process that leads the sweep
    assert plan.jobs_at_a_time() == 3


def test_visible_devices_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert plan.visible_devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8a")
    assert plan.visible_devices() == ["3", "GPU-8a"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert plan.visible_devices() == []


def test_single_run_composes_without_a_launcher_plugin() -> None:
    """Nothing of Joblib is imported until a sweep starts."""
    program = (
        "import sys; sys.argv = ['train.py', '--cfg', 'job']; import runpy\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([name for name in ('joblib', 'torch', 'ray', 'submitit') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


# --- Devices ----------------------------------------------------------------------------------------------------------


def test_no_device_is_shared_while_another_idles(tmp_path: Path) -> None:
    devices = ["0", "MIG-x/1"]
    claims = [claim_device(tmp_path, devices) for _ in range(3)]
    assert [name for name, _ in claims] == ["0", "MIG-x/1", "0"]  # the third has to share
    claims[1][1].close()
    assert claim_device(tmp_path, devices)[0] == "MIG-x/1"


def test_devices_are_taken_in_turn_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert [claim_device(tmp_path, ["0", "1"], turn)[0] for turn in range(3)] == ["0", "1", "0"]
    assert "has no locks (No locks available); device 1 by its turn" in capsys.readouterr().out


def test_a_worker_keeps_its_first_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SweepFolder(tmp_path)
    folder.create([["a=1"]], ["4", "5"])
    _, other = claim_device(tmp_path, ["4", "5"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setattr(sweep_job, "_claim", None)
    sweep_job._pin(folder, 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    other.close()
    sweep_job._pin(folder, 2)  # its next job
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


# --- Records and the end ----------------------------------------------------------------------------------------------


def sweep_of(tmp_path: Path, *jobs: Job, planned: int) -> SweepFolder:
    folder = SweepFolder(tmp_path / "sweep")
    folder.create([["algo=bc", f"seeds=[{number}]"] for number in range(planned)], [])
    for job in jobs:
        folder.write(job)
    return folder


def job(number: int, status: Status, **fields: Any) -> Job:
    return Job(number, ["algo=bc", f"seeds=[{number}]"], "bc", "tests/pendulum/tiny-v0", status, **fields)


def test_the_end_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        job(0, Status.done),
        job(1, Status.failed, error="it broke"),
        job(2, Status.interrupted),
        job(3, Status.running),
    ]
    folder = sweep_of(tmp_path, *records, planned=6)
    code = sweeps.Sweep(folder, folder.read_plan()[0], local=True).close(0)
    out, err = capsys.readouterr()
    assert code == 2
    *lines, last = err.splitlines()
    assert last.startswith("no report: No run is finished")  # the job that is done has no run here
    assert lines == [
        "job 1 failed (algo=bc seeds=[1]): it broke",
        "job 2 interrupted (algo=bc seeds=[2])",
        "job 3 not finished (algo=bc seeds=[3])",
        "2 jobs not started",
        "The same command with resume=auto goes on with what is missing.",
    ]
    assert out.splitlines() == ["1 of 6 jobs done", f"brpo collect {folder.path}"]


def test_only_a_cluster_goes_on_without_the_leading_process() -> None:
    for launcher in ("local", "basic"):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            hydra = compose("train", overrides=[f"hydra/launcher={launcher}"], return_hydra_config=True).hydra
        assert plan.ends_with_its_leader(hydra)
    hydra.launcher = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"}
    assert not plan.ends_with_its_leader(hydra)


def test_exit_code_of_a_sweep(tmp_path: Path) -> None:
    folder = sweep_of(tmp_path, job(0, Status.done), planned=1)
    sweep = sweeps.Sweep(folder, folder.read_plan()[0], local=True)
    assert sweep.close(0) == 0
    assert sweep.close(130) == 130
    folder.write(job(0, Status.failed, error="diverged: at update 3", exit_code=3))
    assert sweep.close(0) == 2
    sweep.interrupted = True
    assert sweep.close(0) == 130


def test_a_signal_reaches_a_job_of_this_process_and_those_of_others(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    folder = sweep_of(tmp_path, job(0, Status.running, pid=other.pid), planned=2)
    sweep = sweeps.Sweep(folder, folder.read_plan()[0], local=True)
    sweep._stop(signal.SIGINT, None)
    assert other.wait(timeout=60) == -signal.SIGTERM
    assert (sweep.interrupted, folder.stopped.exists()) == (True, True)
    folder.write(job(0, Status.running, pid=os.getpid()))
    with pytest.raises(KeyboardInterrupt):
        sweep._stop(signal.SIGINT, None)


@pytest.mark.parametrize("error", [UserError("wrong"), SystemExit(1), KeyError("k"), RuntimeError("several\nlines")])
def test_no_error_leaves_a_job(error: BaseException, tmp_path: Path) -> None:
    folder = sweep_of(tmp_path, planned=1)

    def run(on_folder: Any) -> None:
        on_folder(tmp_path / "runs" / "one")
        raise error

    sweep_job._recorded(folder, job(0, Status.running), run, debug=False)
    (record,) = folder.read()
    assert (record.status, record.run_dir) == ("failed", "../runs/one")
    assert folder.run_folder(record) == tmp_path / "runs" / "one"
    assert record.exit_code == (2 if isinstance(error, UserError) else 1)
    assert record.error is not None and "\n" not in record.error


@pytest.mark.parametrize("typed", [0, "foo", 1.5, True, None])
def test_a_number_of_jobs_that_is_none(typed: Any) -> None:
    with pytest.raises(UserError, match=f"hydra.launcher.n_jobs={typed} is not allowed; it must be a whole number other"):
        sweeps._refuse_number_of_jobs(typed)
    sweeps._refuse_number_of_jobs(-1)


def test_resume_auto_is_refused_where_jobs_share_a_run() -> None:
    automatic = [["algo=bc", f"max_updates={n}", "resume=auto"] for n in (1, 2)]
    with pytest.raises(UserError, match="resume=auto cannot tell the runs of this sweep apart"):
        sweeps._refuse_twins(automatic)
    sweeps._refuse_twins([[*item, f"run_dir=r{n}"] for n, item in enumerate(automatic)])
    sweeps._refuse_twins([["algo=bc", "resume=auto"], ["algo=iql", "resume=auto"]])
    sweeps._refuse_twins([item[:2] for item in automatic])


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([["+sweep=epsilon"], ["+sweep=temperature"]], r"\+sweep=epsilon,temperature would vary nothing"),
        ([["seeds=1"], ["seeds=2"]], r"write 'seeds=\[1\],\[2\]'; for all of them in every job 'seeds=\[1,2\]'"),
        ([["algo=bc", "run_dir=x"], ["algo=iql", "run_dir=x"]], "run_dir=x would be the folder of several jobs"),
        ([["+sweep=epsilon", "seeds=3", "algo=bc"], ["+sweep=epsilon", "seeds=3", "algo=iql"]], None),
        ([["seeds=[1]", "run_dir=x/${seeds}"], ["seeds=[2]", "run_dir=x/${seeds}"]], None),
        ([["seeds=[1]", "run_dir=null"], ["seeds=[2]", "run_dir=null"]], None),
    ],
)
def test_what_hydra_understands_otherwise_is_refused(jobs: list[list[str]], message: str | None) -> None:
    if message is None:
        sweeps._refuse_misunderstandings(jobs)
        return
    with pytest.raises(UserError, match=message):
        sweeps._refuse_misunderstandings(jobs)


def test_an_older_sweep_in_the_same_folder_is_forgotten(tmp_path: Path) -> None:
    folder = sweep_of(tmp_path, job(0, Status.done), planned=2)
    folder.stopped.touch()
    (folder.jobs / "notes.txt").touch()
    folder.create([["algo=iql"]], [])
    assert (folder.jobs / "notes.txt").exists()  # not ours
    assert (folder.read(), folder.stopped.exists(), folder.read_plan()) == ([], False, ([["algo=iql"]], []))


@pytest.mark.parametrize("launcher, extra", [("slurm", "[slurm]"), ("ray_cluster", "[ray]")])
def test_a_missing_plugin_names_what_to_install(launcher: str, extra: str, cli: Run) -> None:
    module = {"slurm": "hydra_submitit_launcher", "ray_cluster": "hydra_ray_launcher"}[launcher]
    if importlib.util.find_spec(f"hydra_plugins.{module}"):
        pytest.skip("the plugin is installed")
    result = cli("-m", *TINY, f"hydra/launcher={launcher}", "seeds=[0],[1]")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "is not installed: pip install" in line and extra in line


# --- The table --------------------------------------------------------------------------------------------------------


def result(algo: str, seeds: list[int], final: list[float], digest: str = "a" * 64, scored: bool = True) -> dict[str, Any]:
    numbers = {"return": [10 * value for value in final], "score": final if scored else None}
    return {
        "algo": algo,
        "dataset": {"id": "tests/pendulum/tiny-v0", "digest": digest},
        "seeds": seeds,
        "updates": 100,
        "final": numbers,
        "best": numbers,
        "auc": numbers,
        "evaluation": {"mode": "mean", "episodes": 3},
        "updates_per_second": 50.0,
    }


def finished(folder: SweepFolder, number: int, content: dict[str, Any]) -> None:
    run = folder.path.parent / "runs" / str(number)
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(content))
    folder.write(job(number, Status.done, run_dir=os.path.relpath(run, folder.path)))


def test_a_sweep_without_jobs_has_no_table(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    folder.create([], [])
    with pytest.raises(UserError, match="has started yet"):
        collect.collect(folder)


def test_rows_and_csv(tmp_path: Path) -> None:
    folder = sweep_of(tmp_path, job(2, Status.failed, error="it [broke]"), planned=4)
    finished(folder, 0, result("bc", [3, 7], [20.0, 10.0]))
    finished(folder, 1, result("bc", [1], [4.0], scored=False))
    rows = collect.collect(folder)
    assert [row.status for row in rows] == ["done", "done", "failed: it [broke]", "not started"]
    assert collect.cells(rows[0], {})[4:10] == ("3,7", "15.0 ± 5.0", "15.0 ± 5.0", "15.0 ± 5.0", "7: 10.0", "50")
    assert (rows[1].metric, collect.cells(rows[1], {})[5]) == ("return", "40.0")
    collect.write_table(folder.table, rows)
    table = list(csv.DictReader(folder.table.open()))
    assert [line["status"] for line in table] == [row.status for row in rows]
    assert (table[0]["final_mean"], table[0]["final_std"], table[0]["worst_seed"]) == ("15.0", "5.0", "7")
    assert (table[1]["metric"], table[3]["overrides"], table[3]["final_mean"]) == ("return", "seeds=[3]", "")


def test_rows_of_other_data_are_marked(tmp_path: Path) -> None:
    folder = sweep_of(tmp_path, planned=2)
    finished(folder, 0, result("bc", [0], [20.0]))
    finished(folder, 1, result("bc", [1], [90.0], digest="b" * 64))
    rows = collect.collect(folder)
    ambiguous = collect.several_digests(rows)
    assert ambiguous == {"tests/pendulum/tiny-v0": ["a" * 64, "b" * 64]}
    assert collect.cells(rows[1], ambiguous)[2] == f"tests/pendulum/tiny-v0 ({'b' * 12})"
    assert any("different contents" in note for note in collect.notes(rows, ambiguous))


def test_a_run_that_was_continued_on_its_own_counts(tmp_path: Path) -> None:
    folder = sweep_of(tmp_path, planned=1)
    finished(folder, 0, result("bc", [0], [20.0]))
    (record,) = folder.read()
    folder.write(record.but(status=Status.interrupted))
    assert collect.collect(folder)[0].status == "done"
    folder.write(record.but(status=Status.failed, error="killed"))
    assert collect.collect(folder)[0].status == "failed: killed"  # the result is of before
    later = (folder.jobs / "0.json").stat().st_mtime_ns + 1
    os.utime(tmp_path / "runs" / "0" / "result.json", ns=(later, later))
    assert collect.collect(folder)[0].status == "done"
    (tmp_path / "runs" / "0" / "result.json").write_text("{}")
    os.utime(tmp_path / "runs" / "0" / "result.json", ns=(later, later))
    with pytest.raises(UserError, match="is not a result file of ours"):
        collect.collect(folder)


@pytest.mark.parametrize("width", [60, 200])
def test_the_terminal_shows_every_job(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "console", Console(width=width))
    folder = sweep_of(tmp_path, job(1, Status.failed, error="it [broke]"), planned=3)
    finished(folder, 0, result("bc", [3, 7], [20.0, 10.0]))
    commands.collect_sweep(folder.path)
    out = capsys.readouterr().out
    assert "15.0 ± 5.0" in out
    assert "it [broke]" in out and "result" in out
    assert f"sweep {folder.path}" in out  # in one piece, to be copied
    assert ("updates/s" in out) == (width == 200)
    assert out.splitlines()[-1] == f"brpo report {folder.path}  # over seeds, side by side"


def test_a_report_is_not_advised_without_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep_of(tmp_path, job(0, Status.failed, error="it broke"), planned=1)
    commands.collect_sweep(folder.path)
    assert "brpo report" not in capsys.readouterr().out


# --- As a user runs it ------------------------------------------------------------------------------------------------


def records_of(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/sweeps/*/jobs/*.json"))]


def test_sweep_with_a_failing_job_and_its_table(cli: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A sweep from a file as in conf/sweep, two jobs at a time; those that cannot be (a seed below 0) are named at the end.

    Again: finished runs are not made again.
    """
    file = tmp_path_factory.mktemp("conf") / "sweep" / "tiny.yaml"
    file.parent.mkdir()
    file.write_text("# @package _global_\nhydra: {sweeper: {params: {algo: 'bc,iql', seeds: '[0],[-1]'}}}\n")
    processes = ["eval.processes=2", "eval.episodes=2"]  # of a job's own, as from four cores on
    options = [*TINY, "trainer=smoke", "+sweep=tiny", f"hydra.searchpath=[file://{file.parents[1]}]", *processes]
    sweep = cli("-m", *options, "hydra.launcher.n_jobs=2")
    assert sweep.returncode == 2, sweep.stderr
    named = sweep.stderr.splitlines()
    assert [line.split(" (")[0] for line in named] == ["job 1 failed", "job 3 failed"]
    assert all("seeds=[-1] is not allowed" in line for line in named)
    assert "algo=iql seeds=[-1]" in named[1]
    (folder,) = tmp_path.glob("runs/sweeps/*")
    assert sweep.stdout.splitlines()[-2:] == ["2 of 4 jobs done", f"brpo collect {folder.relative_to(tmp_path)}"]
    records = records_of(tmp_path)
    assert [record["status"] for record in records] == ["done", "failed", "done", "failed"]
    assert [record["exit_code"] for record in records] == [0, 2, 0, 2]
    assert len({record["pid"] for record in records}) == 4  # each job has a process of its own
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    assert all((folder / records[n]["run_dir"] / "result.json").exists() for n in (0, 2))
    assert "final: return" in (folder / "jobs" / "2.log").read_text()
    assert f"report: {folder.relative_to(tmp_path)}/report/report.md" in sweep.stdout
    assert (folder / "report" / "curves.png").exists()
    assert "Missing: job 1 " in (folder / "report" / "report.md").read_text()

    collected = cli("collect", str(folder), program="brpo")
    assert collected.returncode == 0, collected.stderr
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [(row["algo"], row["status"].split(":")[0]) for row in rows] == [
        ("bc", "done"), ("bc", "failed"), ("iql", "done"), ("iql", "failed")]  # fmt: skip
    best = json.loads((folder / records[2]["run_dir"] / "result.json").read_text())["final"]["score"][0]
    assert float(rows[2]["final_mean"]) == pytest.approx(best)
    assert f"{best:.1f}" in collected.stdout
    assert cli("collect", "runs", program="brpo").returncode == 2

    again = cli("-m", *options, "resume=auto", "hydra/launcher=basic")
    assert again.returncode == 2, again.stderr
    assert again.stdout.count("already finished") == 2
    assert [record["run_dir"] for record in records_of(tmp_path)[4:]] == [record["run_dir"] for record in records]


def test_jobs_with_an_algorithm_that_is_none_or_the_folder_of_another_fail_alone(cli: Run, tmp_path: Path) -> None:
    kinds = ["algo._target_=iql,brpo.algorithms.bc.BC", "seeds=[0],[1]", "run_dir=x/${algo._target_}"]
    sweep = cli("-m", *TINY, "trainer=smoke", "algo=bc", *kinds, "hydra/launcher=basic")
    assert sweep.returncode == 2
    records = records_of(tmp_path)
    assert [record["status"] for record in records] == ["failed", "failed", "done", "failed"]
    assert records[2]["overrides"][-1] == "run_dir=x/${algo._target_}" and (tmp_path / "x/brpo.algorithms.bc.BC").is_dir()
    alone = cli(*TINY, "trainer=smoke", "algo=bc", "algo._target_=iql")
    assert f"error: {records[0]['error']}\n" == alone.stderr and "names 'iql'" in alone.stderr
    assert "run_dir=x/brpo.algorithms.bc.BC already holds a run" in records[3]["error"]


def test_a_job_without_an_algorithm_has_a_record() -> None:
    config = OmegaConf.create({"algo": 5, "dataset": "${nowhere}"})
    assert sweep_job._algorithm_and_dataset(config) == ("unknown", "unknown")


def test_a_job_has_one_process(cli: Run) -> None:
    result = cli("-m", "algo=bc", "seeds=[0],[1]", "trainer.devices=2", *TINY, "hydra/launcher=basic")
    assert result.returncode == 2
    assert result.stderr.count("trainer.devices=2 is not possible in a sweep") >= 2


def test_a_sweep_that_cannot_be_composed_starts_no_job(cli: Run, tmp_path: Path) -> None:
    sweep = cli("-m", *TINY, "trainer=smoke", "algo=iql,bc", "+algo.expectile=0.6")
    assert sweep.returncode == 2
    assert len(sweep.stderr.splitlines()) == 1
    assert records_of(tmp_path) == []
    none = cli("-m", *TINY, "trainer=smoke", "seeds=[0],[1]", "hydra.launcher.n_jobs=0")
    assert none.returncode == 2
    assert none.stderr.endswith("n_jobs=0 is not allowed; it must be a whole number other than 0; -1 means every core.\n")
    assert records_of(tmp_path) == []


SWEEP = ["-m", *TINY, "trainer=cpu", "algo=bc", "eval.episodes=1", "eval.every=50", "engine.chunk=10"]


def checkpoints_in(folder: Path) -> int:
    return len(list(folder.glob("runs/bc/*/*/checkpoints/last.ckpt")))


def two_at_a_time(start: Start, sweep: list[str], folder: Path) -> Command:
    """A sweep of two jobs at a time in a session of its own; the first two have saved, and wait for a file `go`."""
    hold = ["+callbacks.hold._target_=tests.helpers.Hold", "+callbacks.hold.at=60"]
    process = start(*sweep, *hold, "hydra.launcher.n_jobs=2", new_session=True)
    wait_for(lambda: checkpoints_in(folder) == 2, process)
    return process


@pytest.mark.slow
def test_jobs_of_a_killed_sweep_save_and_end(start: Start, tmp_path: Path) -> None:
    """Its workers would train on, and take the next job, while the same sweep with resume=auto finds them busy."""
    process = two_at_a_time(start, [*SWEEP, "seeds=[0],[1],[2]", "max_updates=100000"], tmp_path)
    process.kill()
    (tmp_path / "go").touch()
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and any(record["status"] == "running" for record in records_of(tmp_path)):
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # nothing is left over where this fails
    assert [record["status"] for record in records_of(tmp_path)] == ["interrupted"] * 2  # the third was not started


@pytest.mark.slow
def test_a_killed_job_fails_alone_and_an_interrupted_sweep_is_continued(cli: Run, start: Start, tmp_path: Path) -> None:
    """SIGKILL to one job, as the kernel does when memory runs out: its worker goes on with the next.

    SIGINT to the whole group: running jobs save, the others do not start; resume=auto makes the rest.
    """
    sweep = [*SWEEP, "resume=auto", "seeds=[0],[1],[2],[3]"]
    process = two_at_a_time(start, [*sweep, "max_updates=100000"], tmp_path)
    os.kill(records_of(tmp_path)[0]["pid"], signal.SIGKILL)
    wait_for(lambda: checkpoints_in(tmp_path) == 3, process)
    os.killpg(process.pid, signal.SIGINT)
    (tmp_path / "go").touch()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert [record["status"] for record in records_of(tmp_path)] == ["failed", "interrupted", "interrupted"]
    assert err.count("killed by SIGKILL; the kernel does that when memory runs out") == 1
    assert "1 job not started" in err
    assert "0 of 4 jobs done" in out
    first = {record["run_dir"] for record in records_of(tmp_path)}
    errors = [record["error"] for record in records_of(tmp_path)[1:]]
    reached = max(int(error.split("update ")[1].split(";")[0]) for error in errors)

    again = cli(*sweep, f"max_updates={reached + 50}", "hydra/launcher=basic")
    assert again.returncode == 0, again.stderr
    assert "4 of 4 jobs done" in again.stdout
    runs = {record["run_dir"] for record in records_of(tmp_path)}
    assert first < runs and len(runs) == 4


@pytest.mark.parametrize(
    ("leave", "code", "says"),
    [
        (lambda: os._exit(7), 7, "its process ended with 7 and left no word"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), 139, "killed by SIGSEGV"),
    ],
)
def test_a_job_that_leaves_without_a_word_has_failed(leave: Any, code: int, says: str, tmp_path: Path) -> None:
    """As a C library that gives up does."""
    folder, number = SweepFolder(tmp_path), 3
    folder.jobs.mkdir()
    found = sweep_job._in_a_process(folder, Job(number, [], "bc", "tests/one-v0"), lambda _: leave(), debug=False)
    assert (found.status, found.exit_code, found.error) == (Status.failed, code, says)
    assert folder.job(number) == found
