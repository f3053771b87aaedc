"""The page of `brpo diagnose`: a panel for each quantity that the method has, and words for those that it lacks."""

import io
import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from brpo.callbacks.evaluate import BOUNDARY_SHARE
from brpo.diagnosis import Diagnosis, markdown, numbers
from brpo.diagnosis_panels import PANELS, Panel, asked_for
from brpo.files import write_atomically, write_json

STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
}
WIDTH, HEIGHT = 3.7, 2.75  # of a panel, in inches


def write(diagnosis: Diagnosis) -> list[Path]:
    """Write `diagnosis.png`, `.json` and `.md` into the run folder; gives their paths.

    Raises:
        OSError: the folder cannot be written.
    """
    picture, table, page = (diagnosis.folder.path / f"diagnosis.{kind}" for kind in ("png", "json", "md"))
    found = numbers(diagnosis, absent(diagnosis))
    write_atomically(picture, draw(diagnosis))
    write_json(table, found)
    write_atomically(page, markdown(found))
    return [picture, table, page]


def absent(diagnosis: Diagnosis) -> dict[str, str]:
    """The panels that this run has not, each with its reason."""
    concerned = [panel for panel in panels_of(diagnosis) if panel.concerns(diagnosis)]
    return {
        diagnosis.worded(panel.title): diagnosis.worded(reason) for panel in concerned if (reason := panel.absent(diagnosis))
    }


def panels_of(diagnosis: Diagnosis) -> tuple[Panel, ...]:
    """All that it could have, and those that were asked for by name."""
    return *PANELS, *map(asked_for, diagnosis.also)


def shown(diagnosis: Diagnosis) -> list[Panel]:
    """The panels that it has."""
    return [panel for panel in panels_of(diagnosis) if not panel.absent(diagnosis)]


def draw(diagnosis: Diagnosis) -> bytes:
    """The page as a PNG."""
    lacking, panels = absent(diagnosis), shown(diagnosis)
    columns = min(len(panels), 2 if len(panels) == 4 else 3) or 1
    rows = max(math.ceil(len(panels) / columns), 1)  # a page without panels says why
    note = "\n".join(
        line
        for title, reason in lacking.items()
        for line in textwrap.wrap(f"Not shown: {title} ({reason}).", round(WIDTH * max(columns, 2) * 18))
    )
    margin = 0.25 + 0.14 * len(note.splitlines())
    with matplotlib.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(WIDTH * max(columns, 2), HEIGHT * rows + 0.72 + margin), layout="constrained")
        height: float = figure.get_figheight()
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0.005, margin / height, 0.99, 1.0 - (margin + 0.62) / height), hspace=0.06, wspace=0.03)
        grid = figure.subplots(rows, columns, squeeze=False).flat
        for axes in list(grid)[len(panels) :]:
            axes.axis("off")
        for panel, axes in zip(panels, figure.axes, strict=False):
            axes.set_title(diagnosis.worded(panel.title))
            panel.draw(axes, diagnosis)
        figure.text(0.01, 1.0 - 0.08 / height, heading(diagnosis), va="top", weight="bold", size=10)
        figure.text(0.01, 1.0 - 0.28 / height, subheading(diagnosis), va="top", size=8, linespacing=1.4)
        figure.text(0.01, 0.1 / height, note, va="bottom", size=7, color="0.35")
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def heading(diagnosis: Diagnosis) -> str:
    """What was trained on what."""
    return f"{diagnosis.name} on {diagnosis.algorithm.spec.dataset_id}"


def subheading(diagnosis: Diagnosis) -> str:
    """What the page was made of."""
    episodes = diagnosis.worded("held-out episode" + "s" * (len(diagnosis.lengths) > 1))
    seeds = f"{len(diagnosis.seeds)} seeds together" if len(diagnosis.seeds) > 1 else f"seed {diagnosis.seeds[0]}"
    return (
        f"{diagnosis.checkpoint}, update {diagnosis.algorithm.update_count}, {seeds}; histograms and episodes: "
        f"{int(diagnosis.lengths.sum())} transitions of {len(diagnosis.lengths)} {episodes}"
        f"\n{100 * diagnosis.quantities[BOUNDARY_SHARE].mean():.3g} % of the entries of the policy's actions there lie at "
        f"a bound"
    )
