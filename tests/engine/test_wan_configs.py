"""The configs of Wan-Animate in the catalogue: networks of the sizes that the cards state, built on the meta device."""

from __future__ import annotations

import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.engine.backbones import backbone_of
from stableanimator_cli.engine.weights import build_on_meta

PARAMETERS = {
    "wan-animate": (17_274_816_884, 1443),
    "wan-animate-2": (16_394_878_784, 1303),
    "wan-animate-2-distilled": (16_394_878_784, 1303),
}
OTHERS = {"text_encoder": 5_680_910_336, "image_encoder": 630_766_080, "vae": 126_892_531}


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_sizes_of_the_card(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SA_HOME", str(tmp_path))
    model = catalogue.plan_model(name)
    built = backbone_of(model).builders(model, "distribution")
    networks = {role: build_on_meta(build) for role, build in built.items()}
    found = {role: sum(parameter.numel() for parameter in net.parameters()) for role, net in networks.items()}
    parameters, tensors = PARAMETERS[name]
    assert found == {"transformer": parameters, **OTHERS}
    assert len(networks["transformer"].state_dict()) == tensors
    entry = catalogue.entry(name)
    card = (entry.folder / "CARD.md").read_text(encoding="utf-8")
    if name != "wan-animate-2-distilled":  # whose card refers to the other's
        assert f"{parameters:,} parameters in {tensors} tensors" in card.replace("\n  ", " ")
        assert all(f"{count:,}" in card for count in OTHERS.values())
    recorded = {row.path: row.bytes for row in entry.files}
    if recorded["vae/diffusion_pytorch_model.safetensors"] is not None:  # float32, and a header
        assert 0 < recorded["vae/diffusion_pytorch_model.safetensors"] - 4 * OTHERS["vae"] < 100_000
