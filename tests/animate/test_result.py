"""The record beside a video: digests that are right, and a config that asks for the same run again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from stableanimator_cli import __version__
from stableanimator_cli.animate.run import run
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.schema import from_mapping, read_toml, to_toml
from stableanimator_cli.files import sha256_of
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.progress import NullReporter
from stableanimator_cli.records import NETWORKS
from tests.animate.clips import in_form, plain_picture
from tests.tiny import waving


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model):
    """A run with settings that are not the defaults: its flags, its report and its record."""
    place = tmp_path_factory.mktemp("run")
    flags = {
        "reference": plain_picture(place / "person.png"),
        "motion": save_motion(place / "poses.npz", waving(6)),
        "output": place / "out.mp4",
        "model": str(tiny_model),
        "window": 4,
        "guidance": "1:2.5",
        "fps": "29.97",
        "frames": "1:",
        "seed": 77,
        "allow_no_face": True,
        "device": "cpu",
    }
    report = run(flags=flags)
    return flags, report, json.loads(report.record.read_text())


def test_digests_are_those_of_the_files(finished, tiny_model):
    flags, report, record = finished
    assert record["inputs"]["reference"] == {"path": str(flags["reference"]), "sha256": sha256(flags["reference"])}
    assert record["inputs"]["motion"] == {"path": str(flags["motion"]), "sha256": sha256(flags["motion"])}
    assert set(record["inputs"]) == {"reference", "motion"}
    assert record["output"]["sha256"] == sha256(report.video)
    assert record["model"]["sha256"] == {name: sha256(tiny_model / f"{name}.safetensors") for name in NETWORKS}


def test_the_record_has_the_inputs_that_were_read(tiny_model, tmp_path):
    """Both are exchanged or removed while the video is made."""
    reference, motion = plain_picture(tmp_path / "person.png"), save_motion(tmp_path / "poses.npz", waving(3))
    digests = {"reference": sha256(reference), "motion": sha256(motion)}

    class Exchanged(NullReporter):
        def info(self, text: str) -> None:
            if "window(s)" in text:  # sampling starts
                plain_picture(reference, (90, 90))
                motion.unlink()

    report = run(
        flags={
            "reference": reference, "motion": motion, "output": tmp_path / "out.mp4", "model": str(tiny_model),
            "steps": 1, "allow_no_face": True, "device": "cpu",
        },
        reporter=Exchanged(),
    )  # fmt: skip
    assert sha256(reference) != digests["reference"]
    record = json.loads(report.record.read_text())
    assert {name: file["sha256"] for name, file in record["inputs"].items()} == digests


def test_the_config_resolves_to_itself_from_the_record_and_from_toml(finished, tmp_path):
    _, _, record = finished
    config = from_mapping(AnimateConfig, record["config"], "record")
    assert config.sampling.guidance == (1.0, 2.5)
    assert str(config.fps) == "30000/1001"
    assert (config.frames, config.sampling.seed, config.windows.length) == ((1, None), 77, 4)
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert from_mapping(AnimateConfig, read_toml(tmp_path / "run.toml"), tmp_path / "run.toml") == config


def test_the_config_repeats_the_run_byte_for_byte(finished, tmp_path):
    _, _, record = finished
    (tmp_path / "run.toml").write_text(to_toml(from_mapping(AnimateConfig, record["config"], "record")))
    again = run(flags={"output": tmp_path / "again.mp4"}, config_file=tmp_path / "run.toml")
    assert sha256_of(again.video) == record["output"]["sha256"]
    other = json.loads(again.record.read_text())
    assert other["config"] == record["config"] | {"output": str(tmp_path / "again.mp4")}


def test_a_record_says_what_made_the_video(finished):
    _, report, record = finished
    assert record["stableanimator-cli"] == __version__
    assert record["seed"] == 77
    assert record["face"] is False
    assert (record["output"]["frames"], record["output"]["fps"]) == (report.frames, "30000/1001")
    assert record["model"]["name"] == "tiny"
    assert record["device"] == "cpu, float32"
    assert record["windows"] == [[0, 1, 2, 3], [0, 2, 3, 4]]
    assert record["calls"] == dict(report.calls)
    assert record["calls"]["unet"] == 2 * 2 * 2
    assert {"encode", "denoise", "decode", "total"} <= set(record["seconds"])
    assert all(record["versions"][name] for name in ("python", "torch", "diffusers", "numpy", "av"))


def test_a_report_is_json_and_its_summary_is_the_path(finished):
    _, report, _ = finished
    told = json.loads(json.dumps(report.to_json()))
    assert told["video"] == report.summary() == str(report.video)
    assert told["record"] == str(report.record)
    assert told["preview"] is None
    assert (told["frames"], told["fps"]) == (report.frames, "30000/1001")


def test_the_digest_of_a_folder_is_of_names_and_contents_in_natural_order(tmp_path):
    folder = in_form("pictures", tmp_path / "a", 11)
    same = in_form("pictures", tmp_path / "b", 11)
    digest = sha256_of(folder)
    assert sha256_of(same) == digest
    (folder / ".hidden").write_text("x")
    assert sha256_of(folder) == digest
    (same / "frame_10.png").rename(same / "frame_11.png")
    assert sha256_of(same) != digest
    one, two = (folder / f"frame_{k}.png" for k in (0, 1))
    swapped = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(swapped)
    assert sha256_of(folder) != digest
