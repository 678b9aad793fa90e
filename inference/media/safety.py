"""Safety: rules for prompts, a classifier for pictures, and what a policy does with both.

Prompt rules always run. Pictures (the input, and frames sampled from the finished file)
are judged by a ViT classifier whose weights lie in ``weights/safety``. Some rules no
policy lifts. Torch is only imported when a classifier is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from inference.errors import ContentBlocked, WeightsMissing

if TYPE_CHECKING:
    from inference.contracts import SafetyPolicy

FOLDER = "safety"
THRESHOLD = 0.8


@dataclass(frozen=True)
class Verdict:
    """``reasons`` are stable codes; ``never`` means that no policy allows it."""

    flagged: bool = False
    reasons: tuple[str, ...] = ()
    score: float | None = None
    never: bool = False


class Classifier(Protocol):
    def scores(self, images: Sequence[Image.Image]) -> list[float]:
        """Return for each picture how surely it is unsafe, 0..1."""


class Judge:
    """Judges pictures; the worst of several decides. Get one by `load`."""

    def __init__(self, classifier: Classifier, *, threshold: float = THRESHOLD) -> None:
        self._classifier = classifier
        self._threshold = threshold

    def inputs(self, paths: Sequence[Path]) -> Verdict:
        """Judge prepared (already safely re-encoded) pictures."""
        return self._judge([_opened(path) for path in paths], reason="input_image")

    def frames(self, images: Sequence[Image.Image]) -> Verdict:
        """Judge what `sampling.sample` took from a video."""
        return self._judge(images, reason="output_frames")

    def _judge(self, images: Sequence[Image.Image], *, reason: str) -> Verdict:
        worst = max(self._classifier.scores(images))
        flagged = worst >= self._threshold
        return Verdict(
            flagged=flagged, reasons=(reason,) if flagged else (), score=round(worst, 4)
        )


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def load(weights: Path, *, threshold: float = THRESHOLD) -> Judge:
    """Return the judge whose classifier lies in ``weights/safety``.

    Raises WeightsMissing, naming the folder or torch, when it cannot run here.
    """
    if missing := what_is_missing(weights):
        raise WeightsMissing(missing)
    model = importlib.import_module("inference.media.safety_classifier")
    return Judge(model.ViTClassifier(weights / FOLDER), threshold=threshold)


def has_weights(weights: Path) -> bool:
    return (weights / FOLDER / "config.json").exists()


def what_is_missing(weights: Path) -> str:
    """Say why the classifier cannot run here, or answer ""; loads nothing."""
    if not has_weights(weights):
        return f"no classifier weights in {weights / FOLDER}"
    if importlib.util.find_spec("torch") is None:
        return (
            f"torch is not installed here (requirements/gpu.txt), and "
            f"{weights / FOLDER} holds weights that need it"
        )
    return ""


def enforce(verdict: Verdict, policy: SafetyPolicy) -> dict[str, Any]:
    """Return what the job notes; raise ContentBlocked where the policy says so.

    ``block`` refuses, ``flag`` delivers and notes, ``off`` is for trusted accounts.

    Under ``off`` nothing is noted, but what no policy allows is still refused.
    """
    if verdict.never or (verdict.flagged and policy == "block"):
        raise ContentBlocked(f"safety: {', '.join(verdict.reasons)}")
    if policy == "off" or not verdict.flagged:
        return {}
    return {"flagged": list(verdict.reasons), "score": verdict.score}


# -- prompt rules --------------------------------------------------------------------

_SEXUAL = re.compile(
    r"\b(?:nudes?|nudity|naked(?![ -](?:eye|mole))|nsfw|porn\w*|hentai|xxx|bottomless"
    r"|topless(?! (?:convertible|roadster|jeep|bus|(?:car|cab|boat)"
    r"(?! (?:wash|show|party|girl|wom[ae]n))))|undress\w*|unclothed"
    r"|strip(?:s|ping)?[ -]?tease\w*|strip(?:s|ping)? (?:naked|nude|bare|for (?:me|us"
    r"|him|her|the camera)|(?:off|out of|down to) (?:her|his|their))"
    r"|(?:s?he|they|(?:wo)?m[ae]n|(?:school)?(?:boy|girl)s?|teen(?:s|agers?)?"
    r"|child(?:ren)?|kids?)(?: is| are)?(?: \w+ly)? strip(?:s|ping)"
    r"(?! (?:the|an?|some|old|away|wallpaper|paint|bark)\b)"
    r"|lewd|erotic\w*|orgasm\w*|masturbat\w*|blow ?job"
    r"|genital\w*|penis\w*|vagina\w*|nipples?|cum ?shot|fellatio|cunnilingus"
    r"|(?:having|have|has|explicit|hardcore) sex|sex (?:act|scene|tape)s?"
    r"|sexual (?:act|intercourse)\w*"
    r"|without (?:any )?clothes|no clothes|(?:take|takes|taking) off (?:her|his|their)"
    r" (?:clothes|dress|shirt|bra|underwear|top))\b"
    r"|裸体|裸照|全裸|色情|脱衣|脱光|性爱|性交"
)
_MINOR = re.compile(
    r"\b(?:child(?:ren)?|kids?|minors?|toddlers?|bab(?:y|ies)|infants?|pre ?teens?"
    r"|teen(?:s|ager|agers|aged?)?|under ?aged?|schoolgirls?|schoolboys?|little (?:girl"
    r"|boy)s?|young (?:girl|boy)s?|lol(?:i|ita)s?|shotas?|(?:[0-9]|1[0-7])[ -]?"
    r"(?:years?|yrs?|yo|y/o)(?:[ -]?olds?)?|girls?|boys?)\b"
    r"|儿童|小孩|幼女|幼童|未成年|女孩|男孩"
)
_REAL_PERSON = re.compile(
    r"\b(?:deep ?fake\w*|nudif\w+|undress (?:her|him|this|the) (?:woman|girl|man|person)"
    r"|remove (?:her|his|their|the) cloth\w*|x-?ray (?:her|his|their|the) cloth\w*)\b"
)
_GORE = re.compile(
    r"\b(?:behead\w*|decapitat\w*|disembowel\w*|dismember\w*|gore|gory|mutilat\w*"
    r"|eviscerat\w*|snuff (?:film|video|movie)s?|tortur(?:e|es|ed|ing) (?:a |the |her"
    r"|him|them|to death)\w*)\b|斩首|肢解|虐杀"
)
_EXTREMISM = re.compile(
    r"\b(?:isis (?:flag|propaganda|execution)|nazi propaganda|(?:mass|school) shooting"
    r"|suicide bomb\w*|terror(?:ist)? propaganda|ethnic cleansing)\b|恐怖袭击"
)
_SELF_HARM = re.compile(
    r"\b(?:suicide|self[ -]?harm\w*|slit(?:s|ting)? (?:her|his|their|my) wrists?"
    r"|hang(?:s|ing)? (?:herself|himself|themsel\w+|myself))\b|自杀|自残"
)
_RULES = {
    "sexual": _SEXUAL,
    "nonconsensual": _REAL_PERSON,
    "gore": _GORE,
    "extremism": _EXTREMISM,
    "self_harm": _SELF_HARM,
}
_LEET = str.maketrans("013457@$!", "oleastasi")
#: Letters of other scripts that are read as Latin ones, by their Unicode names.
_READ_AS = {
    "CYRILLIC": "A:a VE:b IE:e PE:n KA:k EM:m EN:h O:o ER:p ES:c TE:t U:y HA:x DZE:s I:u "
    "BYELORUSSIAN-UKRAINIAN_I:i JE:j SHHA:h KOMI_DE:d PALOCHKA:l QA:q WE:w STRAIGHT_U:y",
    "GREEK": "ALPHA:a BETA:b GAMMA:y EPSILON:e ETA:n IOTA:i KAPPA:k NU:v OMICRON:o "
    "RHO:p TAU:t UPSILON:u CHI:x OMEGA:w",
}
_LOOK_ALIKES = {
    ord(unicodedata.lookup(f"{script} SMALL LETTER {name.replace('_', ' ')}")): latin
    for script, letters in _READ_AS.items()
    for name, _, latin in (letter.partition(":") for letter in letters.split())
}
#: Four letters or more with signs between them; an "a" before them is a word.
_SPACED = re.compile(r"(?<![^\W_])(?!a\s)(?:[^\W_][\s._*/|\-]+){3,}[^\W_](?![^\W_])")
_JOINT = re.compile(r"(?<=[^\W_])[_/|*.]+(?=[^\W_])")


def judge_prompt(text: str) -> Verdict:
    """Judge what a customer wrote.

    Hidden marks, look-alikes, s p a c i n g and words_joined/by|signs count.

    >>> judge_prompt("A cat naps in Essex, cocktail in hand").flagged
    False
    >>> judge_prompt("a n u d e woman").reasons
    ('sexual',)
    """
    plain = _plain(text)
    apart = _JOINT.sub(" ", plain)
    readings = {plain, apart, plain.translate(_LEET), apart.translate(_LEET)}
    reasons = tuple(
        code
        for code, rule in _RULES.items()
        if any(rule.search(reading) for reading in readings)
    )
    about_a_minor = any(_MINOR.search(reading) for reading in readings)
    if about_a_minor and {"sexual", "nonconsensual"} & set(reasons):
        return Verdict(flagged=True, reasons=("minor", *reasons), never=True)
    return Verdict(flagged=bool(reasons), reasons=reasons)


def _plain(text: str) -> str:
    """Return lower-case text without accents, invisible marks or letters s p a c e d."""
    decomposed = unicodedata.normalize("NFKD", text)
    kept = "".join(
        character
        for character in decomposed
        if unicodedata.category(character) not in {"Mn", "Cf", "Cc"}
        or character in "\n\t"
    )
    latin = kept.casefold().translate(_LOOK_ALIKES)
    joined = _SPACED.sub(lambda match: re.sub(r"[\W_]", "", match[0]), latin)
    return re.sub(r"\s+", " ", joined)
