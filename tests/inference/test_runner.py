"""A picture in, a verified file in storage out; and the same from the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from inference import runner
from inference.__main__ import main
from inference.contracts import Artifact, Context, OutputPlan, RenderRequest
from inference.errors import EngineFailed, InputRejected, RenderError, Stopped
from inference.media.probe import probe
from inference.testing import FakeEngine, Watcher, local_context
from tests.conftest import PHOTOS


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return local_context(tmp_path)


def plan(image: Path, *, frames: int = 12) -> RenderRequest:
    return RenderRequest(
        reference="job_1",
        model="motion",
        profile="motion",
        image=image,
        width=128,
        height=96,
        frames=frames,
        fps=16,
        seed=1,
        output=OutputPlan(width=128, height=96, fps=16, frames=frames, reference="j"),
    )


def test_a_picture_is_cleaned_and_stored(context, photo, tmp_path):
    prepared = runner.prepare(photo, context, key="in/1.png", folder=tmp_path)
    assert (prepared.width, prepared.height) == (512, 512)
    back = tmp_path / "back.png"
    context.storage.get_file(prepared.key, back)
    assert back.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_used_names_its_field(context, tmp_path):
    with pytest.raises(InputRejected) as refused:
        runner.prepare(b"GIF89a", context, key="k", folder=tmp_path, field="last_image")
    assert refused.value.field == "last_image"


def test_a_private_url_is_refused_under_the_picture_s_field(context, tmp_path):
    with pytest.raises(InputRejected, match="private") as refused:
        runner.prepare("http://10.0.0.1/a.png", context, key="k", folder=tmp_path)
    assert refused.value.field == "image"


def rendered(context: Context, engine: FakeEngine, **more: int) -> Artifact:
    with runner.workfolder(context) as folder:
        watcher = Watcher()
        return runner.generate_and_finish(
            plan(PHOTOS / "coffee.jpg", **more),
            engine,
            context,
            key="out/1",
            folder=folder,
            on_progress=watcher.on_progress,
            should_stop=watcher.should_stop,
        )


def test_frames_become_a_file_and_a_poster_in_storage(context, tmp_path):
    artifact = rendered(context, FakeEngine())
    assert (artifact.width, artifact.height, artifact.frames) == (128, 96, 12)
    assert artifact.seconds == pytest.approx(0.75)
    stored = context.storage.stat(artifact.key)
    assert stored is not None
    assert (stored.size_bytes, stored.sha256) == (artifact.size_bytes, artifact.sha256)
    assert artifact.poster_key is not None
    assert context.storage.exists(artifact.poster_key)
    back = tmp_path / "back.mp4"
    context.storage.get_file(artifact.key, back)
    facts = probe(back, depth="all")
    assert facts.frames == 12
    assert facts.is_faststart
    assert list(context.workdir.iterdir()) == []


@pytest.mark.parametrize("fail_after", [0, 1, 7])
@pytest.mark.parametrize("error", [EngineFailed("boom"), Stopped("asked")])
def test_what_the_engine_raises_comes_through_and_nothing_is_stored(
    context, error, fail_after
):
    with pytest.raises(type(error)) as raised:
        rendered(context, FakeEngine(error=error, fail_after=fail_after))
    assert raised.value is error
    assert list(context.storage.list("out/")) == []
    assert list(context.workdir.iterdir()) == []


def test_the_command_line_makes_a_video(tmp_path, capsys):
    out = tmp_path / "sub" / "out.mp4"
    status = main(
        [
            *("render", str(PHOTOS / "coffee.jpg"), "--prompt", "zoom in"),
            *("--out", str(out), "--resolution", "480p", "--seconds", "1"),
            *("--fps", "10", "--seed", "4"),
        ]
    )
    assert status == 0
    facts = probe(out, depth="all")
    assert (facts.width, facts.height, facts.frames, facts.fps) == (720, 480, 10, 10)
    assert "seed 4" in capsys.readouterr().out


def test_the_command_line_rehearses_models_made_elsewhere(tmp_path, capsys):
    out = tmp_path / "out.mp4"
    arguments = ["render", str(PHOTOS / "coffee.jpg"), "--model", "wan2.6-i2v-flash"]
    arguments += ["--out", str(out), "--resolution", "720p", "--frames", "4"]
    assert main(arguments) == 1
    assert "--simulate" in capsys.readouterr().err
    assert main([*arguments, "--simulate"]) == 0
    assert (probe(out).width, probe(out).height) == (1080, 720)


@pytest.mark.parametrize(
    ("name", "content"), [("missing.png", None), ("text.png", b"hello")]
)
def test_the_command_line_says_what_is_wrong(name, content, tmp_path, capsys):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert main(["render", str(path), "--out", str(tmp_path / "o.mp4")]) == 1
    assert "error:" in capsys.readouterr().err
    assert not (tmp_path / "o.mp4").exists()


def test_the_models_made_here_are_listed(capsys):
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    assert "motion" in listed
    assert "wan2.6-i2v " not in listed
    assert main(["models", "--all"]) == 0
    assert "wan2.6-i2v " in capsys.readouterr().out


@pytest.mark.parametrize(
    "module", ["inference.media.images", "inference.egress", "inference.storage"]
)
def test_what_the_web_process_imports_is_light(module):
    """No arrays, no codecs, no torch: a request must not pay for them."""
    script = (
        f"import sys, {module}\n"
        "heavy = {'numpy', 'av', 'torch', 'PIL', 'boto3', 'django'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_render_errors_keep_their_bits():
    assert not RenderError("x").permanent
    assert RenderError("x").counts
    assert InputRejected("x", field="image").permanent
    assert not Stopped("x").counts
