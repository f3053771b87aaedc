"""What `benchmarks/scalars.py` reads out of a run's events."""

import csv
from pathlib import Path

import pytest
import scalars
from torch.utils.tensorboard import SummaryWriter

from brpo.exits import run_command


def test_rows_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every multiple after update 0, tags that the run has alone, to four digits."""
    monkeypatch.chdir(tmp_path)
    run = Path("runs/grid/question/row/data")
    with SummaryWriter(str(run)) as writer:
        for update in range(0, 50, 5):
            writer.add_scalar("q/mean", update / 3, update)
        writer.add_scalar("actor/symmetry", 0.5, 20)
    scalars.main([run], ["q/mean", "weight/effective_share", "actor/symmetry"], every=20, output=Path("found.csv"))
    with open("found.csv") as file:
        found = [tuple(row.values()) for row in csv.DictReader(file)]
    assert found == [
        (str(run), "q/mean", "20", "6.667"),
        (str(run), "q/mean", "40", "13.33"),
        (str(run), "actor/symmetry", "20", "0.5"),
    ]
    scalars.main([run], None, every=20)
    assert f"{run} q/mean 40 13.33" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("nowhere", "error: nowhere has no events of TensorBoard. Give run folders, runs/<algo>/<data set>/<time>-<id>."),
        ("", "error: Missing argument 'runs'. See python scalars.py --help."),
    ],
)
def test_wrong_input_is_one_line(
    typed: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As all benchmarks end."""
    monkeypatch.setattr("sys.argv", ["scalars.py", *typed.split()])
    with pytest.raises(SystemExit) as ended:
        run_command(scalars.main)
    assert (ended.value.code, capsys.readouterr().err) == (2, f"{said}\n")
