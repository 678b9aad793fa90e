"""A still put into motion: the frames a camera path shows of one picture.

Views that only zoom and shift are cut from the picture with an anti-aliasing resize of
a sub-pixel box; views that roll or show depth are drawn through a fine mesh, so near
things move more than far ones without a seam. One canvas is kept, and no frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from inference.media.camera import Ground, Point, Shot, View, plan_shots
from inference.media.frames import cover_box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.contracts import Frame

# The canvas is larger than a frame so that zooming in finds detail where the source
# has it, and so that the mesh's bilinear samples stay sharp: against a Lanczos fit,
# frame 1 has 44-48 dB from 1.3 (resize) and 41-43 dB from 1.5 (mesh).
PLAIN_SCALE = 1.3
MESH_SCALE = 1.5
SPARE_MAX = 0.3  # picture beyond the fitted part that pans may use, per side
_CELL = 40  # pixels of a mesh cell; 576 cells at 720p take 1.5 ms to compute
_DEPTH_SIDE = 96  # the depth guess is smooth; more detail would show as wobble


@dataclass(frozen=True)
class Canvas:
    """The picture at working size; ``left``, ``top`` is where the fitted part begins."""

    image: Image.Image
    left: float
    top: float
    width: float
    height: float
    ground: Ground
    depth: NDArray[np.float32]  # (rows, columns) over the whole image: 0 far, 1 near


def animate(
    picture: Path,
    *,
    width: int,
    height: int,
    frames: int,
    fps: int,
    prompt: str,
    seed: int,
    cuts: bool = False,
) -> Iterator[Frame]:
    """Yield exactly ``frames`` frames of the picture in motion.

    The first frame is the picture fitted to ``width`` x ``height``. The same arguments
    give the same frames.
    """
    canvas, shots = _prepare(
        picture,
        width=width,
        height=height,
        frames=frames,
        fps=fps,
        prompt=prompt,
        seed=seed,
        cuts=cuts,
    )
    views = (
        shot.view(index / max(shot.frames - 1, 1))
        for shot in shots
        for index in range(shot.frames)
    )
    yield from _ahead(canvas, views, width, height)


def _prepare(
    picture: Path,
    *,
    width: int,
    height: int,
    frames: int,
    fps: int,
    prompt: str,
    seed: int,
    cuts: bool,
) -> tuple[Canvas, list[Shot]]:
    with Image.open(picture) as opened:
        image = opened.convert("RGB") if opened.mode != "RGB" else opened
        image.load()
    box = cover_box(image.size, width, height)
    wide, high = box[2] - box[0], box[3] - box[1]
    ground = Ground(
        width / height,
        spare_x=min(box[0] / wide, SPARE_MAX),
        spare_y=min(box[1] / high, SPARE_MAX),
    )
    shots = plan_shots(
        prompt,
        seed=seed,
        frames=frames,
        fps=fps,
        ground=ground,
        cuts=cuts,
        focus=find_subject(image, box) if cuts else (0.0, 0.0),
    )
    plain = all(shot.view(i / 8).is_plain for shot in shots for i in range(9))
    canvas = _canvas(image, box, width, PLAIN_SCALE if plain else MESH_SCALE, ground)
    return canvas, shots


def _canvas(
    image: Image.Image,
    box: tuple[float, float, float, float],
    width: int,
    scale: float,
    ground: Ground,
) -> Canvas:
    wide, high = box[2] - box[0], box[3] - box[1]
    factor = scale * width / wide
    left, top = ground.spare_x * wide, ground.spare_y * high
    part = (
        max(box[0] - left, 0.0),
        max(box[1] - top, 0.0),
        min(box[2] + left, image.width),
        min(box[3] + top, image.height),
    )
    size = (
        max(2, round((part[2] - part[0]) * factor)),
        max(2, round((part[3] - part[1]) * factor)),
    )
    worked = image.resize(size, Image.Resampling.LANCZOS, box=part)
    across = size[0] / (1 + 2 * ground.spare_x)
    down = size[1] / (1 + 2 * ground.spare_y)
    return Canvas(
        worked,
        left=ground.spare_x * across,
        top=ground.spare_y * down,
        width=across,
        height=down,
        ground=ground,
        depth=guess_depth(worked),
    )


def guess_depth(image: Image.Image) -> NDArray[np.float32]:
    """Return a smooth guess of nearness, 0 to 1: low and central things with detail."""
    wide, high = image.size
    rate = _DEPTH_SIDE / max(wide, high)
    small = image.resize(
        (max(8, round(wide * rate)), max(8, round(high * rate))),
        Image.Resampling.BOX,
        reducing_gap=2.0,
    )
    grey = small.convert("L")
    detail = np.abs(
        np.asarray(grey, np.float32)
        - np.asarray(grey.filter(ImageFilter.GaussianBlur(4)), np.float32)
    )
    detail = _blurred(detail, _DEPTH_SIDE / 10)
    detail /= max(float(detail.max()), 1e-3)
    rows = np.linspace(0, 1, detail.shape[0], dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, detail.shape[1], dtype=np.float32)[None, :]
    centre = np.exp(-(columns**2 + (2 * rows - 1.1) ** 2) / 0.5)
    depth = 0.4 * rows + 0.3 * centre + 0.3 * detail
    depth = _blurred(depth, _DEPTH_SIDE / 14)
    depth -= depth.min()
    return (depth / max(float(depth.max()), 1e-6)).astype(np.float32)


def _blurred(values: NDArray[np.float32], radius: float) -> NDArray[np.float32]:
    top = max(float(values.max()), 1e-6)
    image = Image.fromarray((values / top * 255).astype(np.uint8))
    soft = image.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(soft, np.float32) * (top / 255)


def find_subject(image: Image.Image, box: tuple[float, float, float, float]) -> Point:
    """Return where to look closer in the part ``box``, as an offset from its centre.

    There is much detail, more so in the colours of skin and fur, and rather above the
    middle than below: a close view without the head is the worse mistake.
    """
    wide, high = box[2] - box[0], box[3] - box[1]
    rate = _DEPTH_SIDE / max(wide, high)
    small = image.resize(
        (max(8, round(wide * rate)), max(8, round(high * rate))),
        Image.Resampling.BOX,
        box=box,
        reducing_gap=2.0,
    ).convert("YCbCr")
    grey, blue, red = np.moveaxis(np.asarray(small, np.float32), -1, 0)
    soft = small.getchannel(0).filter(ImageFilter.GaussianBlur(4))
    detail = _blurred(np.abs(grey - np.asarray(soft, np.float32)), _DEPTH_SIDE / 24)
    detail /= max(float(detail.max()), 1e-3)
    # Skin of every shade lies near one hue; only the dark cannot be told.
    skin = np.exp(-(((blue - 107) / 14) ** 2) - ((red - 150) / 10) ** 2) * (grey > 60)
    skin = _blurred(skin, _DEPTH_SIDE / 48)
    rows = np.linspace(0, 1, grey.shape[0], dtype=np.float32)[:, None]
    columns = np.linspace(0, 1, grey.shape[1], dtype=np.float32)[None, :]
    central = np.exp(-(((columns - 0.5) / 0.38) ** 2) - ((rows - 0.42) / 0.38) ** 2)
    score = (0.5 * detail + skin * (0.3 + detail)) * central
    best = int(_blurred(score, _DEPTH_SIDE / 7).argmax())
    row, column = divmod(best, grey.shape[1])
    return column / (grey.shape[1] - 1) - 0.5, row / (grey.shape[0] - 1) - 0.5


def _ahead(
    canvas: Canvas, views: Iterator[View], width: int, height: int
) -> Iterator[Frame]:
    """Yield the frames in order, the next one being drawn while one is in use."""
    with ThreadPoolExecutor(2, thread_name_prefix="draw") as pool:
        waiting: list[Future[Frame]] = []
        try:
            for view in views:
                waiting.append(pool.submit(draw, canvas, view, width, height))
                if len(waiting) > 2:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def draw(canvas: Canvas, view: View, width: int, height: int) -> Frame:
    """Return what ``view`` shows, as a frame of that size."""
    picture = (
        _cut(canvas, view, width, height)
        if view.is_plain
        else _warp(canvas, view, width, height)
    )
    return np.asarray(picture)


def _cut(canvas: Canvas, view: View, width: int, height: int) -> Image.Image:
    wide, high = canvas.width / view.zoom, canvas.height / view.zoom
    left = canvas.left + (0.5 + view.x) * canvas.width - wide / 2
    top = canvas.top + (0.5 + view.y) * canvas.height - high / 2
    left = min(max(left, 0.0), canvas.image.width - wide)
    top = min(max(top, 0.0), canvas.image.height - high)
    box = (
        max(left, 0.0),
        max(top, 0.0),
        min(left + wide, canvas.image.width),
        min(top + high, canvas.image.height),
    )
    return canvas.image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _warp(canvas: Canvas, view: View, width: int, height: int) -> Image.Image:
    edges_x = np.linspace(0, width, max(2, round(width / _CELL)) + 1).round()
    edges_y = np.linspace(0, height, max(2, round(height / _CELL)) + 1).round()
    # Corners of the cells, in shares of the frame from its centre.
    across, down = np.meshgrid(edges_x / width - 0.5, edges_y / height - 0.5)
    aspect = canvas.ground.aspect
    cos, sin = math.cos(view.roll), math.sin(view.roll)
    # Turning the camera clockwise looks along axes turned clockwise.
    turned_x = cos * across - sin * down / aspect
    turned_y = sin * across * aspect + cos * down
    near = _depth_at(
        canvas, turned_x / view.zoom + view.x, turned_y / view.zoom + view.y
    )
    # Zooming by 1 + (zoom - 1) brings near points more than far ones; never below 1.
    zoom = np.exp(math.log(view.zoom) * (1 + view.dolly * (near - 0.5)))
    x = turned_x / zoom + view.x + view.slide * (near - 0.5)
    y = turned_y / zoom + view.y
    source_x = canvas.left + (0.5 + x) * canvas.width
    source_y = canvas.top + (0.5 + y) * canvas.height
    # Just inside: what the mesh reads from outside the canvas would come out black.
    np.clip(source_x, 0.0, canvas.image.width - 1e-3, out=source_x)
    np.clip(source_y, 0.0, canvas.image.height - 1e-3, out=source_y)
    corners = np.stack([source_x, source_y], axis=-1)
    quads = np.concatenate(
        [corners[:-1, :-1], corners[1:, :-1], corners[1:, 1:], corners[:-1, 1:]],
        axis=-1,
    ).reshape(-1, 8)
    xs, ys = edges_x.astype(int).tolist(), edges_y.astype(int).tolist()
    boxes = [
        (xs[i], ys[j], xs[i + 1], ys[j + 1])
        for j in range(len(ys) - 1)
        for i in range(len(xs) - 1)
    ]
    return canvas.image.transform(
        (width, height),
        Image.Transform.MESH,
        list(zip(boxes, quads.tolist(), strict=True)),
        Image.Resampling.BILINEAR,
    )


def _depth_at(
    canvas: Canvas, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the depth at offsets from the fitted part's centre, between grid points."""
    rows, columns = canvas.depth.shape
    u = (canvas.left + (0.5 + x) * canvas.width) / canvas.image.width * (columns - 1)
    v = (canvas.top + (0.5 + y) * canvas.height) / canvas.image.height * (rows - 1)
    u, v = np.clip(u, 0, columns - 1.001), np.clip(v, 0, rows - 1.001)
    i, j = u.astype(int), v.astype(int)
    s, t = u - i, v - j
    depth = canvas.depth
    above = depth[j, i] * (1 - s) + depth[j, i + 1] * s
    below = depth[j + 1, i] * (1 - s) + depth[j + 1, i + 1] * s
    return np.asarray(above * (1 - t) + below * t)
