"""`sa evaluate` on drawn figures: numbers, planted faults, what is missing, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.config.evaluate import EvaluateConfig
from stableanimator_cli.errors import BadInput, ConfigError, ModelDamaged
from stableanimator_cli.evaluate.evaluator import Evaluator, open_evaluator
from stableanimator_cli.evaluate.run import run
from stableanimator_cli.evaluate.scores import Scores
from stableanimator_cli.media import write_image
from stableanimator_cli.metrics.pixel import psnr
from stableanimator_cli.records import Clip
from tests.evaluate.samples import FRAMES, changed, drawn, noisy, write


def _no_animation(flags: Mapping[str, Any]) -> None:
    raise AssertionError(f"nothing is animated here: {flags}")


def _scored(made: Path, truth: Path, out: Path, **flags: Any) -> Scores:
    flags = {"inputs": [made, truth], "output": out, "model": "puppet", **flags}
    scores = run(flags=flags, animate=_no_animation)
    assert isinstance(scores, Scores)
    return scores


@pytest.fixture(scope="module")
def scores(made: Path, truth: Path, tmp_path_factory: pytest.TempPathFactory, remembered: Path) -> Scores:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SA_HOME", str(remembered))
        return _scored(made, truth, tmp_path_factory.mktemp("scores"), borders="4,8")


def test_every_kind_of_number_is_there(scores: Scores) -> None:
    assert {"mae_unit", "psnr", "ssim", "csim_ref", "csim_gt", "csim_gt_judge", "face_rate", "keypoint_error",
            "flicker_excess", "seam_score"} <= set(scores.rows)  # fmt: skip
    assert [video.name for video in scores.videos] == ["figure_0", "figure_1"]
    assert all(video.frames == FRAMES for video in scores.videos)


def test_numbers_are_those_of_the_frames(scores: Scores, made: Path, truth: Path) -> None:
    from stableanimator_cli.media import open_clip

    values = []
    for name in ("figure_0.mp4", "figure_1.mp4"):
        pairs = zip(open_clip(made / name).frames(), open_clip(truth / name).frames(), strict=True)
        values.append(np.mean([psnr(a, b) for (_, a), (_, b) in pairs]))
    row = scores.rows["psnr"]
    assert row.per_video_mean == pytest.approx(np.mean(values))
    assert row.shown == row.per_video_mean
    assert row.interval is None  # of two videos nothing is claimed


def test_more_noise_is_farther_from_the_truth_in_every_way(scores: Scores) -> None:
    little, much = (video.values for video in scores.videos)
    for name in ("psnr", "ssim", "csim_gt"):
        assert little[name] > much[name], name
    for name in ("mae_unit", "flicker_excess"):
        assert little[name] < much[name], name


def test_what_is_not_here_is_missing_with_the_command(scores: Scores) -> None:
    missing = {one.metric: one for one in scores.missing}
    assert {"lpips_alex", "fvd_stylegan_v"} <= set(missing)
    assert missing["lpips_alex"].command == "sa models pull lpips"
    assert not set(missing) & set(scores.rows)


def test_the_files_hold_protocol_digests_and_curves(scores: Scores) -> None:
    told = json.loads((scores.output / "scores.json").read_text())
    assert told["protocol"]["crop"] == "none"
    assert len(told["videos"][0]["predicted"]["sha256"]) == 64
    assert len(told["metrics"]["csim_gt_judge"]["about"]["sha256"]) == 64
    assert told["metrics"]["psnr"]["interval"] == scores.rows["psnr"].interval
    curves = [json.loads(line) for line in (scores.output / "curves.jsonl").read_text().splitlines()]
    assert [len(line["csim_gt"]) for line in curves] == [FRAMES, FRAMES]
    assert curves[0]["borders"] == [4, 8]
    table = (scores.output / "scores.csv").read_text().splitlines()
    assert table[0] == "video,metric,value,low,high,n,system,data,tool"
    assert any(line.startswith("figure_1,psnr,") for line in table)
    assert r"\begin{tabular}" in (scores.output / "scores.tex").read_text()


def test_the_page_needs_nothing_from_outside_and_the_worst_comes_first(scores: Scores) -> None:
    page = (scores.output / "report.html").read_text()
    assert "http" not in page
    first = "figure_1" if scores.videos[1].values["csim_ref"] < scores.videos[0].values["csim_ref"] else "figure_0"
    shown = [line.split("<")[0] for line in page.split("<h3>")[1:]]
    assert shown[0] == first
    assert sorted(shown) == ["figure_0", "figure_1"]
    assert all((scores.output / "videos" / f"figure_{n}.mp4").is_file() for n in range(2))
    assert 'src="videos/figure_0.mp4"' in page


def test_what_was_seen_is_remembered_by_digest(
    scores: Scores, made: Path, truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stableanimator_cli.evaluate.detections import VideoDetector

    def look(self: VideoDetector, frames: Any) -> Any:
        raise AssertionError("looked at again")

    monkeypatch.setattr(VideoDetector, "detect", look)
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    again = _scored(copy, truth, tmp_path / "again", borders="4,8")
    assert {name: row.shown for name, row in again.rows.items()} == {n: r.shown for n, r in scores.rows.items()}


def test_each_video_is_decoded_once_for_all_scores(
    made: Path, truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stableanimator_cli.evaluate import scoring

    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    decoded: dict[str, int] = {}
    opened = scoring.open_clip

    def counted(path: Path) -> Clip:
        clip = opened(path)

        def frames() -> Any:
            for item in clip.frames():
                decoded[str(path)] = decoded.get(str(path), 0) + 1
                yield item

        return replace(clip, frames=frames)

    monkeypatch.setattr(scoring, "open_clip", counted)
    _scored(made / "figure_0.mp4", truth / "figure_0.mp4", tmp_path / "out", reference_picture=_picture(tmp_path))
    assert decoded == {str(made / "figure_0.mp4"): FRAMES, str(truth / "figure_0.mp4"): FRAMES}


def _picture(folder: Path) -> Path:
    write_image(folder / "reference.png", drawn(0, frames=1)[0])
    return folder / "reference.png"


def test_identical_videos_are_perfect(truth: Path, tmp_path: Path) -> None:
    scores = _scored(truth, truth, tmp_path / "out", protocol="disco256")
    values = {name: row.shown for name, row in scores.rows.items()}
    assert (values["l1_disco"], values["psnr_disco"], values["psnr_disco_overflow"], values["ssim"]) == (0, 100, 100, 1)
    assert values["csim_gt"] == pytest.approx(1)
    assert values["flicker_excess"] == 0
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["metrics"]["psnr"]["value"] == "inf"


@pytest.fixture
def measured_one(tmp_path: Path, truth: Path) -> Any:
    """Values and curves of one changed copy of the first video."""
    from stableanimator_cli.evaluate.pairs import match
    from stableanimator_cli.progress import NullReporter

    source = truth / "figure_0.mp4"
    config = EvaluateConfig(inputs=(source, source), output=tmp_path, model="puppet", borders=(6,))
    bench: Evaluator = open_evaluator(config, NullReporter(), networks=())

    def measure(name: str, change: Any) -> Any:
        made = changed(source, tmp_path / f"{name}.mp4", change)
        return bench.score(match(made, source)).videos[0]

    return measure


def test_planted_faults_move_what_they_should(measured_one: Any, truth: Path) -> None:
    other = drawn(1)
    plain = measured_one("plain", lambda index, frame: frame)
    swapped = measured_one("swapped", lambda index, frame: other[index] if index >= 6 else frame)
    noise = measured_one("noise", noisy(12))
    cut = measured_one("cut", lambda index, frame: np.roll(frame, 5, axis=1) if index >= 6 else frame)
    known = [v for v in swapped.curves["csim_ref"][6:] if v is not None]
    kept = [v for v in plain.curves["csim_ref"][6:] if v is not None]
    assert swapped.curves["csim_ref"][:6] == plain.curves["csim_ref"][:6]
    assert known
    assert max(known) < min(kept) - 0.2
    assert swapped.values["csim_gt_judge"] < plain.values["csim_gt_judge"] - 0.2
    assert cut.values["seam_score"] > 2 > 1.2 > plain.values["seam_score"]
    assert noise.values["seam_score"] < 1.2
    assert noise.values["flicker"] > 2 * plain.values["flicker"] or noise.values["flicker_excess"] > 0.01
    assert cut.values["flicker_excess"] < noise.values["flicker_excess"]


def test_a_reference_picture_that_was_given_is_not_advised(tmp_path: Path) -> None:
    video = write(tmp_path / "grey.mp4", [np.full((64, 64, 3), 90 + t, np.uint8) for t in range(4)])
    picture = tmp_path / "person.png"
    write_image(picture, np.full((64, 64, 3), 90, np.uint8))
    scores = _scored(video, video, tmp_path / "out", reference_picture=picture)
    assert [one.command for one in scores.missing if one.metric == "csim_ref"] == [""]


def test_a_video_without_any_face_is_null_and_says_so(tmp_path: Path) -> None:
    grey = [np.full((64, 64, 3), 90 + t, np.uint8) for t in range(4)]
    video = write(tmp_path / "grey.mp4", grey)
    scores = _scored(video, video, tmp_path / "out")
    assert "csim_ref" not in scores.rows
    [unknown] = [one for one in scores.missing if one.metric == "csim_ref"]
    assert "no face in any frame" in unknown.reason
    assert unknown.command == "--reference-picture IMAGE"
    assert any("shows no face" in note for note in scores.videos[0].notes)
    told = json.loads((tmp_path / "out" / "scores.json").read_text())["videos"][0]
    assert told["values"]["csim_ref"] is None
    assert told["counts"]["csim_ref"] == 0


def test_one_frame_gives_what_one_frame_can(tmp_path: Path) -> None:
    video = write(tmp_path / "one.mp4", drawn(0)[:1])
    scores = _scored(video, video, tmp_path / "out")
    assert scores.rows["ssim"].shown == 1
    assert "flicker" not in scores.rows
    assert "fewer than three frames" in next(one.reason for one in scores.missing if one.metric == "flicker")


def test_a_longer_prediction_is_refused_and_truncate_compares_what_both_have(truth: Path, tmp_path: Path) -> None:
    short = write(tmp_path / "short.mp4", drawn(0)[:7])
    with pytest.raises(BadInput, match=r"figure_0\.mp4: found 12 frames, expected 7, as many as its ground truth"):
        _scored(truth / "figure_0.mp4", short, tmp_path / "out")
    assert not (tmp_path / "out" / "scores.json").exists()
    scores = _scored(truth / "figure_0.mp4", short, tmp_path / "out", truncate=True)
    assert scores.videos[0].frames == 7
    assert scores.rows["ssim"].shown == 1


def test_other_sizes_are_refused_natively_and_brought_together_by_disco256(truth: Path, tmp_path: Path) -> None:
    large = write(tmp_path / "large.mp4", drawn(0, frames=3, size=(96, 128)))
    small = write(tmp_path / "small.mp4", drawn(0, frames=3, size=(64, 64)))
    with pytest.raises(BadInput, match=r"large\.mp4, frame 0: found 96x128 against 64x64"):
        _scored(large, small, tmp_path / "out")
    assert _scored(large, small, tmp_path / "out", protocol="disco256").rows["l1_disco"].shown > 0


def test_a_damaged_recogniser_is_refused_by_its_digest(truth: Path, tmp_path: Path) -> None:
    folder = tmp_path / "puppet"
    shutil.copytree(catalogue.builtin_dir() / "puppet", folder)
    file = folder / "face" / "arcface_puppet.onnx"
    damaged = bytearray(file.read_bytes())
    damaged[-100] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ModelDamaged, match=r"arcface_puppet\.onnx: found sha256") as caught:
        _scored(truth, truth, tmp_path / "out", model=str(folder))
    assert caught.value.hint == "copy it again from where its folder comes from"  # no download writes into a folder


def test_without_a_model_the_rest_is_computed(truth: Path, tmp_path: Path) -> None:
    scores = _scored(truth, truth, tmp_path / "out", model=None)
    assert scores.rows["ssim"].shown == 1
    missing = {one.metric: one.command for one in scores.missing}
    assert missing["csim_ref"] == "sa models pull antelopev2"
    assert missing["keypoint_error"] == "sa models pull dwpose"


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ({"inputs": []}, "PREDICTED REFERENCE: found nothing, expected two files or folders"),
        ({"borders": "4;8"}, "--borders: found '4;8'"),
        ({"draws": 3}, "--bootstrap-samples: found 3"),
        ({"bench": "puppet"}, "nothing beside --bench"),
        ({"study": True, "tally": True}, "one task per run"),
        ({"variants": "x"}, "--variants: found 'x', expected --ablation"),
        ({"study": True, "rivals": "x"}, "--baselines: found 'x', expected nothing beside --study"),
        ({"inputs": ["a.mp4"]}, "PREDICTED REFERENCE: found 'a.mp4', expected two files or folders"),
        ({"inputs": ["a.mp4"], "reference_picture": "b.png", "truncate": True}, "--truncate: found 'on', expected a g"),
        ({"tally": True, "min_csim": 0.5}, "--min-csim: found '0.5', expected nothing beside --tally"),
        ({"min_csim": 2.0}, "--min-csim: found 2.0, expected -1 to 1"),
        (
            {"inputs": None, "ablation": "table2", "variants": "v", "bench": "puppet", "rivals": "x"},
            "--baselines: found 'x', expected nothing beside --ablation",
        ),
        ({"inputs": None, "bench": "puppet", "poses": "x"}, "--poses: found 'x', expected nothing beside --bench"),
        ({"ids": "figure_0"}, "--ids: found 'figure_0', expected --bench or --ablation"),
        ({"data": "d"}, "--data: found 'd', expected --bench or --ablation"),
        ({"animate": "s.toml"}, "--animate: found 's.toml', expected --bench or --ablation"),
        ({"figures": 2}, "--figures: found 2, expected --bench puppet"),
        ({"inputs": None, "bench": "tiktok", "people": 2}, "--people: found 2, expected --bench puppet"),
        ({"inputs": None, "bench": "tiktok", "length": 8}, "--length: found 8, expected --bench puppet"),
        ({"inputs": None, "bench": "tiktok", "ids": "a,b,a"}, "--ids: found 'a,b,a', expected each name once"),
        ({"inputs": None, "bench": "puppet", "seeds": "3,4,5"}, "--seeds: found '3,4,5', expected --ablation"),
    ],
)
def test_mistakes_name_their_option(truth: Path, tmp_path: Path, flags: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(flags={"inputs": [truth, truth], "output": tmp_path, **flags}, animate=_no_animation)
    assert what in caught.value.message


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "it cannot be read (no such file or directory)"),
        ("steps = [", "it is not a config: no valid TOML"),
        ("bogus = 3", "bogus: found 'bogus', expected one of the keys reference"),
        ("[sampling]\nsteps = 'many'", "sampling.steps: found 'many', expected a whole number"),
        ("[sampling]\nsteps = 0", "sampling.steps: found 0, expected 1 to"),
        ("preset = 'fastest'", "preset: found 'fastest', expected one of quick"),
    ],
)
def test_wrong_settings_of_a_bench_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, what: str
) -> None:
    settings = tmp_path / "settings.toml"
    if text is not None:
        settings.write_text(text)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ConfigError, match=re.escape(what)) as caught:
        run(flags={"bench": "puppet", "figures": 1, "length": 2, "animate": settings}, animate=_no_animation)
    assert caught.value.message.startswith(f"{settings}: ")
    assert not any(Path().iterdir())


@pytest.mark.parametrize(
    ("flags", "path", "what", "hint"),
    [
        ({"poses": "x"}, "nosuch.npz", "found no such file, expected a poses.npz", "did you mean {}/nosuchs.npz?"),
        ({"poses": "x"}, "loop", "found a name that leads nowhere (too many levels of symbolic", "check the path"),
        ({"poses": "x"}, "image.png", "found a file ending in .png, expected a poses", "`sa preprocess VIDEO --poses"),
        ({"rivals": "x"}, "missing", "found no such file, expected a folder with one folder", "look with: ls"),
        ({"rivals": "x"}, "image.png", "found a file, expected a folder with one folder", "name the folder"),
        ({"inputs": "x", "tally": True}, "missing", "found no such file, expected a file of answers", "look with: ls"),
        ({"inputs": "x", "tally": True}, "image.png", "it is not UTF-8 text", "name an answers*.json that the page"),
        ({"inputs": "x", "tally": True}, "table.json", "found no list of answers", "name an answers*.json that the pa"),
        ({"inputs": None, "ablation": "table2", "variants": "x"}, "missing", "found no such file, expected a folder",
         "look with: ls"),
        ({"inputs": None, "ablation": "table2", "variants": "x"}, "image.png", "found a file, expected a folder with",
         "name the folder"),
        ({"inputs": None, "bench": "tiktok", "data": "x"}, "missing", "found no such file, expected the folder of the",
         "look with: ls"),
        ({"inputs": None, "bench": "x"}, "image.png", "found no folder, and no bench of that name", "a folder holds"),
        ({"inputs": None, "bench": "puppets"}, "", "found no such folder, and no bench", "did you mean puppet?"),
    ],
)  # fmt: skip
def test_a_path_that_leads_to_nothing_usable_is_described_as_it_is(
    truth: Path, tmp_path: Path, flags: dict[str, Any], path: str, what: str, hint: str
) -> None:
    """A missing folder had "no motion", "no folders" or no videos, and a file was "no such folder"."""
    (tmp_path / "nosuchs.npz").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "table.json").write_text("{}")
    write_image(tmp_path / "image.png", np.zeros((8, 8, 3), np.uint8))
    given = {name: tmp_path / path if value == "x" else value for name, value in flags.items()}
    shaped = {"inputs": lambda one: one and [one], "bench": str}
    given = {name: shaped.get(name, lambda one: one)(value) for name, value in given.items()}
    with pytest.raises(BadInput, match=re.escape(what)) as caught:
        run(flags={"inputs": [truth, truth], "output": tmp_path / "out", **given}, animate=_no_animation)
    assert str(caught.value.hint).startswith(hint.format(tmp_path))
    assert not (tmp_path / "out").exists()


def test_scores_have_a_folder_of_their_own_without_an_output(
    truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(flags={"inputs": [truth, truth], "model": "puppet"}, animate=_no_animation)
    assert (tmp_path / "scores" / truth.name / "scores.json").is_file()
    monkeypatch.chdir(truth)
    with pytest.raises(BadInput, match="the output is inside the input"):
        run(flags={"inputs": [Path("."), truth], "model": "puppet"}, animate=_no_animation)
    assert not (truth / "scores").exists()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"bench": "unseen100"}, "scores/unseen100"),
        ({"bench": "data/mine/"}, "scores/mine"),
        ({"ablation": "table2", "variants": Path("runs/variants")}, "scores/variants"),
        ({"inputs": (Path("made/v1.2"), Path("truth"))}, "scores/v1.2"),
        ({"inputs": (Path("/"), Path("truth"))}, "scores/videos"),
        ({"inputs": (Path("ours"), Path("theirs")), "study": True}, "scores/study"),
    ],
)
def test_the_default_output_is_named_after_what_is_scored(fields: dict[str, Any], expected: str) -> None:
    assert EvaluateConfig(**fields).default_output == Path(expected)


def test_a_failed_run_leaves_no_folder_of_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="no such file"):
        run(flags={"inputs": [Path("a.mp4"), Path("b.mp4")]}, animate=_no_animation)
    assert not any(tmp_path.iterdir())


def test_scores_do_not_go_into_the_folder_of_the_videos(truth: Path) -> None:
    with pytest.raises(BadInput, match="the output is the same as the input"):
        _scored(truth, truth, truth)
