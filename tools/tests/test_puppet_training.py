"""The training tools at 256x256: the fixed list, scores of faces, and a VAE training that resumes."""

import argparse
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stableanimator_cli.catalogue import schema
from stableanimator_cli.clip_folder import FACES, load_faces
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import sha256_of
from stableanimator_cli.train.dataset import open_dataset
from stableanimator_cli.train.latent_cache import latents_file
from tools.puppet_training import __main__ as command
from tools.puppet_training import clips, decoder, heldout, vae
from tools.puppet_training.figures import Crops, sample_frames
from tools.puppet_training.measure import face_scores
from tools.puppet_training.model import BASE, copy_model
from tools.puppet_training.networks import Discriminator, Features, open_vae


def test_the_list_follows_from_its_seed():
    entries = heldout.read_list()
    assert len(entries) == 50
    assert heldout.select_clips(count=3) == entries[:3]


def test_the_list_of_pairs_follows_from_its_seed_and_shares_nobody():
    entries = heldout.read_list(heldout.LIST_OF_PEOPLE)
    assert len(entries) == 16
    assert heldout.select_pairs(count=2) == entries[:2]
    scenes = [heldout.open_scene(entry) for entry in (*entries, *heldout.read_list())]
    numbers = [person.identity.number for scene in scenes for person in scene.people]
    assert len(set(numbers)) == len(numbers) == 2 * 16 + 50


def test_help_of_the_lists_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        heldout.main(["--help"])
    assert "FOLDER" in capsys.readouterr().out.upper()
    assert not list(tmp_path.iterdir())


def test_sharpness_falls_with_blur_and_is_one_for_the_same():
    frame = heldout.open_scene(heldout.read_list()[0]).reference()
    box = frame.face_boxes[0]
    error, sharp = face_scores(frame.image, frame.image, box)
    assert error > 90
    assert sharp == pytest.approx(1)
    blurred = np.stack([np.roll(frame.image.astype(float), n, axis=1) for n in (-1, 0, 1)]).mean(axis=0)
    error, sharp = face_scores(blurred.astype(np.uint8), frame.image, box)
    assert error < 40
    assert sharp < 0.8


def test_a_batch_follows_from_its_step():
    one, weight = Crops(10, 2, 32)[3]
    again, _ = Crops(10, 2, 32)[3]
    assert torch.equal(one, again)
    assert one.shape == (2, 3, 32, 32)
    assert set(weight.unique().tolist()) <= {1.0, 2.0}


def test_sampled_frames_show_faces():
    assert all(np.isfinite(frame.face_boxes).all() for frame in sample_frames(4))


def options(tmp_path, **changed):
    parsed = vae.parse([str(tmp_path), "--steps", "20"])
    return argparse.Namespace(**{**vars(parsed), **changed})


def opened(settings):
    weights = vae.MODEL / "vae.safetensors"
    features = Features(vae.MODEL / "video.onnx")
    return vae.Trainer(settings, open_vae(weights), open_vae(weights), Discriminator(8), features)


def test_a_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(vae, "ALONE", 0)
    data = Crops(4, 1, 32)
    torch.manual_seed(1)
    straight = opened(options(tmp_path))
    torch.manual_seed(1)
    first = opened(options(tmp_path))
    for step in range(2):
        straight.train_step(*data[step])
        first.train_step(*data[step])
    first.save(tmp_path / "vae.pt")
    resumed = opened(options(tmp_path))
    resumed.resume(tmp_path / "vae.pt")
    assert resumed.step == 2
    for trainer in (straight, resumed):
        numbers = trainer.train_step(*data[2])
    assert {"fooled", "judge", "perceptual"} <= set(numbers)
    for name, tensor in straight.vae.state_dict().items():
        torch.testing.assert_close(resumed.vae.state_dict()[name], tensor, msg=name)


def test_a_training_interrupted_at_its_end_exports_when_it_resumes(tmp_path):
    """The last checkpoint is written after the weights: nothing would write them any more."""
    settings = options(tmp_path, steps=1, adversarial=0)

    def steps(trainer):
        return lambda: trainer.train_step(*Crops(1, 1, 32)[trainer.step])

    def look(sheet):
        if sheet.name != "start.png":
            raise KeyboardInterrupt
        return ""

    trainer = vae.open_trainer(settings, vae.MODEL / "vae.safetensors")
    with pytest.raises(KeyboardInterrupt):
        vae.train(trainer, steps(trainer), look)
    resumed = vae.open_trainer(settings, vae.MODEL / "vae.safetensors")
    vae.train(resumed, steps(resumed), lambda sheet: "")
    assert (tmp_path / "vae.safetensors").is_file()
    with pytest.raises(BadInput, match="different lr and pixels"):
        vae.open_trainer(options(tmp_path, adversarial=0, lr=1e-5, pixels=0.1), vae.MODEL / "vae.safetensors")
    vae.open_trainer(options(tmp_path, adversarial=0, steps=2), vae.MODEL / "vae.safetensors")


def test_a_run_of_other_settings_is_refused_before_anything_is_published(tmp_path, monkeypatch):
    """After a trial of two steps, the command without --steps found all stages finished and published them."""
    published = []
    monkeypatch.setattr(command.clips, "write_all", lambda *args, **more: [])
    monkeypatch.setattr(command, "train_stage", lambda options, name, model, data: tmp_path / "pictures" / "model")
    monkeypatch.setattr(command, "publish", lambda run, folder, vae: published.append(folder))
    words = [str(tmp_path / "run"), "--stages", "pictures", "--score", "0"]
    command.main([*words, "--steps", "2"])
    command.main([*words, "--steps", "2", "--device", "cpu"])
    for changed in ([], ["--steps", "2", "--people", "16"], ["--steps", "2", "--from-scratch"]):
        with pytest.raises(BadInput, match=r"settings\.json: it was started with different"):
            command.main([*words, *changed, "--publish"])
    assert published == [tmp_path / "run" / "final"] * 2


def test_stages_of_another_order_are_refused_before_anything_is_published(tmp_path, monkeypatch):
    """They were found finished, and the model of the one named last was published though others had continued it."""
    started, published = [], []

    def fake_training(_, what, words):
        started.append(what)
        if "-o" in words:
            path = tmp_path / "run" / what.removeprefix("stage ") / "config.toml"
            path.parent.mkdir()
            path.write_text(f'model = "{words[words.index("--model") + 1]}"\n')

    monkeypatch.setattr(command.clips, "write_all", lambda *args, **more: [])
    monkeypatch.setattr(command, "run_sa", fake_training)
    monkeypatch.setattr(command, "publish", lambda run, folder, vae: published.append(run.name))
    words = [str(tmp_path / "run"), "--score", "0", "--stages"]
    command.main([*words, "pictures", "detail"])
    command.main([*words, "pictures", "detail", "again"])
    assert started == [f"stage {name}" for name in ("pictures", "detail", "pictures", "detail", "again")]
    assert published == ["detail", "again"]
    for stages, continued, given in (
        (["detail", "pictures"], "pictures", "start"),
        (["pictures", "again"], "detail", "pictures"),
        (["pictures", "pictures"], "start", "pictures"),
    ):
        with pytest.raises(BadInput, match=f"it continues {continued}, not {given}"):
            command.main([*words, *stages])
    assert published == ["detail", "again"]


def test_a_copied_model_has_the_new_vae_and_its_digest(tmp_path):
    weights = tmp_path / "vae.safetensors"
    save_file({"x": torch.zeros(2)}, weights)
    entry = schema.read(copy_model(tmp_path / "model", weights))
    assert entry.defaults["size"] == "256x256"
    digests = {row.path: row.sha256 for row in entry.files}
    assert digests["vae.safetensors"] == sha256_of(weights)
    assert digests["unet.safetensors"] == sha256_of(BASE / "unet.safetensors")
    assert entry.training == {}


def test_another_seed_draws_other_people(tmp_path):
    people = []
    for seed in (0, 200):
        plan = clips.plan_of(tmp_path, 0, 2, 4, Fraction(2), seed=seed)
        people.append([plan.scene(number).people[0].identity for number in range(2)])
    assert not any(one == other for one in people[0] for other in people[1])


def test_hidden_faces_are_noise_in_the_means_alone():
    moments = torch.randn(8, 12, 12, generator=torch.Generator().manual_seed(0)).half()
    boxes = np.array([[2, 3, 6, 8], [np.nan] * 4], np.float32)
    hidden = clips._hide_faces(moments, boxes, 5)
    assert hidden.dtype == moments.dtype
    changed = (hidden != moments).any(dim=0)
    assert changed[3:8, 2:6].all()
    assert changed.sum() == 5 * 4
    assert torch.equal(hidden[4:], moments[4:])
    assert torch.equal(hidden, clips._hide_faces(moments, boxes, 5))


def test_hidden_exchanged_references_have_the_embedding_of_the_face_under_other_hair(tmp_path):
    """Only the reference's latents and embedding differ from those of plain clips: frames show the person's own."""
    plain, hidden = (
        clips.write_all(tmp_path / name, "puppet", people=1, frames=1, **given)[0]
        for name, given in (("plain", {}), ("hidden", {"exchanged": 1.0, "hide": True}))
    )
    (one,), (other,) = (open_dataset([folder], min_frames=2).clips for folder in (plain, hidden))
    known, changed = (load_faces(clip.path / FACES).embeddings for clip in (one, other))
    cosine = float(known[0] @ changed[0] / np.linalg.norm(known[0]) / np.linalg.norm(changed[0]))
    assert 0.3 < cosine < 0.95  # the same face
    assert np.array_equal(known[1:], changed[1:])
    digest = sha256_of(BASE / "vae.safetensors")
    a, b = (latents_file(clip, heldout.SIZE, vae=digest, resize="stretch").read([0, 1]) for clip in (one, other))
    assert torch.equal(a[1], b[1])
    moved = ((a[0].float() - b[0].float()).abs() > 0.5).any(dim=0)  # the encoder's norms change all of them a little
    assert 0.2 < moved.float().mean() < 0.7
    assert not moved[24:].any()  # the clothes


def test_clips_with_other_references_are_refused(tmp_path):
    """Their caches are valid for both, so those of the first command were taken for those of the second."""
    clips.write_all(tmp_path, "puppet", people=1, frames=1)
    clips.write_all(tmp_path, "puppet", people=1, frames=1)
    for changed in ({"exchanged": 0.5}, {"exchanged": 0.5, "hide": True}):
        with pytest.raises(BadInput, match="different share-exchanged"):
            clips.write_all(tmp_path, "puppet", people=1, frames=1, **changed)


def test_a_decoder_is_trained_on_latents_of_the_denoiser(tmp_path, monkeypatch, capsys):
    """Its encoder stays, its pairs and its run resume, and its crops of latents lie where those of the pixels do."""
    monkeypatch.setattr(decoder, "FRAMES", 1)
    monkeypatch.setattr(decoder, "VALIDATION", 1)
    monkeypatch.setattr(vae, "ALONE", 0)
    run = tmp_path / "run"
    decoder.main([str(run), "--people", "1", "--steps", "1"])
    pair = load_file(run / "pairs" / "0000.safetensors")
    assert pair["denoised"].shape == pair["encoded"].shape == (1, 16, 32, 32)
    assert 0.01 < (pair["denoised"].float() - pair["encoded"].float()).square().mean() < 0.5
    before, after = load_file(vae.MODEL / "vae.safetensors"), load_file(run / "vae.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)

    written = (run / "pairs" / "0000.safetensors").stat().st_mtime_ns
    decoder.main([str(run), "--people", "1", "--steps", "2"])
    assert (run / "pairs" / "0000.safetensors").stat().st_mtime_ns == written
    assert "resumed at step 1" in capsys.readouterr().out
    with pytest.raises(BadInput, match="different batch"):
        decoder.main([str(run), "--people", "1", "--steps", "2", "--batch", "1"])
    other = copy_model(tmp_path / "other")
    card = (other / "model.toml").read_text()
    (other / "model.toml").write_text(card.replace("guidance = 1.5", "guidance = 3.0"))
    with pytest.raises(BadInput, match="different card"):  # its latents were taken for those of the first
        decoder.main([str(run), "--people", "1", "--steps", "2", "--model", str(other)])

    pixels, weight, latents = decoder.PairCrops(run / "pairs", 2)[0]
    assert pixels.shape == (2, 3, 128, 128)
    assert weight.shape == (2, 1, 128, 128)
    assert latents.shape == (2, 16, 16, 16)
    image, full = pair["images"][0].permute(2, 0, 1).float().div(127.5).sub(1), pair["denoised"][0].float()
    places = [(y, x) for y in range(17) for x in range(17) if torch.equal(full[:, y : y + 16, x : x + 16], latents[0])]
    assert [torch.equal(image[:, 8 * y : 8 * y + 128, 8 * x : 8 * x + 128], pixels[0]) for y, x in places] == [True]
