"""Scores of pairs of videos, for every kind of evaluation."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stableanimator_cli import catalogue
from stableanimator_cli.config.evaluate import EvaluateConfig
from stableanimator_cli.config.schema import to_toml
from stableanimator_cli.detect import onnx
from stableanimator_cli.engine.metric_networks import Features
from stableanimator_cli.errors import BadInput, ModelMissing
from stableanimator_cli.evaluate import figures, identity_check, report, report_html
from stableanimator_cli.evaluate.checks import FailedVideo, check_pairs
from stableanimator_cli.evaluate.detections import VideoDetector
from stableanimator_cli.evaluate.latex import LatexTable
from stableanimator_cli.evaluate.networks import MetricNetworks
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.protocols import (
    PROTOCOLS,
    PUPPET_NETWORKS,
    REFERENCE_NETWORKS,
    EvalProtocol,
    without_target,
)
from stableanimator_cli.evaluate.scores import Row, Scores, Section, Table, summarise
from stableanimator_cli.evaluate.scoring import NO_POINTS, Scorer, VideoScore
from stableanimator_cli.evaluate.side_by_side import write_pair
from stableanimator_cli.metrics.motion import PARTS
from stableanimator_cli.metrics.result import Missing
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import ModelFolder

_CSIM = ("csim_ref", "csim_gt")
_POINTS = {f"{part}_{kind}": part for part in PARTS for kind in ("error", "pck", "found")}
_TITLES = {"keypoint": "body points", "hand": "hand points", "landmark": "face landmarks"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemScores:
    """Scores of one system's videos: rows of metrics, missing metrics, videos, and those that failed."""

    rows: Mapping[str, Row]
    missing: tuple[Missing, ...]
    videos: tuple[VideoScore, ...]
    failed: tuple[FailedVideo, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(video.name for video in self.videos)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Scores systems under one protocol, with networks that are opened once (``open_evaluator``). ``opened`` holds the
    metrics' networks by name."""

    config: EvaluateConfig
    rules: EvalProtocol
    detector: VideoDetector
    reporter: Reporter
    opened: dict[str, Features | Missing] = field(default_factory=dict)

    def check(self, pairs: Sequence[Pair]) -> None:
        """Raise ``BadInput`` for the first pair that cannot be compared."""
        check_pairs(pairs, self.rules, truncate=self.config.truncate, reporter=self.reporter)

    def score(self, pairs: Sequence[Pair]) -> SystemScores:
        """Score all pairs, which ``check`` has seen. A video that cannot be read to its end is among ``failed``, with a
        warning; the others are scored."""
        config = self.config
        networks = MetricNetworks.open(self.rules.networks, config.device, rules=self.rules.name, opened=self.opened)
        scorer = Scorer(
            rules=self.rules,
            detector=self.detector,
            networks=networks,
            truncate=config.truncate,
            borders=config.borders,
            reporter=self.reporter,
        )
        videos: list[VideoScore] = []
        failed: list[FailedVideo] = []
        with self.reporter.progress(len(pairs), "score", "video") as bar:
            for pair in pairs:
                try:
                    videos.append(scorer.score(pair))
                except BadInput as error:
                    # a copy has no traceback, whose frames hold open videos and pixels
                    failed.append(FailedVideo(name=pair.name, error=copy.copy(error)))
                    self.reporter.warning(f"{pair.name} is not scored: {error.message}")
                bar.update()
        rows = summarise(videos, self.rules, about=self._networks_by_metric() | networks.about())
        sets, too_few = networks.set_rows(seed=config.seed, samples=config.bootstrap_samples, reporter=self.reporter)
        rows |= sets
        unseen = [
            Missing(metric=name, reason="no reference image", command="--reference-picture IMAGE")
            for name in networks.of_reference
        ]
        missing = [*self._missing(videos), *networks.missing, *too_few, *unseen]
        missing = [one for one in missing if one.metric not in rows]
        return SystemScores(rows=rows, missing=tuple(missing), videos=tuple(videos), failed=tuple(failed))

    def write(
        self,
        system: SystemScores,
        about: Mapping[str, Any],
        tables: Sequence[Table] = (),
        *,
        sections: Sequence[Section] = (),
        lines: Sequence[Sequence[str]] = (),
        latex: Mapping[str, Sequence[LatexTable]] | None = None,
        systems: Mapping[str, Sequence[VideoScore]] | None = None,
    ) -> Scores:
        """Write the files, the figures, the side-by-side videos and the page. ``systems`` are the videos that figures
        compare, ours first; only ``system`` if it is not given."""
        assert self.config.output is not None
        plan = None
        if self.config.strips is not None:
            systems = systems or {self.config.system_name: system.videos}
            plan = figures.plan_figures(systems, self.config.strips, self.config.strip_videos)
            about = {**about, "figures": plan.to_json()}
        scores = Scores(
            output=self.config.output,
            protocol=self.rules,
            rows=system.rows,
            missing=system.missing,
            videos=system.videos,
            about={
                "config": tomllib.loads(to_toml(self.config)),
                "networks": self.detector.networks,
                **identity_check.about(system.videos, self.config),
                **about,
            },
            tables=tuple(tables),
            failed=system.failed,
            sections=tuple(sections),
            lines=tuple(map(tuple, lines)),
            latex=latex or {},
            failure=identity_check.failure(system.videos, self.config),
        )
        report.write(scores)
        if plan is not None:
            detect = None if self.detector.detectors is None else self.detector.find_points
            drawn = figures.write_figures(plan, scores.output, self._boxed(scores), detect, self.reporter)
            report.write_paper(scores, drawn)
        images = {}
        with self.reporter.progress(len(scores.videos), "write the page", "video") as bar:
            for video in scores.videos:
                images[video.name] = write_pair(video, scores.output)
                bar.update()
        report_html.write_page(scores, images)
        return scores

    def _boxed(self, scores: Scores) -> list[str]:
        """Metrics of the box plots: those of the protocol's table first, no variants of one another."""
        rest = [name for name in scores.rows if "disco" not in name and not name.endswith("_zero")]
        return [name for name in dict.fromkeys((*self.rules.table, *rest)) if name in scores.rows]

    def _networks_by_metric(self) -> dict[str, dict[str, Any]]:
        """File and digest of the detector or recogniser of each metric."""
        networks, identity = self.detector.networks, (*_CSIM, "face_rate", "identity_drift", "identity_worst")
        metrics = {
            "faces": [f"{name}{zero}" for name in identity for zero in ("", "_zero")],
            "judge": [f"{name}_judge{zero}" for name in identity for zero in ("", "_zero")],
            "points": list(_POINTS),
        }
        return {name: networks[part] for part, names in metrics.items() if part in networks for name in names}

    def _missing(self, videos: Sequence[VideoScore]) -> list[Missing]:
        unavailable = self.detector.unavailable
        metrics = {"faces": _CSIM, "judge": [f"{name}_judge" for name in _CSIM], "points": list(_POINTS)}
        missing = [
            Missing(metric=name, reason=unavailable[part][0], command=unavailable[part][1])
            for part, names in metrics.items()
            if part in unavailable
            for name in names
        ]

        def add(metric: str, reason: str, command: str = "") -> None:
            missing.append(Missing(metric=metric, reason=reason, command=command))

        if set(self.rules.networks) - set(REFERENCE_NETWORKS) and not any(video.target for video in videos):
            add("psnr", "no ground truth: nothing that compares with it is computed")
        if "faces" not in unavailable and not any(video.counts.get("csim_ref") for video in videos):
            reason = "no face in any frame, or none in the reference images"
            add("csim_ref", reason, "" if self.config.reference_picture else "--reference-picture IMAGE")
        if not any(video.counts.get("seam_score") for video in videos):
            add(
                "seam_score",
                "no borders of windows or chunks are known, or the videos are one piece",
                "--borders 16,32",
            )
        for name, part in _POINTS.items() if "points" not in unavailable else ():
            if any(video.counts.get(name) for video in videos):
                continue
            notes = (note for video in videos for note in video.notes if note.startswith(NO_POINTS))
            if any(video.counts.get(f"{part}_found") for video in videos):
                add(name, f"none of the {_TITLES[part]} that drove the videos is found in them")
            else:
                add(name, next(notes, f"what drove the videos shows too few {_TITLES[part]}"), "--poses MOTION")
        if all(video.frames < 3 for video in videos):
            add("flicker", "videos of fewer than three frames")
        return missing


def open_evaluator(
    config: EvaluateConfig,
    reporter: Reporter,
    *,
    networks: tuple[str, ...] | None = None,
    model: ModelFolder | None = None,
) -> Evaluator:
    """Open the detectors and recognisers of ``model``, else of ``--model``. ``networks`` replaces the protocol's.

    Without either the default model is used if it is installed; its metrics are missing if it is not. Raises
    ``ModelMissing`` for a model that was named.
    """
    rules, name = PROTOCOLS[config.rules], config.model
    if config.without_target:
        rules = without_target(rules)
    if name is None and model is None:
        try:
            name = catalogue.default_model(("face",))
        except ModelMissing:
            reporter.warning("no model here: CSIM and keypoints are left out; --model puppet measures drawn figures")
    if model is None and name is not None:
        model = catalogue.open_model(name)
    drawn = model is not None and "video" in model.files  # a model of drawn figures, which has a network for them
    if drawn and networks is None and not config.without_target:
        rules = replace(rules, networks=(*rules.networks, *PUPPET_NETWORKS), table=(*rules.table, *PUPPET_NETWORKS))
    elif networks is not None:
        puppet = {"lpips": "lpips_puppet", "fvd_s": "fvd_puppet", "fvd_d": "fvd_puppet"}
        table = tuple(dict.fromkeys(puppet.get(column[:5], column) for column in rules.table))
        rules = replace(rules, networks=networks, table=table)
    detector = VideoDetector(model, config.judge, config.device)
    identity_check.check_recogniser(config, detector)
    onnx.warn_of_fallbacks(reporter)
    return Evaluator(config=config, rules=rules, detector=detector, reporter=reporter)
