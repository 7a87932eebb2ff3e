"""Every setting there is, by its dotted key, and what may stand there, in words for people.

Invariant: everything is read off the sections themselves: messages and documentation cannot disagree with it.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from arpo.config.model import Config
from arpo.config.sections import Section

_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


@dataclass(frozen=True)
class Setting:
    """One leaf of the configuration."""

    key: str
    info: FieldInfo

    @property
    def section(self) -> str:
        """Dotted key of the section that holds it."""
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        """Its name inside the section."""
        return self.key.rpartition(".")[2]

    @property
    def expects(self) -> str:
        """What may stand there: `a whole number above 0`."""
        return _expects(self.info.annotation, self.info.metadata)

    @property
    def alternatives(self) -> frozenset[type]:
        """The plain types that may stand there, None's included."""
        return frozenset(t for t in _members(self.info.annotation) if isinstance(t, type))


@cache
def settings() -> dict[str, Setting]:
    """All settings by dotted key, in the order of the sections."""
    return {setting.key: setting for setting in _walk(Config, "")}


@cache
def sections() -> dict[str, type[Section]]:
    """All sections by dotted key, nested ones included."""
    return dict(_sections(Config, ""))


def _walk(model: type[Section], prefix: str) -> Iterator[Setting]:
    for name, info in model.model_fields.items():
        if _is_section(info.annotation):
            yield from _walk(info.annotation, f"{prefix}{name}.")
        else:
            yield Setting(f"{prefix}{name}", info)


def _sections(model: type[Section], prefix: str) -> Iterator[tuple[str, type[Section]]]:
    for name, info in model.model_fields.items():
        if _is_section(info.annotation):
            yield f"{prefix}{name}", info.annotation
            yield from _sections(info.annotation, f"{prefix}{name}.")


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _members(annotation: Any) -> Iterator[Any]:
    """The members of a union, without their `Annotated`; the annotation itself where it is none."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _expects(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        constraints = [c for m in arguments[1:] for c in (m.metadata if isinstance(m, FieldInfo) else [m])]
        return _expects(arguments[0], constraints)
    if origin in (Union, types.UnionType):
        return " or ".join(_expects(argument, metadata) for argument in arguments)
    if annotation in (None, types.NoneType):
        return "null"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is dict:
        return "a mapping"
    if origin is tuple and arguments[1:] == (...,):
        return f"a list of {_expects(arguments[0]).removeprefix('a ')}"
    if origin is tuple:
        return f"[{', '.join(map(_expects, arguments))}]"
    return f"{_PLAIN[annotation]} {_bounds(metadata)}".rstrip()


def _bounds(constraints: Sequence[Any]) -> str:
    """`above 0 and at most 1`; empty when nothing is bounded."""
    low = high = ""
    for constraint in constraints:
        match constraint:
            case annotated_types.Gt(gt=bound):
                low = f"above {bound}"
            case annotated_types.Ge(ge=bound):
                low = f"of at least {bound}"
            case annotated_types.Lt(lt=bound):
                high = f"below {bound}"
            case annotated_types.Le(le=bound):
                high = f"at most {bound}"
            case _ if pattern := getattr(constraint, "pattern", None):
                low = f"that matches `{pattern}`"
    return " and ".join(filter(None, (low, high)))
