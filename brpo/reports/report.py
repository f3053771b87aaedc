"""A report: from result files to Markdown, CSV and pictures."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from brpo.errors import UserError
from brpo.files import write_atomically
from brpo.reports import compact, published, run_folders, tables
from brpo.reports.comparison import Comparison, Tasks, compare, last_of_each
from brpo.reports.latex import latex
from brpo.reports.run_folders import Found
from brpo.reports.seed_result import METRICS, RULES
from brpo.runs import DIRTY

MARKDOWN = "report.md"
LATEX = "tables.tex"


@dataclass(frozen=True)
class Report:
    """What some result files say.

    Attributes:
        found: the results, and what is missing.
        comparisons: one for each protocol.
        notes: about the names of the methods.
    """

    found: Found
    comparisons: list[Comparison]
    notes: list[str]

    def headline(self) -> str:
        """The final results alone."""
        return "\n".join(
            f"{comparison.protocol}:\n\n{tables.results(comparison, metric, 'final')}"
            for comparison in self.comparisons
            for metric in METRICS
            if comparison.columns(metric)
        )

    def markdown(self, pictures: bool = False, with_published: bool = False) -> str:
        """The whole report.

        Args:
            pictures: name the pictures, which lie beside the file.
            with_published: add published scores of the same data sets.
        """
        parts = ["# Results\n"]
        for number, comparison in enumerate(self.comparisons):
            parts += _section(comparison, number if pictures else None)
        if with_published:
            datasets = sorted({result.dataset for result in self.found.results})
            parts += ["## Published scores\n", published.table(datasets, published.read())]
        notes = [*self.notes, *self._protocol_note(), *(f"Missing: {line.rstrip('.')}." for line in self.found.missing)]
        if notes:
            parts += ["## Notes\n", "".join(f"- {note}\n" for note in notes)]
        return "\n".join([*parts, "## Where the numbers come from\n", self._provenance()])

    def write(self, folder: Path, with_published: bool = False, for_paper: bool = False) -> None:
        """Write report.md, the CSV tables, the compact results and the pictures into a folder.

        Args:
            folder: made where there is none.
            with_published: add published scores of the same data sets.
            for_paper: write tables.tex, and the pictures as PDF too.

        Raises:
            OSError: they cannot be written.
        """
        from brpo.reports import pictures

        folder.mkdir(parents=True, exist_ok=True)
        tables.write_tables(folder, self.comparisons)
        compact.write(folder, self.found.results, self.found.missing)
        for older in folder.iterdir():  # of a report that had more sections, holes, or a paper
            if re.fullmatch(r"(curves|profile|profile-common)(-\d+)?\.(png|pdf)|" + re.escape(LATEX), older.name):
                older.unlink()
        for number, comparison in enumerate(self.comparisons):
            for kind in (".png", ".pdf") if for_paper else (".png",):
                pictures.draw_curves(comparison, (folder / picture("curves", number)).with_suffix(kind))
                for name, tasks in _profiles(comparison, number).items():
                    pictures.draw_profile(comparison, tasks, (folder / name).with_suffix(kind))
        if for_paper:
            write_atomically(folder / LATEX, latex(self.comparisons))
        write_atomically(folder / MARKDOWN, self.markdown(pictures=True, with_published=with_published))

    def _protocol_note(self) -> list[str]:
        if len(self.comparisons) == 1:
            return []
        return [
            "Runs that were evaluated in different ways, or after other numbers of updates, stand in sections of their own."
        ]

    def _provenance(self) -> str:
        results = self.found.results
        lines = [f"git: {', '.join(sorted({result.git or 'no clone' for result in results}))}"]
        if any(DIRTY in (result.git or "") for result in results):
            lines.append(f"{DIRTY.removeprefix('-')}: the code of those runs was not wholly committed when they started")
        lines += sorted({f"versions: {result.versions}" for result in results})
        return "".join(f"- {line}\n" for line in lines)


def picture(kind: str, number: int) -> str:
    """File name of a picture of the comparison with this number."""
    return f"{kind}.png" if number == 0 else f"{kind}-{number + 1}.png"


def _profiles(comparison: Comparison, number: int) -> dict[str, Tasks]:
    """File name -> what the performance profile is over."""
    names = {"all": "profile", "common": "profile-common"}
    return {picture(names[scope], number): tasks for scope, tasks in comparison.scopes().items()}


def report(paths: Path | str | Sequence[Path | str], last: bool = False) -> Report:
    """A report on what lies below a path or several, see `run_folders.find`.

    Args:
        paths: in the order that `last` goes by.
        last: of runs with the same seed of a method the last one counts (below a folder, by name); else they are refused.

    Raises:
        UserError: there are no results, or some that cannot stand beside one another, see `comparison.compare`.
    """
    several = [paths] if isinstance(paths, str | Path) else paths  # a string is a sequence too, of letters
    found = run_folders.find([Path(path) for path in several])
    if not found.results:
        raise UserError(f"No run is finished and evaluated: {'; '.join(found.missing) or 'no path was given'}.")
    results, left_out = last_of_each(found.results) if last else (found.results, [])
    comparisons, notes = compare(results)
    return Report(Found(results, found.missing), comparisons, [*notes, *left_out])


def _section(comparison: Comparison, number: int | None) -> Iterator[str]:
    yield f"## {str(comparison.protocol)[0].upper()}{str(comparison.protocol)[1:]}\n"
    if comparison.columns("score"):
        for rule in RULES:
            yield tables.results(comparison, "score", rule)
        for scope, tasks in comparison.scopes().items():
            yield tables.over_tasks(comparison, tasks)
            if scope == "all":
                yield from filter(None, [tables.robustness(comparison)])
            yield tables.by_rule(comparison, tasks)
            yield from filter(None, [tables.improvement(comparison, tasks)])
    for metric in METRICS:
        if metric != "score" and comparison.columns(metric):
            yield f"Data sets without reference scores: {METRICS[metric].words}, which enters no number over data sets.\n"
            for rule in RULES:
                yield tables.results(comparison, metric, rule)
    if number is not None:
        yield f"![Learning curves]({picture('curves', number)})\n"
        for name in _profiles(comparison, number):
            yield f"![Performance profile]({name})\n"
    yield from filter(None, [tables.episodes(comparison)])
    yield tables.cost(comparison)
