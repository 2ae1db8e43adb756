"""Cases of the fuzz: a command that works, and one thing about it that is wrong. A seed and a number give a case."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz import damage

TINY = "models/tiny"
ANIMATE = ("-o", "out.mp4", "--model", TINY, "--size", "64x64", "--steps", "1", "--frames", "0:2", "--device", "cpu",
           "--allow-no-face")  # fmt: skip
TRAIN = ("--model", TINY, "--steps", "1", "--device", "cpu", "--frames", "1", "--train", "adapters", "--batch", "1",
         "--workers", "0", "--warmup", "0")  # fmt: skip
NETWORKS = tuple(
    f"{TINY}/{name}"
    for name in ("model.toml", "model.toml", "unet.json", "vae.json", "image_encoder.json", "face_encoder.json",
                 "unet.safetensors", "face_encoder.safetensors", "pose_net.safetensors")
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line that works in the corpus. ``files`` are those that a case damages, ``writes`` what the command
    may change or make, ``home`` whether it has an ``SA_HOME`` of its own, ``home``."""

    words: tuple[str, ...]
    files: tuple[str, ...]
    writes: tuple[str, ...] = ("out", "out.mp4", "out.json", "out.npz", "out.npy")
    home: bool = False


def command(line: str, *files: str, more: Sequence[str] = (), **settings: Any) -> Command:
    return Command(words=(*line.split(), *more), files=files, **settings)


COMMANDS = (
    command("animate ref.png poses.npz", "ref.png", "poses.npz", "poses.npz", *NETWORKS, more=ANIMATE),
    command("animate ref.jpg poses.json", "ref.jpg", "poses.json", more=ANIMATE),
    command("animate ref.png json", "json/*", more=ANIMATE),
    command("animate ref.png skeletons.mp4", "skeletons.mp4", more=ANIMATE),
    command("animate ref.png clips/dance", "clips/dance/clip.json", "clips/dance/motion.npz", more=ANIMATE),
    command("animate ref.png poses.npz --face-embedding face.npy", "face.npy", more=ANIMATE),
    command("animate --config animate.toml", "animate.toml", more=ANIMATE),
    command("animate ref.png poses.npz --plan", *NETWORKS, "poses.npz", more=ANIMATE),
    command("preprocess dance.mp4 -o out --model puppet", "dance.mp4"),
    command("preprocess videos frames ref.jpg -o out --model puppet", "videos/*", "frames/*", "ref.jpg"),
    command("preprocess list.txt -o out --model puppet", "list.txt", "videos/*", "ref.jpg"),
    command("preprocess dance.mp4 -o clips --model puppet", "clips/dance/clip.json", "clips/index.jsonl",
            "clips/report.json", "clips/dance/motion.npz", writes=("clips",)),
    command("preprocess dance.mp4 -o out --model puppet --config preprocess.toml", "preprocess.toml"),
    command("preprocess --lint clips", "clips/dance/*", "clips/dance/clip.json", "clips/dance/faces.npz"),
    command("preprocess --lint upstream", "upstream/rec/00001/*/*"),
    command("preprocess poses.npz -o out.json", "poses.npz"),
    command("preprocess poses.npz -o out.mp4", "poses.npz"),
    command("preprocess poses.json -o out.npz", "poses.json"),
    command("preprocess json -o out.npz", "json/*"),
    command("preprocess points.npy -o out.npz", "points.npy"),
    command("preprocess points.npy -o out --to png", "points.npy"),
    command("preprocess skeletons.mp4 -o out --to png --model puppet", "skeletons.mp4"),
    command("preprocess poses.npz -o out.npz --reference ref.png --align affine --model puppet", "ref.png",
            "poses.npz"),
    command("train data -o out", "data/clip0/*", "data/clip0/*", *NETWORKS, more=TRAIN),
    command("train upstream -o out --face off", "upstream/rec/00001/*/*", "upstream/*.txt", more=TRAIN),
    command("train data -o out --config train.toml --plan", "train.toml", *NETWORKS, more=TRAIN),
    command("train --resume run --steps 2", "run/config.toml", "run/metrics.jsonl", "run/checkpoints/*/*",
            "run/checkpoints/*/state/*", "run/checkpoints/*/state/progress.json", writes=("run",)),
    command("train --export out --resume run", "run/config.toml", "run/checkpoints/*/*", writes=("out", "run")),
    command("evaluate predicted truth -o out", "predicted/*", "truth/*"),
    command("evaluate predicted truth -o out --config evaluate.toml", "evaluate.toml"),
    command("evaluate predicted truth -o out --poses poses.npz", "poses.npz"),
    command("evaluate made.mp4 made.mp4 -o out", "made.json", "made.mp4"),
    command("evaluate --tally study", "study/*"),
    command("evaluate predicted truth --study out --baselines rivals", "rivals/other/*", "predicted/*"),
    command("replay made.mp4 -o out.mp4", "made.json", "made.mp4", "made.json", *NETWORKS),
    command(f"models show {TINY}", *NETWORKS),
    command(f"models verify {TINY}", *NETWORKS),
    command(f"models import {TINY}", *NETWORKS, home=True, writes=("home",)),
    command(f"models import {TINY} --copy", *NETWORKS, home=True, writes=("home",)),
    command("models list", "home/models/tiny/model.toml", "home/digests.json", home=True, writes=("home",)),
    command("doctor", "home/models/tiny/model.toml", "home/digests.json", home=True, writes=("home",)),
    command("puppets puppets --videos 1 --frames 2 --size 64x64", "puppets/*.json", "puppets/truth/*",
            writes=("puppets",)),
)  # fmt: skip

NAMES: tuple[bytes, ...] = (
    b"new\nline", b"tab\tand\x1b[31m", b"latin-\xe9\xff", "grüße 💃".encode(), b"a b  c", b"%s%d{0}", b"a:b",
    b"n" * 250, b"$(true)`true`", b"-x", b"~", b"'\"", b".hidden", b"x,y;z&w|v", "\u202eltr".encode(), b"#comment",
    b"[a]*?",
)  # fmt: skip
PLACES: tuple[bytes, ...] = (
    b"n" * 300, b"n" * 5000, b"/".join([b"d" * 200] * 30), b"/dev/zero", b"/dev/null", b"/dev/stdin", b".", b"/",
    b"..", b"", b"nowhere/at/all", b"ref.png/x", b"\xff\xfe", b"/proc/self/mem", b"pipe", b"loop", b"socket", b"empty",
    b"a\nb",
)  # fmt: skip
VALUES = (
    "", " ", "-1", "0", "1", "2", "1.5", "nan", "inf", "-inf", "1e300", "1e-300", "1e999999999", str(2**31), str(2**40),
    str(2**64), "9" * 5000, "x", "x" * 100_000, "1:2", ":", "-1:-2", "1:x", "0/0", "1/0", "1x1", "64x64", "0x0",
    "99999x99999", "999999999999x1", "true", "none", "off", "on", "auto", "💃", "a\nb", "../..", "%s", ",", "a,b",
    "1,2,3", "cuda:99", "cpu", "float64", "30000/1001", "12GB", "-5GB", "1e400GB", "[]", "{}",
)  # fmt: skip
PLANS = {"animate": 7, "train": 25}
"""Commands that ``--plan`` keeps light, by verb: flags are tried on those."""
HEAVY = frozenset(
    {"--steps", "--output", "--ray", "--gpus", "--help", "--install-completion", "--show-completion", "--all"}
)


@dataclass(slots=True, kw_only=True)
class Case:
    """One case, before it is set up: ``words`` with ``why`` it is odd, and the ``named`` file that an error names."""

    number: int
    kind: str
    command: Command
    words: list[str]
    why: str = ""
    named: str | None = None
    chance: random.Random = field(repr=False)


def case_of(seed: int, number: int, options: dict[str, list[tuple[str, bool]]]) -> Case:
    """Case ``number`` of a seed. ``options`` are the flags of each verb and whether they take a value."""
    chance = random.Random(f"{seed}/{number}")
    kind = ("damage", "damage", "damage", "flag", "flag", "name", "place")[number % 7]
    index = number // 7 % len(COMMANDS) if kind != "flag" else chance.randrange(len(COMMANDS))
    chosen = COMMANDS[index]
    if kind == "flag":
        verb = chosen.words[0]
        chosen = COMMANDS[PLANS.get(verb, index)]
    case = Case(number=number, kind=kind, command=chosen, words=list(chosen.words), chance=chance)
    if kind == "flag":
        verb = " ".join(chosen.words[:2]) if chosen.words[0] == "models" else chosen.words[0]
        for name, valued in chance.sample(options[verb], min(chance.choice([1, 1, 2, 3]), len(options[verb]))):
            value = chance.choice(VALUES)
            case.words += [name, value] if valued else [name]
            case.why += f" {name} {value[:30]!r}" if valued else f" {name}"
    return case


def set_up(case: Case, corpus: Path, box: Path) -> None:
    """Put the files of the corpus into ``box``, and do what is odd about the case."""
    chance = case.chance
    shutil.copytree(corpus, box, copy_function=_linked, symlinks=True)
    for name in case.command.writes:  # what is written in place must not reach the corpus
        if (box / name).is_dir():
            shutil.rmtree(box / name)
            shutil.copytree(corpus / name, box / name, symlinks=True)
    if case.command.home:
        shutil.copytree(corpus / TINY, box / "home" / "models" / "tiny")
        (box / "home" / "digests.json").write_text('{"/nowhere": [3, 4, "ab"]}')
    if case.kind == "damage":
        pattern = chance.choice(case.command.files)
        path = chance.choice(sorted(file for file in box.glob(pattern) if file.is_file()))
        if path.is_symlink():
            path = path.resolve()
        _own(path)
        case.why = f"{path.relative_to(box.resolve() if not path.is_relative_to(box) else box)}: "
        case.why += damage.damaged(path, chance)
        case.named = path.name
    elif case.kind in ("name", "place"):
        inputs = [i for i, word in enumerate(case.words) if i and _is_input(box, case, i, word)]
        index = chance.choice(inputs or [len(case.words) - 1])
        given = box / case.words[index]
        if case.kind == "name":
            odd = chance.choice(NAMES) + os.fsencode(given.suffix if given.is_file() else "")
            os.rename(given, os.fsencode(box) + b"/" + odd) if given.exists() else None
        else:
            odd = chance.choice(PLACES)
            damage.odd_places(box)
            if odd == b"/dev/stdin":
                case.why = "(empty) "
        case.why += f"{case.words[index]} is {odd[:40]!r}"
        case.words[index] = os.fsdecode(odd)


def _linked(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)


def _own(path: Path) -> None:
    """Give a linked file an inode of its own before it is changed."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def _is_input(box: Path, case: Case, index: int, word: str) -> bool:
    return case.words[index - 1] not in ("-o",) and (box / word).exists() and word not in case.command.writes
