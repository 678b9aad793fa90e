"""Where a camera looks while it moves over a still: pure arithmetic, no pixels.

``plan_shots`` reads the moves from the prompt's words and gives a list of shots; a
``Shot`` answers ``view(t)`` for t from 0 to 1. The first view of the first shot is
always the whole fitted picture, every path is smooth, and no view leaves the picture.
The same words, seed and length give the same path.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass, field
from enum import StrEnum

Point = tuple[float, float]


class Move(StrEnum):
    """One way to move; several can run at once."""

    PUSH_IN = "push in"
    PULL_OUT = "pull out"
    PAN_LEFT = "pan left"
    PAN_RIGHT = "pan right"
    TILT_UP = "tilt up"
    TILT_DOWN = "tilt down"
    SWAY = "sway"
    HANDHELD = "handheld"
    ROLL_LEFT = "roll left"
    ROLL_RIGHT = "roll right"
    PARALLAX = "parallax"
    STILL = "still"


_GO = (
    r"(?:pan|truck|track|slid|slide|mov|move|drift|glid|glide|swing|dolly|dollie|whip)"
)
# "pan slowly to the left" is a move, "a frying pan on the left" is not.
_BETWEEN = (
    r"(?:\W+(?:to|the|towards?|slowly|gently|smoothly|quickly|gradually|rapidly"
    r"|steadily|slightly|subtly|camera|view|shot|a|bit|little|over)){0,4}?\W+"
)
_SIDE = rf"\b{_GO}(?:s|es|ing|ning|ns|ed)?\b{_BETWEEN}"
_RISE = r"\b(?:tilt|crane|pedestal|boom|jib|ris|rise|mov|move|pan|float|fly)"
_HEAVE = rf"{_RISE}(?:s|es|ing|ning|ed)?\b{_BETWEEN}"
_ROLL = r"\b(?:roll|rotat|rotate|spin|twist)(?:s|es|ing|ning|ed)?\b"
_CAMERA_ROLL = (
    rf"(?:camera\W+(?:\w+\W+){{0,2}}?{_ROLL}|{_ROLL}\W+(?:the\W+)?camera)"
    r"(?!\W+(?:\w+\W+){0,2}?(?:left|counter|anti))"
)
_FIXED = r"(?:static|locked|fixed|still|motionless|stationary)"

#: Words that ask for a move. Chinese ones too: many Wan prompts are written in it.
_WORDS: tuple[tuple[Move, str], ...] = (
    (
        Move.PUSH_IN,
        r"\b(?:zoom|push|dolly|dollie|track|creep|mov|move|fly)(?:s|es|ing|ed)?\W+"
        r"(?:\w+\W+){0,2}?(?:in|into|inwards?|forwards?|closer|towards?)\b"
        r"|\b(?:push|dolly|zoom)-in\b|\bclose(?:s|ing)?\W+in\b|推进|推近|拉近|放大|推镜"
        r"|\b(?:slow|gentle|subtle|slight|quick|fast|dramatic)\W+zoom\b"
        r"(?!\W+(?:out|back|away)\b)",
    ),
    (
        Move.PULL_OUT,
        r"\b(?:zoom|pull|dolly|dollie|track|mov|move|fly)(?:s|es|ing|ed)?\W+"
        r"(?:\w+\W+){0,2}?(?:out|back|backwards?|away|outwards?)\b"
        r"|\b(?:pull|dolly|zoom)-(?:out|back)\b|拉远|缩小|后退|拉镜",
    ),
    (
        Move.PAN_LEFT,
        _SIDE + r"left(?:wards?)?\b|\bleft(?:ward)?\W+pan\b|\bright\W+to\W+left\b"
        r"|左移|左摇|向左",
    ),
    (
        Move.PAN_RIGHT,
        _SIDE + r"right(?:wards?)?\b|\bright(?:ward)?\W+pan\b|\bleft\W+to\W+right\b"
        r"|右移|右摇|向右",
    ),
    (Move.TILT_UP, _HEAVE + r"up(?:wards?)?\b|\bcamera\W+rises\b|上移|上摇|向上"),
    (
        Move.TILT_DOWN,
        _HEAVE + r"down(?:wards?)?\b|\bdescend(?:s|ing)?\b|下移|下摇|向下",
    ),
    (
        Move.SWAY,
        r"\b(?:sway(?:s|ing)?|swaying|rock(?:s|ing)\W+gently|float(?:s|ing)|bob(?:s|bing))"
        r"\b|摇摆|漂浮",
    ),
    (
        Move.HANDHELD,
        r"\bhand-?\s?held\b|\bshak(?:y|es|ing)\b|\bcamera\W+shake\b|\bvlog\b|\bfound\W+"
        r"footage\b|手持|晃动",
    ),
    (
        Move.ROLL_LEFT,
        rf"{_ROLL}\W+(?:\w+\W+){{0,2}}?(?:left|counter-?\s?clockwise|anti-?clockwise)\b"
        r"|逆时针",
    ),
    (
        Move.ROLL_RIGHT,
        rf"{_ROLL}\W+(?:\w+\W+){{0,2}}?(?:right|(?<!counter)(?<!counter-)(?<!counter )"
        rf"(?<!anti)(?<!anti-)clockwise)\b|{_CAMERA_ROLL}|\bdutch\b|顺时针|旋转",
    ),
    (
        Move.PARALLAX,
        r"\bparallax\b|\borbit(?:s|ing)?\b|\barc(?:s|ing)?\W+(?:shot|around)\b|\b3d\b"
        r"|\b2\.5d\b|\bdepth\b|环绕|视差",
    ),
    (
        Move.STILL,
        rf"\b{_FIXED}\W+(?:camera|shot|frame|tripod)\b|\btripod\b|\block(?:ed)?[ -]off\b"
        r"|\bcamera\W+(?:(?:is|stays?|remains?|stands?|holds?|keeps?|being|completely"
        rf"|perfectly|absolutely|entirely)\W+){{0,2}}{_FIXED}\b"
        r"|\bcamera\W+(?:do(?:es)?\W+not|(?:do|does|did|must|should)n['\u2019]?t|never)\W+move"
        r"|\b(?:\w+n['\u2019]t|dont|not|never|without)\W+mov(?:e|ing)\W+(?:the\W+)?camera\b"
        r"|\b(?:no|without)\W+(?:any\W+)?(?:camera\W+)?(?:moves?\b|movements?\b|zoom"
        r"|pan(?:ning)?\b|motion\b(?!\W+blur))|固定镜头|静止镜头|镜头(?:不动|静止|固定)|固定机位",
    ),
)
_MATCHERS = tuple((move, re.compile(words, re.IGNORECASE)) for move, words in _WORDS)
#: What makes of the words after it what shall not be, up to two words further on.
_NOT = re.compile(
    r"(?:\b(?:no|not|never|without|avoid|dont)|n['\u2019]t)[^\S\n]+"
    r"(?:(?!(?:but|then|instead|while|just|only|stops?|stopping)\b)[\w'\u2019-]+[^\S\n]+){0,2}\Z"
    r"|(?:不|(?:不要|请勿|避免|没有)\w{0,4})\Z",
    re.IGNORECASE,
)
#: How far before a move _NOT is looked for.
_NOT_REACH = 60
_OPPOSITES = (
    (Move.PUSH_IN, Move.PULL_OUT),
    (Move.PAN_LEFT, Move.PAN_RIGHT),
    (Move.TILT_UP, Move.TILT_DOWN),
    (Move.ROLL_LEFT, Move.ROLL_RIGHT),
)
_FASTER = re.compile(
    r"\b(?:fast|quick(?:ly)?|rapid(?:ly)?|dramatic(?:ally)?|sudden(?:ly)?|whip)\b|快速",
    re.IGNORECASE,
)
_SLOWER = re.compile(
    r"\b(?:slow(?:ly)?|gentle|gently|subtle|subtly|slight(?:ly)?)\b|缓慢|缓缓|慢慢",
    re.IGNORECASE,
)

# How far each move goes in five seconds at normal tempo. Looked at on photographs:
# further and pans show how little picture there is, less and 480p looks frozen.
PUSH_ZOOM = 1.32
PAN_SHARE = 0.11  # of the picture's width
TILT_SHARE = 0.11
SWAY_SHARE = 0.014
SWAY_SECONDS = 3.4
SHAKE_SHARE = 0.007
SHAKE_ROLL = math.radians(0.35)
ROLL_ANGLE = math.radians(5.0)
DEPTH_DOLLY = 0.5  # how much more near things grow than far ones
DEPTH_SHIFT = 0.035  # how much further near things shift, of the width
ZOOM_MAX = 2.2


@dataclass(frozen=True)
class View:
    """What the camera sees, relative to the whole fitted picture.

    ``zoom`` 1 shows all of it, ``x`` and ``y`` shift the centre right and down in shares
    of its width and height, ``roll`` turns the camera clockwise (radians). ``dolly`` and
    ``slide`` say how strongly depth shows.
    """

    zoom: float = 1.0
    x: float = 0.0
    y: float = 0.0
    roll: float = 0.0
    dolly: float = 0.0
    slide: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Say whether a mere crop and resize shows it."""
        return self.roll == self.dolly == self.slide == 0.0


def read_moves(prompt: str) -> tuple[Move, ...]:
    """Return the moves the words ask for, in their order; of opposites the first.

    Who only says which way the camera shall not go gets a still one.

    >>> read_moves("Slowly zoom in while the camera pans to the left")
    (<Move.PUSH_IN: 'push in'>, <Move.PAN_LEFT: 'pan left'>)
    >>> read_moves("do not zoom in")
    (<Move.STILL: 'still'>,)
    """
    found: dict[Move, int] = {}
    refused: set[Move] = set()
    for move, matcher in _MATCHERS:
        at = 0
        # One that is refused may hold the beginning of one that is wanted.
        while (match := matcher.search(prompt, at)) is not None:
            at = match.start() + 1
            if _NOT.search(prompt, max(0, at - 1 - _NOT_REACH), at - 1) is None:
                found[move] = at - 1
                break
            refused.add(move)
    for one, other in _OPPOSITES:
        if one in found and other in found:
            del found[one if found[one] > found[other] else other]
    if len(found) > 1:
        found.pop(Move.STILL, None)
    if not found and any(move in refused for pair in _OPPOSITES for move in pair):
        return (Move.STILL,)
    return tuple(sorted(found, key=found.__getitem__))


def tempo(prompt: str) -> float:
    """Return how much faster or slower than usual the words want it."""
    faster, slower = _FASTER.search(prompt), _SLOWER.search(prompt)
    if bool(faster) == bool(slower):
        return 1.0
    return 1.45 if faster else 0.65


def ease(t: float, ramp: float = 0.3) -> float:
    """Return the way covered at ``t``: speed rises over ``ramp``, holds, and falls.

    >>> [round(ease(t / 4), 3) for t in range(5)]
    [0.0, 0.149, 0.5, 0.851, 1.0]
    """
    t = min(max(t, 0.0), 1.0)
    if t < ramp:
        return t * t / (2 * ramp * (1 - ramp))
    if t > 1 - ramp:
        return 1 - (1 - t) ** 2 / (2 * ramp * (1 - ramp))
    return (t - ramp / 2) / (1 - ramp)


@dataclass(frozen=True)
class Ground:
    """The picture the camera moves over.

    ``aspect`` is width/height of the clip; ``spare_x`` and ``spare_y`` say how much of the
    picture lies beyond each side of the fitted part, in shares of its width and height.
    """

    aspect: float
    spare_x: float = 0.0
    spare_y: float = 0.0

    def least_zoom(self, view: View) -> float:
        """Return the smallest zoom with which such a view stays inside the picture."""
        cos, sin = math.cos(view.roll), abs(math.sin(view.roll))
        wide = cos + sin / self.aspect
        high = cos + sin * self.aspect
        room_x = 1 + 2 * self.spare_x - 2 * abs(view.x) - abs(view.slide)
        room_y = 1 + 2 * self.spare_y - 2 * abs(view.y)
        return max(1.0, wide / room_x, high / room_y)


@dataclass(frozen=True)
class Shot:
    """One uncut stretch: ``frames`` long, with its own path."""

    frames: int
    seconds: float
    moves: tuple[Move, ...]
    tempo: float
    ground: Ground
    wobble: tuple[tuple[float, float, float], ...]  # (frequency, phase, share) of shake
    start: View = field(default_factory=View)
    margin: float = 1.0

    def view(self, t: float) -> View:
        """Return what is seen at ``t`` of the shot, 0 to 1."""
        free = self._free(t)
        # The room that shifts and rolls need is zoomed in a little ahead of them.
        zoom = free.zoom * self.margin ** ease(t / self._settle)
        view = View(zoom, free.x, free.y, free.roll, free.dolly, free.slide)
        least = self.ground.least_zoom(view)
        if least <= view.zoom:
            return view
        return View(least, free.x, free.y, free.roll, free.dolly, free.slide)

    @property
    def _settle(self) -> float:
        return 0.5

    def _free(self, t: float) -> View:
        """Return the wished view, as if there were picture all around."""
        way, ahead = ease(t), ease(t / self._settle)
        reach = self.tempo * min(max(math.sqrt(self.seconds / 5), 0.45), 1.4)
        log_zoom = math.log(self.start.zoom)
        x, y, roll, dolly, slide = self.start.x, self.start.y, 0.0, 0.0, 0.0
        now = t * self.seconds
        for move in self.moves:
            match move:
                case Move.PUSH_IN:
                    log_zoom += math.log(PUSH_ZOOM) * reach * way
                case Move.PULL_OUT:
                    # The clip starts with the whole picture, so there is first a quick
                    # step towards it; if the shot starts close, it just goes back.
                    out = ease((t - 0.3) / 0.7)
                    near = math.log(PUSH_ZOOM) * reach * min(1.0, self.seconds / 2.5)
                    near = near if self.start.zoom == 1 else 0.0
                    log_zoom = (log_zoom + near * ease(t / 0.3, 0.5)) * (1 - out)
                case Move.PAN_LEFT:
                    x -= PAN_SHARE * reach * way
                case Move.PAN_RIGHT:
                    x += PAN_SHARE * reach * way
                case Move.TILT_UP:
                    y -= TILT_SHARE * reach * way
                case Move.TILT_DOWN:
                    y += TILT_SHARE * reach * way
                case Move.SWAY:
                    angle = 2 * math.pi * now / SWAY_SECONDS * self.tempo
                    x += SWAY_SHARE * ahead * math.sin(angle)
                    y += SWAY_SHARE * 0.5 * ahead * math.sin(2 * angle + 0.6)
                    roll += math.radians(0.5) * ahead * math.sin(angle + 0.9)
                case Move.HANDHELD:
                    force = ahead * self.tempo**2
                    x += SHAKE_SHARE * force * self._shake(now, 0)
                    y += SHAKE_SHARE * force * self._shake(now, 1)
                    roll += SHAKE_ROLL * force * self._shake(now, 2)
                case Move.ROLL_LEFT:
                    roll -= ROLL_ANGLE * reach * way
                case Move.ROLL_RIGHT:
                    roll += ROLL_ANGLE * reach * way
                case Move.PARALLAX:
                    dolly = DEPTH_DOLLY
                    angle = math.pi * way * max(1.0, self.seconds / 5)
                    slide += DEPTH_SHIFT * reach * math.sin(angle)
                    log_zoom += math.log(1.12) * way
                case Move.STILL:
                    log_zoom += math.log(1.02) * way
        zoom = min(math.exp(log_zoom), ZOOM_MAX)
        return View(zoom, x, y, roll, dolly, slide)

    def _shake(self, now: float, axis: int) -> float:
        waves = self.wobble[axis::3]
        return sum(
            share * math.sin(2 * math.pi * (frequency * now) + phase)
            for frequency, phase, share in waves
        )


def plan_shots(
    prompt: str,
    *,
    seed: int,
    frames: int,
    fps: int,
    ground: Ground,
    cuts: bool = False,
    focus: Point = (0.0, 0.0),
) -> list[Shot]:
    """Return the shots of a clip, together exactly ``frames`` long.

    ``cuts`` asks for more than one; the later ones look closer at ``focus``, an offset
    from the centre in shares of the picture.
    """
    chance = random.Random(seed)  # noqa: S311 - a path, not a secret
    moves = read_moves(prompt) or _unasked(chance)
    speed = tempo(prompt)
    if not cuts or frames < 4:
        return [_shot(frames, fps, moves, speed, ground, chance, View())]
    count = 3 if frames / fps >= 7 and frames >= 9 else 2
    lengths = [frames // count + (1 if i < frames % count else 0) for i in range(count)]
    close = View(
        zoom=1.75,
        x=_within(focus[0], 0.5 - 0.5 / 1.75),
        y=_within(focus[1], 0.5 - 0.5 / 1.75),
    )
    drift = chance.choice((Move.PAN_LEFT, Move.PAN_RIGHT))
    plans = [
        (moves, speed, View()),
        ((Move.PUSH_IN,), 0.4, close),
        ((Move.PULL_OUT, drift), 0.6, View(zoom=1.35)),
    ]
    return [
        _shot(length, fps, *plan[:2], ground, chance, plan[2])
        for length, plan in zip(lengths, plans, strict=False)
    ]


def _within(value: float, bound: float) -> float:
    return min(max(value, -bound), bound)


def _unasked(chance: random.Random) -> tuple[Move, ...]:
    """Return a quiet combination for a prompt that names no move."""
    return chance.choice(
        (
            (Move.PUSH_IN, Move.PARALLAX),
            (Move.PARALLAX,),
            (Move.PUSH_IN, Move.PAN_LEFT),
            (Move.PUSH_IN, Move.PAN_RIGHT),
            (Move.PUSH_IN, Move.TILT_UP),
            (Move.PUSH_IN, Move.SWAY),
        )
    )


def _shot(
    frames: int,
    fps: int,
    moves: tuple[Move, ...],
    speed: float,
    ground: Ground,
    chance: random.Random,
    start: View,
) -> Shot:
    # Three axes of four incommensurate waves each: never repeats, never jumps.
    wobble = tuple(
        (chance.uniform(*band), chance.uniform(0, 2 * math.pi), share)
        for band, share in (
            ((0.25, 0.5), 0.5),
            ((0.6, 0.9), 0.28),
            ((1.1, 1.5), 0.14),
            ((1.8, 2.4), 0.08),
        )
        for _axis in range(3)
    )
    shot = Shot(frames, frames / fps, moves, speed, ground, wobble, start)
    margin = 1.0
    for index in range(65):
        free = shot._free(index / 64)
        margin = max(margin, ground.least_zoom(free) / free.zoom)
    return Shot(frames, frames / fps, moves, speed, ground, wobble, start, margin)
