"""Runs a grid of trainings one after another and reports it; finished cells are skipped, broken ones resumed.

Cells whose results lie in docs/results are finished too (`--again` trains them), so that a grid can be filled over
several sittings and machines; `--store` puts there what the report is made of.

    python benchmarks/grid.py comparison        # docs/results.md
    python benchmarks/grid.py earlier_defaults  # docs/sfac.md: Sf-AC before its target was a series
    python benchmarks/grid.py fit               # docs/results.md: Sf-AC without its symmetry term
    python benchmarks/grid.py symmetry          # docs/results.md: the exponential target without it
    python benchmarks/grid.py policies          # docs/results.md: mixtures as policy and behaviour model
    python benchmarks/grid.py halfcheetah       # docs/sfac.md: why TD3+BC is better on HalfCheetah replay
    python benchmarks/grid.py hopper_replay     # docs/sfac.md: whether XQL is better on Hopper replay, and why
    python benchmarks/grid.py hopper_medium_expert      # docs/sfac.md: what keeps Sf-AC below cloning and TD3+BC there
    python benchmarks/grid.py mixture           # docs/sfac.md: whether a mixture should be Sf-AC's policy by default
    python benchmarks/grid.py sql_parts         # docs/sfac.md: why SQL was better with the same observations
    python benchmarks/grid.py observations      # docs/results.md: the other methods with normalized observations
    python benchmarks/grid.py modes             # docs/results.md: runs to be evaluated by `brpo evaluate --mode`
    python benchmarks/grid.py diffusion         # docs/bdpo.md, docs/results.md: BDPO and diffusion cloning
    python benchmarks/grid.py beside_diffusion  # docs/bdpo.md, docs/results.md: IQL and Sf-AC on the sets of `diffusion`
    python benchmarks/grid.py by_returns        # docs/results.md: the other methods on batches of the better episodes
    python benchmarks/grid.py search            # docs/sfac.md
    python benchmarks/grid.py normalization     # docs/sfac.md: whether Sf-AC should see normalized observations
    python benchmarks/grid.py diffusion_normalization   # docs/bdpo.md: whether diffusion methods should
    python benchmarks/grid.py diffusion_setting         # docs/bdpo.md: how to fit the behaviour model, and which eta
    python benchmarks/grid.py comparison --table        # nothing is run; the report alone

The shared data sets are looked for in MINARI_DATASETS_PATH. `--only` picks cells by a regular expression, so that
several of these can run side by side.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from brpo.exits import run_command
from brpo.reports import compact, run_folders
from brpo.reports.comparison import compare
from brpo.reports.report import Report
from brpo.reports.run_folders import Found

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "docs" / "results"
MEDIUM = ("brpo/hopper/medium-v0", "brpo/walker2d/medium-v0", "brpo/halfcheetah/medium-v0")
BUNDLED = "brpo/halfcheetah/medium-replay-v0"
REPLAY = (BUNDLED, *(dataset.replace("medium", "replay") for dataset in MEDIUM))
REST = tuple(dataset.replace("medium", kind) for kind in ("medium-expert", "expert") for dataset in MEDIUM)
FIRST, OTHERS = ("sfac", "iql", "awac", "bc"), ("sql", "eql", "xql", "td3_bc")
RAW, NORMALIZED = (f"data.normalize_observations={value}" for value in ("false", "true"))
# Sf-AC as it was while the comparison began: what was asked of it then is asked of these options.
EXPONENTIAL = ["algo=sfac", "algo.omega=exp", "algo.temperature=3", "algo.value_loss=expectile"]
EARLIER_DEFAULTS = {"sfac exponential": EXPONENTIAL, "sfac exponential, raw observations": [*EXPONENTIAL, RAW]}
STAGES = (  # what is filled first
    (FIRST, REPLAY),
    (OTHERS, REPLAY),
    (FIRST + OTHERS, MEDIUM),
    (FIRST + OTHERS, REST),
)

# Rows are named by what they set (T is the temperature); everything else is the default.
SEARCH = {
    "T 1/3, epsilon 1, coefficient 1": [
        "algo.temperature=0.3333",
        "algo.regularizer.epsilon=1",
        "algo.symmetry_coefficient=1",
    ],
    "T 1/3, coefficient 0": ["algo.temperature=0.3333", "algo.regularizer.epsilon=0.5", "algo.symmetry_coefficient=0"],
    "T 1, epsilon 0.5, coefficient 1": ["algo.temperature=1", "algo.regularizer.epsilon=0.5", "algo.symmetry_coefficient=1"],
    "T 1, epsilon 0.5, coefficient 0.3": [
        "algo.temperature=1",
        "algo.regularizer.epsilon=0.5",
        "algo.symmetry_coefficient=0.3",
    ],
    "T 3, epsilon 1, coefficient 1": ["algo.temperature=3", "algo.regularizer.epsilon=1", "algo.symmetry_coefficient=1"],
    "T 3, epsilon 0.5, coefficient 1": ["algo.temperature=3", "algo.regularizer.epsilon=0.5", "algo.symmetry_coefficient=1"],
    "T 3, epsilon 0.5, coefficient 0.3": [
        "algo.temperature=3",
        "algo.regularizer.epsilon=0.5",
        "algo.symmetry_coefficient=0.3",
    ],
    "T 3, JS order 3": [
        "algo.temperature=3",
        "algo.divergence=jensen_shannon",
        "algo.regularizer.loss_order=3",
        "algo.regularizer.epsilon=0.5",
        "algo.symmetry_coefficient=0.3",
    ],
    "T 3, softmax": [
        "algo.temperature=3",
        "algo.regularizer.epsilon=0.5",
        "algo.symmetry_coefficient=0.3",
        "algo.value_loss=softmax",
    ],
    "T 3, coefficient 0": ["algo.temperature=3", "algo.regularizer.epsilon=0.5", "algo.symmetry_coefficient=0"],
}
SEARCH_SEED = 100  # not among those of the comparison


# What each question changes, beside the defaults of the comparison; where EXPONENTIAL stands, beside those of then.
FIT = {"sfac coefficient 0": ["algo=sfac", "algo.symmetry_coefficient=0"]}
SYMMETRY = {"coefficient 0": [*EXPONENTIAL, RAW, "algo.symmetry_coefficient=0"]}
POLICIES = {
    "sfac mixture": [*EXPONENTIAL, RAW, "actor=mixture"],
    "sfac mixture behavior": [*EXPONENTIAL, RAW, "actor@algo.behavior=mixture"],
    "bc mixture": ["algo=bc", "actor=mixture"],
}
HALFCHEETAH = {  # what makes TD3+BC better than Sf-AC of raw observations
    "td3_bc without Q": ["algo=td3_bc", "algo.q_coefficient=0"],
    "td3_bc, raw observations": ["algo=td3_bc", RAW],
}
OBSERVATIONS = {  # what it does for the others, beside Sf-AC and TD3+BC, which have it by default
    f"{algo}, normalized observations": [f"algo={algo}", NORMALIZED] for algo in ("iql", "awac", "bc", "sql", "eql", "xql")
}
MODES = {algo: [f"algo={algo}"] for algo in ("bc", "iql", "awac", "sql", "xql", "eql")}  # td3_bc has one action
MODES["bc squashed"] = ["algo=bc", "actor=squashed"]  # whose spread depends on the state
# Asked of other recordings than those of the comparison, too: the same agents, recorded with another seed.
NORMALIZATION = {
    f"{row}, seed {SEARCH_SEED}": [*EXPONENTIAL, option, f"seeds=[{SEARCH_SEED}]"]
    for row, option in (("raw", RAW), ("normalized", NORMALIZED))
}
EPISODES = "eval.episodes=30"  # sampled actions differ more from episode to episode
CLONING = ["algo=diffusion_bc", "max_updates=50000", EPISODES]
LONGER = ["algo=diffusion_bc", "max_updates=100000", EPISODES]  # as many updates as bdpo's pre-training
SMALL = "algo.actor.hidden=[128,128,128]"  # bdpo's networks at size=small
ALIKE, BY_RETURNS = (f"data.return_temperature={value}" for value in ("null", "0.1"))  # 0.1 is bdpo's at size=small
BDPO = ["algo=bdpo", EPISODES, "eval.every=5000"]
DIFFUSION = {  # bdpo starts from the cloning beside it
    "diffusion_bc small": [*CLONING, SMALL],
    "diffusion_bc small by returns": [*CLONING, SMALL, BY_RETURNS],
    "bdpo": [*BDPO, ALIKE, "behavior={runs}/diffusion-bc-small/{dataset}"],
    "bdpo by returns": [*BDPO, BY_RETURNS, "behavior={runs}/diffusion-bc-small-by-returns/{dataset}"],
    "diffusion_bc": CLONING,
    "diffusion_bc longer by returns": [*LONGER, SMALL, BY_RETURNS],
    "bdpo longer by returns": [*BDPO, BY_RETURNS, "behavior={runs}/diffusion-bc-longer-by-returns/{dataset}"],
    "diffusion_bc longer": [*LONGER, SMALL],
}
BY_RETURNS_TOO = {f"{algo} by returns": [f"algo={algo}", BY_RETURNS] for algo in ("bc", "iql", "sql", "sfac")}
BESIDE_DIFFUSION = {algo: [f"algo={algo}"] for algo in ("iql", "sfac")}  # on the sets that the comparison has not come to
VP = ["algo.actor.noise_schedule=vp", "algo.actor.variance_interpolation=1"]
CLONING_THEN = [*CLONING, SMALL, "algo.optimizer.lr=3e-4", "algo.schedule.actor=constant"]  # earlier defaults, the paper's
MOVING = ["algo.behavior_training=joint", "algo.schedule.behavior=constant", "algo.learning_rates.behavior=3e-4"]
BDPO_THEN = [
    *("algo=bdpo", EPISODES, "eval.every=2500", "algo.eta={five_times}", "algo.samples=4", "algo.acting.candidates=10"),
    *("algo.critic_only=4000", ALIKE, *MOVING),
]
FIVE_TIMES = {"hopper": 1.0, "walker2d": 0.75, "halfcheetah": 0.25}  # the paper's eta
DIFFUSION_NORMALIZATION = {  # asked of the other recordings, as NORMALIZATION
    f"{algo} {name}, seed {SEARCH_SEED}": [*overrides, *VP, f"seeds=[{SEARCH_SEED}]", option]
    for name, option in (("raw", RAW), ("normalized", NORMALIZED))
    for algo, overrides in {
        "diffusion_bc": CLONING_THEN,
        "bdpo": [*BDPO_THEN, f"behavior={{runs}}/diffusion-bc-{name}-seed-{SEARCH_SEED}/{{dataset}}"],
    }.items()
}
DIFFUSION_SETTING = {  # asked of the other recordings: how to fit the behaviour model, to which episodes, and which eta
    "diffusion_bc constant": [*CLONING_THEN, "seeds=[100,101,102]"],
    "diffusion_bc to zero": [*CLONING, SMALL, "seeds=[100,101,102]"],
    "bdpo eta 1": ["algo=bdpo", "algo.eta=1", ALIKE, *MOVING, EPISODES, "eval.every=2500", "seeds=[100,101,102]"]
    + ["behavior={runs}/diffusion-bc-constant/{dataset}"],
    "bdpo eta 0.2": ["algo=bdpo", "algo.eta=0.2", ALIKE, "algo.acting.candidates=2", "eval.episodes=20", "eval.every=5000"]
    + ["seeds=[100,101]", "behavior={runs}/diffusion-bc-to-zero/{dataset}"],
    "diffusion_bc by returns": [*CLONING, SMALL, BY_RETURNS, "eval.every=25000", "eval.episodes=20", "seeds=[100,101,102]"],
    "diffusion_bc by returns 0.25": [*CLONING, SMALL, "data.return_temperature=0.25", "eval.every=25000", "eval.episodes=20"]
    + ["seeds=[100,101,102]"],
    "diffusion_bc by returns, longer": [*CLONING, SMALL, BY_RETURNS, "max_updates=150000", "eval.every=25000"]
    + ["eval.episodes=20", "seeds=[100,101]"],
    "diffusion_bc by returns, wider": [*CLONING, "algo.actor.hidden=[256,256,256]", BY_RETURNS, "eval.every=12500"]
    + ["eval.episodes=20", "seeds=[100,101]"],
    "bdpo eta 1 by returns": ["algo=bdpo", "algo.eta=1", BY_RETURNS, "eval.every=2500", "seeds=[100,101,102]"],
}
# In the two that follow `sfac` is the exponential one.
HOPPER_REPLAY = {  # asked of the other recordings: what keeps Sf-AC below XQL there, an option at a time
    row: [*overrides, "seeds=[100,101,102]", "eval.every=5000"]  # many evaluations: each is of few falls
    for row, overrides in {
        "sfac": EXPONENTIAL,
        "sfac, raw observations": [*EXPONENTIAL, RAW],
        "sfac T 1/3": [*EXPONENTIAL, "algo.temperature=0.3333"],
        "sfac coefficient 0": [*EXPONENTIAL, "algo.symmetry_coefficient=0"],
        "sfac epsilon 1": [*EXPONENTIAL, "algo.regularizer.epsilon=1"],
        "sfac softmax": [*EXPONENTIAL, "algo.value_loss=softmax"],
        "sfac sampled V": [*EXPONENTIAL, "algo.value_loss=sample"],
        "sfac omega series": [*EXPONENTIAL, "algo.omega=series"],
        "xql": ["algo=xql"],
    }.items()
}
MIXTURE = {  # asked of the other recordings: whether a mixture of Gaussians should be Sf-AC's policy by default
    row: ["algo=sfac", *overrides, "seeds=[100,101,102]"]
    for row, overrides in {"sfac mixture": ["actor=mixture"], "sfac": []}.items()
}
SQL_PARTS = {  # asked of the other recordings: why SQL was better with the same observations
    row: [*overrides, "seeds=[100,101,102]"]
    for row, overrides in {
        "sql, normalized observations": ["algo=sql", NORMALIZED],
        "sfac": EXPONENTIAL,
        "sfac T 1": [*EXPONENTIAL, "algo.temperature=1"],
        "sfac series T 1": [*EXPONENTIAL, "algo.omega=series", "algo.temperature=1"],
        "sfac series T 1, normalizer": [
            *(*EXPONENTIAL, "algo.omega=series", "algo.temperature=1", "algo.value_loss=normalizer"),
        ],
    }.items()
}
HOPPER_MEDIUM_EXPERT = {  # asked of the other recordings: where today's Sf-AC does worst, an option at a time
    row: [*overrides, "seeds=[100,101,102]", "eval.every=5000"]  # many evaluations: each is of few falls
    for row, overrides in {
        "bc": ["algo=bc"],
        "bc mixture": ["algo=bc", "actor=mixture"],
        "bc, normalized observations": ["algo=bc", NORMALIZED],
        "td3_bc": ["algo=td3_bc"],
        "sfac": ["algo=sfac"],
        "sfac mixture": ["algo=sfac", "actor=mixture"],
        "sfac T 3": ["algo=sfac", "algo.temperature=3"],
        "sfac coefficient 0": ["algo=sfac", "algo.symmetry_coefficient=0"],
        "sfac sampled V": ["algo=sfac", "algo.value_loss=sample"],
        "sfac epsilon 1": ["algo=sfac", "algo.regularizer.epsilon=1"],
        "sfac T 1/3": ["algo=sfac", "algo.temperature=0.3333"],
        "sfac order 4": ["algo=sfac", "algo.policy_order=4"],
        "sfac exponential": EXPONENTIAL,
    }.items()
}
BUDGET = ["eval.every=10000", "eval.episodes=10"]
QUESTIONS = {  # rows, data sets, updates; three seeds where a row says nothing else
    "earlier_defaults": (EARLIER_DEFAULTS, (*REPLAY, *MEDIUM), 50000),
    "fit": (FIT, (REST[0], REPLAY[1], REPLAY[3], REST[2]), 50000),
    "symmetry": (SYMMETRY, REPLAY[1:3], 50000),
    "policies": (POLICIES, REPLAY[1:], 50000),
    "halfcheetah": (HALFCHEETAH, REPLAY[3:], 50000),
    "observations": (OBSERVATIONS, (*REPLAY[3:], *REPLAY[:3]), 50000),
    "modes": (MODES, MEDIUM[:1], 50000),
    "diffusion": (DIFFUSION, MEDIUM + REST[:3], 20000),
    "by_returns": (BY_RETURNS_TOO, (*REST[:3], *MEDIUM, *REPLAY), 50000),
    "beside_diffusion": (BESIDE_DIFFUSION, (MEDIUM[1], *REST[:3]), 50000),
    "normalization": (NORMALIZATION, (*REPLAY[1:], MEDIUM[0], MEDIUM[2]), 50000),
    "diffusion_setting": (DIFFUSION_SETTING, MEDIUM + REST[:3], 20000),
    "hopper_replay": (HOPPER_REPLAY, REPLAY[1:2], 50000),
    "hopper_medium_expert": (HOPPER_MEDIUM_EXPERT, REST[:1], 50000),
    "mixture": (MIXTURE, (REPLAY[3], REPLAY[1], REST[2], REST[1], MEDIUM[0]), 50000),
    "sql_parts": (SQL_PARTS, (REPLAY[3], REPLAY[1], REPLAY[2]), 50000),
    "diffusion_normalization": (DIFFUSION_NORMALIZATION, (MEDIUM[1], MEDIUM[2], REST[0]), 10000),
}

# What stands beside them in a report: rows of the comparison, and of earlier defaults.
BESIDE = {
    "by_returns": ("bc", "iql", "sql", "sfac"),
    "earlier_defaults": ("sfac", "sql"),
    "fit": ("sfac",),
    "symmetry": ("sfac exponential, raw observations",),
    "policies": ("sfac exponential, raw observations", "bc"),
    "halfcheetah": (*EARLIER_DEFAULTS, "td3_bc"),
    "modes": ("sfac", "sfac exponential"),
    "observations": ("sfac", *EARLIER_DEFAULTS, "iql", "awac", "bc", "sql", "eql", "xql", "td3_bc"),
}


def cells(grid: str) -> dict[tuple[str, str], list[str]]:
    """(row, data set) -> overrides."""
    if grid == "comparison":
        return {
            (row, dataset): [
                f"algo={row}",
                f"dataset={dataset}",
                "seeds=5",
                "max_updates=50000",
                *BUDGET,
            ]
            for rows, datasets in STAGES
            for dataset in datasets
            for row in rows
        }
    if grid in QUESTIONS:
        rows, datasets, updates = QUESTIONS[grid]
        found = {}
        for dataset in datasets:
            common = [f"dataset={dataset}", "seeds=3", f"max_updates={updates}", *BUDGET]
            places = {"runs": f"runs/grid/{grid}", "dataset": dataset.replace("/", "-")}
            places["five_times"] = str(FIVE_TIMES[dataset.split("/")[1]])
            found |= {(row, dataset): [*common, *(o.format(**places) for o in rows[row])] for row in rows}
        return found
    if grid == "search":
        options = [*EXPONENTIAL, RAW, f"seeds=[{SEARCH_SEED}]", "max_updates=20000", "eval.every=5000", "eval.episodes=10"]
        return {
            (row, dataset): [f"dataset={dataset}", *options, "engine.matmul_precision=medium", *overrides]
            for row, overrides in SEARCH.items()
            for dataset in (*MEDIUM, BUNDLED)
        }
    raise typer.BadParameter(f"{grid}: known grids are comparison, search, {', '.join(QUESTIONS)}")


def folder(grid: str, row: str, dataset: str) -> Path:
    """Run folder of a cell, from ROOT."""
    return Path("runs") / "grid" / grid / slug(row) / dataset.replace("/", "-")


def slug(row: str) -> str:
    """A row's name as that of a folder."""
    return re.sub(r"[^a-z0-9.]+", "-", row.lower())


def stored(grid: str) -> Found:
    """What lies in docs/results of a grid."""
    return run_folders.find([STORED / grid]) if (STORED / grid / compact.RUNS).exists() else Found()


def results(grid: str, older: Found) -> Found:
    """Results of the runs at hand; the older ones of runs that are not; and what stands beside them."""
    runs = Path("runs") / "grid" / grid
    found = run_folders.find([runs]) if runs.is_dir() else Found()
    datasets = {dataset for _, dataset in cells(grid)}
    whole = [*stored("comparison").results, *stored("earlier_defaults").results] if grid in BESIDE else []
    rows = [slug(row) for row in BESIDE.get(grid, ())]
    beside = [result for result in whole if Path(result.run).parts[-2] in rows and result.dataset in datasets]
    names = {result.run for result in found.results}
    others = {(result.run, result.seed): result for result in [*beside, *older.results] if result.run not in names}
    return Found([*found.results, *others.values()], found.missing)


def main(
    grid: str,
    extra: Annotated[list[str] | None, typer.Argument(help="Overrides of every cell, such as engine=compile.")] = None,
    only: Annotated[str, typer.Option(help="Regular expression for 'row on data set'.")] = "",
    table: Annotated[bool, typer.Option(help="Train nothing.")] = False,
    again: Annotated[bool, typer.Option(help="Train also what docs/results has, and leave that out.")] = False,
    store: Annotated[bool, typer.Option(help="Write the report and its numbers to docs/results.")] = False,
    threads: int = 1,
) -> None:
    """Train the cells of a grid that are not finished and print the report."""
    os.chdir(ROOT)  # runs are named by their path from here
    older = Found() if again else stored(grid)
    names = {result.run for result in older.results}
    for (row, dataset), overrides in cells(grid).items():
        run = folder(grid, row, dataset)
        finished = (run / "result.json").exists() or run_folders.label(run) in names
        if finished or table or not re.search(only, f"{row} on {dataset}"):
            continue
        models = [Path(item.removeprefix("behavior=")) for item in overrides if item.startswith("behavior=")]
        if missing := [str(model) for model in models if not (model / "result.json").exists()]:
            print(f"{row} on {dataset} waits for {missing[0]}, which is not finished here", flush=True)
            continue
        command = [
            sys.executable,
            "train.py",
            *overrides,
            *(extra or []),
            f"run_dir={run}",
            "resume=auto",
        ]
        print(" ".join(command), flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if code := subprocess.run(command, env=environment).returncode:
            if code == 130:
                raise typer.Exit(130)
            print(f"{row} on {dataset} ended with exit code {code}", flush=True)
    found = results(grid, older)
    if not found.results:
        raise typer.BadParameter(f"no cell of {grid} is finished yet")
    report = Report(found, *compare(found.results))
    print(report.markdown())
    if store:
        report.write(STORED / grid)


if __name__ == "__main__":
    run_command(main)
