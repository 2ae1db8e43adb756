"""What a model was trained without decides how it is run: a checkpoint's ``[training]`` table is held to.

A UNet whose adapters were trained to add face features as they are says nothing about features that are aligned, and
a network that never saw face tokens makes noise of them. Who wants to see that has to say so.
"""

from __future__ import annotations

from stableanimator_cli.catalogue import schema
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.records import ModelFolder


def uses_face(config: AnimateConfig, model: ModelFolder) -> bool:
    """Whether the face's vector goes into the UNet. Raises ``ConfigError`` where ``--id-adapter`` is another than the
    model was trained with, unless ``--force-ablation`` is given; then the face is used too, whatever was trained.

    A Face Encoder that was trained away is a matter of the checkpoint's own config (``fusion``), and needs nothing.
    """
    if config.force_ablation or not (model.path / schema.FILE_NAME).is_file():
        return True
    training = schema.read(model.path).training
    trained, asked = training.get("id_adapter"), config.id_adapter
    if trained is not None and asked is not None and asked != trained:
        hint = "leave --id-adapter out, or add --force-ablation to see what comes of it"
        raise ConfigError("--id-adapter", asked, f"{trained}, which {model.name} was trained with", hint=hint)
    return training.get("face") != "off"
