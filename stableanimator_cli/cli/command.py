"""Build the options of a verb from its config class, so that each option is declared once.

A config's fields (``config.schema.option``) hold flag, range, choices, panel and help; nested configs add theirs. Every
option defaults to None, "not given", so that flags, file, preset, model and class are merged in that order. Typer and
the standard library only: the shell's completion imports this module at each TAB.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from stableanimator_cli.config.schema import option_name
from stableanimator_cli.errors import BadUsage


def options_from(config: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a verb ``f(flags, ...)``: Typer sees the options of ``config`` instead of ``flags``.

    ``flags`` is a dict by option name, None where not given, as ``config.schema.resolve`` takes it. Old flags are
    hidden options. Raises ``BadUsage`` if a flag is given by its old and its new name.
    """
    declared = dict(_parameters(config))

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(verb, eval_str=True).parameters.values()
            if parameter.name != "flags"
        ]

        @functools.wraps(verb)
        def command(**values: Any) -> None:
            flags: dict[str, Any] = {}
            for name, option in declared.items():
                value = values.pop(name)
                if value in (None, []):
                    flags.setdefault(option.name, None)
                elif flags.get(option.name) is not None:
                    old, new = option.metadata["old_flag"], option.metadata["flag"]
                    raise BadUsage(f"{old} is the old name of {new}", hint=f"give {new} alone")
                else:
                    flags[option.name] = value
            verb(flags, **values)

        parameters = [option.parameter for option in declared.values()] + own
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {}
        bare = {option.metadata["flag"]: option.metadata for option in declared.values() if option.metadata["bare"]}
        command.bare_values = {flag: (data["bare"], data["complete"]) for flag, data in bare.items()}  # type: ignore[attr-defined]
        return command

    return decorate


class VerbCommand(TyperCommand):
    """A verb's command, whose options with a ``bare`` value may stand alone: ``--preview`` is ``--preview=video``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        bare = {} if ctx.resilient_parsing else getattr(self.callback, "bare_values", {})
        end = args.index("--") if "--" in args else len(args)
        for index, word in enumerate(args[:end]):
            if word in bare and args[index + 1 : index + 2] not in ([choice] for choice in bare[word][1]):
                args = [*args[:index], f"{word}={bare[word][0]}", *args[index + 1 :]]
        return super().parse_args(ctx, args)


@dataclasses.dataclass(frozen=True, slots=True)
class _Option:
    name: str
    parameter: inspect.Parameter
    metadata: typing.Mapping[str, Any]


def _parameters(config: type) -> Iterator[tuple[str, _Option]]:
    hints = typing.get_type_hints(config)
    for item in dataclasses.fields(config):
        hint, flag = hints[item.name], item.metadata.get("flag", "")
        if dataclasses.is_dataclass(hint):
            yield from _parameters(typing.cast(type, hint))
        elif flag.startswith("--") or flag.isupper():
            name = option_name(flag)
            yield name, _Option(name, _parameter(name, hint, item, flag), item.metadata)
            if old := item.metadata["old_flag"]:
                yield option_name(old), _Option(name, _parameter(option_name(old), hint, item, old), item.metadata)


def _parameter(name: str, hint: Any, item: dataclasses.Field[Any], flag: str) -> inspect.Parameter:
    metadata = item.metadata
    kind, choices = _shell_type(hint, metadata)
    metavar, complete = metadata["metavar"], metadata["complete"]
    if choices:
        metavar = metavar or f"<{'|'.join(choices)}>"
        complete = choices
    complete = _choice_completer(complete) if isinstance(complete, tuple) else _COMPLETERS.get(complete)
    shown: dict[str, Any] = {"help": _help(item), "metavar": metavar, "autocompletion": complete}
    if not flag.startswith("--"):
        shown["metavar"] = metavar or flag
        info = typer.Argument(**shown)
    else:
        bounds, number = metadata["bounds"], kind in (int, float)
        names = [flag] if flag == metadata["old_flag"] or not metadata["short"] else [flag, metadata["short"]]
        info = typer.Option(
            *names, min=bounds.get("ge") if number else None, max=bounds.get("le") if number else None,
            rich_help_panel=metadata["panel"], hidden=flag == metadata["old_flag"], **shown,
        )  # fmt: skip
    annotation = Annotated[typing.Optional[kind], info]  # noqa: UP045  kind is a value here
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _shell_type(hint: Any, metadata: typing.Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The type that Typer converts to, and choices that the config checks because old names of them are read."""
    inner = hint
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if inner == tuple[Path, ...]:
        return list[Path], ()
    if metadata["parse"]:
        return str, ()
    if inner == tuple[str, ...]:
        return list[str], ()
    if typing.get_origin(inner) is Literal and metadata["renamed"]:
        return str, typing.get_args(inner)
    return inner, ()


def _help(item: dataclasses.Field[Any]) -> str | None:
    text, shown = item.metadata["help"], item.metadata["default_text"]
    if text is None or item.default is dataclasses.MISSING:
        return text
    if shown is None:
        shown = _shown_default(item.default)
    owner = "the model's own, else " if item.metadata["model_default"] else ""
    return f"{text} Default: {owner}{shown}." if shown else text


def _shown_default(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return str(default[0]) if len(set(default)) == 1 else ":".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else "" if default is None else str(default)


def complete_model(incomplete: str) -> list[str]:
    """Catalogue names for the shell."""
    from stableanimator_cli import catalogue
    from stableanimator_cli.errors import SaError

    try:
        return [name for name in catalogue.names() if name.startswith(incomplete)]
    except SaError:  # SA_HOME names no folder: the command itself reports it
        return []


def _choice_completer(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


_COMPLETERS: dict[str | None, Callable[[str], list[str]]] = {"model": complete_model}
