"""The known divergences and what decides how they act in Sf-AC, as a Markdown table: `brpo divergences`."""

import math
from collections.abc import Iterable

from brpo.errors import UserError
from brpo.functional import series
from brpo.functional.divergences import BY_TORCH, Divergence

SHOWN = 5  # the highest order of the coefficients that are shown
HEAD = (
    "divergence", "f(t)", "symmetric", "slope of w", "largest w, order 3, 5", f"g_2 to g_{SHOWN}", "radius",
    "orders beyond it", "coefficient below",
)  # fmt: skip


def table(divergences: Iterable[Divergence], order: int, epsilon: float) -> str:
    """A row for each divergence.

    Args:
        divergences: from `DIVERGENCES`, or of the user's.
        order: of the series in the last column, `loss_order`.
        epsilon: clip range there.
    """
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    return "\n".join([*lines, *("| " + " | ".join(row(each, order, epsilon)) + " |" for each in divergences)])


def row(divergence: Divergence, order: int, epsilon: float) -> list[str]:
    """The cells of a divergence; those of its series are empty where it has none.

    Raises:
        UserError: f, the user's, fails.
    """
    formula = f"`{divergence.formula}`" if divergence.formula else "-"
    try:
        symmetric = divergence.is_symmetric
    except Exception as error:  # whatever a function of the user's raises
        raise UserError(
            f"f of the divergence {divergence.name!r} cannot be computed: {' '.join(str(error).split())}. {BY_TORCH}"
        ) from error
    first = [f"`{divergence.name}`", formula, "yes" if symmetric else "no"]
    try:
        series.branch(divergence, 2)
    except ValueError:  # no series, or no curvature at 1
        return [*first, *["-"] * (len(HEAD) - len(first))]
    g = divergence.conditional_symmetry_taylor(max(order, 2 * SHOWN))
    ends = [1.0 + series.branch(divergence, n).high for n in (3, 5)]
    bound = series.coefficient_bound(g[: order + 1], epsilon)
    return [
        *first,
        f"{1.0 / divergence.d2f1:.4g}",
        ", ".join("none" if math.isinf(end) else f"{end:.4g}" for end in ends),
        ", ".join(f"{value:.3g}" for value in g[2 : SHOWN + 1]),
        f"{divergence.series_radius:.4g}",
        ", ".join(str(n) for n in range(2, SHOWN + 1) if g[n] >= 0) or "-",
        "any" if math.isinf(bound) else f"{bound:.3g}",
    ]
