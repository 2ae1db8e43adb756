"""What is counted without computing, on the smallest networks; the recorded list holds what was reckoned before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stableanimator_cli.bench import cost, gate, run
from stableanimator_cli.bench.networks import FULL, network_on_meta, open_bench_model, random_weights
from stableanimator_cli.engine.memory.profile import prepare_context
from stableanimator_cli.engine.weights import builders
from stableanimator_cli.errors import BadInput, CheckFailed
from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.unet import AnimationUNet

SIZE = (64, 64)


def test_what_tokens_alone_decide_is_counted_once(tiny_model: Path):
    found = cost.unet_cost(open_bench_model(str(tiny_model)), SIZE, 2, torch.float32)
    long, short, free = found.values()
    assert long.flops > short.flops > free.flops
    assert long.operators > short.operators > free.operators


def test_prepared_without_numbers_is_what_the_network_prepares(tiny_model: Path):
    model = open_bench_model(str(tiny_model))
    build = builders(model, "distribution")["unet"]
    unet = build()
    assert isinstance(unet, AnimationUNet)
    unet.load_state_dict(random_weights(build))
    image, face = torch.ones(1, 1, 64), torch.ones(1, 4, 64)
    with torch.no_grad():
        ours, theirs = prepare_context(unet, image, face), unet.prepare(Context(image, face))
    assert set(ours.layers) == set(theirs.layers)
    for layer, found in ours.layers.items():
        for part in ("constant", "base", "keys", "values"):
            one, other = getattr(found, part), getattr(theirs.layers[layer], part)
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other)


def test_chunks_and_crops_of_the_smallest_decoder(tiny_model: Path):
    model = open_bench_model(str(tiny_model))
    found = cost.face_optimization_cost(model, (256, 256), 4, torch.float32, 1, 32, margin=2, checkpointing=(False,))
    full, whole, crop = (found[f"face optimisation, {name}"] for name in (
        "full, not checkpointed", "full, one graph, not checkpointed", "crop",
    ))  # fmt: skip
    assert full.flops == whole.flops
    assert full.bytes < whole.bytes / 3
    assert crop.flops < full.flops / 4


def test_a_face_box_lies_in_the_frame_and_off_the_grid():
    x0, y0, x1, y1 = cost.face_box((576, 1024), 128)
    assert (x1 - x0, y1 - y0) == (127, 127)
    assert x0 % 8
    assert cost.face_box((64, 64), 200)[2:] == (63, 63)


def test_the_released_shapes_have_no_weights_and_the_small_models_faces():
    model = open_bench_model(FULL)
    assert set(model.files) == {"face"}
    assert sum(p.numel() for p in network_on_meta(model, "unet").parameters()) == pytest.approx(1550.2e6, rel=1e-3)


@pytest.mark.parametrize(("name", "size"), [key for key in cost.ESTIMATED if key[1] == (576, 1024)])
def test_the_recorded_counters_are_what_was_reckoned_before(name: str, size: tuple[int, int]):
    recorded = gate.read_baseline(gate.BASELINE)[f"{name} {size[0]}x{size[1]}: FLOPs"] / 1e12
    frames = gate.FRAMES / (2 * gate.CHUNK) if name.startswith("face") else 1
    assert recorded * frames == pytest.approx(cost.ESTIMATED[name, size], rel=2e-3)


def test_the_counters_are_those_that_were_recorded():
    found = gate.collect_counters()
    gate.check_unchanged(gate.compare_counters(found, gate.read_baseline(gate.BASELINE)), gate.BASELINE)


def test_the_gate_says_what_changed(tmp_path: Path):
    gate.write_baseline(tmp_path / "b.json", {"calls": 4, "bytes": 100, "old": 1})
    changed = gate.compare_counters({"calls": 4, "bytes": 110, "new": 2}, gate.read_baseline(tmp_path / "b.json"))
    assert [row["change"] for row in changed.rows] == ["+10 %", "gone", "new"]
    with pytest.raises(CheckFailed, match=r"b.json: 3 counter\(s\) changed: bytes 100 -> 110 \(\+10 %\)"):
        gate.check_unchanged(changed, tmp_path / "b.json")
    gate.check_unchanged(gate.compare_counters({"a": 1}, {"a": 1}), tmp_path / "b.json")


@pytest.mark.parametrize("text", ["[1]", '{"a": 1.5}', "no", '{"a": "b"}'])
def test_a_list_of_something_else_is_refused(tmp_path: Path, text: str):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(BadInput, match="counters by name"):
        gate.read_baseline(tmp_path / "b.json")


def test_a_file_of_another_kind_is_not_replaced_by_accepted_counters(tmp_path):
    notes = tmp_path / "notes.json"
    notes.write_text('{"mine": "text"}')
    with pytest.raises(BadInput, match=r"notes\.json"):
        run.run(flags={"name": ["gate"], "accept": True, "baseline": notes}, command="sa bench gate")
    assert notes.read_text() == '{"mine": "text"}'
