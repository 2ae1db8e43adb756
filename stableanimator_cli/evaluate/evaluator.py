"""Pairs to scores: what every kind of evaluation ends in."""

from __future__ import annotations

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
from stableanimator_cli.evaluate import report, report_html
from stableanimator_cli.evaluate.checks import FailedVideo, check_pairs
from stableanimator_cli.evaluate.detections import VideoDetector
from stableanimator_cli.evaluate.networks import MetricNetworks
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.protocols import PROTOCOLS, EvalProtocol
from stableanimator_cli.evaluate.scores import Row, Scores, Section, Table, summarise
from stableanimator_cli.evaluate.scoring import NO_POINTS, Scorer, VideoScore
from stableanimator_cli.evaluate.side_by_side import write_pair
from stableanimator_cli.metrics.result import Missing
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import ModelFolder

_CSIM = ("csim_ref", "csim_gt")
_POINTS = ("keypoint_error",)


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemScores:
    """Videos of one system and what was made of them: rows of metrics, what is missing, which videos failed."""

    rows: Mapping[str, Row]
    missing: tuple[Missing, ...]
    videos: tuple[VideoScore, ...]
    failed: tuple[FailedVideo, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Everything that measures, opened once for all systems of a run. Made by ``measuring``; ``opened`` are metrics'
    networks by name, filled when the first system is measured."""

    config: EvaluateConfig
    rules: EvalProtocol
    observer: VideoDetector
    model: ModelFolder | None
    networks: tuple[str, ...]
    reporter: Reporter
    opened: dict[str, Features | Missing] = field(default_factory=dict)

    def check(self, pairs: Sequence[Pair]) -> None:
        """Raise ``BadInput`` for the first pair that cannot be compared."""
        check_pairs(pairs, self.rules, truncate=self.config.truncate, reporter=self.reporter)

    def measure(self, pairs: Sequence[Pair]) -> SystemScores:
        """Score all pairs, which ``check`` has seen. One that cannot be read to its end is a warning and among
        ``failed``; the others are scored."""
        config = self.config
        networks = MetricNetworks.open(self.networks, config.device, rules=self.rules.name, opened=self.opened)
        scorer = Scorer(
            rules=self.rules,
            observer=self.observer,
            networks=networks,
            truncate=config.truncate,
            given=config.borders,
            reporter=self.reporter,
        )
        videos: list[VideoScore] = []
        failed: list[FailedVideo] = []
        with self.reporter.progress(len(pairs), "score", "video") as bar:
            for pair in pairs:
                try:
                    videos.append(scorer.score(pair))
                except BadInput as error:
                    failed.append(FailedVideo(name=pair.name, error=error))
                    self.reporter.warning(f"{pair.name} is not scored: {error.message}")
                bar.update()
        about = self._about() | networks.about()
        rows = summarise(videos, self.rules, about=about)
        sets, more = networks.of_sets(seed=config.seed, draws=config.bootstrap_samples)
        missing = [*self._missing(videos), *networks.missing, *more]
        gone = [one for one in missing if one.metric not in rows and one.metric not in sets]
        return SystemScores(rows=rows | sets, missing=tuple(gone), videos=tuple(videos), failed=tuple(failed))

    def finish(
        self,
        measured: SystemScores,
        about: Mapping[str, Any],
        tables: Sequence[Table] = (),
        *,
        sections: Sequence[Section] = (),
        lines: Sequence[Sequence[str]] = (),
    ) -> Scores:
        """Write the files, the videos for the page and the page itself."""
        assert self.config.output is not None
        scores = Scores(
            output=self.config.output,
            protocol=self.rules,
            rows=measured.rows,
            missing=measured.missing,
            videos=measured.videos,
            about={"config": tomllib.loads(to_toml(self.config)), "networks": self.observer.networks, **about},
            tables=tuple(tables),
            failed=measured.failed,
            sections=tuple(sections),
            lines=tuple(map(tuple, lines)),
        )
        report.write(scores)
        pictures = {}
        with self.reporter.progress(len(scores.videos), "write the page", "video") as bar:
            for video in scores.videos:
                pictures[video.name] = write_pair(video, scores.output)
                bar.update()
        report_html.write_page(scores, pictures)
        return scores

    def _about(self) -> dict[str, dict[str, Any]]:
        """Which network is behind a metric, by its file and digest."""
        used = self.observer.networks
        told: dict[str, dict[str, Any]] = {}
        for name in (*_CSIM, "face_rate", "identity_drift", "identity_worst"):
            for part, suffix in (("faces", ""), ("judge", "_judge")):
                for zero in ("", "_zero"):
                    if part in used:
                        told[f"{name}{suffix}{zero}"] = used[part]
        for name in ("keypoint_error", "keypoint_pck", "keypoint_found"):
            if "points" in used:
                told[name] = used["points"]
        return told

    def _missing(self, videos: Sequence[VideoScore]) -> list[Missing]:
        lacks, missing = self.observer.lacks, []
        for part, names in (
            ("faces", _CSIM),
            ("judge", tuple(f"{n}_judge" for n in _CSIM)),
            ("points", _POINTS),
        ):
            if part in lacks:
                missing += [Missing(metric=name, reason=lacks[part][0], command=lacks[part][1]) for name in names]
        if not any(video.truth for video in videos):
            missing.append(Missing(metric="psnr", reason="no ground truth: nothing that compares with it is computed"))
        measured = ("faces", "csim_ref") if "faces" not in lacks else None
        if measured and all(video.counts.get("csim_ref", 0) == 0 for video in videos):
            reason = "no face in any frame, or none in the reference pictures"
            missing.append(Missing(metric="csim_ref", reason=reason, command="--reference-picture PICTURE"))
        if all(video.counts.get("seam_score", 0) == 0 for video in videos):
            reason = "no borders of windows or chunks are known, or the videos are one piece"
            missing.append(Missing(metric="seam_score", reason=reason, command="--borders 16,32"))
        if "points" not in lacks and not any(video.counts.get("keypoint_error") for video in videos):
            notes = (note for video in videos for note in video.notes if note.startswith(NO_POINTS))
            reason = next(notes, "nobody is found in the videos or in what drove them")
            missing.append(Missing(metric="keypoint_error", reason=reason, command="--poses MOTION"))
        if all(video.frames < 3 for video in videos):
            missing.append(Missing(metric="flicker", reason="videos of fewer than three frames"))
        return missing


def measuring(
    config: EvaluateConfig,
    reporter: Reporter,
    *,
    networks: tuple[str, ...] | None = None,
    model: ModelFolder | None = None,
) -> Evaluator:
    """Open the model's detectors and recognisers. ``networks`` replaces those of the protocol; ``model`` is one that is
    open already.

    Without ``--model`` the usual one is taken if it is here, and what needs it is missing if not; a model that was
    named must be here: ``ModelMissing``.
    """
    rules = PROTOCOLS[config.rules]
    name = config.model
    if name is None and model is None:
        try:
            name = catalogue.default_model(("face",))
        except ModelMissing:
            reporter.warning("no model here: CSIM and key points are left out; --model puppet measures drawn figures")
    if model is None and name is not None:
        model = catalogue.open_model(name)
    wanted = rules.networks if networks is None else networks
    if networks is not None:
        kept = {"lpips": "lpips_puppet", "fvd_s": "fvd_puppet", "fvd_d": "fvd_puppet"}
        table = tuple(dict.fromkeys(kept.get(column[:5], column) for column in rules.table))
        rules = replace(rules, networks=wanted, table=table)
    observer = VideoDetector(model, config.judge, config.device)
    onnx.warn_of_fallbacks(reporter)
    return Evaluator(config=config, rules=rules, observer=observer, model=model, networks=wanted, reporter=reporter)
