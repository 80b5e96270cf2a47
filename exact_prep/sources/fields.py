"""Names of fields: `text`, or `meta.text` for a field inside an object or struct. An exact name wins over a path.

Used for texts, token ids and source labels, in JSON records and in columns alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MISSING: Any = msgspec.UNSET
"""Stands for the value of a field that is not there."""

SHOWN = 20
"""Names that a message lists, at most."""

MOST_PATHS = 8
"""Ways to read a dotted name, at most, that are compiled."""


def spell_paths(name: str) -> Iterator[tuple[str, ...]]:
    """The ways to read a dotted name, the exact one first: `a.b.c` is a.b.c, a > b.c, a > b > c, a.b > c."""
    yield (name,)
    at = name.find(".")
    while at >= 0:
        for rest in spell_paths(name[at + 1 :]):
            yield (name[:at], *rest)
        at = name.find(".", at + 1)


def find_value(values: Mapping[str, Any], name: str) -> Any:
    """The value of a field of a JSON object, or MISSING."""
    if name in values or "." not in name:
        return values.get(name, MISSING)
    for path in spell_paths(name):
        value: Any = values
        for step in path:
            value = value.get(step, MISSING) if isinstance(value, dict) else MISSING
        if value is not MISSING:
            return value
    return MISSING


def list_names(values: Mapping[str, Any]) -> str:
    """The names in a JSON object that a user could give, those inside objects too, for a message."""
    names: list[str] = []
    for name, value in values.items():
        inner = [f"{name}.{key}" for key in value] if isinstance(value, dict) else []
        names += map(repr, inner or [name])
    return join_names(names)


def join_names(names: Sequence[str]) -> str:
    """Names for a message, as many as are of use."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more


def compile_fields(wanted: Sequence[tuple[str, Any]]) -> Callable[[bytes | bytearray], list[Any]] | None:
    """A function from a JSON record to the values of some fields, each with its type; None where it cannot be compiled.

    MISSING stands for a field that is missing or null. The function raises what msgspec raises for values of other
    types.
    """
    paths = [list(spell_paths(name)) for name, _ in wanted]
    if max(map(len, paths)) > MOST_PATHS:
        return None
    tree: dict[str, Any] = {}
    places: list[list[tuple[str, ...]]] = []
    for (_, kind), ways in zip(wanted, paths, strict=True):
        for path in ways:
            node = tree
            for step in path[:-1]:
                node = node.setdefault(step, {})
                if not isinstance(node, dict):
                    return None  # one name is a field and holds another
            if node.setdefault(path[-1], kind) is not kind:
                return None
        places.append(ways)
    numbers: dict[tuple[str, ...], tuple[str, ...]] = {}
    try:
        decode = msgspec.json.Decoder(make_struct(tree, (), (), numbers)).decode
    except (TypeError, ValueError):
        return None  # msgspec takes no names with quotes or control characters
    chains = [[numbers[path] for path in ways] for ways in places]

    def read(record: bytes | bytearray) -> list[Any]:
        decoded: Any = decode(record)
        return [pick(decoded, ways) for ways in chains]

    return read


def make_struct(
    tree: dict[str, Any], path: tuple[str, ...], steps: tuple[str, ...], numbers: dict[tuple[str, ...], tuple[str, ...]]
) -> Any:
    """A msgspec type for a tree of names; `numbers` takes the attributes that lead to each path."""
    fields: list[Any] = []
    rename: dict[str, str] = {}
    for number, (name, kind) in enumerate(tree.items()):
        attribute = f"f{number}"
        rename[attribute] = name
        here, there = (*path, name), (*steps, attribute)
        if isinstance(kind, dict):
            kind = make_struct(kind, here, there, numbers)
        else:
            numbers[here] = there
        fields.append((attribute, kind | None | msgspec.UnsetType, msgspec.UNSET))
    return msgspec.defstruct("Nested", fields, rename=rename, gc=False)


def pick(decoded: Any, ways: Sequence[tuple[str, ...]]) -> Any:
    """The first value that is there and not null, or MISSING."""
    for way in ways:
        value = decoded
        for attribute in way:
            value = getattr(value, attribute) if value is not None and value is not msgspec.UNSET else msgspec.UNSET
        if value is not None and value is not msgspec.UNSET:
            return value
    return MISSING
