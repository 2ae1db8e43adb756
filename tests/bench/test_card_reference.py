"""Rows of the reference implementation in ``sa bench card --against``, measured on a stand-in for its clone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stableanimator_cli.bench import card_reference, compare, compare_reference
from stableanimator_cli.bench.card_rows import card_rows
from stableanimator_cli.bench.context import ClipShape
from stableanimator_cli.bench.networks import network_on_meta
from stableanimator_cli.diffusion.training import denoising_loss, preconditioning
from stableanimator_cli.engine.group_offload import bytes_of
from stableanimator_cli.errors import BadInput
from tests.bench.stand_in import write_clone
from tests.random_model import TINY

THEIRS = [row.name for row in card_rows(None, small=True, against=True) if row.worker == "reference"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clone(tmp_path_factory.mktemp("clone") / "StableAnimator")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(compare.model_to_compare("puppet"), configs=TINY, name="tiny")
    monkeypatch.setattr(compare, "model_to_compare", lambda name: model)


def test_theirs_has_a_row_for_each_kind_of_work():
    assert [name.split("/")[1] for name in THEIRS] == ["unet"] * 2 + ["render"] * 3 + ["face", "train"]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("row", [THEIRS[0], THEIRS[2], *THEIRS[-2:]])
def test_a_row_of_theirs_has_seconds_and_a_peak(clone: Path, row: str):
    job = {"device": "cpu", "small": True, "clone": str(clone), "python": None}
    found = card_reference.measure(job, row)
    assert found["seconds"] > 0
    model = compare.model_to_compare("tiny")
    weights = sum(bytes_of(network_on_meta(model, role)) for role in compare_reference.NETWORKS)
    assert weights + (1 << 17) < found["peak"] < 10 * weights
    assert "torch's scaled_dot_product_attention" in found["attention"]


@pytest.mark.usefixtures("tiny")
def test_a_clone_without_the_modules_of_training_says_so(tmp_path: Path):
    broken = write_clone(tmp_path / "theirs", pose_net="class PoseNet: ...")
    job = {"device": "cpu", "small": True, "clone": str(broken), "python": None}
    with pytest.raises(BadInput, match="PoseNet"):
        card_reference.measure(job, THEIRS[-1])


@pytest.mark.parametrize("dimensions", [3, 4])
def test_their_attention_takes_the_fused_kernel(monkeypatch: pytest.MonkeyPatch, dimensions: int):
    """Three dimensions, as diffusers hands them over, are several times as slow in torch's unfused path."""
    seen, plain = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *x, **more: (seen.append([y.dim() for y in x]), plain(*x, **more))[1]
    )
    q, k, v = (torch.randn(2, 5, 3, 8)[:, :, : 3 if dimensions == 4 else 1] for _ in range(3))  # [b,n,h,d]
    given = [x if dimensions == 4 else x[:, :, 0] for x in (q, k, v)]
    found = compare_reference.attend(*given, scale=0.3)
    weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) * 0.3).softmax(-1)
    expected = torch.einsum("bhnm,bmhd->bnhd", weights, v)
    assert seen == [[4, 4, 4]]
    torch.testing.assert_close(found, expected if dimensions == 4 else expected[:, :, 0])


class Stub(nn.Module):
    """A network of one number, which ``run`` gives with what it was called with; ``other`` does not learn."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attentions = nn.Parameter(torch.full((), 0.5))
        self.other = nn.Parameter(torch.full((), 0.25), requires_grad=False)
        self.run, self.gradient_checkpointing = run, False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def test_their_training_step_has_our_loss_and_learns_what_theirs_does(monkeypatch: pytest.MonkeyPatch):
    """The denoised estimate is skip * noisy + out * network(c_in * noisy, reference), as in our training."""
    called: dict[str, Any] = {}

    def denoise(network: Stub, seen: Tensor, level: Tensor, **more: Any) -> tuple[Tensor]:
        called.update(seen=seen, level=level, training=network.training, **more)
        return (network.attentions * (seen[:, :, :4] + seen[:, :, 4:]) + network.other,)

    networks = {
        "unet": Stub(denoise),
        "pose_net": Stub(lambda network, skeletons: network.attentions * skeletons.mean()),
        "face_encoder": Stub(lambda network, vector, image: network.attentions * image),
    }
    given = compare.make_inputs(compare.model_to_compare("puppet"), ClipShape(size=(64, 64), frames=3))
    stepped: list[list[Tensor]] = []

    class Recorded(torch.optim.AdamW):
        def step(self, closure: Any = None) -> None:
            stepped.append([p for p in self.param_groups[0]["params"] if p.grad is not None])
            super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    step = compare_reference.make_training(networks, given, torch.float32, torch.device("cpu"))
    loss, again = step(), step()
    assert torch.equal(loss, again)  # weights stay as they are
    unet = networks["unet"]
    assert unet.gradient_checkpointing
    assert called["training"]
    assert not unet.training
    learning = [unet.attentions, *networks["pose_net"].parameters(), *networks["face_encoder"].parameters()]
    assert all(parameter.requires_grad for parameter in learning)
    assert not unet.other.requires_grad
    assert [id(p) for p in stepped[0]] == [id(unet.attentions)]  # the others have no part in this stub's output

    latents, sigma = given["latents"][None], torch.tensor([compare_reference.TRAINING_SIGMA])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(compare_reference.SEED))
    scale, noisy = preconditioning(sigma), latents + sigma * noise
    torch.testing.assert_close(called["seen"][:, :, :4], noisy * scale.c_in)
    torch.testing.assert_close(called["seen"][:, :, 4:], latents[:, :1].expand_as(latents))
    torch.testing.assert_close(called["level"], scale.c_noise)
    output = 0.5 * (noisy * scale.c_in + latents[:, :1]) + 0.25
    expected = denoising_loss(scale.skip * noisy + scale.out * output, latents, sigma, torch.zeros(()), "released")
    torch.testing.assert_close(loss, expected)
