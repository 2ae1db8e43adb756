from __future__ import annotations

import dataclasses
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stableanimator_cli.cli.verbs import load_verb
from stableanimator_cli.config.animate import AnimateConfig, DecodeConfig, DeviceConfig, SamplingConfig, WindowConfig
from stableanimator_cli.config.evaluate import parse_names, parse_numbers
from stableanimator_cli.config.parse import (
    dump_range,
    parse_fps,
    parse_guidance,
    parse_interval,
    parse_range,
    parse_size,
)
from stableanimator_cli.config.preprocess import PreprocessConfig, parse_shard
from stableanimator_cli.config.refine import PRESETS, RefineConfig, parse_steps, preset_options
from stableanimator_cli.config.schema import check_file, from_mapping, read_toml, resolve, to_toml
from stableanimator_cli.config.train import TrainConfig, parse_roles, parse_sizes
from stableanimator_cli.errors import ConfigError

PATHS = {"reference": "person.png", "motion": "dance.mp4", "output": "out.mp4"}


def refused(make: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        make()
    return caught.value


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("25", Fraction(25)),
        ("30000/1001", Fraction(30000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        ("23.976", Fraction(24000, 1001)),
        ("23.98", Fraction(24000, 1001)),
        ("59.94", Fraction(60000, 1001)),
        ("12.5", Fraction(25, 2)),
        ("29.5", Fraction(59, 2)),
        (29.97, Fraction(30000, 1001)),
        (30, Fraction(30)),
        ("23.976023976", Fraction(24000, 1001)),
        ("29.970029970029970", Fraction(30000, 1001)),
        ("12345678901/411522630", Fraction(30)),
        (30000 / 1001, Fraction(30000, 1001)),
        (24 / 1.001, Fraction(24000, 1001)),
        ("59.94005994", Fraction(60000, 1001)),
        ("29.970001", Fraction(29970001, 1000000)),
        ("33.333333333333", Fraction(100, 3)),
    ],
)
def test_a_frame_rate_is_exact(text: str | float, rate: Fraction) -> None:
    assert parse_fps(text) == rate


@pytest.mark.parametrize(
    "text", ["999.99999999999999999999", "1.23456789e-9", "8.1234567890123", "2000000000001/70000000000"]
)
def test_a_frame_rate_has_the_integers_of_a_container_or_is_refused(text: str) -> None:
    try:
        rate = parse_fps(text)
    except ConfigError:
        return
    assert max(rate.numerator, rate.denominator) < 2**31


@pytest.mark.parametrize("text", ["", "fast", "0", "-25", "0/1", "25/0", "nan", "inf", "0.000001", True])
def test_a_bad_frame_rate_is_refused(text: Any) -> None:
    assert refused(lambda: parse_fps(text)).option == "--fps"


@pytest.mark.parametrize(
    ("parse", "value"),
    [
        (parse_size, (64,)),
        (parse_size, (64.0, 64)),
        (parse_size, (0, 64)),
        (parse_range, (0, 1.5)),
        (parse_guidance, (1, 2, 3)),
        (parse_interval, (0.5,)),
        (parse_steps, ("a", 1)),
        (parse_fps, Fraction(0)),
        (parse_fps, Fraction(5000)),
        (parse_shard, (4, 4)),
        (partial(parse_numbers, label="--clips"), (-1,)),
        (partial(parse_names, label="--videos"), ("a/b",)),
        (parse_sizes, (512, 512)),
        (parse_sizes, ((100, 64),)),
        (parse_roles, ("unett",)),
    ],
)
def test_values_from_python_are_checked_as_their_texts(parse: Any, value: Any) -> None:
    refused(lambda: parse(value))


def test_values_from_python_are_those_of_their_texts() -> None:
    assert parse_size((576, 1024)) == (576, 1024)
    assert parse_range((None, -3)) == (None, -3)
    assert parse_guidance((1, 3.1)) == (1.0, 3.1)
    assert parse_interval((0.3, 5)) == (0.3, 5.0)
    assert parse_steps((0.7, 0.84)) == (0.7, 0.84)
    assert parse_steps((14, None)) == (14, None)
    assert parse_fps(Fraction(30000 / 1001)) == Fraction(30000, 1001)
    assert parse_sizes(((512, 512), "576x1024")) == ((512, 512), (576, 1024))


@pytest.mark.parametrize(
    ("text", "frames"),
    [("0:48", (0, 48)), ("10:", (10, None)), (":100", (None, 100)), (":", (None, None)), ("-5:", (-5, None))],
)
def test_a_range_is_a_slice(text: str, frames: tuple[int | None, int | None]) -> None:
    assert parse_range(text) == frames


@pytest.mark.parametrize("text", ["", "5", "a:b", "1:2:3", "1.5:3", 4])
def test_a_bad_range_is_refused(text: Any) -> None:
    assert refused(lambda: parse_range(text)).option == "--frames"


@pytest.mark.parametrize("frames", ["5:5", "9:3", ":0", "-3:-5"])
def test_a_range_without_frames_is_refused(frames: str) -> None:
    assert refused(lambda: resolve(AnimateConfig, {**PATHS, "frames": frames})).option == "--frames"


def test_sizes_and_guidance() -> None:
    assert parse_size("576x1024") == (576, 1024)
    assert parse_guidance("3") == (3.0, 3.0)
    assert parse_guidance("1:3") == (1.0, 3.0)
    for text in ("576", "576x", "0x64", "-1x5", "576x1024x3", "16385x64", "64x99999"):
        assert refused(lambda text=text: parse_size(text)).option == "--size"
    for text in ("", "strong", "1:", "1:2:3"):
        assert refused(lambda text=text: parse_guidance(text)).option == "--guidance"


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: SamplingConfig(steps=0), "--steps"),
        (lambda: SamplingConfig(steps=1001), "--steps"),
        (lambda: SamplingConfig(guidance=(float("nan"), 1.0)), "--guidance"),
        (lambda: SamplingConfig(guidance=(1.0, -1.0)), "--guidance"),
        (lambda: SamplingConfig(sampler="oiler"), "--sampler"),  # type: ignore[arg-type]
        (lambda: SamplingConfig(churn=-0.1), "--churn"),
        (lambda: SamplingConfig(churn_min=2.0, churn_max=1.5), "sampling.churn_min"),
        (lambda: SamplingConfig(churn=1.0, churn_min=1000.5), "sampling.churn_min"),
        (lambda: SamplingConfig(noise_aug=float("inf")), "--noise-aug"),
        (lambda: SamplingConfig(motion_bucket=-1), "--motion-bucket"),
        (lambda: SamplingConfig(conditioning_fps=0), "--conditioning-fps"),
        (lambda: SamplingConfig(seed=2**63), "--seed"),
        (lambda: WindowConfig(length=0, overlap=0), "--window"),
        (lambda: WindowConfig(length=4, overlap=4), "--overlap"),
        (lambda: DecodeConfig(chunk=0), "--decode-chunk"),
        (lambda: DecodeConfig(chunk=2, overlap=2), "--decode-overlap"),
        (lambda: DeviceConfig(device="gpu"), "--device"),
        (lambda: DeviceConfig(device="cuda:x"), "--device"),
        (lambda: DeviceConfig(offload="disk"), "--offload"),  # type: ignore[arg-type]
        (lambda: DeviceConfig(pose_budget_mb=-1), "device.pose_budget_mb"),
        (lambda: resolve(AnimateConfig, {**PATHS, "fps": "1001"}), "--fps"),
        (lambda: resolve(AnimateConfig, {**PATHS, "model": ""}), "--model"),
        (lambda: resolve(AnimateConfig, {**PATHS, "output": ""}), "--output"),
        (lambda: resolve(AnimateConfig, {**PATHS, "motion": Path("-")}), "MOTION"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_flag(make: Any, option: str) -> None:
    assert refused(make).option == option


@pytest.mark.parametrize("value", ["-", Path("-"), "./-"])
def test_standard_output_is_no_path(value: Any) -> None:
    with pytest.raises(ConfigError, match="--output: found '-', expected a file: no video is written to") as caught:
        resolve(AnimateConfig, {**PATHS, "output": Path(value)})
    assert caught.value.hint == "try out.mp4"
    for cls, flags in ((PreprocessConfig, {"input": ["v.mp4"]}), (TrainConfig, {"dataset": ["d"]})):
        with pytest.raises(
            ConfigError, match="--output: found '-', expected a path: standard input and standard output"
        ):
            resolve(cls, {**flags, "output": Path(value)})


def test_edges_of_the_ranges_pass() -> None:
    assert SamplingConfig(steps=1000, seed=2**63 - 1).steps == 1000
    assert WindowConfig(length=1, overlap=0).length == 1
    assert DeviceConfig(device="cuda:1").device == "cuda:1"


def test_flags_win_over_the_file_over_the_model_over_the_class(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[sampling]\nsteps = 30\nseed = 5\n[windows]\noverlap = 6\n[decode]\nchunk = 8\n")
    model = {"steps": 20, "window": 24, "decode_chunk": 2, "size": "512x512", "id_adapter": "distribution"}
    flags = {**PATHS, "steps": 40, "seed": None, "decode_overlap": 1}
    config = resolve(AnimateConfig, flags, file, model)
    assert (config.sampling.steps, config.sampling.seed) == (40, 5)
    assert (config.windows.length, config.windows.overlap) == (24, 6)
    assert (config.decode.chunk, config.decode.overlap) == (8, 1)
    assert (config.size, config.id_adapter) == ((512, 512), "distribution")
    assert config.sampling.noise_aug == 0.02


def test_a_config_survives_toml(tmp_path: Path) -> None:
    odd = 'a "quoted" \\ name\twith \x7f and ümlaut.png'
    flags = {**PATHS, "reference": odd, "frames": "3:", "fps": "29.97", "size": "576x1024", "guidance": "1:2.5"}
    config = resolve(AnimateConfig, {**flags, "noise_aug": 1e-7, "preview": True, "seed": 2**63 - 1})
    file = tmp_path / "run.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    assert from_mapping(AnimateConfig, read_toml(file), file) == config
    assert str(config.reference) == odd


def test_every_field_is_written() -> None:
    text = to_toml(resolve(AnimateConfig, PATHS))
    for part in (SamplingConfig, WindowConfig, DecodeConfig, DeviceConfig):
        written = [item.name for item in dataclasses.fields(part) if item.default is not None]  # None has no TOML form
        assert all(f"\n{name} = " in text for name in written)


def test_a_flag_sets_the_frame_rate_that_the_unet_is_conditioned_on(tmp_path: Path) -> None:
    assert resolve(AnimateConfig, PATHS).sampling.conditioning_fps == 7
    file = tmp_path / "run.toml"
    file.write_text("[sampling]\nconditioning_fps = 10\n")
    assert resolve(AnimateConfig, PATHS, file).sampling.conditioning_fps == 10
    assert resolve(AnimateConfig, {**PATHS, "conditioning_fps": 12}, file).sampling.conditioning_fps == 12


@pytest.mark.parametrize(
    ("mapping", "label", "hint"),
    [
        ({"sampling": {"stepz": 3}}, "run.toml: sampling.stepz", "did you mean steps?"),
        ({"steps": 3}, "run.toml: steps", "it belongs in a table: sampling.steps"),
        ({"window": 8}, "run.toml: window", "it belongs in a table: windows.length"),
        ({"refine-face": "off"}, "run.toml: refine-face", "it belongs in a table: refine.face"),
        ({"modell": "x"}, "run.toml: modell", "did you mean model?"),
        ({"sampling": 3}, "run.toml: sampling", None),
        ({"sampling": {"steps": "3"}}, "run.toml: sampling.steps", None),
        ({"sampling": {"steps": True}}, "run.toml: sampling.steps", None),
        ({"sampling": {"steps": 2.0}}, "run.toml: sampling.steps", None),
        ({"sampling": {"churn": "1"}}, "run.toml: sampling.churn", None),
        ({"sampling": {"sampler": "eular"}}, "run.toml: sampling.sampler", "did you mean euler?"),
        ({"preview": 1}, "run.toml: preview", None),
        ({"size": [576, 1024]}, "run.toml: size", None),
        ({"motion": 3}, "run.toml: motion", None),
    ],
)
def test_a_mistake_in_a_file_names_the_key(mapping: dict[str, Any], label: str, hint: str | None) -> None:
    error = refused(lambda: from_mapping(AnimateConfig, {**PATHS, **mapping}, "run.toml"))
    assert (error.option, error.hint) == (label, hint)
    assert error.message.startswith(label)


def test_a_refused_value_says_who_set_it() -> None:
    error = refused(lambda: from_mapping(AnimateConfig, {**PATHS, "windows": {"overlap": 40}}, "run.toml"))
    assert error.option == "--overlap"
    assert error.hint == "--overlap was set by run.toml: windows.overlap"
    error = refused(lambda: resolve(AnimateConfig, {**PATHS, "window": 3}))
    assert error.hint == "--overlap has its default here: give it as well"


def test_what_is_missing_is_asked_for() -> None:
    error = refused(lambda: resolve(AnimateConfig, {"motion": "a.mp4", "output": "b.mp4"}))
    assert error.option == "REFERENCE"
    assert "--config" in str(error.hint)


def test_a_model_default_that_nobody_reads_is_refused() -> None:
    error = refused(lambda: resolve(AnimateConfig, PATHS, None, {"stepz": 25}))
    assert "stepz" in error.message
    assert error.hint == "did you mean steps?"


@pytest.mark.parametrize(("content", "said"), [(None, "no such file"), (b"steps = ", "valid TOML"), (b"\xff", "UTF-8")])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_bytes(content)
    error = refused(lambda: from_mapping(AnimateConfig, read_toml(file), file))
    assert said in error.message
    assert str(file) in error.message


def test_what_is_written_beside_the_output() -> None:
    config = resolve(AnimateConfig, {**PATHS, "output": "films/out.mp4"})
    assert config.preview_path == Path("films/out.preview.mp4")
    assert config.record_path == Path("films/out.json")


@pytest.mark.parametrize("text", ["3", "5:1", "-1:5", "a:b", "1:inf", "nan:2", "2:2"])
def test_an_interval_that_cannot_be_is_refused(text):
    with pytest.raises(ConfigError, match=r"--guidance-interval: found .* expected off, or LO:HI"):
        resolve(SamplingConfig, {"guidance_interval": text})


def test_an_interval_of_guidance_survives_toml(tmp_path):
    config = resolve(SamplingConfig, {"guidance_interval": "0.5:50"})
    assert config.guidance_interval == (0.5, 50.0)
    card = {"guidance_interval": "0.3:5"}
    assert resolve(SamplingConfig, {}, defaults=card).guidance_interval == (0.3, 5.0)
    assert resolve(SamplingConfig, {"guidance_interval": "off"}, defaults=card).guidance_interval is None
    file = tmp_path / "run.toml"
    file.write_text(to_toml(config))
    assert from_mapping(SamplingConfig, read_toml(file), file) == config


def test_no_interval_of_guidance_is_written_and_wins_over_card_and_preset(tmp_path):
    config = resolve(AnimateConfig, {**PATHS, "guidance_interval": "off"})
    file = tmp_path / "run.toml"
    file.write_text(to_toml(config))
    assert 'guidance_interval = "off"\n' in file.read_text()
    card, preset = {"guidance_interval": "0.3:5"}, {"sampling": {"guidance_interval": "0.1:2"}}
    read = resolve(AnimateConfig, {}, file, card, preset=(preset, "quick"))
    assert read.sampling.guidance_interval is None
    assert from_mapping(AnimateConfig, read_toml(file), file) == config


@pytest.mark.parametrize("value", ["1", "0", "-2", "two", "2.5", "", 1, True, "99999"])
def test_an_interval_of_steps_that_cannot_be_is_refused(value):
    with pytest.raises(ConfigError, match=r"--cache-features: found .* expected off, or a number of steps, 2 or more"):
        resolve(SamplingConfig, {"cache_features": value})


@pytest.mark.parametrize(("value", "steps", "text"), [("off", 1, '"off"'), ("3", 3, "3"), (2, 2, "2")])
def test_an_interval_of_steps_survives_toml(tmp_path, value, steps, text):
    config = resolve(SamplingConfig, {"cache_features": value}, defaults={"cache_features": 5})
    assert config.cache_features == steps
    assert f"cache_features = {text}\n" in to_toml(config)
    file = tmp_path / "run.toml"
    file.write_text(to_toml(config))
    assert from_mapping(SamplingConfig, read_toml(file), file) == config


@pytest.mark.parametrize("text", ["6b", "6000000", "6 GB", "5.5GiB"])
def test_an_amount_of_memory_is_read(text):
    amounts = {"6b": 6, "6000000": 6 * 10**6, "6 GB": 6 * 10**9, "5.5GiB": 5632 * 2**20}
    assert resolve(DeviceConfig, {"fit": text}).max_memory == amounts[text]


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("fit", "max_memory", "a lot"),
        ("fit", "max_memory", "0GB"),
        ("ff_pieces", "ff_chunks", 0),
        ("weights", "quantize", "int4"),
    ],
)
def test_what_memory_cannot_be_is_refused(old, new, value):
    for name in (old, new):
        with pytest.raises(ConfigError, match=f"--{new.replace('_', '-')}: found "):
            resolve(DeviceConfig, {name: value})


def test_old_keys_flags_and_values_are_read(tmp_path):
    """Files of earlier versions: ``pieces``, ``weights``, ``fit``, offload ``swap`` and ``groups``."""
    file = tmp_path / "old.toml"
    device = '[device]\npieces = 4\nweights = "int8"\nfit = "6GB"\noffload = "groups"\n'
    file.write_text(device + '[refine]\nschedule = "falling"\nreach = 3\n')
    flags = {"reference": "a.png", "motion": "b.mp4", "output": "c.mp4", "redraw": 2, "refine_lr": 0.2}
    config = resolve(AnimateConfig, flags, file)
    device, refine = config.device, config.refine
    assert (device.ff_chunks, device.quantization, device.max_memory, device.offload) == (4, "int8", 6 * 10**9, "group")
    assert refine.schedule == "linear"
    assert (refine.mask_dilation, refine.gate_retries) == (3, 2)
    assert from_mapping(DeviceConfig, {"offload": "swap"}, "old").offload == "model"


def test_a_model_name_that_is_not_utf8_is_refused():
    with pytest.raises(ConfigError, match=r"--model: found .* expected a text in UTF-8"):
        resolve(AnimateConfig, {"reference": "a.png", "motion": "b.mp4", "output": "c.mp4", "model": "latin-\udce9"})


def test_a_number_too_large_for_a_float_is_compared_as_it_is():
    assert SamplingConfig(cache_layers=10**400).cache_layers == 10**400
    with pytest.raises(ConfigError, match="--steps"):
        SamplingConfig(steps=10**400)


@pytest.mark.parametrize(
    ("value", "total", "expected"),
    [
        ("0.7:0.84", 25, (17, 21)),
        ("0.7:0.84", 10, (7, 9)),
        ("0.7:0.84", 4, (2, 4)),
        ("0.7:0.84", 1, (0, 1)),
        ("0.0:1.0", 7, (0, 7)),
        ("0.5:", 10, (5, 10)),
        ("14:21", 25, (14, 21)),
        ("-2:", 25, (23, 25)),
    ],
)
def test_refined_steps_are_steps_or_fractions_of_the_run(value, total, expected):
    config = RefineConfig(steps=parse_steps(value))
    assert config.steps_of(total) == expected
    assert parse_steps(dump_range(config.steps)) == config.steps


@pytest.mark.parametrize("flag", ["refine_steps", "refine_iters"])
def test_help_names_the_defaults_of_presets(flag):
    """A run has the preset ``standard`` unless another one is named, so the class's own default is not what it uses."""
    (option,) = [option for option in load_verb("animate").params if option.name == flag]
    assert f"{PRESETS['standard'][flag]} by preset standard" in option.help
    assert f"{PRESETS['paper'][flag]} by paper" in option.help


@pytest.mark.parametrize("value", ["0.7", "1.2:", "0.2:-0.5", "a:b", "nan.:1"])
def test_a_range_of_refined_steps_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match="--refine-steps"):
        parse_steps(value)


def test_a_file_written_in_full_before_a_preset_named_steps_keeps_the_released_share():
    assert preset_options("standard", {})["refine_steps"] == "0.7:0.84"
    assert preset_options("standard", {"refine": {"lr": 0.05}})["refine_steps"] == "0.7:0.84"
    for margin in ("margin", "crop_margin"):
        assert "refine_steps" not in preset_options("standard", {"refine": {"iterations": 3, margin: 8}})


def test_a_file_is_checked_without_the_defaults_that_it_needs(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[windows]\nlength = 4\n[refine]\nsteps = '2:4'\n")  # an overlap of 4 comes from defaults
    check_file(AnimateConfig, file)
