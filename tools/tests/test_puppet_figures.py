"""The arithmetic of the figures: matching boxes, thresholds, decibels, missed requirements."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.detect.pose import PersonDetector, PoseEstimator
from tools.bench import puppet_decoder, puppet_figures


def test_overlap_is_intersection_over_union() -> None:
    a = np.array([[0.0, 0, 10, 10]])
    b = np.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]])
    np.testing.assert_allclose(puppet_figures.overlap(a, b), [[1, 1 / 3, 0]])


def test_a_true_box_is_found_once() -> None:
    true = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    found = np.array([[1.0, 0, 11, 10, 0.9], [0, 0, 10, 10, 0.8], [50, 50, 60, 60, 0.7]])
    assert puppet_figures.match_boxes(found, true) == [(1, 0)]
    assert puppet_figures.match_boxes(found[:0], true) == []


def test_accuracy_is_of_pairs_from_different_clips() -> None:
    axes = np.eye(4)
    vectors = np.stack([axes[0], axes[0], axes[1], axes[2], axes[3], axes[3]])
    persons, clips = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 0, 0])
    value, _, same = puppet_figures.accuracy((vectors, persons, clips), 0.5)
    assert same == 2  # the third person's pair is from one clip
    assert value == pytest.approx((0.5 + 1) / 2)


@pytest.mark.parametrize(("value", "minimum", "holds"), [(0.97, True, True), (0.96, True, False), (0.96, False, True)])
def test_a_figure_reports_a_missed_requirement(value: float, minimum: bool, holds: bool) -> None:
    figure = puppet_figures.Figure("verification", value, 0.97, minimum, 10)
    assert figure.holds is holds
    assert ("MISSED" in figure.row()) is not holds


def test_the_shipped_detectors_separate_two_people() -> None:
    model = catalogue.open_model("puppet")
    people = PersonDetector(model.files["person_detector"], "cpu")
    points = PoseEstimator(model.files["pose_detector"], "cpu")
    (figure,) = puppet_figures.pair_figures(people, points, 12)
    assert figure.count >= 10
    assert figure.value >= 0.8  # a dozen frames; `make puppet-figures` uses the full list


def test_json_prints_one_object_per_line(capsys: pytest.CaptureFixture[str], monkeypatch: object) -> None:
    rows = [puppet_figures.at_least("faces", 0.99, 0.98, 5), puppet_figures.at_most("size", 11.0, 10.0, 6)]
    monkeypatch.setattr(puppet_figures, "figures", lambda *_: iter(rows))  # type: ignore[attr-defined]
    assert puppet_figures.main(["--json"]) == 8
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["name"], line["holds"]) for line in lines] == [("faces", True), ("size", False)]


def test_decibels() -> None:
    assert puppet_decoder.psnr(np.full((4, 4), 255.0)) == pytest.approx(0)
    assert puppet_decoder.psnr(np.full((4, 4), 2.55)) == pytest.approx(40)


def test_unseen_clips_come_with_their_faces() -> None:
    (images, boxes), *rest = puppet_decoder.clips(2)
    assert images.shape == (8, 128, 128, 3)
    assert boxes.shape == (8, 4)
    assert len(rest) == 1
