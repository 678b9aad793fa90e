"""Sound on jobs, and jobs that only change a finished video's sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.test import Client

from billing import ledger
from billing.models import Account
from jobs import intake
from jobs.errors import InvalidRequest, NotAcceptableNow
from jobs.models import Job
from jobs.requests import Picture, Sound
from jobs.states import Status
from tests.factories import (
    credential,
    make_account,
    make_job,
    make_key,
    make_request,
    png,
)
from tests.inference.media import sounds
from tests.jobs.finishing import (
    PHOTO,
    FileServer,
    download,
    facts,
    frames,
    site,
    work,
    world,
)

__all__ = ["site", "world"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

CLIP: dict[str, Any] = {"seconds": 1, "tier": "480p", "fps": 8}


@pytest.fixture
def alice() -> Account:
    return make_account("alice", credits=100)


def available(account: Account) -> int:
    return ledger.balance(account_id=account.pk, mode="live").available_millicredits


def finished(account: Account, **options: Any) -> Job:
    job = work(make_job(account, **CLIP, **options))
    assert job.status == Status.SUCCEEDED, job.error_detail
    return job


def again(job: Job, account: Account, sound: Sound, **options: Any) -> Job:
    return intake.submit_audio(
        job, sound, credential=credential(account), dialect="native", **options
    )


def a_tone(site: FileServer, *, seconds: float = 4.0, kind: str = "wav") -> str:
    sounds.write_sound(
        site.folder / f"tone.{kind}", sounds.tone(seconds, hz=1000), kind=kind
    )
    return site.url(f"tone.{kind}")


def loudest_hz(path: Path) -> float:
    samples, _ = sounds.read_sound(path)
    spectrum = np.abs(np.fft.rfft(samples[:, 0]))
    return float(np.fft.rfftfreq(len(samples), 1 / sounds.RATE)[spectrum.argmax()])


@pytest.mark.parametrize("kind", ["mp3", "flac"])
def test_the_customers_sound_is_under_the_video(
    alice: Account, site: FileServer, tmp_path: Path, kind: str
) -> None:
    url = a_tone(site, kind=kind)
    job = finished(alice, audio=Sound("url", url))
    path = download(job, tmp_path)
    found = facts(path)
    assert found.has_audio
    assert abs(found.audio_seconds - found.seconds) <= 1 / 8
    assert loudest_hz(path) == pytest.approx(1000, abs=5)
    assert job.output["notes"]["audio"]["by"] == "customer"


def test_generated_sound_comes_from_the_prompt(alice: Account, tmp_path: Path) -> None:
    job = finished(alice, audio=Sound("generate"), prompt="waves at the sea")
    assert facts(download(job, tmp_path)).has_audio
    told = job.output["notes"]["audio"]
    assert (told["by"], told["scenes"]) == ("ambience", ["sea"])
    assert -40 < told["rms_db"] < -10


def playlist(site: FileServer) -> bytes:
    return f"#EXTM3U\n#EXTINF:4,\n{a_tone(site)}\n".encode()


def video(site: FileServer) -> bytes:
    made = sounds.write_video(site.folder / "made.mp4")
    return bytes(made.read_bytes())


def too_short(site: FileServer) -> bytes:
    a_tone(site, seconds=1)
    return (site.folder / "tone.wav").read_bytes()


def too_long(site: FileServer) -> bytes:
    a_tone(site, seconds=31)
    return (site.folder / "tone.wav").read_bytes()


def silent(site: FileServer) -> bytes:
    made = sounds.write_sound(
        site.folder / "silent.wav", sounds.tone(4, level=0.0), kind="wav"
    )
    return bytes(made.read_bytes())


def corrupt(site: FileServer) -> bytes:
    a_tone(site, kind="flac")
    whole = (site.folder / "tone.flac").read_bytes()
    return whole[:200] + b"\x00garbage" * 400


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (corrupt, "sound file"),
        (silent, "silent"),
        (too_short, "1.0 s"),
        (too_long, "sound file"),
        (video, "sound file"),
        (playlist, "wav, mp3"),
        (lambda _: b"RIFF" + b"\0" * (15 * 2**20 - 3), "15 MB"),
        (lambda _: b"", "sound file"),
    ],
    ids=["corrupt", "silent", "short", "long", "video", "playlist", "large", "empty"],
)
def test_a_file_that_is_no_usable_sound_fails_the_job_and_refunds_it(
    alice: Account, site: FileServer, make: Any, says: str
) -> None:
    url = site.put("given.wav", make(site))
    job = work(make_job(alice, **CLIP, audio=Sound("url", url)))
    assert job.status == Status.FAILED
    assert job.error_code == "audio_invalid"
    assert says in job.error_message
    assert available(alice) == 100_000


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/a.mp3",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/a.mp3",
    ],
)
def test_a_sound_at_an_inner_address_is_not_fetched(alice: Account, url: str) -> None:
    job = work(make_job(alice, **CLIP, audio=Sound("url", url)))
    assert (job.status, job.error_code) == (Status.FAILED, "invalid_url")
    assert available(alice) == 100_000


def test_a_sound_that_redirects_inside_is_not_followed(
    alice: Account, site: FileServer
) -> None:
    folder = site.folder / "inner"
    folder.mkdir()  # answered with a redirect to inner/, then with a listing
    job = work(make_job(alice, **CLIP, audio=Sound("url", site.url("inner"))))
    assert job.status == Status.FAILED
    assert available(alice) == 100_000


# ------------------------------------------------------------------ audio-only jobs


def test_a_finished_video_gets_another_sound_as_a_job_of_its_own(
    alice: Account, site: FileServer, tmp_path: Path
) -> None:
    picture = Picture(data=PHOTO.read_bytes(), size=(451, 300))
    source = finished(alice, image=picture)
    before = frames(download(source, tmp_path))
    spent = 100_000 - available(alice)
    job = again(source, alice, Sound("url", a_tone(site)))
    assert (job.kind, job.source_id) == ("audio", source.pk)
    assert job.quoted_millicredits == 1000
    job = work(job)
    assert job.status == Status.SUCCEEDED, job.error_detail
    assert available(alice) == 100_000 - spent - 1000
    path = download(job, tmp_path)
    assert loudest_hz(path) == pytest.approx(1000, abs=5)
    after = frames(path)
    assert len(after) == len(before)
    # Not one packet of the picture was encoded anew.
    assert all(np.array_equal(one, two) for one, two in zip(before, after, strict=True))
    source.refresh_from_db()
    assert not source.output["has_audio"]


def test_an_audio_only_job_is_seen_running_and_its_file_is_signed_anew(
    alice: Account,
) -> None:
    source = finished(alice, prompt="rain on a roof")
    job = work(again(source, alice, Sound("generate")))
    assert job.started_at is not None
    notes = job.output["notes"]
    assert notes["audio"]["scenes"] == ["rain"]
    assert notes["provenance"]["valid"]
    assert (job.output["width"], job.output["frames"]) == (
        source.output["width"],
        source.output["frames"],
    )
    assert notes["remuxed"]


def test_the_sound_of_an_audio_only_job_can_be_changed_again(alice: Account) -> None:
    source = finished(alice, prompt="wind")
    first = work(again(source, alice, Sound("generate")))
    second = work(again(first, alice, Sound("generate")))
    assert second.status == Status.SUCCEEDED
    assert second.output["notes"]["audio"]["seed"] != first.resolved.get("seed")


def test_an_unfinished_or_deleted_video_gets_no_sound(alice: Account) -> None:
    waiting = make_job(alice, **CLIP)
    with pytest.raises(NotAcceptableNow):
        again(waiting, alice, Sound("generate"))
    assert Job.objects.count() == 1


def test_no_sound_is_no_sound_to_add(alice: Account) -> None:
    job = make_job(alice, **CLIP)
    with pytest.raises(InvalidRequest):
        again(job, alice, Sound("none"))


def test_a_bad_sound_fails_the_audio_job_and_leaves_the_video(
    alice: Account, site: FileServer
) -> None:
    source = finished(alice)
    left = available(alice)
    url = site.put("bad.wav", b"not a sound at all")
    job = work(again(source, alice, Sound("url", url)))
    assert (job.status, job.error_code) == (Status.FAILED, "audio_invalid")
    assert available(alice) == left
    source.refresh_from_db()
    assert source.status == Status.SUCCEEDED


class Api:
    def __init__(self, account: Account) -> None:
        self.headers = {"Authorization": f"Bearer {make_key(account)}"}
        self.client = Client(raise_request_exception=False)

    def post(self, path: str, body: Any) -> Any:
        return self.client.post(
            path, body, content_type="application/json", headers=self.headers
        )


def test_the_native_call_adds_sound_and_links_the_jobs(alice: Account) -> None:
    source = finished(alice)
    api = Api(alice)
    answer = api.post(f"/v1/jobs/{source.pk}/audio", {"audio": "generate"})
    assert answer.status_code == 202, answer.content
    body = answer.json()
    assert (body["kind"], body["source_id"]) == ("audio", str(source.pk))
    assert body["credits"]["quoted"] == 1.0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "audio"),
        ({"audio": "none"}, "audio.mode"),
        ({"audio": {"mode": "url"}}, "audio.url"),
        ({"audio": {"url": "file:///etc/passwd"}}, "audio.url"),
        ({"audio": "generate", "extra": 1}, "extra"),
    ],
)
def test_a_wrong_audio_call_names_the_field(
    alice: Account, body: Any, field: str
) -> None:
    source = finished(alice)
    answer = Api(alice).post(f"/v1/jobs/{source.pk}/audio", body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


def test_anothers_video_is_an_unknown_one(alice: Account) -> None:
    source = make_job(alice, **CLIP)
    mallory = Api(make_account("mallory", credits=100))
    answer = mallory.post(f"/v1/jobs/{source.pk}/audio", {"audio": "generate"})
    assert answer.status_code == 404


def test_akools_update_of_the_sound_answers_a_new_record(alice: Account) -> None:
    source = intake.submit(
        make_akool_request(),
        credential=credential(alice),
        dialect="akool",
        public_id="65f000000000000000000001",
    )
    work(source)
    api = Api(alice)
    answer = api.post(
        "/api/open/v4/image2Video/updateVideoAudio",
        {"pre_video_id": source.public_id, "audio_type": 1},
    ).json()
    assert answer["code"] == 1000
    data = answer["data"]
    assert data["pre_video_id"] == source.public_id
    assert data["_id"] != source.public_id
    assert (data["only_add_audio"], data["status"], data["audio_type"]) == (True, 1, 1)


def make_akool_request() -> Any:
    return make_request(**CLIP, image=Picture(data=png(), size=(96, 64)))
