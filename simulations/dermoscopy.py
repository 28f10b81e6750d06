"""How one synthetic dermoscopic image is drawn: skin, a lesion, and the device that photographs it.

An image is a lesion on skin, 32 x 32 RGB, coordinates in [-1, 1]. The label (malignant or not) shows in the roughness
of the border and of the texture, with an overlap that bounds what any classifier can reach; the group (light or dark
skin) in the background and in the lesion's contrast; the device in colour, blur and noise.

>>> rng = np.random.default_rng(0)
>>> images = draw_images(np.array([0, 1]), np.array([0, 1]), DEVICES[0], rng)
>>> images.shape, images.dtype
((2, 32, 32, 3), dtype('uint8'))

Bytes repeat on one machine; elsewhere the last bit of a cosine may differ, and with it a pixel by one step of 255.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float32]
Integers = NDArray[np.int64]

SIZE = 32
SEPARATION = 2.5  # delta: how far apart the severities of the two classes lie


@dataclass(frozen=True)
class Device:
    """A camera: gain of each colour, gamma, blur (sigma in pixels), noise (standard deviation on a 0 to 1 scale)."""

    gain: tuple[float, float, float]
    gamma: float
    blur: float
    noise: float


DEVICES = (
    Device((1.00, 1.00, 1.00), 1.00, 0.0, 0.03),
    Device((1.06, 1.00, 0.92), 1.00, 0.5, 0.03),
    Device((0.92, 1.00, 1.06), 1.10, 0.0, 0.04),
    Device((1.00, 0.95, 0.90), 0.90, 0.7, 0.03),
    Device((0.95, 1.03, 1.00), 1.00, 0.6, 0.05),
    Device((1.05, 0.97, 1.05), 1.15, 0.4, 0.04),
    Device((0.98, 1.00, 0.90), 0.95, 0.8, 0.03),
    Device((1.00, 1.05, 1.00), 1.05, 0.3, 0.05),
)


def draw_images(labels: Integers, groups: Integers, device: Device, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One image per patient.

    Args:
        labels: (n,) in {0, 1}, 1 malignant.
        groups: (n,) in {0, 1}, 1 dark skin.
        device: what photographs them.
        rng: a public stream; never one that makes privacy noise.

    Returns:
        (n, 32, 32, 3) uint8.
    """
    drawn = np.empty((len(labels), SIZE, SIZE, 3), dtype=np.uint8)
    for start in range(0, len(labels), 256):  # 256 images at a time stay in the processor's cache
        part = slice(start, start + 256)
        drawn[part] = _draw(labels[part], groups[part], device, rng)
    return drawn


def _draw(labels: Integers, groups: Integers, device: Device, rng: np.random.Generator) -> NDArray[np.uint8]:
    count = len(labels)

    def column(values: NDArray[np.float64]) -> Array:
        """One number per image, to be spread over its pixels."""
        return values.astype(np.float32)[:, None, None]

    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    x, y = axis[None, None, :], axis[None, :, None]
    dark = groups == 1

    # 1. severity; 2. skin
    severity = expit(1.2 * (rng.standard_normal(count) + SEPARATION * (labels - 0.5)))
    tone = np.clip(rng.normal(np.where(dark, 0.78, 0.20), 0.1), 0, 1)[:, None]
    skin = (1 - tone) * np.array([0.90, 0.72, 0.62]) + tone * np.array([0.40, 0.27, 0.21])

    # 3. lesion: a circle whose border is a sum of cosines, rougher where severity is high
    centre_x, centre_y = rng.uniform(-0.2, 0.2, (2, count))
    from_x, from_y = x - column(centre_x), y - column(centre_y)
    radius, angle = np.hypot(from_x, from_y), np.arctan2(from_y, from_x)
    border = np.ones_like(radius)
    size = column(rng.uniform(0.38, 0.60, count))
    for k in (2, 3, 5, 7):
        amplitude = (
            0.12 * rng.uniform(0, 1, count)
            if k == 2
            else (0.03 + 0.20 * severity / np.sqrt(k / 2)) * rng.uniform(0.5, 1, count)
        )
        border += column(amplitude) * np.cos(k * angle + column(rng.uniform(0, 2 * np.pi, count)))
    membership = expit((size * border - radius) / np.float32(0.05))

    # 4. texture
    texture = np.zeros_like(radius)
    for _ in range(4):
        frequency, direction = rng.uniform(4, 11, count), rng.uniform(0, 2 * np.pi, count)
        along = column(frequency * np.cos(direction)) * x + column(frequency * np.sin(direction)) * y
        texture += np.cos(along + column(rng.uniform(0, 2 * np.pi, count)))
    texture *= column(0.04 + 0.22 * severity)

    # 5. darkening; 6. illumination
    contrast = np.where(dark, 0.42, 0.62) * rng.uniform(0.80, 1.15, count)
    darkening = membership * column(contrast) * np.clip(1 + texture, 0.1, 2)
    absorbed = np.clip(darkening[..., None] * np.array([0.75, 1.0, 1.1], dtype=np.float32), 0, 0.95)
    slope_x, slope_y = 0.12 * rng.standard_normal((2, count))
    light = 1 + column(slope_x) * x + column(slope_y) * y
    image = skin.astype(np.float32)[:, None, None, :] * (1 - absorbed) * light[..., None]
    return _photograph(image, device, rng)


def _photograph(image: Array, device: Device, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What a device makes of a scene, float (n, 32, 32, 3) in [0, 1]: gamma, gain, blur, noise, 8 bits."""
    image = np.clip(image, 0.001, 1) ** np.float32(device.gamma)
    image *= np.array(device.gain, dtype=np.float32)
    if device.blur > 0:
        taps = np.exp(-0.5 * (np.arange(-2, 3) / device.blur) ** 2)
        taps = (taps / taps.sum()).astype(np.float32)
        for axis in (1, 2):
            edges = [(0, 0)] * 4
            edges[axis] = (2, 2)
            padded = np.pad(image, edges, mode="reflect")
            windows = [np.take(padded, np.arange(shift, shift + SIZE), axis=axis) for shift in range(5)]
            image = sum(tap * window for tap, window in zip(taps, windows, strict=True))
    image += np.float32(device.noise) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
