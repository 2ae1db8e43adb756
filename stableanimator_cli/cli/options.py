"""Options that every verb has and that belong to no config. Typer and the standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RUN = "Run and messages"


def complete_card(incomplete: str) -> list[str]:
    """Names of cards for the shell."""
    from stableanimator_cli.cards import cards

    return [card.name for card in cards() if card.name.lower().startswith(incomplete.lower())]


JsonOpt = Annotated[
    bool,
    typer.Option(
        "--json",
        rich_help_panel=RUN,
        help="Print the result, or the error, on stdout as one JSON object. Default: off.",
    ),
]
QuietOpt = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", rich_help_panel=RUN,
        help="Suppress messages and progress bars, not --progress json; warnings and errors are printed. Default: off.",
    ),
]  # fmt: skip
ProgressOpt = Annotated[
    Literal["bar", "json", "none"],
    typer.Option(
        "--progress",
        show_default=False,
        rich_help_panel=RUN,
        help="Progress on stderr: a bar, or JSON: one object per line for progress, messages and errors, and nothing "
        "else. Default: bar.",
    ),
]
PlanOpt = Annotated[
    bool,
    typer.Option("--plan", rich_help_panel=RUN, help="Print the plan and its cost without running it. Default: off."),
]
YesOpt = Annotated[
    bool,
    typer.Option(
        "--yes", "-y", rich_help_panel=RUN,
        help="Download missing models without asking on the terminal. Default: off.",
    ),
]  # fmt: skip
CardOpt = Annotated[
    str | None,
    typer.Option(
        "--card", metavar="NAME", autocompletion=complete_card, rich_help_panel=RUN,
        help="Estimate for another card, from published figures: 'RTX 4090', 'A100 80GB'. In sa "
        "animate with --plan. Default: this device.",
    ),
]  # fmt: skip
RestartOpt = Annotated[
    bool,
    typer.Option(
        "--restart", rich_help_panel=RUN, help="Start over instead of resuming an interrupted run. Default: off."
    ),
]
ConfigOpt = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="RUN.toml", rich_help_panel=RUN,
        help="Settings as TOML; flags override them. The record of a run has the resolved ones as JSON, under config; "
        "sa train writes RUN/config.toml.",
    ),
]  # fmt: skip
