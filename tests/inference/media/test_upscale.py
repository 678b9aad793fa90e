from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from inference.media import upscale, upscale_models
from inference.media.upscale_models import RRDB, SRVGG, Network


def _photo(width=64, height=48):
    with Image.open("tests/photos/coffee.jpg") as image:
        return np.asarray(image.convert("RGB").resize((width, height)))


def _srvgg(scale=4):
    torch.manual_seed(0)
    return SRVGG(features=8, depth=2, scale=scale)


def _rrdb(scale=4):
    torch.manual_seed(0)
    return RRDB(features=8, grow=4, blocks=2, scale=scale)


@pytest.fixture
def folder(tmp_path):
    upscale_models.load.cache_clear()
    upscale_models.scale_of.cache_clear()
    (tmp_path / "upscale").mkdir()
    return tmp_path


def _save(folder, name, module, wrapper="params_ema"):
    path = folder / "upscale" / name
    if path.suffix == ".safetensors":
        save_file(module.state_dict(), path)
    else:
        torch.save({wrapper: module.state_dict()}, path)
    return path


def test_without_weights_it_is_a_resize_and_says_so(tmp_path):
    plan = upscale.plan((832, 480), (1920, 1080), weights=tmp_path)
    assert plan.label == "lanczos"
    assert plan.network is None


def test_the_same_size_needs_nothing(tmp_path):
    assert upscale.plan((64, 64), (64, 64), weights=tmp_path).label == "none"


@pytest.mark.parametrize("make", [_srvgg, _rrdb])
@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("scale", [2, 4])
def test_weights_in_the_published_layout_enlarge_a_frame(folder, make, name, scale):
    _save(folder, name, make(scale), wrapper="params" if scale == 2 else "params_ema")
    plan = upscale.plan((64, 48), (64 * scale, 48 * scale), weights=folder)
    assert plan.label == "net"
    out = plan.enlarge(_photo())
    assert out.shape == (48 * scale, 64 * scale, 3)
    assert out.dtype == np.uint8
    assert out.std() > 0


def test_an_srvgg_that_learned_nothing_returns_the_picture_itself(folder):
    module = _srvgg()
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    _save(folder, "net.pth", module)
    photo = _photo()
    out = upscale.plan((64, 48), (256, 192), weights=folder).enlarge(photo)
    assert (out == photo.repeat(4, axis=0).repeat(4, axis=1)).all()


@pytest.mark.parametrize(("make", "overlap"), [(_srvgg, 8), (_rrdb, 40)])
@pytest.mark.parametrize("scale", [2, 4])
def test_tiles_leave_no_seams(make, overlap, scale):
    photo = _photo(62, 50)
    device = torch.device("cpu")
    whole = Network("n", make(scale), device=device, tile=512).enlarge(photo)
    tiled = Network("n", make(scale), device=device, tile=24, overlap=overlap).enlarge(
        photo
    )
    assert np.abs(whole.astype(int) - tiled).max() <= 1


def test_the_full_published_shapes_are_recognised():
    with torch.device("meta"):
        general = SRVGG(features=64, depth=32, scale=4)
        plus = RRDB(features=64, grow=32, blocks=23, scale=2)
    for module in (general, plus):
        again = upscale_models.build(module.state_dict())
        assert again is not None
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in module.state_dict().items()
        }
    assert sum(p.numel() for p in general.parameters()) == 1_213_296
    assert sum(p.numel() for p in plus.parameters()) == 16_703_171


def test_the_smallest_scale_that_suffices_is_taken(folder):
    _save(folder, "a_x4.pth", _srvgg(4))
    _save(folder, "b_x2.pth", _srvgg(2))

    def choose(factor):
        return upscale.plan((64, 48), (64 * factor, 48 * factor), weights=folder).label

    assert choose(2) == "b_x2"
    assert choose(3) == "a_x4"
    assert choose(8) == "a_x4"


def test_the_operator_may_name_the_weights_or_turn_them_off(folder):
    _save(folder, "a_x4.pth", _srvgg(4))
    _save(folder, "b_x2.pth", _srvgg(2))

    def ask(**options):
        return upscale.plan((64, 48), (128, 96), weights=folder, options=options).label

    assert ask(upscale_weights="a_x4.pth") == "a_x4"
    assert ask(upscale_device="off") == "lanczos"


def test_a_network_too_dear_for_this_cpu_gives_way_to_the_resize(folder, monkeypatch):
    _save(folder, "net.pth", SRVGG(features=64, depth=32, scale=4))
    big = {"weights": folder, "options": {"upscale_device": "auto"}}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert upscale.plan((1280, 720), (3840, 2160), **big).label == "lanczos"
    assert upscale.plan((64, 48), (128, 96), **big).label == "net"


def _other(path):
    torch.save({"g_ema": {"weight": torch.zeros(3)}}, path)


def _no_tensors(path):
    torch.save([1, 2], path)


def _cut_off(path):
    torch.save({"params": _srvgg().state_dict()}, path)
    path.write_bytes(path.read_bytes()[:500])


def _misshapen(path):
    state = _srvgg().state_dict()
    torch.save({**state, "body.2.weight": torch.zeros(3)}, path)


def _noise(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")


@pytest.mark.parametrize(
    "spoil", [_other, _no_tensors, _cut_off, _misshapen, _noise, Path.touch]
)
@pytest.mark.parametrize("name", ["GFPGANv1.4.pth", "GFPGANv1.4.safetensors"])
def test_a_file_of_another_kind_is_named_once_and_left_out(folder, caplog, spoil, name):
    spoil(folder / "upscale" / name)
    for _ in range(2):
        plan = upscale.plan((64, 48), (128, 96), weights=folder)
        assert plan.label == "lanczos"
    assert caplog.text.count(name) >= 1
    assert len(caplog.records) == 1
    _save(folder, "net.pth", _srvgg())
    assert upscale.plan((64, 48), (128, 96), weights=folder).label == "net"


def test_only_the_chosen_network_is_loaded(folder, monkeypatch):
    _save(folder, "a_x4.pth", _srvgg(4))
    _save(folder, "b_x2.pth", _srvgg(2))
    loaded, load = [], upscale_models.load

    def noting(path, **options):
        loaded.append(path)
        return load(path, **options)

    monkeypatch.setattr(upscale_models, "load", noting)
    upscale.plan((64, 48), (128, 96), weights=folder)
    assert [path.name for path in loaded] == ["b_x2.pth"]


def test_without_torch_weights_are_of_no_use_and_break_nothing(
    folder, monkeypatch, caplog
):
    """As on a media worker whose folder GPU workers share."""
    _save(folder, "net.pth", _srvgg())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for device in ("auto", "cpu", "cpu"):
        options = {"upscale_device": device}
        plan = upscale.plan((64, 48), (128, 96), weights=folder, options=options)
        assert plan.label == "lanczos"
    [line] = caplog.records
    assert "torch is not installed" in line.message


def test_weights_named_but_not_there_are_named_in_the_log(folder, caplog):
    _save(folder, "net.pth", _srvgg())
    options = {"upscale_weights": "net"}
    plan = upscale.plan((64, 48), (128, 96), weights=folder, options=options)
    assert (plan.label, len(caplog.records)) == ("lanczos", 1)


def test_planning_a_resize_imports_no_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from inference.media import upscale; "
        f"upscale.plan((1, 1), (2, 2), weights=Path({str(tmp_path)!r})); "
        "raise SystemExit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
