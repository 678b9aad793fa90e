"""Decode one untrusted sound file; run as a script, in its own limited process.

``python -I audio_child.py SOURCE TARGET FORMAT MAX_SECONDS MEMORY_BYTES CPU_SECONDS``
writes interleaved stereo float32 at 48 kHz to TARGET and one line of JSON to stdout:
``{"ok": true, …}`` or ``{"ok": false, "reason": …}``. It imports nothing of ours, opens
SOURCE as bytes and gives FFmpeg neither a name nor a protocol, so a file that points
elsewhere (playlists, data references) leads nowhere.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
from pathlib import Path

RATE = 48_000
CODECS = ("pcm_", "mp3", "aac", "alac", "vorbis", "opus", "flac")


class Refused(Exception):
    pass


def limit(*, memory_bytes: int, cpu_seconds: int, file_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def decode(
    source: Path, target: Path, *, container_format: str, max_seconds: float
) -> dict[str, object]:
    import av
    from av.stream import Disposition

    data = source.read_bytes()
    if container_format == "wav":
        promised = int.from_bytes(data[4:8], "little")
        # A recorder that streams writes 0 or the largest number and means "unknown".
        if len(data) < promised * 0.9 < 0x7000_0000:
            raise Refused("is cut short")
    options = {"protocol_whitelist": "none", "enable_drefs": "0"}
    with av.open(
        io.BytesIO(data), "r", format=container_format, options=options
    ) as box:
        for stream in box.streams:
            cover = stream.disposition & Disposition.attached_pic
            if stream.type == "video" and not cover:
                raise Refused("is a video, not a sound file")
        if len(box.streams.audio) != 1:
            raise Refused("must hold exactly one sound track")
        track = box.streams.audio[0]
        context = track.codec_context
        if not context.name.startswith(CODECS):
            raise Refused(f"uses the codec {context.name}, which is not accepted")
        if not 4_000 <= track.rate <= 192_000 or not 1 <= track.channels <= 8:
            raise Refused("has an impossible sample rate or channel count")
        context.thread_count = 1
        declared = (
            float(track.duration * track.time_base)
            if track.duration and track.time_base
            else None
        )

        resampler = av.AudioResampler(format="flt", layout="stereo", rate=RATE)
        samples = packets = bad = 0
        most = int(max_seconds * RATE)
        with target.open("wb") as out:

            def keep(frame: av.AudioFrame | None) -> None:
                nonlocal samples
                for piece in resampler.resample(frame):
                    # The plane may be padded past the samples it holds.
                    out.write(bytes(piece.planes[0])[: piece.samples * 8])
                    samples += piece.samples
                if samples > most:
                    raise Refused("is too long")

            for packet in box.demux(track):
                packets += packet.size > 0
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    bad += 1
                    continue
                for frame in frames:
                    keep(frame)
            if samples:
                keep(None)
    # A cut tag or a last half packet is common in the wild; more is damage.
    if samples == 0 or bad > max(1, packets // 50):
        raise Refused("is damaged")
    if container_format != "mp3" and declared and samples / RATE < 0.9 * declared - 0.2:
        raise Refused("is cut short")
    return {"codec": context.name, "seconds": samples / RATE}


def main(arguments: list[str]) -> int:
    source, target, container_format, max_seconds, memory, cpu = arguments
    import av
    import numpy as np  # noqa: F401  PyAV wants it; load it before memory is limited

    av.logging.set_level(av.logging.PANIC)
    limit(
        memory_bytes=int(memory),
        cpu_seconds=int(cpu),
        file_bytes=int((float(max_seconds) + 2) * RATE * 8),
    )
    answer: dict[str, object]
    try:
        facts = decode(
            Path(source),
            Path(target),
            container_format=container_format,
            max_seconds=float(max_seconds),
        )
        answer = {"ok": True, **facts}
    except Refused as refusal:
        answer = {"ok": False, "reason": str(refusal)}
    except (av.error.FFmpegError, ValueError, EOFError, MemoryError) as error:
        answer = {
            "ok": False,
            "reason": "cannot be decoded",
            "detail": f"{type(error).__name__}: {error}"[:300],
        }
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
