"""The fuzz: ``python -m tests.fuzz.run --cases 2000 --seed 7`` (``make fuzz N=2000 SEED=7``).

Each case is a command of ``sa`` in a folder of its own, in a process that is forked from one in which the libraries are
loaded already. Whatever is wrong with the command, it must end by itself, with an exit code that says why, in one line
and a hint; nothing that was there may change, and nothing half-written may stay.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMIT = 60.0  # seconds a case may take
CODES = frozenset({0, 2, 3, 4, 5, 6, 7, 8})
LONGEST_LINE = 1600
TRACES = ("Traceback", "Exception ignored", "a bug of ours", "Fatal Python error")
_LEFT = re.compile(r"(\.part|\.tmp|\.lock|\.old)$|^\.tmp|\.part/")


def call(words: Sequence[str], folder: Path, home: Path, limit: float = LIMIT) -> tuple[int | None, str, str]:
    """``sa WORDS`` in ``folder``: exit code (None where it did not end), standard output and standard error."""
    out, err = folder.with_name(folder.name + ".out"), folder.with_name(folder.name + ".err")
    child = os.fork()
    if child == 0:
        _become(words, folder, home, out, err)
    code = _wait(child, limit)
    shown = [path.read_bytes().decode("utf-8", "backslashreplace") for path in (out, err)]
    out.unlink()
    err.unlink()
    return code, shown[0], shown[1]


def _become(words: Sequence[str], folder: Path, home: Path, out: Path, err: Path) -> None:
    """The child: ``main`` with these words, and the exit code that it leaves with."""
    code = 99
    try:
        os.setsid()
        os.chdir(folder)
        for number, place, how in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
            opened = os.open(place, how | (os.O_CREAT | os.O_TRUNC if number else 0), 0o644)
            os.dup2(opened, number)
            os.close(opened)
        os.environ |= {"SA_HOME": str(home), "COLUMNS": "200", "NO_COLOR": "1"}
        sys.argv = ["sa", *words]
        from stableanimator_cli.__main__ import main

        main()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 98
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _wait(child: int, limit: float) -> int | None:
    end = time.monotonic() + limit
    pause = 0.002
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def picture(box: Path, apart: Sequence[str]) -> dict[str, str]:
    """What lies in ``box``: a digest of every file by name; those in ``apart`` are left out."""
    found = {}
    for root, folders, files in os.walk(box):
        for name in (*folders, *files):
            path = Path(root) / name
            inside = path.relative_to(box)
            if inside.parts[0] in apart:
                continue
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found[str(inside)] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[str(inside)] = os.readlink(path) if stat.S_ISLNK(mode) else oct(stat.S_IFMT(mode))
    return found


def judge(case: Any, box: Path, before: dict[str, str], result: tuple[int | None, str, str]) -> list[str]:
    """What is wrong with how a case ended; nothing where all is as it should be."""
    code, out, err = result
    if code is None:
        return ["it did not end"]
    wrong = []
    if code not in CODES:
        wrong.append(f"exit code {code}")
    wrong += [f"{word!r} on standard error" for word in TRACES if word in err + out]
    lines = err.splitlines()
    if any(len(line) > LONGEST_LINE for line in lines):
        wrong.append(f"a line of {max(map(len, lines))} characters")
    if any(not line.replace("\t", " ").isprintable() for line in lines):
        wrong.append("control characters on standard error")
    said = [line for line in lines if line.startswith("sa: ")]
    if code and "--json" in case.words:
        try:
            wrong += [] if json.loads(out)["message"] else ["no message in JSON"]
        except (ValueError, KeyError):
            wrong += ["no JSON on standard output"] if code != 2 or out else []
    elif code and code not in (7, 8) and len(said) != 1:
        wrong.append(f"{len(said)} lines of an error")
    if code in (3, 5) and case.named is not None and not _names(case, err + out):
        wrong.append("the error does not name the file")
    after = picture(box, case.command.writes)
    changed = [name for name, digest in before.items() if after.get(name) != digest]
    strays = [name for name in after if name not in before]
    wrong += [f"changed {name}" for name in changed[:3]] + [f"left {name}" for name in strays[:3]]
    whole = [str(path.relative_to(box)) for path in box.rglob("*") if _LEFT.search(str(path.relative_to(box)))]
    wrong += [f"left {name}" for name in whole[:3] if name not in before]
    if code not in (0, 7, 8):
        for name in ("out.mp4", "out.json", "out.npz", "out.npy"):
            if name in case.command.writes and (box / name).is_file():
                wrong.append(f"made {name} though it failed")
    return wrong


def _names(case: Any, text: str) -> bool:
    known = {case.named, Path(case.named).stem, *(Path(word).name for word in case.words if "." in word or "/" in word)}
    known |= {word for word in case.words[1:] if not word.startswith("-")}
    return any(name and name in text for name in known)


def options_of() -> dict[str, list[tuple[str, bool]]]:
    """The options of each verb, and whether they take a value."""
    import typer.main

    from stableanimator_cli.cli.verbs import app
    from tests.fuzz.cases import HEAVY

    group: Any = typer.main.get_command(app)
    found = {}
    for name, verb in group.commands.items():
        for below, inner in getattr(verb, "commands", {"": verb}).items():
            rows = [
                (param.opts[0], not getattr(param, "is_flag", False) and not getattr(param, "count", False))
                for param in inner.params
                if param.opts[0].startswith("--") and param.opts[0] not in HEAVY
            ]
            found[f"{name} {below}".strip()] = rows
    return found


def preload() -> None:
    """Import what verbs import, so that forked processes need not."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    os.environ.pop("SA_MODEL", None)
    import stableanimator_cli.animate.run
    import stableanimator_cli.cli.verbs
    import stableanimator_cli.detect.face
    import stableanimator_cli.doctor
    import stableanimator_cli.evaluate.run
    import stableanimator_cli.preprocess.run
    import stableanimator_cli.train.pipeline  # noqa: F401


def fuzz(numbers: Sequence[int], seed: int, work: Path, *, keep: bool = False) -> list[str]:
    """Run the cases ``numbers`` of a seed below ``work``; one line for each that ended as it should not."""
    from tests.fuzz import corpus
    from tests.fuzz.cases import case_of, set_up

    home = work / "home"
    home.mkdir(parents=True, exist_ok=True)
    files = work / "corpus"
    if not files.exists():

        def sa(*words: str) -> int:
            code, out, err = call(words, files, home, 300)
            if code:
                sys.stderr.write(out + err)
            return -1 if code is None else code

        corpus.build(files, sa)
    options, failed, codes = options_of(), [], Counter()
    for number in numbers:
        case, box = case_of(seed, number, options), work / f"case-{number}"
        shutil.rmtree(box, ignore_errors=True)
        set_up(case, files, box)
        before = picture(box, case.command.writes)
        started = time.monotonic()
        result = call(case.words, box, box / "home" if case.command.home else home)
        wrong = judge(case, box, before, result)
        codes[case.kind, result[0]] += 1
        if wrong:
            line = " ".join(word[:60] for word in case.words)
            last = " / ".join(result[2].strip().splitlines()[-2:])[:400]
            failed.append(f"case {number} [{case.kind}] sa {line}\n  {case.why}\n  {'; '.join(wrong)}\n  {last}")
            print(failed[-1].encode("utf-8", "backslashreplace").decode(), flush=True)
        if time.monotonic() - started > LIMIT / 3:
            print(f"case {number} took {time.monotonic() - started:.0f} s", flush=True)
        if not (wrong and keep):
            shutil.rmtree(box, ignore_errors=True)
    print(f"{len(numbers)} cases of seed {seed}, {len(failed)} failed", flush=True)
    for (kind, code), count in sorted(codes.items(), key=str):
        print(f"  {kind}: exit {code}: {count}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("--cases", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--spread", action="store_true", help="take every 11th case, so that few cover all commands")
    parser.add_argument("--work", type=Path, help="folder of corpus and cases; a temporary one by default")
    parser.add_argument("--keep", action="store_true", help="keep the folders of cases that failed")
    options = parser.parse_args()
    preload()
    step = 11 if options.spread else 1
    numbers = range(options.first, options.first + step * options.cases, step)
    if options.work is not None:
        return int(bool(fuzz(numbers, options.seed, options.work.resolve(), keep=options.keep)))
    with tempfile.TemporaryDirectory(prefix="sa-fuzz-") as folder:
        return int(bool(fuzz(numbers, options.seed, Path(folder))))


if __name__ == "__main__":
    sys.exit(main())
