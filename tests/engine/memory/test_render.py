"""Memory of a rendering: predicted on the meta device, counted on a real one."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F

from stableanimator_cli.catalogue import open_model
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.config.refine import RefineConfig
from stableanimator_cli.detect import onnx
from stableanimator_cli.engine.group_offload import blocks_of, bytes_of
from stableanimator_cli.engine.memory import render
from stableanimator_cli.engine.memory.fit import fit_to_limit
from stableanimator_cli.engine.memory.profile import PeakMemoryMode, peak_bytes
from stableanimator_cli.engine.memory.render import ARENA, CONTEXT, FRAGMENTED, MemoryEstimator
from stableanimator_cli.errors import ModelDamaged, OutOfMemory
from stableanimator_cli.nets.time_conv import MATMUL_DEVICES
from tests.engine.memory_samples import FRAMES, SIZE, config, prediction
from tests.tiny import engine_of, rendered, request


@pytest.fixture(scope="module")
def on_card(tiny_model) -> MemoryEstimator:
    """A card need not be there to be reckoned with."""
    return prediction(tiny_model, "cuda", torch.bfloat16)


def test_what_is_predicted_is_what_lives(tiny_model):
    said = prediction(tiny_model).of(config())
    networks = ("image_encoder", "face_encoder", "vae", "unet", "pose_net")
    with engine_of(tiny_model) as engine, engine.resident(*networks):  # weights are there before
        wanted = request(FRAMES, window=FRAMES, overlap=2, chunk=4, size=SIZE, steps=1)
        with PeakMemoryMode() as counted:
            rendered(engine, wanted)
    assert max(alive for _, alive in said.stages.values()) == pytest.approx(counted.peak, rel=0.1)


def test_a_process_counts_once_for_what_a_count_depends_on(seeing_model, monkeypatch):
    settings = config(refine=RefineConfig(face="crop"))
    first = prediction(seeing_model)
    memory, work = first.of(settings), first.work(settings)
    count, counted = render.peak_bytes, []
    monkeypatch.setattr(render, "peak_bytes", lambda run, **how: counted.append(run) or count(run, **how))
    again = prediction(seeing_model)
    assert again.of(settings) == memory
    assert {name: one.total for name, one in again.work(settings).items()} == {
        name: one.total for name, one in work.items()
    }
    assert not counted
    smaller = replace(again, size=(64, 64)).of(settings)
    assert smaller.stages["UNet"][1] < memory.stages["UNet"][1]
    wider = {role: dict(part) for role, part in again.model.configs.items()}
    wider["vae"]["layers_per_block"] = 2
    changed = replace(prediction(seeing_model), model=replace(again.model, configs=wider)).of(settings)
    assert changed.stages["VAE decoder"] > memory.stages["VAE decoder"]
    boxed = replace(again, face_box=(0, 0, 99, 99)).of(settings)
    assert boxed.stages["face optimisation"][1] > memory.stages["face optimisation"][1]


def test_counts_of_two_threads_are_those_of_one():
    """As of a plan and of a run in ``sa app``, of which the second still counts when the first has ended."""
    plain = F.scaled_dot_product_attention
    query = torch.empty(1, 1, 4096, 8, device="meta")
    second_counts, first_ended = threading.Event(), threading.Event()

    def attention() -> None:
        F.scaled_dot_product_attention(query, query, query)

    def count_first() -> None:
        peak_bytes(lambda: (second_counts.wait(1), attention()), on_cpu=True)
        first_ended.set()

    def attention_after_the_first() -> None:
        second_counts.set()
        first_ended.wait(1)
        attention()
        devices.update(MATMUL_DEVICES)

    devices: set[str] = set()
    alone = peak_bytes(attention)
    first = threading.Thread(target=count_first)
    first.start()
    while "meta" not in MATMUL_DEVICES and first.is_alive():
        first.join(0.01)
    assert peak_bytes(attention_after_the_first, on_cpu=True) == alone
    first.join()
    assert "meta" in devices
    assert "meta" not in MATMUL_DEVICES
    assert F.scaled_dot_product_attention is plain


def test_a_vae_that_encodes_in_float32_is_reckoned_so(tiny_model):
    """Weights and work of half a float's size, but for that while those of a whole one."""
    half, whole = (prediction(tiny_model, dtype=dtype).of(config()) for dtype in (torch.float16, torch.float32))
    vae = half.stages["VAE encoder"][0] - half.stages["image encoder"][0]
    assert half.stages["VAE encoder"][1] == pytest.approx(whole.stages["VAE encoder"][1] + vae, rel=0.05)


def test_swapping_leaves_the_weights_of_one_stage(on_card):
    stays, swaps = (on_card.of(config(device=DeviceConfig(offload=way))) for way in ("none", "model"))
    assert sum(swaps.stages["UNet"]) < sum(stays.stages["UNet"])
    assert swaps.stages["VAE decoder"][0] == swaps.stages["VAE encoder"][0] < stays.stages["VAE decoder"][0]
    assert [alive for _, alive in swaps.stages.values()] == [alive for _, alive in stays.stages.values()]


@pytest.mark.parametrize("mode", ["full", "crop"])
def test_keeping_the_face_has_its_stage(seeing_model, mode):
    memory = prediction(seeing_model).of(config(refine=RefineConfig(face=mode)))
    assert memory.stages["face optimisation"][1] > memory.stages["VAE decoder"][1]


def test_blocks_are_recomputed_where_the_whole_graph_does_not_fit(seeing_model):
    estimator, settings = prediction(seeing_model), config(refine=RefineConfig(face="full"))
    whole, parts = (
        estimator.of(config(refine=RefineConfig(face="full", checkpointing=way))).total for way in ("off", "on")
    )
    assert parts < whole
    for available, recomputed in ((2 * whole, False), (whole, True), (0, True)):  # 0: unknown
        given = replace(estimator, available=available)
        assert given.checkpointed(settings) is recomputed
        assert given.of(settings).total == (parts if recomputed else whole)
    for way in ("on", "off"):
        chosen = config(refine=RefineConfig(face="full", checkpointing=way))
        assert replace(estimator, available=2 * whole).checkpointed(chosen) is (way == "on")


def test_a_config_of_no_network_is_said(tiny_model):
    model = open_model(tiny_model)
    broken = replace(model, configs={**model.configs, "vae": {"no_such_thing": 1}})
    with pytest.raises(ModelDamaged, match="its JSON config describes no network that can be built"):
        replace(prediction(tiny_model), model=broken).of(config())


def test_in_groups_two_buffers_of_the_largest_block_are_there(on_card):
    swaps, groups = (on_card.of(config(device=DeviceConfig(offload=way))) for way in ("model", "group"))
    unet = on_card._network("unet")
    blocks = [bytes_of(block) for block in blocks_of(unet)]
    assert swaps.stages["UNet"][0] - groups.stages["UNet"][0] == sum(blocks) - 2 * max(blocks) > 0
    assert groups.stages["UNet"][1] == swaps.stages["UNet"][1]
    assert groups.stages["VAE decoder"] == swaps.stages["VAE decoder"]


def test_what_cuda_graphs_recorded_lies_beside_face_optimisation(seeing_model):
    refine = RefineConfig(face="crop")
    card = prediction(seeing_model, "cuda", torch.bfloat16)
    plain, graphs = (card.of(config(refine=refine, device=DeviceConfig(cuda_graphs=on))) for on in (False, True))
    unet = plain.stages["UNet"][1]
    stages = ("face optimisation", "UNet")
    more, beside = (graphs.stages[name][1] - plain.stages[name][1] for name in stages)
    assert 0.5 * unet < more <= 1.2 * unet
    assert beside == more  # the calls that are not recorded need as much again
    assert graphs.stages["VAE decoder"] == plain.stages["VAE decoder"]


def test_onnx_runtimes_memory_on_a_card_is_reckoned(seeing_model, tiny_model, monkeypatch):
    """Face networks lie beside torch's memory, with an arena of their own, where ONNX Runtime can use the card.

    A plan for a card that is not here expects that.
    """
    card = prediction(seeing_model, "cuda", torch.bfloat16)
    planned = card.of(config())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = card.of(config())
    monkeypatch.setattr(ort, "get_available_providers", lambda: [onnx.CUDA, onnx.CPU])
    after = card.of(config())
    files = sum(file.stat().st_size for file in card.model.files["face"].rglob("*.onnx"))
    assert files > 0
    assert before.reserve == int(FRAGMENTED * before.allocated + CONTEXT)
    assert before.faces == 0
    assert after.faces - ARENA == pytest.approx(files, rel=0.05)
    assert planned.to_json() == after.to_json()
    assert after.reserve == before.reserve
    blind = prediction(tiny_model, "cuda", torch.bfloat16)
    assert blind.of(config()).faces == 0


def test_a_motion_that_is_detected_first_has_its_stage(seeing_model, monkeypatch):
    """On a CPU, where detectors run in the same memory, and before they are downloaded as the released ones."""
    keypoints, detected = (replace(prediction(seeing_model), detected_size=size) for size in (None, (1920, 1080)))
    roles = {role: Path("absent.onnx") for role in ("person_detector", "pose_detector")}
    detected = replace(detected, model=replace(detected.model, files={**detected.model.files, **roles}))
    memory = detected.of(config())
    assert "motion detection" not in keypoints.of(config()).stages
    assert memory.worst == "motion detection"
    assert memory.stages["motion detection"][1] > 900 << 20
    with pytest.raises(OutOfMemory, match="is too small") as error:
        fit_to_limit(config(device=DeviceConfig(max_memory=1 << 30)), detected)
    assert "sa preprocess" in error.value.hint


def test_the_recogniser_of_face_optimisation_is_reckoned_with_its_graph(seeing_model):
    refine = RefineConfig(face="crop")
    estimator = prediction(seeing_model)
    memory = estimator.of(config(refine=refine))
    (file,) = [file for file in estimator.model.files["face"].rglob("*.onnx") if "glint" in file.name]
    weights = memory.stages["face optimisation"][0] - memory.stages["UNet"][0]
    assert weights == pytest.approx(file.stat().st_size, rel=0.05)
    assert memory.faces >= weights
