"""The commands of README and docs exist, and what they state about make and exit codes is true."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from stableanimator_cli import errors
from stableanimator_cli.cli.verbs import app, load_verb
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.schema import from_mapping
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md") if path.name != "log.md"}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
GROUP: Any = typer.main.get_command(app)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def command_lines() -> Iterator[str]:
    """Commands in the code blocks of all pages, and those that the text of the README quotes with their arguments."""
    shell = [block.replace("\\\n", " ") for text in (README, *PAGES.values()) for block in blocks("sh", text)]
    lines = [line for block in shell for line in block.splitlines()]
    for line in lines + re.findall(r"`([^`\n]+)`", README.replace("\n", " ")):
        line = line.removeprefix(".venv/bin/")
        if re.match(r"sa [a-z-]+ ", line) or line == "sa demo":
            yield line


def parse(line: str) -> None:
    """Parse a command line as ``sa`` would, down to the verb, without running it."""
    words = shlex.split(line.replace("VERB", "animate"))[1:]
    command, context = GROUP, GROUP.make_context("sa", list(words), resilient_parsing=True)
    while words and hasattr(command, "commands"):
        name = words.pop(0)
        if name.startswith("-"):
            assert any(name in option.opts for option in command.params), f"{line}: no option {name}"
            continue
        assert name in command.commands, f"{line}: no verb {name}"
        command = load_verb(name) if command is GROUP else command.commands[name]
    if "--help" not in words and not hasattr(command, "commands"):
        command.make_context(command.name, words, parent=context)  # raises for what it does not know


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_a_command_of_the_readme_parses(line: str) -> None:
    parse(line)


def test_the_parser_refuses_what_does_not_exist() -> None:
    with pytest.raises(AssertionError, match="no verb dance"):
        parse("sa dance a.png")
    with pytest.raises(Exception, match="--stepz"):
        parse("sa animate a.png b.mp4 --stepz 3")


def test_a_training_of_the_docs_has_a_length() -> None:
    """Without a preset and without a number of steps it ends with an error."""
    text = "\n".join((README, *PAGES.values())).replace("\\\n", " ")
    lines = re.findall(r"(?:sa|stableanimator_cli) train [^`\n|]* -o [^`\n|]*", text)
    started = [line for line in lines if "--resume" not in line]
    assert len(started) > 5
    assert [line for line in started if not re.search(r"--(preset|steps|epochs) ", line)] == []


def test_readme_and_docs_name_every_verb() -> None:
    assert set(re.findall(r"^\| `sa ([a-z]+)` \|", CLI, re.M)) == set(GROUP.commands)
    assert set(re.findall(r"`sa ([a-z]+)`", README)) == set(GROUP.commands)


def test_the_config_of_the_docs_is_a_config() -> None:
    (text,) = blocks("toml", CLI)
    config = from_mapping(AnimateConfig, tomllib.loads(text), "docs/cli.md")
    assert config.size == (576, 1024)
    assert config.sampling.guidance == (1.0, 3.0)


def test_the_exit_codes_are_those_of_the_errors() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", CLI, re.M)}
    raised = {
        kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SaError)
    }
    assert listed == raised | {0}


def test_make_does_what_the_readme_says() -> None:
    recipe = MAKEFILE.replace("$(PYTHON)", "python3").replace("$(BIN)", ".venv/bin").replace("$(SA_VENV)", ".venv")
    recipe = recipe.replace("--quiet --disable-pip-version-check ", "")
    plain = [line for block in blocks("sh") for line in block.splitlines() if re.match(r"(\.venv/bin/|python3 )", line)]
    assert len(plain) == 4
    for line in plain:
        assert f"\t{line}\n" in recipe, line
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.M)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}: \$\(STAMP\)", MAKEFILE, re.M) for target in targets)


def test_the_fresh_run_runs_the_readmes_command() -> None:
    assert " make test " in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}" for name in PAGES)])
def test_links_of_a_page_exist(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\(([^)#][^)]*)\)", path.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        linked = path.parent / target
        assert linked.exists(), f"{page}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}, (
                f"{page}: {link}"
            )
