"""Distribution fitting: what a Gaussian and a mixture become under each divergence, exactly and truncated.

python -m brpo.experiments.fit --out runs/fit

Source: the first experiment of Sf-AC (arXiv:2508.04225), with targets of our own. docs/fit.md shows the result.
"""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from brpo.errors import UserError
from brpo.exits import exit_code_of_command
from brpo.files import write_atomically, write_records

ALSO = ("alpha:-0.5", "alpha:1.5")  # beyond KL on either side, where the family has no other name

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="Folder of fit.csv, fit.md, fit_1d.png and fit_2d.png.")] = Path("runs/fit"),
    updates: Annotated[int, typer.Option(help="Updates of all fits, at least 1.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the points that the fits start from.")] = 0,
    clip: Annotated[float, typer.Option(help="Clip range as a share of the radius of convergence, in (0, 1].")] = 1.0,
    also: Annotated[
        list[str] | None,
        typer.Option(help=f"A member of the alpha family, again for more; unless given {' '.join(ALSO)}."),
    ] = None,
) -> None:
    """Fit a Gaussian and a mixture to mixtures of Gaussians under every divergence, exact and truncated."""
    from brpo.experiments import fit_pictures, mixture_fits
    from brpo.functional.divergences import DIVERGENCES, get_divergence

    names = list(dict.fromkeys(also or ALSO))
    for name in names:
        try:
            get_divergence(name)
        except ValueError as error:
            raise UserError(f"--also: {error}") from error
        if name in DIVERGENCES:
            raise UserError(f"--also {name} is not needed: every entry of the table is fitted.")

    if updates < 1:
        raise UserError(f"--updates {updates} is not allowed; it must be at least 1.")
    if not 0 < clip <= 1:
        raise UserError(f"--clip {clip:g} is not allowed; it must be in (0, 1]: beyond the radius there is no series.")
    out.mkdir(parents=True, exist_ok=True)
    begin, results = time.monotonic(), []
    for task in mixture_fits.tasks():
        for family in task.families:
            results.append(mixture_fits.fit_family(task, family, clip=clip, updates=updates, seed=seed, also=names))
            seconds = time.monotonic() - begin
            print(f"{task.dimension}-D {family}: {len(results[-1].chosen)} fits, {seconds:.0f} s so far", flush=True)
    write_records(out / "fit.csv", mixture_fits.rows(results))
    write_atomically(out / "fit.md", mixture_fits.table(results))
    print(out / "fit.csv", out / "fit.md", sep="\n")
    for dimension in (1, 2):
        picture = out / f"fit_{dimension}d.png"
        write_atomically(picture, fit_pictures.draw([f for f in results if f.task.dimension == dimension]))
        print(picture)


if __name__ == "__main__":
    sys.exit(exit_code_of_command(app, program="python -m brpo.experiments.fit"))
