from __future__ import annotations

import pytest

from tests.conftest import ROOT, Run
from tests.regen import COMPLETIONS, completion


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_a_completion_file_is_fresh(shell: str) -> None:
    committed = (ROOT / "completions" / COMPLETIONS[shell]).read_text(encoding="utf-8")
    assert committed == completion(shell), "run: make completions"


def complete(sa: Run, words: str) -> list[str]:
    """What bash would offer for the last word."""
    asked = sa(_SA_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1))
    assert asked.returncode == 0, asked.stderr
    return asked.stdout.split()


def test_a_tab_offers_verbs_options_choices_and_models(sa: Run) -> None:
    assert "animate" in complete(sa, "sa an")
    assert "--decode-chunk" in complete(sa, "sa animate --decode")
    assert complete(sa, "sa animate --sampler he") == ["heun"]
    assert complete(sa, "sa bench roo") == ["roofline"]
    assert "stableanimator" in complete(sa, "sa animate --model stable")
