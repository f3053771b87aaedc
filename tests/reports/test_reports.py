"""Reports from made-up runs: what is put together, what is refused, and that a report can be made from a report."""

import csv
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.image import imread

from brpo import cli as commands
from brpo.errors import UserError
from brpo.reports import aggregates, pictures, published, run_folders, tables
from brpo.reports.comparison import Comparison, Method, Task, compare
from brpo.reports.latex import escape, latex
from brpo.reports.naming import naming
from brpo.reports.report import Report, report
from brpo.reports.run_folders import Found
from brpo.reports.seed_result import Protocol
from brpo.runs import RunFolder
from brpo.sweeps.folder import Job, Status, SweepFolder
from tests.helpers import ROOT
from tests.reports.fabricated import make_run


def test_a_report_on_one_path(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {0: [1.0]})
    for path in (tmp_path, str(tmp_path)):
        assert [result.seed for result in report(path).found.results] == [0]
    with pytest.raises(UserError, match="No run is finished and evaluated: no path was given"):
        report([])


def names(folder: Path) -> list[str]:
    comparisons, _ = compare(run_folders.find([folder]).results)
    return [method.name for comparison in comparisons for method in comparison.methods]


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_a_run_is_read_from_its_two_files_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {3: [1.0, 5.0, 4.0], 7: [2.0, 6.0, 6.0]}, gamma={"a": 0.5})
    (run / "config.yaml").unlink()
    first, second = run_folders.read_run(run)
    assert (first.seed, first.algo, first.dataset, first.digest) == (3, "bc", "tests/one-v0", "a" * 64)
    assert [first.value(rule) for rule in ("final", "best", "auc")] == [4.0, 5.0, pytest.approx(10 / 3)]
    assert (second.values["final_return"], second.best_update, second.cvar, second.worst_episode) == (60.0, 20, 56.0, 55.0)
    assert first.curve == ((10, 1.0), (20, 5.0), (30, 4.0))
    assert str(first.protocol) == "mean action, 3 episodes, 30 updates, evaluated every 10"
    assert first.options == {"batch_size": 256, "algo._target_": "brpo.algorithms.bc.Class", "algo.gamma.a": 0.5,
                             "processes": 1}  # fmt: skip


def test_evaluations_of_another_mode_stay_out_of_the_curve(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {0: [1.0, 2.0]})
    lines = RunFolder(run).metrics.read_text()
    RunFolder(run).metrics.write_text(lines.replace("10,0,mean,3", "10,0,sampled,3"))
    assert run_folders.read_run(run)[0].curve == ((20, 2.0),)


def test_without_reference_scores_the_return_counts(tmp_path: Path) -> None:
    """Also where they came between two parts of a run."""
    path = make_run(tmp_path / "later", {0: [1.0, 3.0]}, dataset="later-v0") / "result.json"
    content = json.loads(path.read_text())
    content["auc"]["score"] = None
    path.write_text(json.dumps(content))
    table = path.with_name("metrics.csv")
    table.write_text(table.read_text().replace(",1.0,", ",,"))
    (later,) = run_folders.find([tmp_path / "later"]).results
    assert (later.metric, later.value("auc"), later.curve) == ("return", 20.0, ((10, 10.0), (20, 30.0)))
    (result,) = run_folders.read_run(make_run(tmp_path / "run", {0: [1.0, 2.0]}, scored=False))
    assert (result.metric, result.value("final"), result.curve[-1]) == ("return", 20.0, (20, 20.0))


def test_what_is_not_finished_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {0: [1.0]})
    RunFolder(make_run(tmp_path / "b", {0: [1.0]})).result.unlink()
    result = json.loads(RunFolder(make_run(tmp_path / "c", {0: [1.0]})).result.read_text())
    for rule in ("final", "best", "auc"):
        result[rule] |= {"score": None, "return": None}
    (tmp_path / "c" / "result.json").write_text(json.dumps(result))
    found = run_folders.find([tmp_path])
    assert [item.run for item in found.results] == [run_folders.label(tmp_path / "a")]
    assert [line.split(": ")[1] for line in found.missing] == ["not finished", "no evaluations, for want of its environment"]


def test_runs_whose_paths_end_alike_are_several(tmp_path: Path) -> None:
    """Outside of the working folder runs are called by the last parts of their paths."""
    for seed, place in enumerate(("here", "there", "elsewhere")):
        make_run(tmp_path / place / "bc" / "one-v0" / "run", {seed: [1.0]})
    RunFolder(tmp_path / "elsewhere" / "bc" / "one-v0" / "run").result.unlink()
    found = run_folders.find([tmp_path / place for place in ("here", "there", "elsewhere")])
    assert [result.run for result in found.results] == ["bc/one-v0/run", "there/bc/one-v0/run"]
    assert found.missing == ["elsewhere/bc/one-v0/run: not finished"]


def test_processes_that_average_gradients_are_an_option(tmp_path: Path) -> None:
    """Each has a batch of its own; where they share the seeds out, they have not."""
    for name, engine in (("one", {}), ("shared", {"parallel": "seeds"}), ("averaged", {"parallel": "data"})):
        path = RunFolder(make_run(tmp_path / name, {len(name): [1.0]})).result
        result = json.loads(path.read_text())
        path.write_text(json.dumps({**result, "engine": {**result["engine"], **engine, "processes": 4 if engine else 1}}))
    assert names(tmp_path) == ["bc processes=1", "bc processes=4"]
    commands.report_runs([tmp_path / "one"], out=tmp_path / "kept")
    kept = tmp_path / "kept" / "configs.json"
    configs = json.loads(kept.read_text())
    kept.write_text(json.dumps({name: {k: v for k, v in c.items() if k != "processes"} for name, c in configs.items()}))
    (stored,) = run_folders.find([kept.parent]).results  # as of before it was an option
    assert stored.options["processes"] == 1


def test_the_copy_of_a_run_does_not_take_its_curve(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {0: [1.0, 2.0]})
    metrics = RunFolder(run).metrics.read_text()
    RunFolder(run).metrics.unlink()
    report([run]).write(tmp_path / "copy")
    RunFolder(run).metrics.write_text(metrics)
    for paths in ([run, tmp_path / "copy"], [tmp_path / "copy", run]):
        (result,) = run_folders.find(paths).results
        assert result.curve == ((10, 1.0), (20, 2.0))


def test_a_sweep_names_its_missing_jobs(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path / "sweep")
    sweep.create([["algo=bc", "seeds=[0]"], ["algo=bc", "seeds=[1]"], ["algo=bc", "seeds=[2]"]], [])
    make_run(tmp_path / "run", {0: [1.0]})
    sweep.write(Job(0, ["algo=bc", "seeds=[0]"], "bc", "tests/one-v0", Status.done, run_dir="../run"))
    sweep.write(Job(1, ["algo=bc", "seeds=[1]"], "bc", "tests/one-v0", Status.failed, error="it broke"))
    found = run_folders.find([sweep.path])
    assert [item.seed for item in found.results] == [0]
    assert found.missing == ["job 1 (seeds=[1]): failed: it broke", "job 2 (seeds=[2]): not started"]
    sweep.write(Job(1, ["algo=bc", "seeds=[1]"], "bc", "tests/one-v0", Status.failed, error="it broke", run_dir="../again"))
    later = (sweep.jobs / "1.json").stat().st_mtime_ns + 1
    os.utime(make_run(tmp_path / "again", {1: [2.0]}) / "result.json", ns=(later, later))  # the user went on with it
    found = run_folders.find([sweep.path])
    assert ([item.seed for item in found.results], found.missing) == ([0, 1], ["job 2 (seeds=[2]): not started"])


def test_a_run_without_its_curve_is_named_also_in_a_report_of_the_report(tmp_path: Path) -> None:
    RunFolder(make_run(tmp_path / "a", {0: [1.0]})).metrics.unlink()
    RunFolder(make_run(tmp_path / "b", {0: [1.0]}, algo="iql")).result.unlink()
    first = report([tmp_path])
    assert [line.split(": ")[1] for line in first.found.missing] == [
        "the learning curve, for want of a metrics.csv with its evaluations", "not finished",
    ]  # fmt: skip
    first.write(tmp_path / "report")
    again = report([tmp_path / "report"])
    assert again.found.missing == first.found.missing
    Report(Found(first.found.results), first.comparisons, []).write(tmp_path / "report")
    assert report([tmp_path / "report"]).found.missing == []


@pytest.mark.parametrize(
    "change", [{"updates": "2"}, {"wall_seconds": "a"}, {"cvar": ["q"]}, {"final": {"score": ["x"], "return": [1.0]}}]
)
def test_values_of_another_type_are_not_ours(change: dict, tmp_path: Path) -> None:
    path = RunFolder(make_run(tmp_path / "run", {0: [1.0]})).result
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"result.json is not a result file of ours: TypeError .* is no .*number"):
        run_folders.find([tmp_path])


@pytest.mark.parametrize("content", ["{}", "[]", "nothing", '{"evaluation": 3}'])
def test_files_that_are_not_ours(content: str, tmp_path: Path) -> None:
    (make_run(tmp_path / "run", {0: [1.0]}) / "result.json").write_text(content)
    with pytest.raises(UserError, match=r"result.json is not a result file of ours"):
        run_folders.find([tmp_path])


def test_a_path_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results. Allowed are a run folder"):
        report([tmp_path])


# --- Names ------------------------------------------------------------------------------------------------------------


def test_one_option_that_differs_is_in_both_names(tmp_path: Path) -> None:
    for epsilon in (10.0, 1.0, 0.5):
        make_run(tmp_path / f"{epsilon}", {0: [1.0]}, algo="sfac", regularizer={"epsilon": epsilon}, discount=0.9)
    make_run(tmp_path / "bc", {0: [1.0]}, regularizer={"epsilon": 3.0})
    assert names(tmp_path) == ["bc", "sfac epsilon=0.5", "sfac epsilon=1", "sfac epsilon=10"]


def test_variants_around_a_centre_are_named_by_what_they_change(tmp_path: Path) -> None:
    for place, (epsilon, order) in enumerate([(0.5, 4), (1.0, 4), (2.0, 4), (0.5, 2), (0.5, 8)]):
        make_run(tmp_path / f"{place}", {0: [1.0]}, algo="sfac", regularizer={"epsilon": epsilon, "loss_order": order})
    assert names(tmp_path) == ["sfac loss_order=2", "sfac", "sfac loss_order=8", "sfac epsilon=1", "sfac epsilon=2"]
    (note,) = naming(run_folders.find([tmp_path]).results)["sfac"].notes
    assert "`epsilon=0.5, loss_order=4` where" in note


def test_an_option_that_follows_the_data_set_is_no_method(tmp_path: Path) -> None:
    """And the behaviour model's sizes, which follow the actor's, are said once."""
    for size in (16, 32):
        nets = {"actor": {"hidden": [size]}, "behavior": {"hidden": [size]}}
        make_run(tmp_path / f"a{size}", {0: [1.0]}, dataset="a-v0", expectile=0.7, **nets)
        make_run(tmp_path / f"b{size}", {0: [1.0]}, dataset="b-v0", expectile=0.9, **nets)
    assert names(tmp_path) == ["bc hidden=[16]", "bc hidden=[32]"]
    (note,) = naming(run_folders.find([tmp_path]).results)["bc"].notes
    assert note == "bc: `algo.expectile` differs between data sets: 0.7 on a-v0; 0.9 on b-v0."


def test_the_path_of_a_behavior_model_is_in_no_name_that_has_another_option(tmp_path: Path) -> None:
    for dataset in ("a-v0", "b-v0"):
        for eta in (0.1, 1.0):
            source = f"runs/{dataset}/{eta}"
            make_run(tmp_path / source, {0: [1.0]}, dataset=dataset, eta=eta, source=source)
    assert names(tmp_path) == ["bc eta=0.1", "bc eta=1"]
    (note,) = naming(run_folders.find([tmp_path]).results)["bc"].notes
    assert note == "bc: `behavior` differs and is not in the names; each run's configuration has it."
    make_run(tmp_path / "other", {0: [1.0]}, dataset="a-v0", eta=1.0, source="elsewhere")
    assert "bc behavior=elsewhere" in names(tmp_path)  # nothing else tells it from the run of the other path


def test_the_path_and_the_class_of_a_behavior_model_are_told_apart(tmp_path: Path) -> None:
    """`behavior` and `algo.behavior` have no ends of their own."""
    make_run(tmp_path / "a", {0: [1.0]}, behavior={"_target_": "A"}, source="auto")
    make_run(tmp_path / "b", {0: [1.0]}, behavior={"_target_": "A"}, source="elsewhere")
    make_run(tmp_path / "c", {0: [1.0]}, behavior={"_target_": "B"}, source="auto")
    assert set(names(tmp_path)) == {"bc", "bc behavior=elsewhere", "bc algo.behavior=B"}


def test_another_class_is_named_and_what_it_alone_has_is_not(tmp_path: Path) -> None:
    """Options of the class itself are named where they differ."""
    make_run(tmp_path / "a", {0: [1.0]}, actor={"_target_": "brpo.modules.actors.GaussianActor"})
    make_run(tmp_path / "b", {0: [1.0]}, actor={"_target_": "brpo.modules.actors.MixtureActor", "components": 5})
    assert names(tmp_path) == ["bc actor=GaussianActor", "bc actor=MixtureActor"]
    make_run(tmp_path / "c", {0: [1.0]}, actor={"_target_": "brpo.modules.actors.MixtureActor", "components": 2})
    assert names(tmp_path) == ["bc actor=GaussianActor", "bc components=2", "bc components=5"]


def test_an_option_that_older_runs_lack_is_no_method(tmp_path: Path) -> None:
    """Outside the algorithm's own: as `behavior` or `data.eta`, which came with later versions."""
    make_run(tmp_path / "old", {0: [1.0]})
    make_run(tmp_path / "new", {1: [2.0]})
    path = tmp_path / "new" / "result.json"
    path.write_text(
        json.dumps({**(result := json.loads(path.read_text())), "config": {**result["config"], "behavior": "auto"}})
    )
    assert names(tmp_path) == ["bc"]


def test_an_option_that_was_null_before_there_was_one_tells_methods_apart(tmp_path: Path) -> None:
    """Batches by returns are not those that older runs had, of which no option said how they are drawn."""
    make_run(tmp_path / "old", {0: [1.0]})
    make_run(tmp_path / "new", {0: [2.0]}, waves=[])  # an option of the algorithm that came later, too
    path = tmp_path / "new" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "config": {**result["config"], "data": {"return_temperature": 0.1}}}))
    assert sorted(names(tmp_path)) == ["bc", "bc return_temperature=0.1"]


def test_the_method_with_most_results_has_the_plain_name(tmp_path: Path) -> None:
    """Though each of its options has another value in as many methods, or more."""
    for name, actor, behavior, scores in (
        ("default", "A", "A", {0: [1.0], 1: [2.0]}),
        ("both", "B", "B", {0: [1.0]}),
        ("behavior", "A", "B", {0: [1.0]}),
    ):
        make_run(tmp_path / name, scores, algo="sfac", actor={"_target_": actor}, behavior={"_target_": behavior})
    assert names(tmp_path) == ["sfac", "sfac behavior=B", "sfac actor=B behavior=B"]


def test_an_option_of_the_algorithm_that_older_runs_lack_is_said_where_nothing_else_differs(tmp_path: Path) -> None:
    make_run(tmp_path / "old", {0: [1.0]}, coefficient=0.3)
    make_run(tmp_path / "new", {0: [2.0]}, coefficient=0.0, target="jeffreys")
    assert names(tmp_path) == ["bc coefficient=0", "bc coefficient=0.3"]
    (note,) = naming(run_folders.find([tmp_path]).results)["bc"].notes
    assert note == "bc: `algo.target` is jeffreys in 1 of 2 runs; the others do not know it."
    make_run(tmp_path / "newer", {0: [3.0]}, coefficient=0.3, target="jeffreys")
    assert names(tmp_path) == ["bc coefficient=0", "bc", "bc target=null"]


def test_an_option_that_follows_another_is_not_said_twice(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {0: [1.0]}, divergence="kl", target_divergence="kl")
    make_run(tmp_path / "b", {0: [1.0]}, divergence="gan", target_divergence="gan")
    assert names(tmp_path) == ["bc divergence=gan", "bc divergence=kl"]
    make_run(tmp_path / "c", {0: [1.0]}, divergence="gan", target_divergence="kl")
    assert names(tmp_path)[0] == "bc target_divergence=gan"


def test_ends_of_keys_that_are_the_same_grow(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {0: [1.0]}, actor={"hidden": [16]}, critic={"hidden": [8]})
    make_run(tmp_path / "b", {0: [1.0]}, actor={"hidden": [32]}, critic={"hidden": [64]})
    assert names(tmp_path)[0] == "bc actor.hidden=[16] critic.hidden=[8]"


# --- What may stand beside what -----------------------------------------------------------------------------------------


def test_seeds_of_several_runs_are_put_together(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {0: [1.0, 2.0]})
    make_run(tmp_path / "b", {1: [1.0, 4.0]})
    text = report([tmp_path]).markdown()
    assert "| bc | 3.0 ± 1.0 |" in text
    assert "2 seeds" in text


def test_seeds_of_changed_code_are_named(tmp_path: Path) -> None:
    """Also where one run went on with it, and in a report of the report."""
    make_run(tmp_path / "runs" / "a", {0: [1.0]}, code=["a" * 64])
    make_run(tmp_path / "runs" / "same", {1: [1.0]}, code=["a" * 64])
    make_run(tmp_path / "runs" / "older", {2: [1.0]})
    assert "state of the method's code" not in report([tmp_path]).markdown()
    make_run(tmp_path / "runs" / "b", {3: [1.0]}, code=["a" * 64, "b" * 64])
    report([tmp_path / "runs"]).write(tmp_path / "report")
    for found in (report([tmp_path / "runs"]), report([tmp_path / "report"])):
        (note,) = (line for line in found.markdown().splitlines() if "more than one state of the method's code" in line)
        assert re.search(rf"bc stands for .*: {'a' * 12} in .*/a, .*/same; {'a' * 12} then {'b' * 12} in .*/b\.", note)


def test_two_digests_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {0: [1.0]})
    make_run(tmp_path / "b", {0: [1.0]}, algo="iql", digest="b" * 64)
    with pytest.raises(UserError, match=f"tests/one-v0 stands for two data sets.*{'a' * 12} in .*/a and {'b' * 12} in .*/b"):
        report([tmp_path])


def test_scores_in_two_units_are_refused(tmp_path: Path) -> None:
    """The references are no part of the digest; a run from before they were kept stands beside either."""
    make_run(tmp_path / "older", {2: [1.0]}, algo="awac")
    make_run(tmp_path / "a", {0: [1.0]}, references=(0.0, 1000.0))
    make_run(tmp_path / "same", {1: [1.0]}, references=(0.0, 1000.0))
    assert len(report([tmp_path]).comparisons) == 1
    make_run(tmp_path / "b", {0: [1.0]}, algo="iql", references=(0.0, 2000.0))
    units = (
        r"Scores on tests/one-v0 are in two units.*\(0.0, 1000.0\) score.*/a, .*/same, returns of \(0.0, 2000.0\) in .*/b"
    )
    with pytest.raises(UserError, match=units):
        report([tmp_path])


def test_a_seed_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {0: [1.0]})
    make_run(tmp_path / "copy", {0: [1.0]})
    assert len(report([tmp_path]).comparisons[0].cells.popitem()[1]) == 1
    make_run(tmp_path / "other", {0: [2.0]})
    with pytest.raises(UserError, match="Seed 0 of bc on tests/one-v0 is there twice with different numbers"):
        report([tmp_path])


def test_the_last_run_with_a_seed_counts_where_that_is_asked_for(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "2020", {0: [1.0], 1: [7.0]})
    make_run(tmp_path / "runs" / "2021", {0: [3.0]})
    found = report([tmp_path / "runs"], last=True)
    found.write(tmp_path / "report")
    for text in (found.markdown(), report([tmp_path / "report"]).markdown()):
        assert "| bc | 5.0 ± 2.0 |" in text
    assert "Left out, since a later run has the seed: seed 0 of " in found.markdown()
    turned = report([tmp_path / "runs" / "2021", tmp_path / "runs" / "2020"], last=True)
    assert "| bc | 4.0 ± 3.0 |" in turned.markdown()


def test_where_no_curve_is_above_zero(tmp_path: Path) -> None:
    """Shares of what is below it say nothing; a little below 0 is 0."""
    make_run(tmp_path / "bc", {0: [-30.0, 10.0]})
    make_run(tmp_path / "iql", {0: [-30.0, -0.01]}, algo="iql")
    text = report([tmp_path]).markdown()
    hole = f"{tables.HOLE} | {tables.HOLE}"
    assert f"| bc | 100 % | tests/one-v0 | {hole} | 1 of 1 |\n| iql | 0 % | tests/one-v0 | {hole} | 1 of 1 |" in text


@pytest.mark.parametrize("change", [{"mode": "sampled"}, {"episodes": 4}, {"every": 20}])
def test_other_protocols_have_sections_of_their_own(change: dict, tmp_path: Path) -> None:
    make_run(tmp_path / "a", {0: [1.0]})
    make_run(tmp_path / "b", {0: [2.0]}, algo="iql", **change)
    found = report([tmp_path])
    assert [len(comparison.cells) for comparison in found.comparisons] == [1, 1]
    assert found.markdown().count("\n## Mean action") + found.markdown().count("\n## Sampled action") == 2


def test_where_a_method_does_worst_and_the_data_sets_that_all_have(tmp_path: Path) -> None:
    scores = {
        "bc": {"a": [30.0, 10.0], "b": [40.0, 40.0], "c": [8.0, 8.0]},
        "iql": {"a": [20.0, 20.0], "b": [10.0, 30.0]},
    }
    for algo, found in scores.items():
        for dataset, score in found.items():
            make_run(tmp_path / f"{algo}-{dataset}", {0: score, 1: score}, algo=algo, dataset=f"{dataset}-v0")
    text = report([tmp_path]).markdown()
    assert "| iql | 75 % | b-v0 | 50 % | b-v0 | 2 of 3 |\n| bc | 50 % | a-v0 | 100 % | a-v0 | 3 of 3 |" in text
    common = text[
        text.index("**The same, and what follows, over the 2 data sets that every method has**: `a-v0`, `b-v0`.") :
    ]
    assert "| bc | 4 | 25.0 [" in common and "| iql | 4 | 25.0 [" in common
    assert "| iql |  | 0.50 " not in text[: -len(common)]  # iql has a hole among all of them
    assert "| bc |  | 0.50" in common and "| bc | 25.0 [" in common  # each is better on one; IQM by rule
    written = tmp_path / "report"
    report([tmp_path]).write(written)
    rows = list(csv.DictReader((written / "aggregates.csv").open()))
    means = {(row["method"], row["scope"]): row["mean"] for row in rows if row["rule"] == "final"}
    assert (means["iql", "all"], float(means["iql", "common"]), float(means["bc", "common"])) == ("", 25.0, 25.0)
    (pair,) = [row for row in csv.DictReader((written / "improvement.csv").open()) if row["method"] == "bc"]
    assert (pair["over"], pair["scope"], float(pair["probability"])) == ("iql", "common", 0.5)
    assert (
        imread(written / "profile-common.png").std() > 0.02
        and "](profile-common.png)" in (written / "report.md").read_text()
    )


def test_pictures_of_an_older_report_go(tmp_path: Path) -> None:
    """The hole that made a second scope has been filled; a picture of the user's stays."""
    for algo, datasets in {"bc": "abc", "iql": "ab"}.items():
        for dataset in datasets:
            make_run(tmp_path / "runs" / f"{algo}-{dataset}", {0: [1.0], 1: [2.0]}, algo=algo, dataset=f"{dataset}-v0")
    written = tmp_path / "report"
    report([tmp_path / "runs"]).write(written)
    assert (written / "profile-common.png").exists()
    (written / "profile-mine.png").touch()
    make_run(tmp_path / "runs" / "iql-c", {0: [1.0], 1: [2.0]}, algo="iql", dataset="c-v0")
    report([tmp_path / "runs"]).write(written)
    assert {path.name for path in written.glob("*.png")} == {"curves.png", "profile.png", "profile-mine.png"}


def test_the_worst_is_what_the_metric_calls_so() -> None:
    """Of distances the largest. A share of a score where the best is above 0 alone; a score below 0 has one below 0."""
    method, other = Method("bc", "bc", 0), Method("iql", "iql", 0)

    def comparison(metric: str, values: dict[tuple[Method, str], list[float]]) -> Comparison:
        cells: Any = {
            (m, Task(dataset, "", metric)): [
                SimpleNamespace(seed=seed, value=lambda rule, v=v: v) for seed, v in enumerate(of)
            ]
            for (m, dataset), of in values.items()
        }
        tasks = dict.fromkeys(task for _, task in cells)
        return Comparison(Protocol("mean", 1, 1, None), (method, other), tuple(tasks), cells)

    distances = comparison("sliced_wasserstein", {(method, "a"): [0.1, 0.3], (method, "b"): [0.2, 0.2]})
    first, second = distances.tasks
    found = aggregates.aggregate(distances, method, distances.tasks, "final")
    assert found is not None
    assert (found.worst_seed, found.cvar) == ((first, 1, 0.3), 0.3)
    assert (found.mean, found.std, found.runs) == (pytest.approx(0.2), pytest.approx(0.05), 4)
    assert aggregates.worst_shares(distances) == {}
    scores = comparison(
        "score",
        {(method, "a"): [-9.0, -11.0], (other, "a"): [20.0], (method, "b"): [-1.0], (other, "b"): [-8.0]},
    )
    first, second = scores.tasks
    assert aggregates.worst_shares(scores) == {method: (-0.5, first), other: (1.0, first)}
    found = aggregates.aggregate(scores, other, scores.tasks, "final")
    assert found is not None
    assert (found.worst_task, found.worst_seed, found.cvar) == ((second, -8.0), (second, 0, -8.0), -8.0)
    for (of, _), seeds in scores.cells.items():
        for seed in seeds:
            seed.value = {"final": 1.0, "auc": 3.0 if of is method else 4.0}.__getitem__
    aggregates.worst_shares.cache_clear()
    assert [aggregates.worst_shares(scores, rule)[method][0] for rule in ("final", "auc")] == [1.0, 0.75]
    aggregates.worst_shares.cache_clear()


def test_holes_are_shown_and_enter_no_aggregate(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {0: [1.0], 1: [3.0]}, dataset="a-v0")
    make_run(tmp_path / "b", {0: [5.0], 1: [7.0]}, dataset="b-v0")
    make_run(tmp_path / "c", {0: [9.0], 1: [9.0]}, dataset="b-v0", algo="iql")
    text = report([tmp_path]).markdown()
    assert "| bc | 2.0 ± 1.0 | 6.0 ± 1.0 |" in text
    assert f"| iql | {tables.HOLE} | 9.0 ± 0.0 |" in text
    assert "| bc | 4 | 4.0 [3.0, 5.0] | 4.0 [3.0, 5.0] | 1.0 | 2.0 (a-v0) | 1.0 (a-v0, seed 0) |" in text
    assert "| iql | 1 of 2 data sets |" in text
    assert "Probability" not in text


def test_returns_enter_no_aggregate_of_scores(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {0: [1.0], 1: [3.0]}, dataset="a-v0")
    make_run(tmp_path / "b", {0: [5.0], 1: [7.0]}, dataset="b-v0", scored=False)
    found = report([tmp_path])
    assert "over 1 data set " in found.markdown()
    assert "| bc | 60.0 ± 10.0 |" in found.markdown()


def test_improvement_of_each_over_each(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {0: [1.0], 1: [3.0]})
    make_run(tmp_path / "b", {0: [2.0], 1: [4.0]}, algo="iql")
    text = report([tmp_path]).markdown()
    assert "| bc |  | 0.25 [0.00, 1.00] |" in text  # one draw of 16 has 3 and 3 against 2 and 2
    assert "| iql | 0.75 [0.00, 1.00] |  |" in text


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "a", {0: [1.0, 2.5], 1: [3.0, 4.0]})
    make_run(folder / "b", {0: [2.0, 1.0], 1: [1 / 3, 4.0]}, algo="sfac", scored=False, dataset="b-v0", x=None)
    return folder


@pytest.fixture(scope="module")
def written(two_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on `two_runs`."""
    folder = tmp_path_factory.mktemp("report")
    commands.report_runs([two_runs], out=folder, published=True)
    return folder


def test_a_report_can_be_made_from_a_report(two_runs: Path, written: Path, tmp_path: Path) -> None:
    first = report([two_runs])
    for path in (written, written / "runs.csv"):
        again = report([path])
        assert again.markdown() == first.markdown()
        assert [result.curve for result in again.found.results] == [
            tuple((update, pytest.approx(value, rel=1e-5)) for update, value in result.curve)
            for result in first.found.results
        ]
    assert report([two_runs, written]).markdown() == first.markdown()  # a run and its copy are one
    before = (written / "runs.csv").read_text()
    report([written, two_runs]).write(written)
    assert (written / "runs.csv").read_text() == before  # where each seed stands once
    (tmp_path / "runs.csv").write_text((written / "runs.csv").read_text())
    with pytest.raises(UserError, match=r"curves.csv is not a file that brpo report wrote.*belong together"):
        report([tmp_path])


def test_a_report_is_written_beside_runs_and_not_over_them(tmp_path: Path) -> None:
    """A later report would read it in the place of the runs below."""
    make_run(tmp_path / "a", {0: [1.0]})
    with pytest.raises(UserError, match="holds runs .*Give a folder of its own"):
        commands.report_runs([tmp_path], out=tmp_path)
    RunFolder(tmp_path / "a").result.unlink()  # nor over one that is not finished
    (tmp_path / "a" / "checkpoints").mkdir(exist_ok=True)
    make_run(tmp_path.parent / "other", {0: [1.0]})
    with pytest.raises(UserError, match="holds runs"):
        commands.report_runs([tmp_path.parent / "other"], out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_no_path_of_this_machine_is_written(two_runs: Path, written: Path) -> None:
    texts = [file.read_text() for file in written.iterdir() if file.suffix != ".png"]
    assert len(texts) == 8 and not any(str(two_runs.parent) in text for text in texts)


def test_csv_tables(written: Path) -> None:
    scores = {(row["method"], row["rule"]): row for row in csv.DictReader((written / "scores.csv").open())}
    row = scores["bc", "final"]
    assert [float(row[key]) for key in ("mean", "std", "worst_seed_value", "worst_episode_return")] == [
        3.25,
        0.75,
        2.5,
        20.0,
    ]
    assert (row["metric"], row["digest"], row["runs"], row["worst_seed"]) == ("score", "a" * 64, "2", "0")
    assert scores["sfac", "final"]["metric"] == "return"
    aggregate = list(csv.DictReader((written / "aggregates.csv").open()))
    assert [(row["method"], row["rule"], row["datasets"]) for row in aggregate] == [
        ("bc", "final", "1"), ("bc", "best", "1"), ("bc", "auc", "1")]  # fmt: skip
    assert [(row["worst_share"], row["worst_share_dataset"]) for row in aggregate] == [
        ("1.0", "tests/one-v0")] * 3  # fmt: skip
    costs = {row["method"]: row for row in csv.DictReader((written / "cost.csv").open())}
    assert (costs["bc"]["runs"], costs["bc"]["seeds_in_a_run"]) == ("1", "2")
    assert float(costs["bc"]["wall_seconds"]) > 0


def test_pictures(written: Path) -> None:
    text = (written / "report.md").read_text()
    for name in ("curves.png", "profile.png"):
        assert f"]({name})" in text
        assert imread(written / name).std() > 0.02  # something is drawn


def test_for_a_paper(tmp_path: Path) -> None:
    """By hand; two methods have a hole and so no number over both sets, and what is printed alike is bold alike."""
    make_run(tmp_path / "a", {0: [-1.0], 1: [-3.0]}, dataset="a_b-v0")
    make_run(tmp_path / "b", {0: [5.0], 1: [7.0]}, dataset="b-v0")
    make_run(tmp_path / "c", {0: [6.01], 1: [6.01]}, dataset="b-v0", algo="td3_bc")
    make_run(tmp_path / "d", {0: [5.0], 1: [5.0], 2: [5.0]}, dataset="b-v0", algo="iql")
    commands.report_runs([tmp_path], out=tmp_path / "report", paper=True)
    table = (tmp_path / "report" / "tables.tex").read_text()
    lines = [line.strip() for line in table.splitlines()]
    assert r"data set & bc & iql & td3\_bc \\" in lines
    assert r"\texttt{a\_b-v0} & \textbf{$-$2.0 $\pm$ 1.0\,(2)} & -- & -- \\" in lines
    best, tied = r"\textbf{6.0 $\pm$ 1.0\,(2)}", r"\textbf{6.0 $\pm$ 0.0\,(2)}"
    assert rf"\texttt{{b-v0}} & {best} & 5.0 $\pm$ 0.0\,(3) & {tied} \\" in lines
    assert lines[lines.index("mean & 2.0 & -- & -- \\\\") + 1] == "& [1.0, 3.0] &  &  \\\\"
    assert r"95 \% stratified" in table and "% b-v0: digest" in table
    for name in ("curves.pdf", "profile.pdf"):
        assert (tmp_path / "report" / name).read_bytes().startswith(b"%PDF")
    commands.report_runs([tmp_path], out=tmp_path / "report")  # no table of other results stays behind
    assert not {path.suffix for path in (tmp_path / "report").iterdir()} & {".tex", ".pdf"}
    with pytest.raises(UserError, match="^--paper writes files: give a folder, --out FOLDER.$"):
        commands.report_runs([tmp_path], paper=True)


def test_the_same_results_are_the_same_pdf(two_runs: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        report([two_runs]).write(tmp_path / name, for_paper=True)
    assert (tmp_path / "a" / "curves.pdf").read_bytes() == (tmp_path / "b" / "curves.pdf").read_bytes()


def test_smaller_distances_are_bold_and_one_method_is_not() -> None:
    def comparison(metric: str, **values: float) -> Comparison:
        methods = tuple(Method(name, name, 0) for name in values)
        task = Task("toy/rings", "0", metric)
        cells: Any = {
            (method, task): [SimpleNamespace(seed=0, value=lambda rule, v=values[method.name]: v)] for method in methods
        }
        return Comparison(Protocol("sampled", 9, 1, None), methods, (task,), cells)

    table = latex([comparison("sliced_wasserstein", bc=0.25, bdpo=0.125)])
    assert r"\texttt{toy/rings} & 0.2500 & \textbf{0.1250} \\" in table and "Bold: the smallest mean" in table
    assert "textbf" not in latex([comparison("score", bc=1.0)])


def test_latex_sees_no_commands_in_names() -> None:
    assert escape(r"a_b 5% \x ~^{#}&$") == (r"a\_b 5\% \textbackslash{}x \textasciitilde{}\textasciicircum{}\{\#\}\&\$")


def test_command(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.report_runs([two_runs], published=True)
    out = capsys.readouterr().out
    assert "| bc | 3.2 ± 0.8 |" in out
    assert "There are no published scores for `b-v0`, `tests/one-v0`." in out


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "results").glob("*/runs.csv")), ids=lambda path: path.parent.name)
def test_kept_results_can_be_reported(path: Path) -> None:
    assert report([path.parent]).headline()


def test_an_algorithm_keeps_its_colour() -> None:
    some = pictures.looks([Method("bc", "bc", 0), Method("sfac", "sfac", 0), Method("sfac a=1", "sfac", 1)])
    other = pictures.looks([Method("iql", "iql", 0), Method("sfac", "sfac", 0)])
    assert some["sfac"]["color"] == some["sfac a=1"]["color"] == other["sfac"]["color"]
    assert len({(look["color"], look["linestyle"]) for look in some.values()}) == 3
    many = pictures.looks([Method("iql", "iql", 0), *(Method(f"sfac a={place}", "sfac", place) for place in range(9))])
    assert len({look["color"] for look in many.values()}) == 10
    assert many["iql"]["color"] == other["iql"]["color"]
    alone = pictures.looks([Method(f"sfac a={place}", "sfac", place) for place in range(9)])
    assert len({look["color"] for look in alone.values()}) == 9


# --- Published scores -------------------------------------------------------------------------------------------------


def test_published_scores_are_those_of_the_same_id_alone() -> None:
    rows = published.read()
    assert len(rows) == 144 and {row.rule for row in rows} >= {"final", "as printed in the paper"}
    assert all(row.source and row.method and float(row.mean) for row in rows)
    text = published.table(["hopper-medium-v2", "mujoco/hopper/medium-v0"], rows)
    assert "| IQL | hopper-medium-v2 | 66.3 ± 5.7 | the method's paper | as printed in the paper |" in text
    assert text.count("hopper-medium-v2") == len([row for row in rows if row.dataset == "hopper-medium-v2"])
    assert "only if their data and their environments are the same" in text
    assert text.endswith("There are no published scores for `mujoco/hopper/medium-v0`.\n")
