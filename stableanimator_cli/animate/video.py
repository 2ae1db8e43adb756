"""Decode latents into the video and its preview, and measure the identity of the frames."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from stableanimator_cli.animate import identity_gate
from stableanimator_cli.animate.identity_gate import FaceSimilarity, IdentityMeter, PeopleIdentityMeter
from stableanimator_cli.engine.render import decode
from stableanimator_cli.media import AnimationWriter, FramesWriter, VideoWriter, WriterBehind, open_writer

if TYPE_CHECKING:
    from stableanimator_cli.animate.pipeline import AnimateJob


def identity_meter(job: AnimateJob) -> IdentityMeter | PeopleIdentityMeter:
    """Measures each person with a face of one's own if the motion shows several people, else the largest face."""
    people, motion = job.face.people, job.driving.people
    if people and motion is not None and len(motion.track) > 1:
        return PeopleIdentityMeter(job.engine.faces(), people, motion)
    assert job.face.vector is not None  # a gate without a face is refused before sampling
    return IdentityMeter(job.engine.faces(), job.face.vector)


def write_video(job: AnimateJob, latents: Tensor) -> FaceSimilarity | None:
    """Decode into the video and the preview. Returns the similarity curve of the preview, None without one.

    Both files are encoded in threads while the next frames are decoded.
    """
    config, request, fps = job.config, job.request, job.driving.fps
    height, width = request.resized.shape[:2]
    audio = job.driving.audio if config.audio == "keep" else None
    measures = config.has_preview_video and job.face.vector is not None and "face" in job.engine.model.files
    if config.has_preview_video and not measures:
        missing = "face in the reference" if job.face.vector is None else "face recogniser in the model"
        job.reporter.info(f"{config.preview_path.name} has no similarity curve: no {missing}")
    meter = identity_meter(job) if measures else None
    with contextlib.ExitStack() as stack:
        video = open_writer(
            config.output, (width, height), fps,
            audio_from=audio and audio[0], audio_range=audio and audio[1:], tag={"sa.kind": "animation"},
        )  # fmt: skip
        silent = ", without sound" if audio else ""
        if isinstance(video, AnimationWriter):
            job.reporter.info(f"{config.output.name}: {video.duration:.4g} ms per frame{silent}")
        elif isinstance(video, FramesWriter):
            job.reporter.info(f"{config.output}: one PNG file per frame, numbered from 0{silent}")
        writer = stack.enter_context(WriterBehind(video))
        preview = None
        if config.has_preview_video:
            size = (3 * width, height + (identity_gate.STRIP if meter else 0))
            preview = stack.enter_context(WriterBehind(VideoWriter(config.preview_path, size, fps)))
        bar = stack.enter_context(job.reporter.progress(request.frames, "decode", "frame"))
        for index, frame in enumerate(decode(job.engine, request, latents, job.timings)):
            writer.write(frame)
            if preview is not None:
                row = np.concatenate([request.resized, request.poses.frame(index + request.has_anchor), frame], axis=1)
                if meter is not None:
                    meter.add(frame)
                    row = np.concatenate([row, identity_gate.strip(meter.curves, request.frames, 3 * width)])
                preview.write(row)
            bar.update()
    if meter is None:
        return None
    identity = meter.result()
    if config.refine.min_csim is not None:  # the gate has reported missing faces
        return identity
    name = config.preview_path.name
    if identity.frames_with_face == 0:
        job.reporter.warning(f"{name} has an empty similarity curve: no frame of the video shows a face")
    elif identity.hidden:
        job.reporter.warning(f"{name} has no similarity curve of person {identity.hidden}, who shows no face")
    return identity
