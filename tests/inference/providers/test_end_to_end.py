"""Each adapter against its fake: the whole way, and every way it can go wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from inference.egress import Egress
from inference.errors import AnswerLost, Fault, ProviderError, ResultAway
from inference.providers import results, transport
from inference.providers.base import (
    CallbackRefused,
    Evidence,
    FindQuery,
    HttpCall,
    Picture,
    ProviderAccount,
    ProviderJob,
    RemoteStatus,
)
from inference.providers.pictures import fit_picture
from tests.fakes import FakeService, start
from tests.fakes.server import Reply, Request, Server
from tests.inference.providers.samples import (
    PROVIDERS,
    account_at,
    make_job,
    make_png,
    provider,
)

every_provider = pytest.mark.parametrize("name", PROVIDERS)
PHOTO = Path(__file__).parents[2] / "photos" / "coffee.jpg"
MAX_BYTES = 20_000_000
EGRESS = Egress()


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with transport.client() as client:
        yield client


@pytest.fixture
def fake(name: str) -> Iterator[FakeService]:
    # The service's clock moves by ``advance`` alone, as far as a test can tell.
    with start(name, video_side=64, queued_seconds=60, running_seconds=60) as service:
        yield service


class Receiver:
    """Our own side of callbacks: keeps what comes in."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes, dict[str, str]]] = []
        self.answers: list[int] = []
        self.came = threading.Condition()
        self._server = Server(self._take)

    def _take(self, request: Request) -> Reply:
        with self.came:
            self.bodies.append((request.path, request.body, request.headers))
            self.came.notify_all()
            return Reply(self.answers.pop(0) if self.answers else 200, {})

    def wait(self, count: int) -> list[tuple[str, bytes, dict[str, str]]]:
        with self.came:
            assert self.came.wait_for(lambda: len(self.bodies) >= count, 10)
        return self.bodies

    @property
    def url(self) -> str:
        return f"{self._server.url}/cb/token-1"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    listening = Receiver()
    listening._server.start()
    yield listening
    listening._server.stop()


def finish(
    fake: FakeService, http: httpx.Client, job_id: str, account: ProviderAccount
) -> RemoteStatus:
    fake.advance(fake.queued_seconds + fake.running_seconds + 1)
    return transport.status(http, provider(fake.name), [job_id], account)[job_id]


def fetch(
    status: RemoteStatus, account: ProviderAccount, http: httpx.Client, target: Path
) -> int:
    return results.download(
        status,
        account,
        target,
        egress=EGRESS,
        http=http,
        max_bytes=MAX_BYTES,
        deadline_seconds=20,
    )


# ------------------------------------------------------------------ the whole way


@every_provider
def test_a_picture_becomes_a_playable_video(name, fake, http, tmp_path):
    adapter, account = provider(name), account_at(fake)
    facts = next(iter(adapter.models.values()))
    mode: Any = "generate" if "generate" in facts.audio else "none"
    job = make_job(name, audio_mode=mode)
    submitted = transport.submit(http, adapter, job, account)
    one = [submitted.provider_id]

    states = [transport.status(http, adapter, one, account)[one[0]].state]
    fake.advance(fake.queued_seconds)
    states.append(transport.status(http, adapter, one, account)[one[0]].state)
    status = finish(fake, http, one[0], account)
    assert [*states, status.state] == ["queued", "running", "succeeded"]

    target = tmp_path / "out.mp4"
    fetch(status, account, http, target)
    with av.open(target) as clip:
        video = clip.streams.video[0]
        frames = sum(1 for _ in clip.decode(video=0))
        assert frames / float(video.average_rate or 1) >= job.seconds
        assert bool(clip.streams.audio) is (mode == "generate")


def test_the_video_shows_the_picture_that_was_sent_by_url(http, tmp_path):
    photo = PHOTO.read_bytes()
    files = Server(lambda request: Reply(200, photo, content_type="image/jpeg"))
    files.start()
    with start("novita", video_side=128) as fake:
        account = account_at(fake)
        job = make_job("novita", image=Picture(url=f"{files.url}/signed.png?sig=1"))
        submitted = transport.submit(http, provider("novita"), job, account)
        status = finish(fake, http, submitted.provider_id, account)
        fetch(status, account, http, tmp_path / "out.mp4")
    files.stop()
    with av.open(tmp_path / "out.mp4") as clip:
        frame = next(clip.decode(video=0)).to_ndarray(format="rgb24")
    size = (frame.shape[1], frame.shape[0])
    wanted = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB").resize(size))
    assert np.abs(frame.astype(int) - wanted).mean() < 12


def test_a_padded_picture_is_what_an_openai_server_receives(http):
    adapter = provider("openai_videos")
    with start("openai_videos") as fake:
        account = account_at(fake)
        job = make_job("openai_videos")
        canvas = adapter.canvas(job, account)
        picture = fit_picture(
            make_png((400, 300)), adapter.capabilities.picture, canvas
        )
        submitted = transport.submit(http, adapter, job.replace(image=picture), account)
        received = fake.jobs[submitted.provider_id].picture
    assert isinstance(received, bytes)
    assert Image.open(io.BytesIO(received)).size == (1280, 720)


def test_the_poller_asks_about_many_jobs_in_one_call(http):
    async def poll(ids: list[str], account: ProviderAccount) -> dict[str, RemoteStatus]:
        async with transport.async_client() as client:
            return await transport.status_async(client, adapter, ids, account)

    adapter = provider("akool")
    with start("akool", queued_seconds=60) as fake:
        account = account_at(fake)
        ids = [
            transport.submit(http, adapter, make_job("akool"), account).provider_id
            for _ in range(5)
        ]
        states = asyncio.run(poll([*ids, "0" * 24], account))
        assert len(fake.calls_to("status")) == 1
    assert [states[one].state for one in ids] == ["queued"] * 5
    assert states["0" * 24].state == "unknown"


@every_provider
def test_an_id_the_provider_never_gave_is_unknown(name, fake, http):
    asked = transport.status(http, provider(name), ["never-given"], account_at(fake))
    assert asked["never-given"].state == "unknown"


@every_provider
def test_another_accounts_job_is_unknown(name, fake, http):
    adapter, account = provider(name), account_at(fake)
    given = transport.submit(http, adapter, make_job(name), account).provider_id
    other = dataclasses.replace(
        account, credentials={n: f"{v}x" for n, v in account.credentials.items()}
    )
    assert transport.status(http, adapter, [given], other)[given].state == "unknown"


# ------------------------------------------------------------------ submits that go wrong

REFUSED = {
    "429": Fault.BUSY,
    "503": Fault.HEALTH,
    "500": Fault.HEALTH,
}


@every_provider
@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_submit_left_no_job_behind(name, kind, fake, http):
    adapter, account = provider(name), account_at(fake)
    fake.script("submit", kind, retry_after="17")
    with pytest.raises(ProviderError) as refused:
        transport.submit(http, adapter, make_job(name), account)
    assert not isinstance(refused.value, AnswerLost)
    assert refused.value.fault is REFUSED[kind]
    assert not fake.jobs
    if name != "openai_videos" or kind != "429":  # it counts in milliseconds
        assert refused.value.retry_after_seconds == 17
    transport.submit(http, adapter, make_job(name), account)


@every_provider
@pytest.mark.parametrize("kind", ["lost", "refuse", "garbage", "empty", "html", "502"])
def test_a_submit_without_a_clear_answer_is_in_doubt(name, kind, fake, http):
    fake.script("submit", kind)
    with pytest.raises(AnswerLost):
        transport.submit(http, provider(name), make_job(name), account_at(fake))
    assert len(fake.calls_to("submit")) == 1  # never sent twice


@every_provider
def test_a_submit_that_takes_too_long_is_in_doubt(name, fake, http):
    adapter, account = provider(name), account_at(fake)
    fake.script("submit", "slow:3")
    call = adapter.build_submit(make_job(name), account)
    with pytest.raises(AnswerLost):
        transport.send(http, dataclasses.replace(call, timeout_seconds=0.3))


@pytest.mark.parametrize("value", ["quux\n", "\u201cquux\u201d", "quux "])
@pytest.mark.parametrize("name", ["novita"])
def test_a_submit_that_no_header_can_hold_never_left(name, value, fake, http):
    call = HttpCall("POST", fake.url, {"X-Workspace": value}, json={})
    with pytest.raises(ProviderError) as refused:
        transport.send(http, call)
    assert not isinstance(refused.value, AnswerLost)
    assert refused.value.fault is Fault.ACCOUNT
    assert "quux" not in str(refused.value)
    assert not fake.calls


@every_provider
def test_a_submit_to_a_port_where_nobody_listens_never_left(name, http):
    with start(name) as fake:
        account = account_at(fake)
    with pytest.raises(ProviderError) as refused:
        transport.submit(http, provider(name), make_job(name), account)
    assert not isinstance(refused.value, AnswerLost)
    assert refused.value.fault is Fault.HEALTH


@every_provider
@pytest.mark.parametrize("key", ["sk-invalid", "sk-broke"])
def test_a_bad_key_or_an_empty_purse_is_the_accounts_fault(name, key, fake, http):
    account = account_at(fake)
    account = dataclasses.replace(
        account,
        credentials={**account.credentials, "api_key": key, "client_secret": key},
    )
    with pytest.raises(ProviderError) as refused:
        transport.submit(http, provider(name), make_job(name), account)
    assert refused.value.fault is Fault.ACCOUNT


# ------------------------------------------------------------------ lost answers


@pytest.mark.parametrize(
    "name",
    [n for n in PROVIDERS if provider(n).capabilities.evidence is Evidence.TASK_LIST],
)
def test_a_lost_answer_is_found_in_the_list(name, fake, http):
    adapter, account = provider(name), account_at(fake)
    known = transport.submit(http, adapter, make_job(name), account).provider_id
    since = datetime.now(UTC) - timedelta(seconds=2)
    fake.script("submit", "lost")
    with pytest.raises(AnswerLost):
        transport.submit(http, adapter, make_job(name), account)
    if name == "magicoal":  # its list holds finished videos only
        fake.advance(200)
    job = make_job(name)
    query = FindQuery(
        "ref",
        job.model,
        job.prompt,
        since,
        datetime.now(UTC) + timedelta(seconds=2),
        frozenset({known}),
    )
    found = transport.find(http, adapter, query, account)
    assert len(found.candidates) == 1
    assert found.candidates[0] in fake.jobs
    assert known not in found.candidates
    # Where nothing came through, the list says so (where it can).
    none = dataclasses.replace(query, model="other", prompt="other")
    nothing = transport.find(http, adapter, none, account)
    assert nothing.candidates == ()
    assert nothing.conclusive is (name != "magicoal")


def test_a_long_list_is_read_page_by_page(http):
    adapter = provider("openai_videos")
    with start("openai_videos") as fake:
        account = account_at(fake)
        since = datetime.now(UTC) - timedelta(seconds=2)
        fake.script("submit", "lost")
        with pytest.raises(AnswerLost):
            transport.submit(http, adapter, make_job("openai_videos"), account)
        for _ in range(120):
            fake.accept("sk-test", "sora-2", "another prompt")
        query = FindQuery(
            "ref",
            "sora-2",
            "a quiet street",
            since,
            datetime.now(UTC) + timedelta(seconds=5),
        )
        found = transport.find(http, adapter, query, account)
        assert len(fake.calls_to("list")) == 2
    assert len(found.candidates) == 1
    assert found.conclusive


@pytest.mark.parametrize("name", ["novita", "akool"])
def test_a_lost_answer_is_found_by_the_token_in_the_callback(
    name, fake, http, receiver
):
    adapter, account = provider(name), account_at(fake)
    fake.script("submit", "lost")
    with pytest.raises(AnswerLost):
        transport.submit(
            http, adapter, make_job(name, callback_url=receiver.url), account
        )
    fake.advance(200)
    (path, body, headers), *_ = receiver.wait(1)
    assert path == "/cb/token-1"
    hint = adapter.parse_callback(body, headers, account)
    assert hint.provider_id in fake.jobs


# ------------------------------------------------------------------ callbacks


def submit_with_callback(
    fake: FakeService, http: httpx.Client, receiver: Receiver
) -> tuple[str, ProviderAccount]:
    account = account_at(fake)
    fake.webhook_url = receiver.url if fake.name == "openai_videos" else None
    url = receiver.url if fake.name != "openai_videos" else None
    job = make_job(fake.name, callback_url=url)
    submitted = transport.submit(http, provider(fake.name), job, account)
    return submitted.provider_id, account


with_callbacks = pytest.mark.parametrize("name", ["novita", "akool", "openai_videos"])


@with_callbacks
def test_a_callback_names_the_job_and_three_copies_name_it_three_times(
    name, fake, http, receiver
):
    fake.script("callback", "duplicate")
    given, account = submit_with_callback(fake, http, receiver)
    fake.advance(200)
    hints = {
        provider(name).parse_callback(body, headers, account).provider_id
        for _, body, headers in receiver.wait(3)
    }
    assert hints == {given}


@with_callbacks
def test_a_callback_can_come_before_the_answer_to_the_submit(
    name, fake, http, receiver
):
    fake.script("callback", "early")
    given, account = submit_with_callback(fake, http, receiver)
    _, body, headers = receiver.bodies[0]
    hint = provider(name).parse_callback(body, headers, account)
    assert hint.provider_id == given
    # Read again, the job is not done: the callback was a hint and nothing more.
    status = transport.status(http, provider(name), [given], account)[given]
    assert not status.is_finished


@pytest.mark.parametrize("name", ["akool", "openai_videos"])
def test_a_forged_callback_is_refused(name, fake, http, receiver):
    fake.script("callback", "forged")
    _, account = submit_with_callback(fake, http, receiver)
    fake.advance(200)
    _, body, headers = receiver.wait(1)[0]
    with pytest.raises(CallbackRefused):
        provider(name).parse_callback(body, headers, account)


@with_callbacks
def test_a_callback_about_somebody_elses_job_reads_as_unknown(
    name, fake, http, receiver
):
    fake.script("callback", "foreign")
    given, account = submit_with_callback(fake, http, receiver)
    fake.advance(200)
    _, body, headers = receiver.wait(1)[0]
    hint = provider(name).parse_callback(body, headers, account)
    assert hint.provider_id != given
    ids = [hint.provider_id]
    status = transport.status(http, provider(name), ids, account)[hint.provider_id]
    assert status.state == "unknown"


def test_a_callback_that_is_not_taken_comes_again(http, receiver):
    receiver.answers = [500, 500]
    with start("novita", callback_retry_seconds=0.01) as fake:
        submit_with_callback(fake, http, receiver)
        receiver.wait(3)


# ------------------------------------------------------------------ statuses that go wrong


@every_provider
@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("429", Fault.BUSY),
        ("500", Fault.HEALTH),
        ("503", Fault.HEALTH),
        ("502", Fault.HEALTH),
        ("garbage", Fault.HEALTH),
        ("html", Fault.HEALTH),
        ("refuse", Fault.HEALTH),
    ],
)
def test_a_failed_status_call_says_nothing_about_the_job(name, kind, fault, fake, http):
    adapter, account = provider(name), account_at(fake)
    given = transport.submit(http, adapter, make_job(name), account).provider_id
    fake.script("status", kind)
    with pytest.raises(ProviderError) as failed:
        transport.status(http, adapter, [given], account)
    assert failed.value.fault is fault
    assert not failed.value.permanent
    assert transport.status(http, adapter, [given], account)[given].state == "queued"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_answer_that_drips_is_cut_at_the_deadline(mode, http):
    async def ask() -> None:
        async with transport.async_client() as client:
            await transport.send_async(client, call)

    with start("novita") as fake:
        account = account_at(fake)
        given = transport.submit(http, provider("novita"), make_job("novita"), account)
        fake.script("status", "drip")
        call = provider("novita").build_status([given.provider_id], account)
        call = dataclasses.replace(call, timeout_seconds=0.4)
        began = time.monotonic()
        with pytest.raises(ProviderError) as failed:
            transport.send(http, call) if mode == "sync" else asyncio.run(ask())
        assert time.monotonic() - began < 3
    assert failed.value.fault is Fault.HEALTH


def test_an_endless_answer_is_cut_at_the_cap(http):
    endless = Server(
        lambda request: Reply(200, stream=iter(lambda: bytes(1 << 16), None))
    )
    endless.start()
    with pytest.raises(ProviderError) as failed:
        transport.send(http, HttpCall("GET", endless.url, idempotent=True))
    endless.stop()
    assert failed.value.fault is Fault.HEALTH


def test_a_base_url_that_is_none_is_the_accounts_fault(http):
    with pytest.raises(ProviderError) as failed:
        transport.send(http, HttpCall("POST", "ftp://vendor.example/x", json={}))
    assert failed.value.fault is Fault.ACCOUNT


@every_provider
def test_a_failed_job_hides_the_vendors_words(name, fake, http):
    adapter, account = provider(name), account_at(fake)
    fake.script("end", "fail")
    given = transport.submit(http, adapter, make_job(name), account).provider_id
    status = finish(fake, http, given, account)
    assert status.state == "failed"
    assert status.error is not None
    assert "internal text" not in status.error.public
    assert not status.error.permanent


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("novita", "ILLEGAL_PROMPT"),
        ("dashscope", "DataInspectionFailed"),
        ("openai_videos", "moderation_blocked"),
    ],
)
def test_a_job_blocked_by_the_vendor_is_blocked_for_the_customer(
    name, reason, fake, http
):
    adapter, account = provider(name), account_at(fake)
    job = make_job(name, prompt=f"x [[fake:end=fail:{reason}]]")
    given = transport.submit(http, adapter, job, account).provider_id
    error = finish(fake, http, given, account).error
    assert error is not None
    assert (error.fault, error.code) == (Fault.CUSTOMER, "content_blocked")


@every_provider
def test_a_job_that_never_ends_keeps_running(name, fake, http):
    adapter, account = provider(name), account_at(fake)
    job = make_job(name, prompt="x [[fake:end=never]]")
    given = transport.submit(http, adapter, job, account).provider_id
    fake.advance(24 * 3600)
    assert transport.status(http, adapter, [given], account)[given].state == "running"


# ------------------------------------------------------------------ cancel and delete


def test_a_waiting_task_is_canceled_and_a_running_one_is_not(http):
    adapter = provider("dashscope")
    with start("dashscope", queued_seconds=60) as fake:
        account = account_at(fake)
        jobs = [
            transport.submit(http, adapter, make_job("dashscope"), account).provider_id
            for _ in range(2)
        ]
        assert transport.cancel(http, adapter, jobs[0], account) is True
        fake.advance(fake.queued_seconds)
        assert transport.cancel(http, adapter, jobs[1], account) is False
        status = transport.status(http, adapter, [jobs[0]], account)[jobs[0]]
    assert status.state == "failed"


@pytest.mark.parametrize("name", ["akool", "openai_videos"])
def test_the_providers_copy_is_deleted_and_deleting_twice_does_no_harm(
    name, fake, http
):
    adapter, account = provider(name), account_at(fake)
    given = transport.submit(http, adapter, make_job(name), account).provider_id
    finish(fake, http, given, account)
    assert transport.delete(http, adapter, given, account) is True
    assert given not in fake.jobs
    transport.delete(http, adapter, given, account)


def test_a_copy_in_use_is_kept_for_now(http):
    with start("akool", queued_seconds=60) as fake:
        account, adapter = account_at(fake), provider("akool")
        job = make_job("akool")
        given = transport.submit(http, adapter, job, account).provider_id
        assert transport.delete(http, adapter, given, account) is False


# ------------------------------------------------------------------ results


@every_provider
@pytest.mark.parametrize(
    "kind", ["404", "403", "html", "empty", "huge", "notvideo", "redirect"]
)
def test_a_bad_result_is_the_providers_failure_and_leaves_no_file(
    name, kind, fake, http, tmp_path
):
    adapter, account = provider(name), account_at(fake)
    job = make_job(name, prompt=f"x [[fake:result={kind}]]")
    given = transport.submit(http, adapter, job, account).provider_id
    status = finish(fake, http, given, account)
    assert status.state == "succeeded"
    target = tmp_path / "out.mp4"
    with pytest.raises(ProviderError) as failed:
        fetch(status, account, http, target)
    assert failed.value.fault is Fault.HEALTH
    assert not failed.value.permanent
    assert isinstance(failed.value, ResultAway) is (kind in ("404", "403", "redirect"))
    assert not target.exists()
    assert "127.0.0.1" not in failed.value.public


def test_three_gigabytes_without_a_length_are_cut_at_the_cap_in_flat_memory(
    http, tmp_path
):
    chunk = b"\x00\x00\x00\x18ftypmp42" + bytes((1 << 16) - 12)
    endless = Server(lambda request: Reply(200, stream=iter(lambda: chunk, None)))
    endless.start()
    account = ProviderAccount("main", endless.url)
    status = RemoteStatus("succeeded", video_url=f"{endless.url}/v.mp4")
    tracemalloc.start()
    with pytest.raises(ProviderError, match="more than"):
        fetch(status, account, http, tmp_path / "out.mp4")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    endless.stop()
    assert peak < 8_000_000


def test_a_result_that_drips_is_cut_at_the_deadline(http, tmp_path):
    with start("novita", video_side=64) as fake:
        account, adapter = account_at(fake), provider("novita")
        job = make_job("novita", prompt="x [[fake:result=slow]]")
        given = transport.submit(http, adapter, job, account).provider_id
        status = finish(fake, http, given, account)
        with pytest.raises(ProviderError, match="slowly"):
            results.download(
                status,
                account,
                tmp_path / "out.mp4",
                egress=EGRESS,
                http=http,
                max_bytes=MAX_BYTES,
                deadline_seconds=0.5,
            )


def test_a_result_on_another_host_goes_through_egress_without_our_key(http, tmp_path):
    seen: list[dict[str, str]] = []

    def serve(request: Request) -> Reply:
        seen.append(request.headers)
        return Reply(200, b"\x00\x00\x00\x18ftypmp42" + bytes(100))

    elsewhere = Server(serve)
    elsewhere.start()
    account = ProviderAccount("main", "https://vendor.example", {"api_key": "canary"})
    status = RemoteStatus(
        "succeeded",
        video_url=f"{elsewhere.url}/v.mp4",
        download_headers={"Authorization": "Bearer canary"},
    )
    with pytest.raises(ProviderError):  # a private address, and nobody allowed it
        fetch(status, account, http, tmp_path / "out.mp4")
    assert not seen
    allowed = Egress([elsewhere.url.removeprefix("http://")])
    results.download(
        status,
        account,
        tmp_path / "out.mp4",
        egress=allowed,
        http=http,
        max_bytes=MAX_BYTES,
    )
    elsewhere.stop()
    assert "authorization" not in seen[0]


def test_content_that_redirects_is_followed_without_our_key(http, tmp_path):
    with start("openai_videos", video_side=64) as fake:
        account, adapter = account_at(fake), provider("openai_videos")
        job: ProviderJob = make_job("openai_videos")
        job = job.replace(prompt="x [[fake:result=redirect]]")
        given = transport.submit(http, adapter, job, account).provider_id
        status = finish(fake, http, given, account)
        # It leads to a metadata address, which egress refuses.
        with pytest.raises(ProviderError, match=r"169\.254\.169\.254"):
            fetch(status, account, http, tmp_path / "out.mp4")


# ------------------------------------------------------------------ a fake by itself


def test_a_fake_runs_as_a_program_and_obeys_orders_over_http(http):
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fakes", "sinancode", "--side", "64"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            account = ProviderAccount("main", url, {"api_key": "sk-test"})
            order = {"place": "submit", "kind": "429", "retry_after": "5"}
            http.post(f"{url}/__fake__/script", json=order)
            adapter, job = provider("sinancode"), make_job("sinancode")
            with pytest.raises(ProviderError) as refused:
                transport.submit(http, adapter, job, account)
            assert refused.value.retry_after_seconds == 5
            given = transport.submit(http, adapter, job, account).provider_id
            http.post(f"{url}/__fake__/advance", json={"seconds": 60})
            states = transport.status(http, adapter, [given], account)
            assert states[given].state == "succeeded"
            assert http.get(f"{url}/__fake__/calls").json()["submit"] == 2
        finally:
            process.terminate()
            process.wait(10)
