"""A list of animations with one model: ``sa animate --jobs JOBS.toml``, or several motions in one command.

JOBS.toml has ``jobs``, an array with one inline table per animation: ``reference``, ``motion``, ``output``, and options
by the names of their flags. Flags of the command are defaults of all jobs. A state beside the list (``.NAME.state``)
holds what is finished, so the same command continues after an interruption, and makes failed jobs again. It is removed
when all have succeeded.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stableanimator_cli import __version__, distributed
from stableanimator_cli.animate import run as single
from stableanimator_cli.config.animate import VIDEO_SUFFIXES, AnimateConfig
from stableanimator_cli.config.parse import parse_output
from stableanimator_cli.config.schema import read_toml, to_toml
from stableanimator_cli.errors import BatchFailed, ConfigError, Interrupted, SaError, cut
from stableanimator_cli.files import (
    MARK,
    atomic_write,
    check_apart,
    check_replaceable,
    created_folder,
    locked_output,
    remove_temporary_files,
    sha256_of,
)
from stableanimator_cli.progress import Reporter
from stableanimator_cli.readers import read_json

if TYPE_CHECKING:
    from stableanimator_cli.engine.engine import EngineCache

_KEY = "jobs"
_WHAT = "the state of a list of jobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsReport:
    """``videos`` by output: ``written`` now or ``finished`` before; ``failed``: the error of each other output."""

    written: Mapping[str, Mapping[str, Any]]
    finished: Sequence[str] = ()
    failed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return BatchFailed.exit_code if self.failed else 0

    @property
    def message(self) -> str | None:
        """The failed jobs in one line."""
        if not self.failed:
            return None
        total = len(self.written) + len(self.finished) + len(self.failed)
        reasons = "; ".join(cut(f"{output}: {error['message']}") for output, error in self.failed.items())
        return f"{len(self.failed)} of {total} jobs failed: {reasons}"

    def to_json(self) -> dict[str, Any]:
        return {"written": dict(self.written), "finished": list(self.finished), "failed": dict(self.failed)}

    def summary(self) -> str:
        return "\n".join([*self.finished, *self.written])


def read_jobs(path: Path) -> list[dict[str, Any]]:
    """The jobs of a file, by option name. Raises ``ConfigError`` for a file without jobs."""
    tables = read_toml(path)
    jobs = tables.pop(_KEY, None)
    if tables:
        raise ConfigError(
            f"{path}: {next(iter(tables))}", next(iter(tables)), f"{_KEY} alone: give options in each job"
        )
    if not isinstance(jobs, list) or not jobs or not all(isinstance(job, dict) for job in jobs):
        expected = f'{_KEY} = [{{ reference = "a.png", motion = "a.npz", output = "a.mp4" }}, ...]'
        raise ConfigError(f"{path}: {_KEY}", None if not jobs else "another value", expected)
    return [{name.replace("-", "_"): value for name, value in job.items()} for job in jobs]


def jobs_of_motions(motions: Sequence[Path], folder: Path) -> list[dict[str, Any]]:
    """One job per motion, ``FOLDER/NAME.mp4``. Raises ``ConfigError`` if two motions have one name."""
    names = Counter(motion.stem for motion in motions)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise ConfigError("MOTION", twice, "motions of different names", hint="use --jobs, which names each output")
    return [{"motion": motion, "output": folder / f"{motion.stem}.mp4"} for motion in motions]


def run_list(
    *,
    flags: Mapping[str, Any],
    more: Sequence[Path],
    file: Path | None,
    config_file: Path | None,
    plan: bool,
    restart: bool,
    reporter: Reporter,
    card: str | None = None,
) -> JobsReport:
    """Run the jobs of ``file``, or one per motion of the command: MOTION and ``more``. Raises ``ConfigError``."""
    if plan or card is not None:
        flag, value = ("--plan", True) if plan else ("--card", card)
        raise ConfigError(flag, value, "one animation", hint="plan one of them; each job is checked before it runs")
    if file is not None:
        own = next((name for name in ("reference", "motion", "output") if flags.get(name) is not None), None)
        if own is not None:
            raise ConfigError("--jobs", str(flags[own]), "no argument and no -o beside it: each job has its own")
        jobs, state = read_jobs(file), file.with_name(f".{file.name}.state")
    else:
        if flags.get("output") is None:
            raise ConfigError("--output", None, "a folder for the videos", hint="add -o FOLDER")
        folder = Path(flags["output"])
        if (folder.exists() and not folder.is_dir()) or folder.suffix.lower() in (*VIDEO_SUFFIXES, ".png"):
            hint = f"-o {folder.with_suffix('')}, or name one motion alone"
            raise ConfigError("--output", str(folder), f"a folder for the videos of {1 + len(more)} motions", hint=hint)
        jobs, state = jobs_of_motions([Path(flags["motion"]), *more], folder), folder / ".jobs.state"
        check_apart(folder, [Path(flags["motion"]), *more, Path(flags["reference"])])
    return run(jobs, state=state, flags=flags, config_file=config_file, restart=restart, reporter=reporter)


def run(
    jobs: Sequence[Mapping[str, Any]],
    *,
    state: Path,
    flags: Mapping[str, Any],
    config_file: Path | None,
    restart: bool,
    reporter: Reporter,
) -> JobsReport:
    """Run ``jobs`` in order, with the model loaded once. One that fails does not stop the others. Creates the folders
    of their outputs.

    Raises ``SaError`` for outputs that collide, and under torchrun, whose processes share one animation.
    """
    if distributed.world_size() > 1:
        hint = "run it without torchrun: --gpus uses several GPUs for each job"
        raise ConfigError("--jobs", f"{distributed.world_size()} processes of torchrun", "one process", hint=hint)
    given = {name: value for name, value in flags.items() if value is not None}
    outputs = [str(job.get("output", given.get("output", ""))) for job in jobs]
    paths = [_paths_of(output) for output in outputs]
    _check_outputs(jobs, [path for path in paths if path is not None], state)
    written: dict[str, Mapping[str, Any]] = {}
    failed: dict[str, Mapping[str, Any]] = {}
    finished: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(created_folder(state.parent))
        stack.enter_context(locked_output(state, "sa animate --jobs"))
        remove_temporary_files(state.parent, re.escape(state.name))

        @functools.cache
        def engines() -> EngineCache:
            from stableanimator_cli.engine.engine import EngineCache

            return stack.enter_context(EngineCache())

        done = {} if restart else _read(state)
        for number, (job, output, path) in enumerate(zip(jobs, outputs, paths, strict=True), 1):
            reporter.info(f"job {number} of {len(jobs)}: {output}")
            try:
                if path is not None:
                    stack.enter_context(created_folder(path.target.parent))
                config, model = single.resolve_config({**given, **job}, config_file)
                key = _key(config, model)
                if done.get(output) == {"key": key, "sha256": _digest(config.target)}:
                    reporter.info(f"{output}: finished before")
                    finished.append(output)
                    continue
                result = single.run(
                    flags={**given, **job}, config_file=config_file, restart=restart, reporter=reporter, engines=engines
                )
                written[output] = result.to_json()
                done[output] = {"key": key, "sha256": _digest(config.target)}
            except Interrupted:  # a run that saved a state: Ctrl-C ends the list, not this job alone
                raise
            except SaError as error:
                failed[output] = json.loads(error.to_json())
                reporter.warning(f"{output}: {error.message}" + (f" ({error.hint})" if error.hint else ""))
            _write(state, done)
        if not failed:
            state.unlink(missing_ok=True)
    return JobsReport(written=written, finished=finished, failed=failed)


def _paths_of(output: str) -> AnimateConfig | None:
    """A config that has the paths of a job with this output; None for a job without one, which fails alone."""
    if not output:
        return None
    return AnimateConfig(reference=Path(), motion=Path(), output=parse_output(output, "output"))


def _check_outputs(jobs: Sequence[Mapping[str, Any]], paths: Sequence[AnimateConfig], state: Path) -> None:
    """No two jobs write one file, folder or record, and none writes what another one reads."""
    check_replaceable(state)
    records, targets = [path.record_path.resolve() for path in paths], [path.target.resolve() for path in paths]
    counts, taken = Counter(records), set(targets)
    equal = (path for path, record in zip(paths, records, strict=True) if counts[record] > 1)
    within = (path for path, target in zip(paths, targets, strict=True) if not taken.isdisjoint(target.parents))
    twice = next(itertools.chain(equal, within), None)
    if twice is not None:
        hint = "outputs that differ in their endings alone, as a.mp4 and a.gif, share the record a.json"
        raise ConfigError("--jobs", str(twice.target), "another output for each job", hint=hint)
    inputs = [Path(str(job[name])) for job in jobs for name in ("reference", "motion") if name in job]
    others = [text for job in jobs if isinstance(job.get("face_of"), list | tuple) for text in job["face_of"]]
    inputs += [Path(text.partition("=")[2]) for text in others if isinstance(text, str) and "=" in text]
    for path in paths:
        check_apart(path.target, inputs)


def _key(config: AnimateConfig, model: Any) -> str:
    """Digest of the settings as requested, of the inputs and of the weights."""
    from stableanimator_cli.animate import fingerprint

    facts = [to_toml(config), fingerprint.inputs(fingerprint.input_files(config)), fingerprint.weights(model)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() or path.is_dir() else None


def _read(state: Path) -> dict[str, Any]:
    if not state.is_file():
        return {}
    table = read_json(state, _WHAT, hint="--restart starts over")
    return dict(table["finished"]) if isinstance(table, dict) and isinstance(table.get("finished"), dict) else {}


def _write(state: Path, done: Mapping[str, Any]) -> None:
    with atomic_write(state, marked=True) as temp:
        data = {"format": 1, MARK: __version__, "finished": dict(done)}
        temp.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
