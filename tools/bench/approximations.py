"""What approximate speed costs: deep features taken again, and guidance on an interval, on clips never seen.

``python -m tools.bench.approximations WORK [--count N] [--steps S] [--cache-features 2,3] [--layers 1,2]
[--guidance G] [--guidance-interval LO:HI,...] [--page PAGE.md]`` renders the held-out clips of ``puppet_model`` in each
setting and on the exact path beside it: the same seed, and for intervals the same guidance throughout. Told are the
paired differences over clips, with bootstrap intervals: PSNR against the drawn truth, how far limbs are off, the
judge's similarity of faces; and how near the frames come to those of the exact path. Nothing is timed: calls and FLOPs
are counted. A clip's figures are a line of ``WORK/clips.jsonl``; run the same command to resume, and more
clips may be asked for later.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stableanimator_cli import catalogue
from stableanimator_cli.bench.counters import count_flops
from stableanimator_cli.bench.harness import Interval, bootstrap_interval
from stableanimator_cli.bench.networks import FULL, build_on_meta, open_bench_model
from stableanimator_cli.bench.results import Table, environment, page_heading, update_page
from stableanimator_cli.config.animate import DeviceConfig, SamplingConfig
from stableanimator_cli.config.parse import Guidance, parse_cache_interval, parse_interval
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.memory.render import prepare_context
from stableanimator_cli.engine.render import Timings, render
from stableanimator_cli.errors import SaError
from stableanimator_cli.files import sha256_of
from stableanimator_cli.records import NETWORKS, STRIDE, ModelFolder
from tools.bench.puppet_decoder import psnr
from tools.bench.puppet_model import LIST, SMALL, Reader, looked_at, request_of, subjects
from tools.bench.resumable import as_typed, read_rows, refused

PLAIN, GUIDED = "plain", "guided"
PART = "approximations"  # of the page
FIGURES = {"psnr": "dB to the truth", "limbs": "limb error, fraction of the side", "own": "similarity of faces"}
RELEASED = ((576, 1024), 16)  # pixels and frames that the released shapes are counted at


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way of sampling: changes of ``SamplingConfig``, and the exact path to compare with; None: it is exact."""

    name: str
    changes: Mapping[str, Any]
    against: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApproximationRun:
    """What is rendered: ``count`` clips at ``steps``; ``features`` (interval of steps) by ``layers`` at the model's own
    guidance, ``intervals`` of noise levels at ``guidance``."""

    model: str = "puppet"
    count: int = 50
    steps: int = 12
    seed: int = 0
    features: tuple[int, ...] = (2, 3)
    layers: tuple[int, ...] = (1, 2)
    guidance: float = 2.0
    intervals: tuple[Guidance, ...] = ((0.5, 50.0),)

    def settings(self) -> list[Setting]:
        """Exact paths before what is compared with them."""
        found = [Setting(name=PLAIN, changes={})]
        for every in self.features:
            for layers in self.layers:
                usual = layers == SamplingConfig().cache_layers
                name = f"--cache-features {every}" + ("" if usual else f", cache_layers {layers}")
                changes = {"cache_features": every, "cache_layers": layers}
                found.append(Setting(name=name, changes=changes, against=PLAIN))
        if self.intervals:
            guided = {"guidance": (self.guidance, self.guidance)}
            found.append(Setting(name=GUIDED, changes=guided))
            for low, high in self.intervals:
                name = f"--guidance {self.guidance:g} --guidance-interval {low:g}:{high:g}"
                changes = guided | {"guidance_interval": (low, high)}
                found.append(Setting(name=name, changes=changes, against=GUIDED))
        return found

    def header(self, model: ModelFolder) -> dict[str, Any]:
        """What other figures would come of."""
        weights = {role: sha256_of(model.files[role])[:12] for role in (*NETWORKS, "face", "judge")}
        return {"steps": self.steps, "seed": self.seed, "settings": [s.name for s in self.settings()], "files": weights}


Clip = dict[str, dict[str, Any]]  # of one clip by setting: ``FIGURES``, ``near``, ``unet`` and ``shallow`` calls


def compare_settings(trial: ApproximationRun, work: Path) -> Iterator[Clip]:
    """Clip by clip, those of earlier runs as they were recorded. Raises ``SaError``."""
    model = catalogue.open_model(trial.model, (*NETWORKS, "face", "judge", "person_detector", "pose_detector"))
    header, path = trial.header(model), work / "clips.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    known = read_rows(path, header)[: trial.count]
    yield from known
    entries = json.loads(LIST.read_text(encoding="utf-8"))[len(known) : trial.count]
    defaults = {**model.defaults, "steps": trial.steps}
    with Engine.open(model, DevicePlan.of(DeviceConfig(device="cpu"))) as engine, path.open("a", encoding="utf-8") as f:
        if not path.stat().st_size:
            f.write(json.dumps(header) + "\n")
        reader = Reader(engine)
        for subject in (one for entry in entries for one in subjects([entry], reader)):
            request = request_of(subject, subject.vector, defaults, trial.seed)
            exact: dict[str, np.ndarray] = {}
            clip: Clip = {}
            for setting in trial.settings():
                asked = replace(request, sampling=replace(request.sampling, **setting.changes))
                engine.calls.clear()
                frames = np.stack(list(render(engine, asked, Timings())))
                row, _ = looked_at(list(frames), subject, reader)
                row["limbs"] = float(np.median(row["limbs"])) if row["limbs"] else None
                row["near"] = None
                if setting.against is None:
                    exact[setting.name] = frames
                else:
                    row["near"] = psnr(frames.astype(float) - exact[setting.against])
                row |= {"unet": engine.calls["unet"], "shallow": engine.calls["unet_shallow"]}
                clip[setting.name] = row
            f.write(json.dumps(_finite(clip)) + "\n")
            f.flush()
            yield clip


def _finite(clip: Clip) -> Clip:
    """Nobody was found where limbs are infinitely far off; JSON has no word for it."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return {name: {key: plain(value) for key, value in row.items()} for name, row in clip.items()}


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of one conditional UNet call: a ``whole`` one, and a shallow one by its ``layers``, with the bytes of deep
    features that are cached for it."""

    whole: int
    layers: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    def share(self, layers: int) -> float:
        return self.layers[layers][0] / self.whole


def cost(model: ModelFolder, size: tuple[int, int], frames: int, dtype: torch.dtype, layers: Sequence[int]) -> Cost:
    """Counted on the ``meta`` device, as ``Engine.denoiser`` calls the network."""
    unet: Any = build_on_meta(model, "unet", dtype)
    like = {"device": "meta", "dtype": dtype}
    token, (width, height) = unet.config["cross_attention_dim"], (side // STRIDE for side in size)
    given = (
        torch.empty(1, frames, unet.config["in_channels"], height, width, **like),
        1.0,
        prepare_context(unet, torch.empty(1, 1, token, **like), torch.empty(1, unet.id_tokens, token, **like)),
        torch.empty(1, 3, **like),
        torch.empty(frames, unet.config["block_out_channels"][0], height, width, **like),
    )
    found: dict[int, tuple[int, int]] = {}
    with torch.no_grad():
        for count in layers:
            _, deep = unet.forward_caching(*given, layers=count)
            part = count_flops(lambda n=count, d=deep: unet.forward_cached(*given, layers=n, deep=d))
            found[count] = part, deep.numel() * deep.element_size()
        return Cost(count_flops(lambda: unet(*given)), found)


def column(clips: Sequence[Clip], setting: str, figure: str) -> np.ndarray:
    """A figure by clip, NaN where a clip has none."""
    return np.array([np.nan if (value := clip[setting][figure]) is None else value for clip in clips], np.float64)


def mean(values: np.ndarray) -> Interval | None:
    """Over the clips that have the figure; None where none has."""
    there = values[np.isfinite(values)]
    return bootstrap_interval(there, np.mean) if len(there) else None


def losses(clips: Sequence[Clip], trial: ApproximationRun, cost: Cost) -> Table:
    """A row a setting: what it saves, and its figures with their differences from the exact path."""
    settings = {setting.name: setting for setting in trial.settings()}

    def work(setting: Setting) -> float:
        """Whole calls, and what its shallow ones are of such."""
        row = clips[0][setting.name]
        part = cost.share(setting.changes["cache_layers"]) if row["shallow"] else 0.0
        return row["unet"] - row["shallow"] + part * row["shallow"]

    rows = []
    for setting in settings.values():
        first = clips[0][setting.name]
        row: dict[str, Any] = {
            "setting": setting.name,
            "UNet calls": first["unet"],
            "of them shallow": first["shallow"],
        }
        against = None if setting.against is None else settings[setting.against]
        row["UNet FLOPs relative to the exact path"] = None if against is None else work(setting) / work(against)
        for figure, title in FIGURES.items():
            here = column(clips, setting.name, figure)
            row[title] = mean(here)
            row[f"{title}: loss"] = None
            if against is not None:
                apart = column(clips, against.name, figure) - here
                row[f"{title}: loss"] = mean(-apart if figure == "limbs" else apart)
        row["dB to the exact path"] = mean(column(clips, setting.name, "near"))
        rows.append(row)
    note = (
        f"{len(clips)} held-out clips of 8 frames of {SMALL[0]}x{SMALL[1]}, model {trial.model}, {trial.steps} steps "
        f"(more than on its card: with few steps there is little to reuse), seed {trial.seed}; means and 95 % "
        f"intervals over clips. Losses are paired by clip and above 0 if the approximate path is worse. `{PLAIN}` is "
        f"the exact path at the model's own guidance, `{GUIDED}` at {trial.guidance:g}. Similarity is the judge's."
    )
    return Table(title="Quality loss", rows=rows, note=note)


def savings(layers: Sequence[int]) -> Table:
    """What shallow calls of the released shapes cost, and what is cached for them."""
    size, frames = RELEASED
    counted = cost(open_bench_model(FULL), size, frames, torch.bfloat16, layers)
    rows = []
    for count in layers:
        share = counted.share(count)
        row: dict[str, Any] = {"sampling.cache_layers": count, "FLOPs relative to a full call": share}
        row |= {f"times fewer FLOPs, N = {every}": every / (1 + (every - 1) * share) for every in (2, 3)}
        row["MiB cached per window and branch"] = counted.layers[count][1] / 2**20
        rows.append(row)
    note = f"{frames} frames of {size[0]}x{size[1]}, bfloat16; counted, not computed."
    return Table(title="Savings with the released shapes", rows=rows, note=note)


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    usual = ApproximationRun()
    parser = argparse.ArgumentParser(prog="python -m tools.bench.approximations", description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the figures")
    parser.add_argument("--model", default=usual.model, help="catalogue name or folder")
    parser.add_argument("--count", type=int, default=usual.count, help="clips, from the list's first on")
    parser.add_argument("--steps", type=int, default=usual.steps)
    parser.add_argument("--seed", type=int, default=usual.seed, help="of the sampling")
    parser.add_argument("--cache-features", default="2,3", help="intervals of steps, separated by commas; '' for none")
    parser.add_argument("--layers", default="1,2", help="layers that are always computed, separated by commas")
    parser.add_argument("--guidance", type=float, default=usual.guidance, help="for intervals, more than 1")
    parser.add_argument("--guidance-interval", default="0.5:50", help="LO:HI, separated by commas; '' for none")
    parser.add_argument("--page", type=Path, help="also write the tables into a Markdown page")
    options = parser.parse_args(words)
    if options.count < 1:
        parser.error("--count: expected 1 clip or more")
    try:
        trial = ApproximationRun(
            model=options.model,
            count=options.count,
            steps=options.steps,
            seed=options.seed,
            features=tuple(parse_cache_interval(word) for word in _listed(options.cache_features)),
            layers=tuple(int(word) for word in _listed(options.layers)),
            guidance=options.guidance,
            intervals=tuple(parse_interval(word) for word in _listed(options.guidance_interval)),
        )
        clips = []
        for clip in compare_settings(trial, options.work):
            clips.append(clip)
            summary = "; ".join(f"{name} {row['psnr']:.2f} dB" for name, row in clip.items())
            sys.stderr.write(f"clip {len(clips) - 1}: {summary}\n")
            sys.stderr.flush()
        own = cost(catalogue.open_model(trial.model), SMALL, 8, torch.float32, trial.layers)
        tables = losses(clips, trial, own), savings(trial.layers)
        text = "\n\n".join(table.markdown() for table in tables)
        if options.page is not None:
            command = as_typed("tools.bench.approximations", words)
            head = page_heading("Approximate speed and its loss", command, environment(torch.device("cpu")))
            update_page(options.page, {PART: f"{head}\n\n{text}"})
    except SaError as error:
        return refused(error)
    sys.stdout.write(f"{text}\n")
    return 0


def _listed(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


if __name__ == "__main__":
    sys.exit(main())
