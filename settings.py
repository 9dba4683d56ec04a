"""Turns a plain mapping (YAML, Hydra's config) into a checked, frozen dataclass, and names every slip.

Types name the settings and hold no defaults: each value stands once, in YAML. Knows nothing of what the settings are about.
"""

import difflib
import math
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
Limit = Any
"""What `Annotated[float, LIMIT]` carries: any object with .low, .high (closed interval) and .unit (text)."""

MISSING_MARK = "???"
"""Hydra's mark of a value that has to be given."""


class Range(NamedTuple):
    """A closed interval and its unit; "share" stands for a part of one."""

    low: float
    high: float
    unit: str


class Slip(NamedTuple):
    """One setting that cannot be used."""

    place: str  # file or command that holds it
    key: str  # full path of the key within the place, such as arrivals[0].rate; empty for the whole
    rule: str  # what was expected and what stands there

    def __str__(self) -> str:
        return f"{self.place}: {self.key} {self.rule}" if self.key else f"{self.place}: {self.rule}"


class SettingsError(ValueError):
    """One or more settings cannot be used; the text has one line for each, `slips` the parts."""

    def __init__(self, *slips: Slip) -> None:
        self.slips = slips
        super().__init__("\n".join(str(slip) for slip in slips))

    def __reduce__(self) -> tuple[type["SettingsError"], tuple[Slip, ...]]:
        return type(self), self.slips


def read(kind: type[T], values: Any, place: str) -> T:
    """Make a `kind` of `values`, or refuse with every slip by name.

    kind     frozen dataclass without defaults; fields may be bool, int, float, str, dataclasses, list[X], tuple[X, ...],
             tuple[X, Y], dict[str, X], X | None, X | Y, Literal and Annotated[X, LIMIT] with .low, .high and .unit
    values   mapping or DictConfig
    place    where the values stand, for the error's first words, such as conf/market/paper.yaml
    errors   SettingsError for a slip in the values; TypeError when `kind` itself is not of that form
    """
    slips: list[Slip] = []
    out = _value(kind, plain(values, place), _At(place, "", slips), None)
    if slips:
        raise SettingsError(*slips)
    return out  # type: ignore[no-any-return]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Say which of `known` was probably meant by `word`, or list them all."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"choose from {', '.join(names)}" if names else "there is nothing to choose from"


def show(value: Any) -> str:
    """Write a value as YAML would, cut to a length that fits a line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _At(NamedTuple):
    """Where the reader stands."""

    place: str
    key: str
    slips: list[Slip]

    def under(self, name: str) -> "_At":
        """Step into the field `name`."""
        return self._replace(key=f"{self.key}.{name}" if self.key else name)

    def item(self, index: int) -> "_At":
        """Step into an item of a list."""
        return self._replace(key=f"{self.key}[{index}]")

    def refuse(self, rule: str) -> None:
        """Note a slip; reading goes on, so that all are found at once."""
        self.slips.append(Slip(self.place, self.key, rule))


def plain(values: Any, place: str) -> Any:
    """Resolve OmegaConf's containers to dicts and lists; all else is returned as it is.

    errors   SettingsError when an interpolation ${...} leads nowhere
    """
    if "omegaconf" not in sys.modules:  # whoever holds one of its containers has loaded it; a node has not
        return values
    from omegaconf import DictConfig, ListConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(values, (DictConfig, ListConfig)):
        return values
    try:
        return OmegaConf.to_container(values, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        rule = f"cannot be resolved: {str(error.msg).splitlines()[0]}"
        raise SettingsError(Slip(place, str(error.full_key or ""), rule)) from error


def _value(kind: Any, value: Any, at: _At, limit: Limit) -> Any:
    """Read one value of any supported kind; after a slip the result is of no use."""
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *marks = get_args(kind)
        return _value(inner, value, at, next((mark for mark in marks if hasattr(mark, "low")), limit))
    if isinstance(value, str) and value == MISSING_MARK:
        return at.refuse(f"is missing; it must be {_describe(kind, limit)}")
    if origin in (Union, types.UnionType):
        return _one_of(get_args(kind), kind, value, at, limit)
    if is_dataclass(kind):
        return _record(kind, value, at)
    if origin in (list, tuple):
        return _items(kind, value, at, limit)
    if origin is dict:
        return _mapping(kind, value, at, limit)
    if origin is Literal:
        return _choice(get_args(kind), value, at)
    return _scalar(kind, value, at, limit)


def _record(kind: Any, value: Any, at: _At) -> Any:
    """Read a nested dataclass: unknown and missing keys, then each field."""
    if any(field.default is not MISSING or field.default_factory is not MISSING for field in fields(kind)):
        raise TypeError(f"{kind.__name__}: a settings type has no defaults; write the values in YAML")
    if not isinstance(value, Mapping):
        return at.refuse(f"must be a mapping, got {show(value)}")
    names = [field.name for field in fields(kind)]
    for key in value:
        if key not in names:
            spare = [name for name in names if name not in value]
            at.under(str(key)).refuse(f"is not a setting; {did_you_mean(str(key), spare or names)}")
    hints = get_type_hints(kind, include_extras=True)
    before = len(at.slips)
    out = {}
    for name in names:
        if name in value:
            out[name] = _value(hints[name], value[name], at.under(name), None)
        else:
            at.under(name).refuse(f"is missing; it must be {_describe(hints[name], None)}")
    if len(at.slips) > before or len(out) < len(names):
        return None
    try:
        return kind(**out)
    except ValueError as error:  # a rule across several fields, stated by the type's __post_init__
        return at.refuse(str(error))


def _items(kind: Any, value: Any, at: _At, limit: Limit) -> Any:
    """Read a list or tuple; a tuple of fixed length must have that length."""
    origin, inner = get_origin(kind), get_args(kind)
    if not isinstance(value, (list, tuple)):
        return at.refuse(f"must be {_describe(kind, limit)}, got {show(value)}")
    if origin is list or inner[-1] is Ellipsis:
        inner = (inner[0],) * len(value)
    elif len(inner) != len(value):
        return at.refuse(f"must be {_describe(kind, limit)}, got {len(value)} items")
    return origin(_value(part, item, at.item(i), limit) for i, (part, item) in enumerate(zip(inner, value, strict=True)))


def _mapping(kind: Any, value: Any, at: _At, limit: Limit) -> Any:
    """Read dict[str, X]."""
    if not isinstance(value, Mapping):
        return at.refuse(f"must be {_describe(kind, limit)}, got {show(value)}")
    for key in value:
        if not isinstance(key, str):
            at.refuse(f"must have text as keys, got {show(key)}")
    return {key: _value(get_args(kind)[1], item, at.under(str(key)), limit) for key, item in value.items()}


def _one_of(kinds: tuple[Any, ...], whole: Any, value: Any, at: _At, limit: Limit) -> Any:
    """Read X | None or X | Y: the first kind that fits; the slips of X when only X and null are possible."""
    real = [kind for kind in kinds if kind is not type(None)]
    if value is None and len(real) < len(kinds):
        return None
    if len(real) == 1 and (value is not None and not _is_leaf(real[0])):
        return _value(real[0], value, at, limit)
    for kind in real:
        trial = at._replace(slips=[])
        out = _value(kind, value, trial, limit)
        if not trial.slips:
            return out
    return at.refuse(f"must be {_describe(whole, limit)}, got {show(value)}")


def _is_leaf(kind: Any) -> bool:
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return not is_dataclass(kind) and get_origin(kind) not in (list, tuple, dict)


def _choice(options: tuple[Any, ...], value: Any, at: _At) -> Any:
    """Read a Literal; true is not 1."""
    for option in options:
        if type(option) is type(value) and option == value:
            return option
    words = [option for option in options if isinstance(option, str)]
    close = difflib.get_close_matches(value, words, n=1, cutoff=0.6) if isinstance(value, str) else []
    hint = f"; did you mean {close[0]}?" if close else ""
    return at.refuse(f"must be {_describe(Literal[options], None)}, got {show(value)}{hint}")


def _scalar(kind: Any, value: Any, at: _At, limit: Limit) -> Any:
    """Read bool, int, float or str within its limit."""
    if kind is Any:
        return value
    if kind not in (bool, int, float, str):
        raise TypeError(f"{at.place}: {at.key} has a kind that settings cannot read: {kind!r}")
    fits = isinstance(value, (int, float) if kind is float else kind) and not (isinstance(value, bool) and kind is not bool)
    if fits and kind in (int, float):
        fits = _inside(value, limit)
    if fits and kind is float and isinstance(value, int):
        fits = abs(value) <= sys.float_info.max
    if fits:
        return float(value) if kind is float else value
    whole = kind is int and isinstance(value, float) and math.isfinite(value) and value == int(value)
    hint = f" (write {int(value)})" if whole and _inside(int(value), limit) else ""
    return at.refuse(f"must be {_describe(kind, limit)}, got {show(value)}{hint}")


def _inside(value: float, limit: Limit) -> bool:
    if limit is None:
        return -math.inf < value < math.inf
    return bool(limit.low <= value <= limit.high)


def _describe(kind: Any, limit: Limit) -> str:
    """Say in words what `kind` allows, for the second half of "must be ..."."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _describe(inner[0], next((mark for mark in inner[1:] if hasattr(mark, "low")), limit))
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _describe(part, limit) for part in inner)
    if origin is Literal:
        return f"one of {', '.join(show(option) if not isinstance(option, str) else option for option in inner)}"
    if origin is list or (origin is tuple and inner[-1] is Ellipsis):
        return f"a list, each item {_describe(inner[0], limit)}"
    if origin is tuple:
        return f"a list of {len(inner)}: {', '.join(_describe(part, limit) for part in inner)}"
    if origin is dict or is_dataclass(kind):
        return "a mapping"
    if kind in (int, float):
        return _describe_number(kind, limit)
    return {bool: "true or false", str: "text"}.get(kind, "any value")


def _describe_number(kind: Any, limit: Limit) -> str:
    noun = "an integer" if kind is int else "a number"
    if limit is None:
        return noun
    low, high = (f"{bound:g}" if abs(bound) < 1e6 or math.isinf(bound) else f"{bound:_.0f}" for bound in (limit.low, limit.high))
    if limit.unit == "share":
        return f"a share in [{low}, {high}]"
    unit = f" {limit.unit}" if limit.unit else ""
    if limit.high == math.inf:
        return noun if limit.low == -math.inf else f"{noun} >= {low}{unit}"
    return f"{noun} in [{low}, {high}]{unit}"
