"""What an option may be: the questions that networks, algorithms and the configuration share. Without torch."""

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

from brpo.errors import UserError

NOT_TYPED = (  # arguments that are no options, but given by who builds the class
    "spec", "seeds", "max_updates", "sampler", "sampling_steps", "common", "self", "args", "kwargs",
)  # fmt: skip


class OptionRefused(UserError):
    """An option has a value that it may not have. Whoever builds what refused it adds where it stands (see `options_of`)."""

    def __init__(self, option: str, value: Any, allowed: str) -> None:
        super().__init__(f"{option}={value} is not allowed; it must be {allowed}.")
        self.option, self.value, self.allowed = option, value, allowed

    def __reduce__(self) -> tuple[Any, ...]:
        return OptionRefused, (self.option, self.value, self.allowed)  # ranks tell each other what was refused

    def of(self, place: str) -> "OptionRefused":
        """The same, of an option that stands at `place`."""
        return OptionRefused(f"{place}.{self.option}", self.value, self.allowed)


@contextmanager
def options_of(place: str) -> Iterator[None]:
    """Name the options that are refused within by where they stand."""
    try:
        yield
    except OptionRefused as error:
        raise error.of(place) from error


def require(option: str, value: Any, allowed: str, holds: Callable[[Any], bool]) -> None:
    """Refuse an option's value.

    Raises:
        OptionRefused: names the option, the value and what is allowed.
    """
    try:
        good = holds(value)
    except TypeError:  # text or null where a number belongs
        good = False
    if not good:
        raise OptionRefused(option, value, allowed)


def is_number(value: Any) -> bool:
    """Whether it is a finite number, of Python or numpy; true and false are none."""
    number: Any = value
    return isinstance(value, Real) and not isinstance(value, bool) and bool(abs(number) < math.inf)  # which NaN is not


def require_number(option: str, value: Any, allowed: str, holds: Callable[[float], bool]) -> None:
    """Refuse what is no finite number, or none for which `holds` (see `require`)."""
    require(option, value, allowed, lambda v: is_number(v) and holds(v))


def require_positive(**options: Any) -> None:
    """Refuse values that are no positive numbers (see `require`)."""
    for option, value in options.items():
        require_number(option, value, "positive and finite", lambda v: v > 0)


def require_cap(allowed: str = "positive", **options: Any) -> None:
    """Refuse values that are no positive numbers; infinity, which caps nothing, is one here (see `require`)."""
    for option, value in options.items():
        require(option, value, allowed, lambda v: v == math.inf or (is_number(v) and v > 0))


def require_at_least_zero(**options: Any) -> None:
    """Refuse values that are no numbers of at least 0 (see `require`)."""
    for option, value in options.items():
        require_number(option, value, "at least 0 and finite", lambda v: v >= 0)


def require_whole(least: int, **options: Any) -> None:
    """Refuse values that are no whole numbers from `least` on (see `require`)."""
    for option, value in options.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        require(option, value, f"a whole number >= {least}", lambda v, whole=whole: whole and v >= least)


def require_flag(**options: Any) -> None:
    """Refuse values that are neither true nor false (see `require`); `no` and `off` are words to Hydra."""
    for option, value in options.items():
        require(option, value, "true or false", lambda v: isinstance(v, bool))


def require_one_of(names: Any, **options: Any) -> None:
    """Refuse values that are none of the names (see `require`)."""
    known = " or ".join(names)
    for option, value in options.items():
        require(option, value, known, lambda v: isinstance(v, str) and v in names)


def require_part(**parts: Any) -> None:
    """Refuse what builds no part of an algorithm (see `require`)."""
    for part, factory in parts.items():
        require(part, factory, "a group or a mapping with a _target_, as conf/algo has one", callable)


def classes_above(kind: Any) -> list[type]:
    """A class and those above it; none of what is no class."""
    return list(inspect.getmro(kind)) if inspect.isclass(kind) else []


def known_options(classes: list[type]) -> str:
    """What a class takes, in words; `classes` are it and those above it."""
    names: dict[str, None] = {}
    for each in classes:
        if "__init__" not in vars(each):
            continue
        parameters = inspect.signature(each.__init__).parameters
        names |= dict.fromkeys(p for p in list(parameters)[1:] if p not in NOT_TYPED)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            break  # nothing is handed on to the classes above
    return f"Known options: {', '.join(names)}."


def meant(key: str, known: Iterable[str]) -> str:
    """Of the known dotted keys those that end as one that there is not, or beside it nearly so, as a question."""
    (place, _, name), known = key.rpartition("."), dict.fromkeys(other for other in known if other != key)
    beside = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == place]
    near = difflib.get_close_matches(name, beside, n=1, cutoff=0.8)
    found = [f"{place}.{near[0]}" if place else near[0]] if near else []
    found = found or [other for other in known if other.rpartition(".")[2] in (name, f"{name}s")]
    return f" Did you mean {' or '.join(found)}?" if found else ""


def in_words(error: TypeError) -> str:
    """Why a class could not be built, without Python's way to call it."""
    words = re.sub(r"(\w+)\.__init__\(\) got an unexpected keyword argument", r"\1 has no option", str(error))
    return re.sub(r"(\w+)\.__init__\(\) missing \d+ required \S+ arguments?:", r"\1 lacks the options", words)
