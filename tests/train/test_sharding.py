"""``--sharding full``: two processes that hold a piece each (FSDP2) learn what one learns, and go on with its runs."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from stableanimator_cli import catalogue
from stableanimator_cli.config.schema import resolve
from stableanimator_cli.config.train import TrainConfig
from stableanimator_cli.engine.memory.train import meta_model, predict
from stableanimator_cli.engine.training.fsdp import gather, units
from stableanimator_cli.engine.training.model import TrainingSettings
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.records import NETWORKS
from stableanimator_cli.train import checkpoint, run
from stableanimator_cli.train.metrics_log import read_metrics
from tests.train.clip_folders import write_clip, write_pair
from tests.train.test_ranks import in_ranks, start_ranks

STEPS = 3
CLIP = 0.5  # of the gradient's norm


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data``, and ``one``: a whole run of one process that trains everything, with all its checkpoints."""
    folder = tmp_path_factory.mktemp("sharding")
    for index, frames in enumerate((4, 5)):
        write_clip(folder / "data" / f"clip{index}", frames)
    torch.set_num_threads(1)
    # a gradient of nearly nothing is rounding: AdamW's usual epsilon makes whole steps of it
    (folder / "epsilon.toml").write_text("[optimizer]\nepsilon = 1e-4\n")
    run.run(flags=flags_of(folder, tiny_model, "one"), config_file=folder / "epsilon.toml")
    return folder


def flags_of(folder: Path, model: Path, name: str, **more: Any) -> dict[str, Any]:
    usual = {
        "dataset": [folder / "data"], "output": folder / name, "model": str(model), "steps": STEPS, "frames": 2,
        "batch": 4, "warmup": 0, "rate": 1e-3, "train": "all", "workers": 0, "device": "cpu", "checkpointing": "off",
        "cache": "latents,embeddings", "ema": 0.5, "save_every": 1, "keep": STEPS, "clip_norm": CLIP,
    }  # fmt: skip
    return usual | more


def words_of(flags: dict[str, Any]) -> list[str]:
    rest = {name: value for name, value in flags.items() if name != "dataset"}
    options = [word for name, value in rest.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    file = flags["dataset"][0].with_name("epsilon.toml")
    return ["train", str(flags["dataset"][0]), *options, "--config", str(file), "--quiet"]


def agree(one: Path, two: Path) -> None:
    """Losses, gradients and everything that the last checkpoint keeps, as two processes under DDP agree with one."""
    left, right = read_metrics(one), read_metrics(two)
    assert [row["step"] for row in right] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in right] == pytest.approx([row["loss"] for row in left], rel=1e-4)
    assert [row["gradient"] for row in right] == pytest.approx([row["gradient"] for row in left], rel=1e-3)
    assert max(row["gradient"] for row in right) > CLIP  # some of them are clipped
    last = Path(checkpoint.FOLDER) / f"step-{STEPS}"
    for role in ("unet", "pose_net", "face_encoder"):
        mine, theirs = (load_file(run_folder / last / f"{role}.safetensors") for run_folder in (one, two))
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=1e-4)
    states = [checkpoint.read_state(run_folder / last) for run_folder in (one, two)]
    for part in ("weights", "average"):
        mine, theirs = (getattr(state, part) for state in states)
        assert mine.keys() == theirs.keys()
        assert all(mine[name].shape == theirs[name].shape for name in mine)
    mine, theirs = (state.optimizer["state"] for state in states)
    assert mine.keys() == theirs.keys()
    for index, moments in mine.items():
        assert theirs[index]["step"] == moments["step"] == STEPS
        torch.testing.assert_close(theirs[index]["exp_avg"], moments["exp_avg"], atol=1e-4, rtol=1e-2)


def test_pieces_learn_what_the_whole_learns_and_one_process_goes_on_where_one_of_two_was_killed(runs, tiny_model):
    """Blocks are forgotten and a share is taken in two parts: nothing of that changes a loss."""
    out = runs / "killed"
    more = {"sharding": "full", "checkpointing": "blocks", "micro_batch": 1}
    children = start_ranks(2, words_of(flags_of(runs, tiny_model, "killed", **more)))
    limit = time.monotonic() + 400
    while not checkpoint.list_checkpoints(out) and children[0].poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    children[1].kill()
    children[1].communicate()
    said = children[0].communicate(timeout=300)[1]
    assert children[0].returncode == 130, said
    assert "another of the 2 processes exited at step" in said
    assert f"`sa train --resume {out}` resumes from the last checkpoint" in said
    reached = checkpoint.list_checkpoints(out)
    assert len(reached) >= 1, said
    for step, folder in reached:  # the test is of going on, however quick the machine is
        if step > 1:
            shutil.rmtree(folder)
    with pytest.raises(ConfigError, match="--sharding: found 'full', expected off") as caught:
        run.run(flags={}, resumed=out)
    assert f"--resume {out}" in str(caught.value.hint)
    assert "torchrun" in str(caught.value.hint)
    run.run(flags={"sharding": "off"}, resumed=out)
    agree(runs / "one", out)


def test_pieces_go_on_with_a_run_that_one_process_began(runs, tiny_model):
    out = runs / "taken over"
    shutil.copytree(runs / "one", out, symlinks=True)
    for step, folder in checkpoint.list_checkpoints(out):
        if step > 1:
            shutil.rmtree(folder)
    first, second = in_ranks(2, ["train", "--resume", str(out), "--sharding", "full", "--device", "cpu", "--quiet"])
    assert (first.strip(), second) == (str(out / "model"), "")
    agree(runs / "one", out)
    catalogue.open_model(out / "model", NETWORKS)


def test_pieces_learn_from_several_people(runs, tiny_model):
    """An ID adapter's layers, gathered one by one, are called once per person and once for nobody."""
    data = [runs / "pairs"]
    for index in range(2):
        write_pair(data[0] / f"pair{index}", 4 + index)
    flags = {name: flags_of(runs, tiny_model, name, dataset=data, people=2) for name in ("several", "shared")}
    run.run(flags=flags["several"], config_file=runs / "epsilon.toml")
    in_ranks(2, words_of(flags["shared"] | {"sharding": "full", "checkpointing": "blocks"}))
    agree(runs / "several", runs / "shared")
    alone = read_metrics(runs / "several")
    run.run(flags=flags_of(runs, tiny_model, "largest", dataset=data, people=1), config_file=runs / "epsilon.toml")
    assert [row["loss"] for row in read_metrics(runs / "largest")] != [row["loss"] for row in alone]


def test_one_process_has_nobody_to_share_with(runs, tiny_model):
    with pytest.raises(ConfigError, match="--sharding: found 'full', expected off, as there is one process") as caught:
        run.run(flags=flags_of(runs, tiny_model, "alone", sharding="full"))
    assert "--nproc-per-node 2" in str(caught.value.hint)
    assert not (runs / "alone").exists()
    with pytest.raises(ConfigError, match="one process"):
        run.run(flags=flags_of(runs, tiny_model, "alone", sharding="full"), plan_only=True)


def test_sharding_is_for_the_optimiser_that_looks_at_single_numbers():
    given = {"dataset": ["clips"], "output": "RUN", "steps": 1, "sharding": "full"}
    config = resolve(TrainConfig, given)
    run._check_sharding(config, 2, None)
    muon = resolve(TrainConfig, {**given, "kind": "muon"})
    with pytest.raises(ConfigError, match=r"optimizer\.kind: found 'muon', expected adamw"):
        run._check_sharding(muon, 2, None)


def test_units_hold_nearly_everything_and_never_one_another(tiny_model):
    model = meta_model(catalogue.open_model(str(tiny_model), NETWORKS), TrainingSettings(train="all"))
    found = list(units(model))
    inside = [parameter for unit in found for parameter in unit.parameters()]
    assert len({id(parameter) for parameter in inside}) == len(inside)
    left = {name for name, p in model.named_parameters() if id(p) not in set(map(id, inside))}
    assert left
    assert all(re.search(r"norm|mix_factor|embed", name) for name in left)
    assert sum(p.numel() for p in inside) > 0.9 * sum(p.numel() for p in model.parameters())


def test_a_plan_counts_what_a_rank_holds(tiny_model):
    model, settings = catalogue.open_model(str(tiny_model), NETWORKS), TrainingSettings(train="all")
    given = {"size": (64, 64), "frames": 2, "ema": True, "on_cpu": True}
    alone = predict(model, settings, **given)
    ranks = predict(model, settings, ranks=4, **given)
    pieces = predict(model, settings, ranks=4, sharded=True, **given)
    assert ranks.weights == alone.weights == pytest.approx(4 * pieces.weights, rel=1e-6)
    assert alone.optimizer == pytest.approx(4 * pieces.optimizer, rel=1e-6)
    assert alone.average == pytest.approx(4 * pieces.average, rel=1e-6)
    assert pieces.total < alone.total < ranks.total


def test_what_is_in_no_pieces_is_left_as_it_is():
    tensor = nn.Parameter(torch.ones(2))
    tree = {"a": tensor, "b": [tensor, 3]}
    assert gather(tree, keep=False) == tree
    assert gather(tree)["a"] is tensor
