from __future__ import annotations

import http.server
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import av
import pytest

from inference.errors import EngineFailed
from inference.media import provenance
from inference.media.audio import Sound, fit, mux, write_track
from tests.inference.media.sounds import tone, write_video


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    return provenance.development_credential(tmp_path_factory.mktemp("home") / "sign")


@pytest.fixture
def clip(tmp_path):
    video = write_video(tmp_path / "v.mp4", frames=48)
    write_track(fit(Sound(tone(3)), seconds=3), tmp_path / "sound.m4a")
    mux(video, tmp_path / "sound.m4a", tmp_path / "clip.mp4")
    return tmp_path / "clip.mp4"


def _sign(clip, signer, *, generated=True):
    target = clip.with_name("signed.mp4")
    told = provenance.sign(
        clip,
        target,
        signer=signer,
        model="wan2.2-i2v",
        reference="job_7",
        generated=generated,
    )
    return target, told


@pytest.mark.parametrize(
    ("generated", "source_type"),
    [(True, "trainedAlgorithmicMedia"), (False, "algorithmicallyEnhanced")],
)
def test_a_file_says_who_made_it_and_how(clip, signer, generated, source_type):
    target, told = _sign(clip, signer, generated=generated)
    read = provenance.read_manifest(target)
    assert read is not None
    assert read == told
    assert (read.model, read.reference, read.generator) == (
        "wan2.2-i2v",
        "job_7",
        "Zoetrope",
    )
    assert read.source_type.endswith("/" + source_type)


def test_with_the_development_certificate_it_is_valid_but_untrusted(clip, signer):
    _, told = _sign(clip, signer)
    assert told.valid
    assert not told.trusted
    assert told.problems == ()
    assert told.summary()["signer"] == "Zoetrope (development)"


def test_a_signed_file_still_plays_and_keeps_its_index_first(clip, signer):
    target, _ = _sign(clip, signer)

    def content(path):
        with av.open(str(path)) as box:
            return [(p.stream.type, p.pts, bytes(p)) for p in box.demux() if p.size]

    assert content(target) == content(clip)
    data = target.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert target.stat().st_size - clip.stat().st_size < 20_000
    with av.open(str(target)) as box:
        assert sum(1 for _ in box.decode(video=0)) == 48


def test_one_changed_bit_makes_it_invalid(clip, signer):
    target, _ = _sign(clip, signer)
    data = bytearray(target.read_bytes())
    data[-500] ^= 1
    target.write_bytes(data)
    read = provenance.read_manifest(target)
    assert read is not None
    assert not read.valid
    assert "assertion.bmffHash.mismatch" in read.problems


def test_a_file_without_a_manifest_reads_as_none(clip):
    assert provenance.read_manifest(clip) is None


def test_what_is_no_video_cannot_be_signed(tmp_path, signer):
    (tmp_path / "in.mp4").write_bytes(b"not a video at all" * 100)
    with pytest.raises(EngineFailed):
        _sign(tmp_path / "in.mp4", signer)


def test_the_development_certificate_is_made_once_and_kept_private(tmp_path):
    folder = tmp_path / "home" / "signing"
    first = provenance.development_credential(folder)
    assert provenance.development_credential(folder) == first
    assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
    assert first.key not in repr(first)


def test_many_processes_starting_at_once_agree_on_one_certificate(tmp_path):
    folder = tmp_path / "signing"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(provenance.development_credential, [folder] * 8))
    assert len({credential.chain for credential in made}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["signing"]


def test_the_operators_certificate_is_used_when_named(clip, signer, tmp_path):
    (tmp_path / "chain.pem").write_text(signer.chain)
    (tmp_path / "key.pem").write_text(signer.key)
    named = provenance.credential(
        {
            "certificate": str(tmp_path / "chain.pem"),
            "private_key": str(tmp_path / "key.pem"),
        },
        home=tmp_path / "never",
    )
    assert named.chain == signer.chain
    assert not (tmp_path / "never").exists()
    assert _sign(clip, named)[1].valid


def test_a_key_that_does_not_fit_its_certificate_is_refused_at_start(tmp_path, signer):
    other = provenance.development_credential(tmp_path / "other")
    (tmp_path / "chain.pem").write_text(signer.chain)
    (tmp_path / "key.pem").write_text(other.key)
    with pytest.raises(ValueError, match="is not the key of"):
        provenance.Credential.load(tmp_path / "chain.pem", tmp_path / "key.pem")
    with pytest.raises(ValueError, match="both"):
        provenance.credential({"certificate": "x"}, home=tmp_path)


class StampServer:
    """Counts its callers and answers none of them well."""

    def __init__(self):
        outer, self.calls = self, 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                outer.calls += 1
                self.send_error(503)

            def log_message(self, *_):
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


def test_a_time_stamp_server_that_is_away_holds_up_no_file(clip, signer, caplog):
    server = StampServer()
    try:
        stamped = replace(signer, timestamp_url=server.url)
        for _ in range(3):
            _, told = _sign(clip, stamped)
            assert told.valid
            assert told.summary()["timestamped"] is False
    finally:
        server.stop()
    assert server.calls == 1  # then it is left alone for a while
    assert "without a time stamp" in caplog.text
