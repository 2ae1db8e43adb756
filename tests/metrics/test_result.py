"""Names mean one thing; what JSON cannot hold is encoded; means are pooled, per video, and mergeable."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from stableanimator_cli.errors import BadInput
from stableanimator_cli.metrics import pixel
from stableanimator_cli.metrics.accumulators import ByVideo, RunningMean, paired
from stableanimator_cli.metrics.result import METRICS, MetricSpec, Missing, Value, define, json_number


def frames(count: int, side: int = 8, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def test_every_frame_metric_has_a_whole_spec():
    assert set(pixel.FRAME_METRICS) <= set(METRICS)
    for name, spec in METRICS.items():
        assert spec.name == name
        assert all((spec.title, spec.definition, spec.source)), name
        json.dumps(spec.to_json(), allow_nan=False)


def test_a_name_means_one_thing():
    spec = METRICS["ssim"]
    assert (
        define(
            spec.name, spec.title, spec.better, spec.definition, source=spec.source, range=spec.range, unit=spec.unit
        )
        == spec
    )
    with pytest.raises(ValueError, match="two metrics are named 'ssim'"):
        define("ssim", "SSIM", "higher", "other", source="other", range="0..1")
    with pytest.raises(ValueError, match="better: found 'more'"):
        MetricSpec(name="x", title="", unit="", better="more", definition="", source="")  # type: ignore[arg-type]


def test_numbers_survive_json():
    assert [json_number(x) for x in (1.5, math.inf, -math.inf, math.nan)] == [1.5, "inf", "-inf", None]
    value = Value(metric="psnr", pooled=math.inf, per_video={"a": math.inf, "b": math.nan}, count=3)
    told = json.loads(json.dumps(value.to_json(), allow_nan=False))
    assert told["pooled"] == "inf"
    assert told["per_video"] == {"a": "inf", "b": None}
    missing = Missing(metric="lpips_alex", reason="no weights", command="sa models pull lpips")
    assert missing.to_json() == {
        "metric": "lpips_alex",
        "missing": "no weights",
        "command": "sa models pull lpips",
    }


def test_pooled_and_per_video_means_differ_as_they_should():
    scores = ByVideo()
    scores.add("long", 1, 1, 1)
    scores.add("short", 5)
    value = scores.value("mae_unit", {"size": "8x8"})
    assert value.pooled == 2
    assert value.per_video_mean == 3
    assert value.count == 4
    assert value.per_video == {"long": 1, "short": 5}
    assert value.about == {"size": "8x8"}


def test_absence_is_counted_and_changes_no_mean():
    scores = ByVideo()
    scores.add("a", 1, math.nan, 3)
    scores.add("b", math.nan)
    value = scores.value("x")
    assert value.pooled == 2
    assert value.count == 2
    assert value.about == {"absent": 2}
    assert math.isnan(value.per_video["b"])
    assert value.per_video_mean == 2
    assert math.isnan(RunningMean().mean)


def test_parts_merge_to_the_whole():
    whole, parts = ByVideo(), [ByVideo(), ByVideo()]
    for index, number in enumerate(np.random.default_rng(1).random(20)):
        video = "ab"[index % 3 == 0]
        whole.add(video, number)
        parts[index >= 7].add(video, number)
    parts[0].merge(parts[1])
    assert parts[0].value("x").pooled == pytest.approx(whole.value("x").pooled, abs=1e-15)
    assert parts[0].value("x").per_video == pytest.approx(whole.value("x").per_video, abs=1e-15)


def test_pairs_come_lazily_and_in_order():
    def endless():
        while True:
            yield from frames(3)

    pairs = paired(endless(), endless())
    assert [next(pairs)[0] for _ in range(7)] == list(range(7))


@pytest.mark.parametrize(("ours", "theirs", "longer"), [(3, 2, "prediction"), (2, 3, "reference")])
def test_unequal_counts_are_an_error_unless_truncated(ours, theirs, longer):
    with pytest.raises(BadInput, match=f"walk: found a {longer} longer than .* which has 2 frames") as caught:
        list(paired(frames(ours), frames(theirs), name="walk"))
    assert "--truncate" in str(caught.value.hint)
    assert len(list(paired(frames(ours), frames(theirs), truncate=True))) == 2


def test_unequal_sizes_are_an_error_always():
    with pytest.raises(BadInput, match="walk, frame 0: found 8x8 against 9x9"):
        list(paired(frames(1), frames(1, 9), name="walk", truncate=True))
