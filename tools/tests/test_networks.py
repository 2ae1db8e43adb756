"""The small networks before any training: their files meet the contracts; their building blocks are correct."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import nn

from stableanimator_cli.detect import onnx as sessions
from stableanimator_cli.errors import ConfigError, SaError
from stableanimator_cli.nets.arcface import ArcFace
from tools import command
from tools.ablations import __main__ as ablations
from tools.bench import puppet_decoder, puppet_figures
from tools.command import exit_code_of
from tools.figure_networks import boxes, detectors, pose, vae
from tools.figure_networks.blocks import write_onnx
from tools.figure_networks.identity import RecogniserTask
from tools.figure_networks.video import AcrossTime, VideoTask, prepared
from tools.puppet_training import score


def shapes(path: Path) -> tuple[list[object], list[object]]:
    graph = onnx.load(path).graph

    def of(values: object) -> list[object]:
        return [
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in values  # type: ignore[attr-defined]
        ]

    return of(graph.input), of(graph.output)


def test_the_pose_file_has_rtmposes_shapes(tmp_path: Path) -> None:
    task = pose.PoseTask()
    (path,) = task.export(task.network(), tmp_path)
    assert shapes(path) == ([["batch", 3, 384, 288]], [["batch", 133, 576], ["batch", 133, 768]])


def test_the_person_file_has_yoloxs_shape(tmp_path: Path) -> None:
    task = boxes.PersonTask()
    (path,) = task.export(task.network(), tmp_path)
    inputs, _ = shapes(path)
    assert inputs == [["batch", 3, 640, 640]]
    with torch.no_grad():
        out = boxes.PersonFile(task.network().eval(), 0.5)(torch.rand(1, 3, 640, 640) * 255)
    assert out.shape == (1, 8400, 6)
    assert (out[0, :6400] == 0).all()


def test_the_face_file_has_nine_outputs_with_two_anchors_per_cell(tmp_path: Path) -> None:
    task = boxes.FaceTask()
    (path,) = task.export(task.network(), tmp_path)
    assert [out.name for out in onnx.load(path).graph.output][:4] == ["score_8", "score_16", "score_32", "bbox_8"]
    with torch.no_grad():
        outputs = boxes.FaceFile(task.network().eval(), 0.5)(torch.rand(1, 3, 96, 160))
    assert [out.shape for out in outputs] == [
        (2 * (96 // s) * (160 // s), width) for width in (1, 4, 10) for s in (8, 16, 32)
    ]


def test_decoding_inverts_the_targets() -> None:
    """The target that the loss computes for a box decodes to that box."""
    task = boxes.FaceTask()
    anchor = boxes.FACE_ANCHORS[3]
    box = torch.tensor([[[200.0, 160.0, 320.0, 300.0]]])
    heat, where, target, _, count = boxes._targets(box, torch.zeros(1, 1, 5, 2), anchor, (40, 40))
    assert count == 1
    assert len(where[0]) == 9
    assert heat[0, 230 // 16, 260 // 16] == 1
    half_size = boxes._half_size(anchor)
    corner = torch.stack([where[2], where[1]], dim=1).float()
    away = (target / 16 - corner.repeat(1, 2)) * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    decoded = (task.decode(away / half_size - 1, anchor) + corner.repeat(1, 2)) * 16
    torch.testing.assert_close(decoded, box[0].expand(9, 4))


def test_points_are_decoded_from_their_rows() -> None:
    """The target of a position, resized as in the file, has its largest bin at that position."""
    positions = torch.tensor([[20.0, 143.3, 250.7]])
    at = ((positions * 2 - 1.5) / 4).unsqueeze(2)
    rows = -((torch.arange(pose.BINS_X) - at) ** 2)
    bins = pose._row(rows, 4).argmax(dim=2)
    assert (bins / 2 - positions).abs().max() <= 1.0


def test_a_crop_at_a_quarter_is_the_pooled_crop() -> None:
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 255, (12, 10, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    matrix = pose.crop_matrix(np.array([30.0, 20.0, 130.0, 170.0]))
    full = pose.crop(image, matrix, 1).astype(float)
    pooled = full.reshape(96, 4, 72, 4, 3).mean(axis=(1, 3))
    small = pose.crop(image, matrix, 4).astype(float)
    assert np.abs(pooled - small).mean() < 4


def test_the_recognisers_graph_runs_in_torch(tmp_path: Path) -> None:
    task = RecogniserTask()
    net = task.network().eval()
    (path,) = task.export(net, tmp_path)
    pixels = torch.rand(2, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ArcFace(path.read_bytes()).embed(pixels), net.net(pixels), atol=1e-4, rtol=1e-3)


def test_float16_weights_give_nearly_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Linear(64, 32)
    example = torch.randn(2, 64)
    sizes = []
    for half, allowed in ((True, 5e-3), (False, 1e-5)):
        path = write_onnx(net, tmp_path / "net.onnx", example, ["x"], ["y"], about="a line", half=half)
        assert onnx.load(path).doc_string == "a line"
        sizes.append(path.stat().st_size)
        (output,) = sessions.run(sessions.session(path, "cpu"), example.numpy())
        np.testing.assert_allclose(output, net(example).detach().numpy(), atol=allowed)
    assert sizes[0] < 0.7 * sizes[1]


def test_across_time_one_frame_is_its_own_neighbour() -> None:
    layer = AcrossTime(4).eval()
    x = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(layer(x.expand(5, 4, 3, 3), 5), layer(x, 1).expand(5, 4, 3, 3))


def test_the_video_network_accepts_any_size() -> None:
    net = VideoTask().network().eval()
    clip = prepared(np.random.default_rng(0).integers(0, 255, (1, 4, 64, 64, 3)).astype(np.uint8))
    with torch.no_grad():
        small = net(clip)[3]
        large = net(nn.functional.interpolate(clip, scale_factor=(1, 2, 2)))[3]
    assert small.shape == large.shape == (1, 128)


def test_fast_temporal_kernels_equal_the_librarys() -> None:
    torch.manual_seed(1)
    fast, plain = vae.TimeConv(6, 5, (3, 1, 1), padding=(1, 0, 0)), nn.Conv3d(6, 5, (3, 1, 1), padding=(1, 0, 0))
    plain.load_state_dict(fast.state_dict())
    for t in (1, 2, 5):
        x = torch.randn(2, 6, t, 3, 4)
        torch.testing.assert_close(fast(x), plain(x), atol=1e-5, rtol=1e-5)


def test_an_untrained_decoder_treats_a_clip_as_its_frames() -> None:
    net = vae.Autoencoder().eval()
    assert isinstance(net.vae, AutoencoderKLTemporalDecoder)
    side_taps = [m.weight[:, :, [0, 2]] for m in net.modules() if isinstance(m, vae.TimeConv)]
    assert len(side_taps) > 8
    assert all((taps == 0).all() for taps in side_taps)


def test_unit_latents_decode_the_same() -> None:
    torch.manual_seed(0)
    net = vae.Autoencoder().eval().requires_grad_(False)
    frames = torch.rand(3, 3, 32, 32) * 2 - 1
    before = net.vae.decode(net.vae.encode(frames).latent_dist.mean, num_frames=1).sample
    log_variance = net.vae.encode(frames).latent_dist.logvar
    deviation = net.vae.encode(frames).latent_dist.mean.square().mean().sqrt()
    net.vae.load_state_dict(vae.unit_latents(net.vae, frames))
    latents = net.vae.encode(frames).latent_dist
    torch.testing.assert_close(latents.mean.square().mean(), torch.tensor(1.0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(net.vae.decode(latents.mean, num_frames=1).sample, before, atol=1e-3, rtol=1e-3)
    shift = 2 * deviation.log()
    torch.testing.assert_close(latents.logvar, log_variance - shift, atol=1e-3, rtol=1e-3)


def test_the_encoder_starts_as_the_best_linear_one() -> None:
    torch.manual_seed(0)
    frames = vae.sample_images("train", 6)
    net = vae.Autoencoder().eval()
    vae.linear_start(net.vae, frames)
    with torch.no_grad():
        posterior = net.vae.encode(frames).latent_dist
    latents = posterior.mean.flatten(2).transpose(1, 2).flatten(0, 1).double()
    patches = nn.functional.unfold(frames, 8, stride=8).transpose(1, 2).flatten(0, 1).double()
    # A linear decoder of the latents is as good as one of the same number of principal components.
    known = torch.cat([latents, torch.ones(len(latents), 1, dtype=torch.float64)], dim=1)
    error = known @ torch.linalg.lstsq(known, patches).solution - patches
    centred = patches - patches.mean(dim=0)
    best = torch.linalg.svdvals(centred)[vae.LATENTS :].square().sum() / patches.numel()
    assert best <= error.square().mean() < 1.1 * best
    assert latents.square().mean().sqrt() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(posterior.std, torch.full_like(posterior.std, 0.05), atol=1e-4, rtol=1e-3)


def test_digests_are_added_and_the_rest_stays(tmp_path: Path) -> None:
    head = 'name = "mine"\n\n[components.judge]\nfile = "judge.onnx"\n'
    (tmp_path / "model.toml").write_text(head)
    for name in ("judge.onnx", "b.onnx", "c.json"):
        (tmp_path / name).write_bytes(name.encode())
    detectors.write_digests(tmp_path, [tmp_path / "judge.onnx", tmp_path / "c.json"])
    detectors.write_digests(tmp_path, [tmp_path / "b.onnx"])
    text = (tmp_path / "model.toml").read_text()
    assert text.startswith(head)
    assert [line for line in text.splitlines() if line.startswith("path")] == ['path = "b.onnx"', 'path = "judge.onnx"']
    assert "bytes = 10" in text


def test_a_wrong_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="NETWORK: found 'poes', expected one of pose, face"):
        detectors.main(["poes"])
    with pytest.raises(ConfigError, match="--threads: found 0"):
        detectors.main(["--threads", "0"])


def test_every_command_of_tools_prints_errors_without_a_traceback() -> None:
    tools = Path(command.__file__).parent
    run = [path for path in tools.rglob("*.py") if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
    assert len(run) > 15
    bare = [path for path in run if "sys.exit(exit_code_of(main" not in path.read_text(encoding="utf-8")]
    assert not bare


def test_the_exit_code_is_that_of_the_command() -> None:
    assert [exit_code_of(lambda code=code: code) for code in (None, 0, 8)] == [0, 0, 8]


def test_a_count_is_one_or_more(capsys: pytest.CaptureFixture[str]) -> None:
    parser = command.argparse.ArgumentParser()
    parser.add_argument("--count", type=command.positive)
    assert parser.parse_args(["--count", "1"]).count == 1
    for text in ("0", "-3"):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["--count", text])
        assert f"argument --count: {text}, expected 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("main", [ablations.main, score.main, puppet_decoder.main, puppet_figures.main])
def test_no_count_is_an_error_before_any_work(main: Callable[[list[str]], object], tmp_path: Path) -> None:
    words = [str(tmp_path), "--scored"] if main is ablations.main else ["--count"]
    with pytest.raises(SystemExit, match="2"):
        main([*words, "0"])


def test_errors_of_a_training_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise SaError("the disk is full", hint="make room")

    assert exit_code_of(fails) == 70
    assert capsys.readouterr().err == "error: the disk is full\nhint: make room\n"

    def stopped() -> None:
        raise KeyboardInterrupt

    assert exit_code_of(stopped) == 130
    assert "run the same command to resume" in capsys.readouterr().err
    assert exit_code_of(stopped, resumes=False) == 130
    assert capsys.readouterr().err == "interrupted\n"
