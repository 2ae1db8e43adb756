"""Audio of a video that is being written: copied if MP4 can hold it, else encoded as AAC.

Times are seconds after the first frame of the source's video, the clock of ``records.Clip``. Packets are muxed along
with the frames, so the file is interleaved for players and no audio accumulates in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet

from stableanimator_cli.errors import BadInput, system_reason
from stableanimator_cli.media.decode import audio_stream, first_time, open_container

_COPIED = frozenset({"aac", "mp3", "ac3", "eac3", "alac"})
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_JOINED = Fraction(1, 20)  # smaller jumps of the clock are rounding, larger ones silence or an overlap


class AudioTrack:
    """Copies or encodes the audio of ``source`` into ``output``; a context manager that closes the source.

    ``start`` and ``end`` are a range in seconds; ``end`` ``None`` is the end of the audio. A source without audio that
    can be decoded adds no stream. Create it before the first packet is muxed. Raises ``BadInput`` naming the source.
    """

    def __init__(self, source: Path, output: OutputContainer, start: Fraction, end: Fraction | None) -> None:
        self.source = source
        self.output = output
        self.length = None if end is None else end - start
        self.origin = first_time(source) + start
        self.input: InputContainer = open_container(source)
        self.stream = audio_stream(self.input)
        self.pending: tuple[Fraction, Packet | np.ndarray] | None = None
        if self.stream is None:
            return
        self.copies = self.stream.codec_context.codec.canonical_name in _COPIED
        if self.copies:
            self.target = output.add_stream_from_template(self.stream)
            self.parts: Iterator[tuple[Fraction, Packet | np.ndarray]] = self._packets(self.stream)
        else:
            self.rate = self.stream.rate if self.stream.rate in _AAC_RATES else 48000
            self.layout = "mono" if self.stream.channels == 1 else "stereo"
            self.target = output.add_stream("aac", rate=self.rate, layout=self.layout)
            self.parts = self._samples(self.stream)

    def __enter__(self) -> AudioTrack:
        return self

    def __exit__(self, *raised: object) -> None:
        self.input.close()

    def pump(self, until: Fraction) -> None:
        """Mux the audio that starts before ``until`` seconds of the new video."""
        if self.stream is None:
            return
        limit = until if self.length is None else min(until, self.length)
        while True:
            if self.pending is None:
                self.pending = next(self.parts, None)
            if self.pending is None or self.pending[0] >= limit:
                return
            time, part = self.pending
            self.pending = None
            if isinstance(part, Packet):
                self.output.mux(part)
            else:
                fit = max(0, round((limit - time) * self.rate))
                if fit < part.shape[1]:
                    self.pending = (time + Fraction(fit, self.rate), part[:, fit:])
                self._encode(time, part[:, :fit])
                if self.pending is not None:
                    return

    def finish(self, until: Fraction) -> None:
        """Mux the rest up to ``until``, the end of the video, which audio never exceeds."""
        self.pump(until)
        if self.stream is not None and not self.copies:
            self.output.mux(self.target.encode(None))

    def _packets(self, stream: AudioStream) -> Iterator[tuple[Fraction, Packet | np.ndarray]]:
        base = Fraction(stream.time_base or 1)
        shift = round(self.origin / base)
        # Lapped transforms need the packet before the first one; the container's edit list hides its audio.
        for packet in self._read(stream):
            if packet.dts is None or packet.pts is None:
                continue
            span = (packet.duration or 0) * base
            time = packet.pts * base - self.origin
            if time + 2 * span <= 0:
                continue
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = self.target
            yield time, packet

    def _samples(self, stream: AudioStream) -> Iterator[tuple[Fraction, Packet | np.ndarray]]:
        resampler = AudioResampler(format="fltp", layout=self.layout, rate=self.rate)
        base = Fraction(stream.time_base or 1)
        written: int | None = None
        for packet in self._read(stream):
            for frame in self._decode(packet):
                time = Fraction(0) if frame.pts is None else frame.pts * Fraction(frame.time_base or base) - self.origin
                at = round(time * self.rate)
                parts = [part.to_ndarray() for part in resampler.resample(frame)]
                sound = np.concatenate(parts, axis=1) if parts else np.zeros((self.target.channels, 0), np.float32)
                if written is None:
                    written = at
                if at - written > _JOINED * self.rate:
                    sound = np.concatenate([np.zeros((len(sound), at - written), np.float32), sound], axis=1)
                elif written - at > _JOINED * self.rate:
                    sound = sound[:, written - at :]
                begin, late = written, max(0, -written)
                written = begin + sound.shape[1]
                if sound.shape[1] > late:
                    yield Fraction(begin + late, self.rate), sound[:, late:]

    def _read(self, stream: AudioStream) -> Iterator[Packet]:
        try:
            yield from self.input.demux(stream)
        except FFmpegError as error:
            raise self._broken(error) from error

    def _decode(self, packet: Packet) -> list[AudioFrame]:
        try:
            return list(packet.decode())
        except InvalidDataError as error:
            raise self._broken(error) from error

    def _broken(self, error: FFmpegError) -> BadInput:
        reason = system_reason(error)
        return BadInput(
            self.source, f"sound that cannot be read ({reason})", "complete sound", hint="leave the sound out"
        )

    def _encode(self, time: Fraction, sound: np.ndarray) -> None:
        if sound.shape[1] == 0:
            return
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(sound, np.float32), format="fltp", layout=self.layout)
        frame.sample_rate = self.rate
        frame.time_base = Fraction(1, self.rate)
        frame.pts = round(time * self.rate)
        self.output.mux(self.target.encode(frame))
