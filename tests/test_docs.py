"""What the pages say that a machine can hold them to: links, anchors, and the code of use.md."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from brpo import cli
from brpo.datasets import sources
from brpo.engine.checkpoint_io import encode
from brpo.evaluation.scores import spread
from brpo.export import export
from brpo.reports import tables
from brpo.reports.report import report
from tests.helpers import ROOT, compose_config, make_algorithm, make_spec, shrink
from tests.test_export import need_onnx

PAGES = [
    ROOT / "README.md",
    ROOT / "data" / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def rows_of(page: str, header: str) -> list[list[str]]:
    """The cells of the Markdown table that begins with a line, by row."""
    lines = (ROOT / page).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(header))
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


METHODS = {  # how pages name methods, and as which the report knows them; seeds in brackets are left out before
    "behaviour cloning": "bc",
    "TD3+BC": "td3_bc",
    "Sf-AC": "sfac",
    "Sf-AC, `data.normalize_observations=false`": "sfac normalize_observations=false",
    "sfac, raw observations": "sfac normalize_observations=false",
}
README_DATASETS = {
    "bundled": "brpo/halfcheetah/medium-replay-v0",
    **{f"{body} `replay`": f"brpo/{body.lower()}/replay-v0" for body in ("Hopper", "Walker2d", "HalfCheetah")},
}


@pytest.mark.parametrize(("page", "header"), [("README.md", "| | bundled |"), ("docs/results.md", "| method | `brpo")])
def test_scores_are_those_of_the_stored_results(page: str, header: str) -> None:
    head, _, *rows = rows_of(page, header)
    datasets = [README_DATASETS.get(cell) or re.findall(r"`([^`]+)`", cell)[0] for cell in head[1:]]
    found = report([ROOT / "docs" / "results" / "comparison"])
    (comparison,) = found.comparisons
    values = {
        (method.name.replace(" normalize_observations=true", ""), task.dataset): spread(
            [result.value("final") for result in results]
        )
        for (method, task), results in comparison.cells.items()
    }
    for name, *cells in rows:
        plain = re.sub(r" \(\d+( seeds)?\)", "", name)
        method = METHODS.get(plain, plain.lower())
        for dataset, cell in zip(datasets, cells, strict=True):
            assert re.sub(r" \(\d+\)", "", cell) == values.get((method, dataset), tables.HOLE), (name, dataset)
    assert len(rows) == len(comparison.methods)


@pytest.mark.parametrize("gap", [False, True])
def test_a_table_becomes_a_data_set_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gap: bool) -> None:
    """Episodes of four rows, the first of which failed; the second has an empty cell in its second row."""
    text = (ROOT / "docs" / "use.md").read_text()
    header = re.findall(r"^episode,.*$", text, re.MULTILINE)[0]
    lines = [f"{k // 4},{k}.5,{-k},{16 + k},{k},{int(k == 3)}" for k in range(12)]
    lines[5] = lines[5].replace(",5.5,", ",,") if gap else lines[5]
    (tmp_path / "log.csv").write_text("\n".join([header, *lines]) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    (arguments,) = re.findall(r"brpo (data import log.npz .*?)  #", text)
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], names)
    if gap:
        refused = CliRunner().invoke(cli.app, arguments.split()).exception
        assert "in 1 of 12 rows, the first is row 5 (of 0 to 11). Leave such rows out" in str(refused)
        (mark,) = re.findall(r"`(last \|= .*?)`", text)
        exec(f'good = np.isfinite(column("inside"))\n{mark}', names)
        arrays = {**np.load("log.npz"), "timeouts": names["last"] & ~names["terminals"]}
        np.savez("log.npz", **{name: array[names["good"]] for name, array in arrays.items()})
    made = CliRunner().invoke(cli.app, arguments.split())
    assert made.exit_code == 0, made.exception
    assert "action dimension 0: data from 16 to 27, bounds 15 and 30" in made.stdout
    found = sources.load("lab/heat-v0")
    assert found.ended.tolist() == [2, 1, 1]
    assert found.rows[:, 0].tolist() == [0.5, 1.5, 2.5, 3.5, *([6.5] if gap else [4.5, 5.5, 6.5]), 8.5, 9.5, 10.5]
    assert found.returns.tolist() == [6, 6 if gap else 15, 27]


@pytest.mark.filterwarnings("ignore")  # Minari's: of fields that need not be given
def test_own_data_and_a_trained_policy_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "use.md").read_text()
    _, making, describing, training, using, acting, from_file = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    made: dict = {}
    exec(making, made)
    (dataset_id,) = set(re.findall(r"mylab/[\w-]+", text))
    found = sources.load(dataset_id)
    assert (len(found.rows), found.references, found.clipped) == (1000, (-1200.0, -150.0), 0)
    exec(describing.replace("-1200.0", "-900.0"), made)
    later = sources.load(dataset_id)
    assert (later.references, later.digest) == ((-900.0, -150.0), found.digest)
    assert json.loads(later.environment or "")["id"] == "Pendulum-v1"

    short = training.replace('"seeds=[3,7]"', '"seeds=[3,7]", "trainer=smoke"').replace("max_updates=60000", "max_updates=3")
    names: dict = {"__name__": "__main__"}
    exec(short.replace("runs/mine", str(tmp_path / "mine")), names)
    assert (names["result"]["updates"], len(names["result"]["final"]["score"])) == (3, 2)
    quick = using.replace("runs/mine", str(tmp_path / "mine")).replace("20_000", "2").replace("episodes=20", "episodes=1")
    exec(quick.replace("policy.pt2", str(tmp_path / "policy.pt2")), names)
    assert (len(names["rows"]), len(names["found"]), (tmp_path / "policy.pt2").exists()) == (2, 2, True)

    spec = make_spec(observation=3, action=1, action_low=(-2.0,), action_high=(2.0,))
    algorithm, config = make_algorithm("iql", spec=spec, dtype=torch.float32), compose_config("algo=iql")
    shrink(config["algo"])
    config["seeds"] = algorithm.seeds.tolist()
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(
        encode({"state_dict": algorithm.state_dict(), "brpo": {"config": config, "spec": spec.to_dict(), "updates": 3}})
    )
    assert acting.count("runs/iql/...") == 1
    ends: dict = {}
    exec(acting.replace("runs/iql/...", str(tmp_path / "run")), ends)
    assert ends["actions"].shape == (len(config["seeds"]), 1, 1)
    assert ends["truncated"]  # after Pendulum's 200 steps

    need_onnx()
    monkeypatch.chdir(tmp_path)
    export(path, Path("policy.onnx"))
    exec(from_file, ends)
    expected = algorithm.act(torch.zeros(len(config["seeds"]), 1, 3))[0].detach().numpy()
    np.testing.assert_allclose(ends["actions"], expected, atol=1e-5)
