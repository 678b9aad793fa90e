"""What one Wan clip costs in floating-point operations; the basis of floors and ETAs.

Pure arithmetic; agrees with torch's FlopCounterMode to under 2 % (a test holds that).
"""

from __future__ import annotations

from dataclasses import dataclass

TEXT_TOKENS = 512
#: tokens of one picture from CLIP ViT-H/14 at 224 pixels
IMAGE_TOKENS = 257


@dataclass(frozen=True)
class Shape:
    """The transformer's dimensions; ``stride`` is pixels per token side."""

    width: int
    ffn: int
    layers: int
    stride: int
    image_tokens: int = 0
    text_width: int = 4096
    in_channels: int = 36
    out_channels: int = 16

    def tokens(self, width: int, height: int, frames: int) -> int:
        latent_frames = (frames - 1) // 4 + 1
        return latent_frames * (width // self.stride) * (height // self.stride)

    def forward(self, width: int, height: int, frames: int) -> float:
        """Return the FLOPs of one transformer forward over a whole clip."""
        n, d = self.tokens(width, height, frames), self.width
        context = TEXT_TOKENS + self.image_tokens
        linear = 2 * n * (6 * d * d + 2 * d * self.ffn) * self.layers
        attention = 4 * n * n * d * self.layers
        cross = 4 * n * context * d * self.layers
        keys_values = 4 * d * d * context * self.layers
        ends = 2 * n * d * 4 * (self.in_channels + self.out_channels)
        text = 2 * TEXT_TOKENS * (self.text_width * d + d * d)
        return float(linear + attention + cross + keys_values + ends + text)


#: by kind of checkpoint; source: the published transformer configs
SHAPES = {
    "2.1": Shape(5120, 13824, 40, stride=16, image_tokens=IMAGE_TOKENS),
    "flf": Shape(5120, 13824, 40, stride=16, image_tokens=2 * IMAGE_TOKENS),
    "2.2": Shape(5120, 13824, 40, stride=16),
    "5b": Shape(3072, 14336, 30, stride=32, in_channels=48, out_channels=48),
}

# Counted on the full models (81 frames of 480x832; 5B: 121 of 704x1280): encoding and
# decoding scale with pixels x frames.
_PER_PIXEL_480P = 1.0 / (480 * 832 * 81)
_VAE = {
    "2.1": (164e12 * _PER_PIXEL_480P, 275e12 * _PER_PIXEL_480P),
    "5b": (383e12 / (704 * 1280 * 121), 2011e12 / (704 * 1280 * 121)),
}


def vae(kind: str, width: int, height: int, frames: int) -> tuple[float, float]:
    """Return the FLOPs of encoding the picture and of decoding the clip.

    2.1 and A14B encode a whole clip (the picture and zeros), 5B one frame.
    """
    encode, decode = _VAE["5b" if kind == "5b" else "2.1"]
    pixels = width * height
    encoded = 1 if kind == "5b" else frames
    return encode * pixels * encoded, decode * pixels * frames
