"""The app: verbs by name. A verb's module is imported when the verb is called, not to list it in the help."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from stableanimator_cli import __version__


class Verb(NamedTuple):
    """A verb as the help lists it. Its function, or its app, has the verb's name in ``cli/NAME.py``."""

    panel: str
    summary: str
    help_without_arguments: bool = False


PIPELINE, WORKSHOP = "Pipeline", "Workshop"
VERBS = {
    "preprocess": Verb(PIPELINE, "Videos become clips and motions.", True),
    "animate": Verb(PIPELINE, "An image and a motion become a video.", True),
    "train": Verb(PIPELINE, "Clips and a model become a model.", True),
    "evaluate": Verb(PIPELINE, "Videos become scores, tables and a report.", True),
    "app": Verb(WORKSHOP, "Animate in the browser: a page on this machine."),
    "demo": Verb(WORKSHOP, "Draw three characters and animate them with the small model."),
    "models": Verb(WORKSHOP, "List, download, verify and register models.", True),
    "puppets": Verb(WORKSHOP, "Draw characters whose motion and faces are known exactly."),
    "replay": Verb(WORKSHOP, "Repeat a run and compare its bytes.", True),
    "doctor": Verb(WORKSHOP, "Check this machine and print commands that mend it."),
    "bench": Verb(WORKSHOP, "Measure cost, speed and memory side by side.", True),
}


class VerbGroup(TyperGroup):
    """Commands of ``VERBS``: entries for the help and the completion of names, imported on call."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {
            name: TyperCommand(name, help=verb.summary, short_help=verb.summary, rich_help_panel=verb.panel)
            for name, verb in VERBS.items()
        }

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or {"-h", "--help"} & set(args):
            import_help_renderer()
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and load_verb(name), rest


def import_help_renderer() -> None:
    """Import Typer's help renderer without rich's Markdown and tracebacks, which ``sa`` does not use: half the time."""
    unused = {"rich.markdown": "Markdown", "rich.traceback": "Traceback"}
    stand_ins = {module: ModuleType(module) for module in unused if module not in sys.modules}
    for module, stand_in in stand_ins.items():
        setattr(stand_in, unused[module], type(unused[module], (), {}))
    sys.modules.update(stand_ins)
    try:
        import_module("typer.rich_utils")
    finally:
        for module in stand_ins:
            del sys.modules[module]


def load_verb(name: str) -> Any:
    """Import ``cli/NAME.py`` and build its command."""
    from stableanimator_cli.cli.command import VerbCommand

    module, verb = import_module(f"stableanimator_cli.cli.{name}"), VERBS[name]
    single = getattr(module, "app", None)
    if not isinstance(single, typer.Typer):
        single = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
        single.command(name, cls=VerbCommand, no_args_is_help=verb.help_without_arguments)(getattr(module, name))
    command = typer.main.get_command(single)
    command.name = name
    for one in (command, *getattr(command, "commands", {}).values()):
        one.help = _joined_lines(one.help or "")
    return command


def _joined_lines(text: str) -> str:
    """A docstring with one line per paragraph, as Typer keeps line breaks; those marked by a backspace keep theirs."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(part if part.startswith("\b") else " ".join(part.split("\n")) for part in paragraphs)


app = typer.Typer(
    name="sa",
    cls=VerbGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"sa {__version__}")
        raise typer.Exit


@app.callback()
def sa(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Animate a person in an image with a motion, and keep the face."""
