"""``sa doctor``: problems of this machine that would break a run, each with the command that mends it.

Checks are independent; one that crashes is a finding. Imports that may crash the interpreter or take seconds run in a
separate process; torch only there, and only if an NVIDIA GPU exists.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import evaluation_cache as cache
from stableanimator_cli.catalogue.damage import check_size
from stableanimator_cli.catalogue.schema import FILE_NAME, Entry, WeightFile
from stableanimator_cli.distributions import version_of
from stableanimator_cli.errors import CheckFailed, SaError, command

State = Literal["ok", "note", "broken"]
SHM, DISK = Path("/dev/shm"), 1 << 30  # bytes below which either is too little
_PROBE_SECONDS = 120
_OPENCV = ("opencv-python", "opencv-contrib-python", "opencv-python-headless", "opencv-contrib-python-headless")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Result of one check: ``note`` may matter, ``broken`` stops a run; both have a ``mend``."""

    check: str
    state: State
    found: str
    mend: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All findings, in the order of the checks."""

    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.state == "broken")

    @property
    def exit_code(self) -> int:
        return CheckFailed.exit_code if self.broken else 0

    @property
    def message(self) -> str:
        return f"{len(self.broken)} of {len(self.findings)} findings would break a run"

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"healthy": not self.broken, "findings": [asdict(finding) for finding in self.findings]}
        if self.broken:
            data |= {"error": CheckFailed.code, "message": self.message, "exit_code": self.exit_code}
        return data

    def summary(self) -> str:
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.state:7} {finding.check}: {finding.found}")
            if finding.mend is not None:
                lines.append(f"        mend: {finding.mend}")
        return "\n".join(lines)


def examine(checks: Mapping[str, Callable[[], Iterable[Finding]]] | None = None) -> Diagnosis:
    """Run all checks. Never raises: a check that crashes is a finding."""
    findings: list[Finding] = []
    for name, check in (checks or CHECKS).items():
        try:
            findings += check()
        except SaError as error:
            findings.append(_broken(name, error.message, error.hint or "sa doctor --json"))
        except Exception as error:  # an unforeseen problem of the machine
            words = " ".join(str(error).split())
            mend = getattr(error, "hint", None) or "SA_DEBUG=1 sa doctor --json, and report it"
            findings.append(_broken(name, f"the check itself failed: {type(error).__name__}: {words}", mend))
    return Diagnosis(findings=tuple(findings))


def packages() -> Iterator[Finding]:
    """All imported packages are installed, in tested versions."""
    required = list(_required())
    bad = 0
    for name, expected in required:
        found = version_of(name)
        if found is None and name == "onnxruntime":
            found = version_of("onnxruntime-gpu")
        if found is None or not _within(found, expected):
            bad += 1
            message = f"{name} is not installed" if found is None else f"{name} {found}, expected {expected}"
            yield _broken("packages", message, f"pip install '{name}{expected}'")
    if not bad:
        yield _ok("packages", f"{len(required)} packages are installed in their ranges")


def torchvision() -> Iterator[Finding]:
    """An installed build for another torch breaks transformers, which imports it if it exists."""
    found = version_of("torchvision")
    if found is None:
        yield _ok("torchvision", "not installed, as it should be")
        return
    works, words = _probe("import torchvision")
    if works:
        yield _note("torchvision", f"{found} loads, and is not needed", "pip uninstall -y torchvision")
    else:
        message = f"{found} does not load beside torch {version_of('torch')}, which breaks transformers ({words})"
        yield _broken("torchvision", message, "pip uninstall -y torchvision")


def opencv() -> Iterator[Finding]:
    """All OpenCV packages write ``cv2``: they must have one version, and no headless build beside another."""
    installed = {name: version for name in _OPENCV if (version := version_of(name)) is not None}
    message = ", ".join(f"{name} {version}" for name, version in installed.items())
    headless = [name for name in installed if name.endswith("-headless")]
    best = installed.get("opencv-python") or next(iter(installed.values()), None)
    again = f"pip uninstall -y {' '.join(installed)} && pip install opencv-python=={best} opencv-contrib-python=={best}"
    if len(set(installed.values())) > 1:
        yield _broken("opencv", f"more than one version writes cv2: {message}", again)
    elif headless and len(installed) > len(headless):
        yield _broken("opencv", f"a headless build beside another: {message}", again)
    works, words = _probe("import cv2; print(cv2.__version__)")
    library = re.search(r"(lib\w+)[\w.+-]*\.so[.\d]*: cannot open shared object", words)
    if works:
        yield _ok("opencv", f"cv2 {words} loads ({message})")
    elif library is not None:
        package = {"libGL": "libgl1", "libgthread": "libglib2.0-0"}.get(library[1], library[1].lower())
        yield _broken("opencv", f"cv2 does not load ({words})", f"apt-get install -y {package}")
    else:
        yield _broken("opencv", f"cv2 does not load ({words})", again if installed else "pip install opencv-python")


def onnxruntime() -> Iterator[Finding]:
    """Only one of the two builds, which share their files; with an NVIDIA GPU, the one that uses it."""
    cpu, gpu = version_of("onnxruntime"), version_of("onnxruntime-gpu")
    if cpu and gpu:
        one = "onnxruntime-gpu" if _nvidia() else "onnxruntime"
        both = "pip uninstall -y onnxruntime onnxruntime-gpu"
        message = f"onnxruntime {cpu} and onnxruntime-gpu {gpu} overwrite each other's files"
        yield _broken("onnxruntime", message, f"{both} && pip install {one}")
        return
    works, words = _probe("import onnxruntime; print(*onnxruntime.get_available_providers())")
    name = "onnxruntime-gpu" if gpu else "onnxruntime"
    if not works:
        yield _broken("onnxruntime", f"does not load ({words})", f"pip install --force-reinstall {name}")
    elif _nvidia() and "CUDAExecutionProvider" not in words:
        other = f"pip uninstall -y {name} && pip install onnxruntime-gpu"
        yield _note("onnxruntime", "does not use the NVIDIA GPU: faces and poses are detected on the CPU", other)
    else:
        yield _ok("onnxruntime", f"{name} {cpu or gpu} with {words}")


def video() -> Iterator[Finding]:
    """Encoders for videos."""
    expected = ("libx264", "libx264rgb", "aac")
    works, words = _probe(f"import av; print(*(n for n in {expected!r} if n not in av.codec.codecs_available))")
    again = "pip install --force-reinstall --no-deps av"
    if not works:
        yield _broken("video", f"PyAV does not load ({words})", again)
    elif words:
        yield _broken("video", f"PyAV {version_of('av')} was built without {words.replace(' ', ', ')}", again)
    else:
        yield _ok("video", f"PyAV {version_of('av')} has {', '.join(expected)}")


def gpu() -> Iterator[Finding]:
    """Whether torch uses the GPU."""
    if not _nvidia():
        apple = sys.platform == "darwin" and os.uname().machine == "arm64"
        yield _ok("gpu", "Apple's GPU (MPS) is used" if apple else "no NVIDIA GPU: everything runs on the CPU")
        return
    build = version_of("torch") or "missing"
    if "+cpu" in build:
        message = f"an NVIDIA GPU, and torch {build}, which is built for the CPU only"
        yield _broken("gpu", message, "pip uninstall -y torch && pip install torch")
        return
    works, words = _probe(
        "import torch\nn = torch.cuda.device_count() if torch.cuda.is_available() else 0\n"
        "m = [torch.cuda.get_device_properties(i) for i in range(n)]\n"
        "print(', '.join(f'{p.name} ({p.total_memory / 2**30:.0f} GiB)' for p in m))\n"
        "try:\n  [torch.ones(1, device=f'cuda:{i}').tolist() for i in range(n)]\n"  # no build has kernels for every GPU
        "except RuntimeError as e: raise SystemExit(str(e).splitlines()[0])"
    )
    if works and words:
        yield _ok("gpu", f"{words}, torch {build}")
    else:
        message = f"an NVIDIA GPU that torch {build} cannot use: {words or 'driver missing or too old'}"
        other = "kernel image" in words
        yield _broken("gpu", message, "https://pytorch.org has builds of torch for it" if other else "nvidia-smi")


def models() -> Iterator[Finding]:
    """Each model of the catalogue is complete or not downloaded; no empty, truncated or dangling files."""
    lacking: list[str] = []
    for name in catalogue.names():
        try:
            found = catalogue.entry(name)
            findings = list(_model(found))
        except SaError as error:
            yield _broken("models", error.message, error.hint or f"sa models verify {name}")
            continue
        if findings:
            yield from findings
        elif not any(_located(found)):
            lacking.append(name)
        else:
            yield _ok("models", f"{name} is installed and complete")
    if lacking:
        message = f"optional and not downloaded: {', '.join(lacking)}"
        expected = catalogue.DEFAULT if catalogue.DEFAULT in lacking else lacking[0]
        yield _note("models", message, f"sa models pull {expected}")
    yield from _remains(catalogue.cache_dir() / "models")
    requested = os.environ.get("SA_MODEL")
    here = not requested or requested in catalogue.names() or os.path.isdir(catalogue.expanded(requested))
    if requested and not here and catalogue.of_hub(requested) is None:
        yield _broken("models", f"SA_MODEL is {requested!r}: no name of the catalogue and no folder", "unset SA_MODEL")


def _model(found: Entry) -> Iterator[Finding]:
    pull = f"sa models pull {found.name}" if found.has_addresses else found.by_hand
    needed = [row for row in found.files if not row.optional]
    paths = {row.path: path for row, path in zip(needed, _located(found, needed), strict=True)}
    missing = [name for name, path in paths.items() if path is None]
    if missing and len(missing) < len(paths):
        some = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        yield _broken("models", f"{found.name} lacks {len(missing)} of {len(paths)} files: {some}", pull)
    folder = catalogue.model_cache_dir(found.name)
    if missing and folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
        yield _note("models", f"{folder} is an empty folder", pull)
    for row in needed:
        path = paths[row.path]
        if path is not None:
            try:
                check_size(path, row.bytes if path.name == Path(row.path).name else None)
            except SaError as error:
                hint = error.hint or pull
                compared = row.sha256 is not None and path.name == Path(row.path).name  # a download leaves others
                again = pull if compared else f"{command('rm', path)} && {pull}"
                yield _broken("models", error.message, again if pull in hint else hint)
    for root in catalogue.search_paths(found):
        deep = root / found.name
        if any(path is not None and path.is_relative_to(deep) for path in paths.values()):
            message = f"{deep} was unpacked one level too deep: sa reads it, but insightface itself does not"
            yield _note("models", message, f"mv {deep}/* {root}/ && rmdir {deep}")


def _remains(models: Path) -> Iterator[Finding]:
    """Remains of interrupted downloads and imports, and dangling links."""
    if os.path.lexists(models) and not models.is_dir():
        yield _broken(
            "models", f"{models} is not a folder: no model can be downloaded or imported", command("rm", models)
        )
    known = set(catalogue.names())
    for path in sorted(models.iterdir()) if models.is_dir() else ():
        if any(file.is_symlink() and not file.exists() for file in (path, path / FILE_NAME)):
            yield _note("models", f"{path} is a link to a missing file", command("rm", "-r", path))
        elif path.name.startswith("."):
            if path.is_dir():
                yield _note("models", f"{path} was left by an interrupted import", command("rm", "-r", path))
        elif path.is_dir() and path.name not in known and any(path.iterdir()):
            message = f"{path} holds files and no {FILE_NAME}: no name opens them"
            yield _note("models", message, f"import it again, or move it away: {command('mv', path, '.')}")
        parts = [p for p in path.rglob("*.part") if p.is_file()] if not path.name.startswith(".") else []
        if parts:
            size = sum(part.stat().st_size for part in parts)
            mend = f"sa models pull {path.name} --all" if path.name in known else command("rm", "-r", parts[0])
            yield _note("models", f"{parts[0]}: {size} bytes of an interrupted download", mend)


def _located(found: Entry, rows: Iterable[WeightFile] | None = None) -> Iterator[Path | None]:
    return (catalogue.locate(found, row.path) for row in (found.files if rows is None else rows))


def disk() -> Iterator[Finding]:
    """Free space for models, temporary files and videos."""
    home = catalogue.cache_dir()
    near = next(folder for folder in (home, *home.parents) if folder.exists())
    if not os.access(near, os.W_OK | os.X_OK):
        yield _broken(
            "disk", f"{home} cannot be written: models cannot be downloaded", "export SA_HOME=/a/folder/of/yours"
        )
    paths = {
        "models": (near, "export SA_HOME=/a/folder/with/room"),
        "temporary files": (Path(tempfile.gettempdir()), "export TMPDIR=/a/folder/with/room"),
        "the current folder": (Path.cwd(), "du -sh * | sort -h"),
    }
    free = {what: shutil.disk_usage(path).free for what, (path, _) in paths.items()}
    for what, (path, mend) in paths.items():
        if free[what] < DISK:
            yield _broken("disk", f"{free[what] / 2**30:.2f} GiB free for {what} ({path})", mend)
    if min(free.values()) >= DISK:
        yield _ok("disk", ", ".join(f"{size / 2**30:.0f} GiB for {what}" for what, size in free.items()))
    missing_bytes = sum(
        row.bytes or 0
        for entry in catalogue.with_needs(catalogue.entry(catalogue.DEFAULT))
        for row in entry.files
        if not row.optional and catalogue.locate(entry, row.path) is None
    )
    if DISK <= free["models"] < missing_bytes:
        message = f"{free['models'] / 2**30:.1f} GiB free in {near}"
        message += f", and {catalogue.DEFAULT} takes at least {missing_bytes / 2**30:.1f} GiB"
        yield _note("disk", message, "export SA_HOME=/a/folder/with/room")


def evaluation_cache() -> Iterator[Finding]:
    """Size and limit of the evaluation cache."""
    yield _ok("evaluation cache", cache.describe())


def shared_memory() -> Iterator[Finding]:
    """Data loader workers pass arrays through shared memory; containers often have 64 MB of it."""
    if sys.platform != "linux":
        return
    mend = "mount -o remount,size=8g /dev/shm, or docker run --shm-size=8g"
    if not SHM.is_dir():
        yield _note("shared memory", f"no {SHM}: training cannot load data in several processes", mend)
        return
    free = shutil.disk_usage(SHM).free
    message = f"{free / 2**30:.2f} GiB free in {SHM}"
    if free < DISK:
        yield _note("shared memory", f"{message}: training in several processes may stop", mend)
    else:
        yield _ok("shared memory", message)


CHECKS: Mapping[str, Callable[[], Iterable[Finding]]] = {
    "packages": packages,
    "torchvision": torchvision,
    "opencv": opencv,
    "onnxruntime": onnxruntime,
    "video": video,
    "gpu": gpu,
    "models": models,
    "disk": disk,
    "evaluation cache": evaluation_cache,
    "shared memory": shared_memory,
}


def _ok(check: str, found: str) -> Finding:
    return Finding(check=check, state="ok", found=found)


def _note(check: str, found: str, mend: str) -> Finding:
    return Finding(check=check, state="note", found=found, mend=mend)


def _broken(check: str, found: str, mend: str) -> Finding:
    return Finding(check=check, state="broken", found=found, mend=mend)


def _required() -> Iterator[tuple[str, str]]:
    """(distribution, range) of imported packages, from the installed metadata or the checkout's pyproject.toml. Lower
    bounds come first; built metadata sorts them by sign."""
    try:
        lines = metadata.requires("stableanimator-cli") or []
    except metadata.PackageNotFoundError:
        file = Path(__file__).resolve().parent.parent / "pyproject.toml"
        lines = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]
    for line in lines:
        match = re.match(r"\s*([A-Za-z0-9._-]+)\s*([^;]*)", line)
        if match is not None and "extra ==" not in line:
            yield match[1], ",".join(sorted(re.findall(r"[^,\s]+", match[2]), key=lambda part: part.startswith("<")))


def _within(version: str, expected: str) -> bool:
    from packaging.specifiers import SpecifierSet  # a dependency of accelerate and transformers

    return version in SpecifierSet(expected, prereleases=True)


def _nvidia() -> bool:
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def _probe(code: str) -> tuple[bool, str]:
    """Whether Python code runs in a separate process, and its last line of output."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer in {_PROBE_SECONDS} s"
    if done.returncode < 0:
        return False, f"killed by signal {-done.returncode}"
    words = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return done.returncode == 0, words[-1] if words else ""
