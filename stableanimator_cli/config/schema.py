"""Config classes: frozen dataclasses from flags, TOML and a model's defaults, and back to TOML.

A field made with :func:`option` records the flag that sets it. Every error names the flag, or the file and the key.
Written by hand on the standard library alone: the shell's completion imports this module at each TAB.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import operator
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from stableanimator_cli import readers
from stableanimator_cli.config.paths import is_utf8, path_of
from stableanimator_cli.errors import ConfigError, did_you_mean

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class SourcedValue:
    """One value for a config, and its source for errors (``--steps``, ``run.toml: sampling.steps``)."""

    value: Any
    label: str


SourcedValues = dict[tuple[str, ...], SourcedValue]


def option(
    flag: str,
    default: Any = MISSING,
    *,
    help: str | None = None,
    panel: str | None = None,
    metavar: str | None = None,
    short: str | None = None,
    default_text: str | None = None,
    model_default: bool = False,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    parse: Callable[[Any, str], Any] | None = None,
    dump: Callable[[Any], Any] | None = None,
    none: str | None = None,
    complete: str | tuple[str, ...] | None = None,
    bare: str | None = None,
    formerly: str | None = None,
    old_flag: str | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Any:
    """A dataclass field and the option of the command line that sets it.

    Args:
        flag: an option (``--decode-chunk``), an argument (``MOTION``), or a dotted key that the command line lacks.
        help: text of ``sa VERB --help``, to which the default is added; ``default_text`` replaces the value there and
            ``model_default``: a model's card may set it, under ``[defaults]``; its value comes before the default.
        panel: heading in the help; None is the first group.
        ge, gt, le, lt: the range of a number, checked by ``check_fields`` and shown in the help.
        parse, dump: ``parse(value, label)`` reads what TOML or the shell holds; ``dump`` is its inverse for TOML.
        none: what ``parse`` reads as ``None``, for TOML: left out, a preset's or a card's value would take its place.
        complete: what the shell completes: ``model``, some words, or None for what follows from the type.
        bare: the value of the flag alone, whose values are the words of ``complete``.
        formerly, old_flag, renamed: the TOML key, flag and values of older versions, which are still read.
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    metadata = {
        "flag": flag, "help": help, "panel": panel, "metavar": metavar, "short": short, "default_text": default_text,
        "model_default": model_default, "parse": parse, "dump": dump, "none": none, "complete": complete, "bare": bare,
        "formerly": formerly, "old_flag": old_flag, "renamed": renamed or {},
        "bounds": {name: bound for name, bound in bounds.items() if bound is not None},
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def require(holds: bool, flag: str, found: object, expected: str) -> None:
    """Raise a :class:`ConfigError` that names ``flag`` unless ``holds``."""
    if not holds:
        raise ConfigError(flag, found, expected)


def check_fields(config: Any) -> None:
    """Check every ``Literal`` field against its choices and every number against its range; for ``__post_init__``."""
    hints = _hints(type(config))
    for item in dataclasses.fields(config):
        _check_field(item, hints[item.name], getattr(config, item.name), item.metadata.get("flag", item.name))


def _check_field(item: dataclasses.Field[Any], hint: Any, value: Any, label: str) -> None:
    inner, optional = _without_none(hint)
    if optional and value is None:
        return
    if get_origin(inner) is Literal:
        _choice(value, get_args(inner), label)
    elif inner in (int, float):
        bounds = item.metadata.get("bounds", {})
        inside = all(_COMPARE[name](value, bound) for name, bound in bounds.items())
        finite = inner is int or math.isfinite(value)
        require(inside and finite, label, value, describe_range(bounds))


_COMPARE = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}


def describe_range(bounds: Mapping[str, float]) -> str:
    """``{"ge": 1, "le": 1000}`` -> ``1 to 1000``."""
    low = f"{bounds['ge']}" if "ge" in bounds else f"more than {bounds['gt']}" if "gt" in bounds else ""
    high = f"{bounds['le']}" if "le" in bounds else f"less than {bounds['lt']}" if "lt" in bounds else ""
    if not low or not high:
        return high or (f"{low} or more" if "ge" in bounds else low) or "a finite number"
    return f"{low} to {high}" if "ge" in bounds else f"{low} and {high if 'lt' in bounds else f'at most {high}'}"


def from_mapping(cls: type[C], mapping: Mapping[str, Any], source: Path | str) -> C:
    """Build ``cls`` from nested tables. Unknown keys and wrong types are refused, naming ``source`` and the key."""
    return _build(cls, _from_tables(cls, mapping, str(source)))


def resolve(
    cls: type[C],
    flags: Mapping[str, Any],
    file: Path | None = None,
    defaults: Mapping[str, Any] | None = None,
    *,
    preset: tuple[Mapping[str, Any], str] | None = None,
) -> C:
    """The config of a run: flags over the file over a preset over the model's defaults over the class's own.

    ``flags`` and ``defaults`` are keyed by option name (``decode_chunk`` for ``--decode-chunk``); a flag of None is not
    given. ``file`` and ``preset`` have one table per sub-config; ``preset`` comes with its name for errors.
    """
    settings = _from_names(cls, defaults or {}, "the model's defaults")
    if preset is not None:
        settings |= _from_tables(cls, *preset)
    if file is not None:
        settings |= _from_tables(cls, read_toml(file), str(file))
    settings |= _from_names(cls, {name: value for name, value in flags.items() if value is not None}, None)
    return _build(cls, settings)


def model_defaults(cls: type) -> dict[str, Callable[[Any, str], Any]]:
    """Options that a model's card may set, by name, with the function ``(value, label)`` that converts and checks."""
    return {
        option_name(item.metadata["flag"]): functools.partial(_field_value, item, hint)
        for _, item, hint in _leaves(cls)
        if item.metadata.get("model_default")
    }


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ``ConfigError`` if it is missing or not TOML."""
    return readers.read_toml(path, "a config", error=ConfigError.because)


def refuse_unknown_keys(cls: type, mapping: Mapping[str, Any], source: Path | str) -> None:
    """Raise ``ConfigError`` for a key or table that ``cls`` does not have."""
    _from_tables(cls, mapping, str(source))


def check_file(cls: type, file: Path) -> None:
    """Check a TOML file whose config is built later, over a model's defaults: keys, types, choices and ranges.

    Raises ``ConfigError``. Values that exclude one another are not compared: defaults decide which do.
    """
    settings = _from_tables(cls, read_toml(file), str(file))
    for path, item, hint in _leaves(cls):
        if (setting := settings.get(path)) is not None:
            _check_field(item, hint, _field_value(item, hint, setting.value, setting.label), setting.label)


def to_toml(config: Any) -> str:
    """The full config as TOML, defaults included, so that a later change of a default changes nothing.

    ``None`` is left out unless the field has a word for it (``none``); it is the default of all others that allow it.
    """
    return "\n".join(_table(config, ())).strip() + "\n"


def _table(config: Any, path: tuple[str, ...]) -> list[str]:
    lines = [f"[{'.'.join(path)}]"] if path else []
    tables: list[str] = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            tables += ["", *_table(value, (*path, item.name))]
        elif isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
            name = ".".join((*path, item.name))
            for row in value:
                tables += ["", f"[[{name}]]", *_table(row, ())]
        elif value is not None or item.metadata.get("none"):
            dump = item.metadata.get("dump")
            text = item.metadata["none"] if value is None else dump(value) if dump else value
            lines.append(f"{item.name} = {toml_literal(text)}")
    return lines + tables


def toml_literal(value: Any) -> str:
    """One value as TOML. Raises ``TypeError`` for a type that TOML has no form for."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_literal, value))}]"
    if isinstance(value, str | Path | Fraction):
        # JSON's escapes are a subset of TOML's, except for DEL, which JSON leaves bare and TOML forbids
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    raise TypeError(f"no TOML form for {value!r}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}


def option_name(flag: str) -> str:
    """``--decode-chunk`` -> ``decode_chunk``, the name that mappings of flags use."""
    return flag.rsplit(".", 1)[-1].lstrip("-").replace("-", "_").replace(" ", "_").lower()


def current_names(cls: type, tables: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of an older version with present keys and values; unknown keys are unchanged."""
    fields, hints = _fields_by_key(cls), _hints(cls)
    current: dict[str, Any] = {}
    for key, value in tables.items():
        item = fields.get(key)
        if item is None:
            current[key] = value
        elif dataclasses.is_dataclass(hints[item.name]) and isinstance(value, Mapping):
            current[item.name] = current_names(typing.cast(type, hints[item.name]), value)
        else:
            current[item.name] = _current_value(item, value)
    return current


def _fields_by_key(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """Fields by their keys in TOML, those of older versions too."""
    fields = dataclasses.fields(cls)
    former = {item.metadata["formerly"]: item for item in fields if item.metadata.get("formerly")}
    return former | {item.name: item for item in fields}


def _current_value(item: dataclasses.Field[Any], value: Any) -> Any:
    return item.metadata.get("renamed", {}).get(value, value) if isinstance(value, str) else value


def _without_none(hint: Any) -> tuple[Any, bool]:
    """The type without ``None``, and whether ``None`` is allowed."""
    if get_origin(hint) in (typing.Union, types.UnionType):
        rest = [part for part in get_args(hint) if part is not type(None)]
        return (rest[0] if len(rest) == 1 else hint), len(rest) < len(get_args(hint))
    return hint, False


def _from_tables(cls: type, mapping: Mapping[str, Any], source: str, path: tuple[str, ...] = ()) -> SourcedValues:
    found: SourcedValues = {}
    hints, fields = _hints(cls), _fields_by_key(cls)
    for key, value in mapping.items():
        dotted = ".".join((*path, key))
        label = f"{source}: {dotted}"
        if key not in fields:
            near = _other_table(cls, key, path) or did_you_mean(key, hints)
            raise ConfigError(label, key, f"one of the keys {', '.join(hints)}", hint=near)
        name = fields[key].name
        if not dataclasses.is_dataclass(hints[name]):
            found[*path, name] = SourcedValue(value, label)
        elif isinstance(value, Mapping):
            found |= _from_tables(hints[name], value, source, (*path, name))
        else:
            raise ConfigError(label, value, f"a table [{dotted}]")
    return found


def _other_table(cls: type, key: str, path: tuple[str, ...]) -> str | None:
    """A hint for a flag's name at the top level of a file (``steps = 25``), whose key is in a table."""
    known = _names(cls).get(option_name(key)) if not path else None
    return f"it belongs in a table: {'.'.join(known[0])}" if known else None


def _leaves(cls: type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dataclasses.Field[Any], Any]]:
    """Path, field and type of every value, through all sub-configs."""
    hints = _hints(cls)
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            yield from _leaves(typing.cast(type, hint), (*path, item.name))
        else:
            yield (*path, item.name), item, hint


def _names(cls: type) -> dict[str, tuple[tuple[str, ...], str]]:
    """Path and flag of each value by its option name; an old flag's name leads to the present one."""
    names: dict[str, tuple[tuple[str, ...], str]] = {}
    for path, item, _ in _leaves(cls):
        flag = item.metadata.get("flag", item.name)
        names |= {option_name(name): (path, flag) for name in (flag, item.metadata.get("old_flag")) if name}
    return names


def _from_names(cls: type, values: Mapping[str, Any], source: str | None) -> SourcedValues:
    """Settings keyed by option name. ``source`` None: values from the command line."""
    names = _names(cls)
    found: SourcedValues = {}
    for name, value in values.items():
        if name not in names:
            label = f"{source}: {name}" if source else f"--{name.replace('_', '-')}"
            near = did_you_mean(name, names)
            raise ConfigError(label, name, "an option" if near else f"one of {', '.join(names)}", hint=near)
        path, flag = names[name]
        found[path] = SourcedValue(value, f"{source}: {name}" if source else flag)
    return found


def _build(cls: type[C], settings: SourcedValues, path: tuple[str, ...] = ()) -> C:
    values: dict[str, Any] = {}
    labels: dict[str, str] = {}
    for item in dataclasses.fields(typing.cast(Any, cls)):
        hint = _hints(cls)[item.name]
        setting = settings.get((*path, item.name))
        if dataclasses.is_dataclass(hint):
            values[item.name] = _build(typing.cast(type, hint), settings, (*path, item.name))
        elif setting is not None:
            values[item.name] = _field_value(item, hint, setting.value, setting.label)
            labels[item.metadata.get("flag", item.name)] = setting.label
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(
                item.metadata.get("flag", item.name),
                None,
                "a value",
                hint=f"add it to the command line, or as {'.'.join((*path, item.name))} in a --config file",
            )
    try:
        return cls(**values)
    except ConfigError as error:
        label = labels.get(error.option)
        if label is None:
            error.hint = error.hint or f"{error.option} has its default here: give it as well"
        elif label != error.option:
            error.hint = f"{error.option} was set by {label}"
        raise


def _field_value(item: dataclasses.Field[Any], hint: Any, value: Any, label: str) -> Any:
    """A value of TOML or the shell as the field's type. Raises ``ConfigError`` that names ``label``."""
    parse, value = item.metadata.get("parse"), _current_value(item, value)
    return parse(value, label) if parse else _convert(hint, value, label)


def _convert(hint: Any, value: Any, label: str) -> Any:
    inner, optional = _without_none(hint)
    if value is None and optional:
        return None
    if get_origin(inner) is Literal:
        return _choice(value, get_args(inner), label)
    if inner is Path and isinstance(value, str | Path):
        return path_of(value, label)
    if inner == tuple[str, ...] and isinstance(value, list | tuple):
        return tuple(_convert(str, item, label) for item in value)
    if inner is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if inner in (int, str, bool) and type(value) is inner:
        require(not isinstance(value, str) or is_utf8(value), label, value, "a text in UTF-8")
        return value
    expected: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    expected |= {Path: "a path", tuple[str, ...]: "a list of texts"}
    raise ConfigError(label, value, expected.get(inner, "another type"))


def _choice(value: Any, choices: tuple[Any, ...], label: str) -> Any:
    if value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else None
        raise ConfigError(label, value, f"one of {', '.join(map(str, choices))}", hint=hint)
    return value
