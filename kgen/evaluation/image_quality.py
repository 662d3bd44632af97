"""Similarity of pairs of images: squared error, PSNR and SSIM."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from kgen.evaluation.blocks import in_blocks

SSIM_WINDOW = 11  # pixels; with the sigma of 1.5, the window of the paper
_BLOCK_ROWS = 512  # SSIM computes five images for each pair


def mean_squared_error(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the mean over pixels and channels of the squared difference.

    Shapes:
        images, targets: [n, height, width, channels], float in [0, 1] -> [n]
    """
    images, targets = _checked_pairs(images, targets)
    return np.mean(np.square(images - targets), axis=(1, 2, 3))


def psnr(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio in dB, with a peak of 1.

    It is infinite for equal images.

    Shapes:
        images, targets: [n, height, width, channels], float in [0, 1] -> [n]
    """
    with np.errstate(divide="ignore"):
        return -10.0 * np.log10(mean_squared_error(images, targets))


def ssim(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the structural similarity, 1 for equal images.

    It is a mean over channels and over windows inside the image, of the size
    `ssim_window`.

    Shapes:
        images, targets: [n, height, width, channels], float in [0, 1] -> [n]

    Reference:
        Wang et al., 2004, Image Quality Assessment: From Error Visibility to
        Structural Similarity.
    """
    images, targets = _checked_pairs(images, targets)
    window = ssim_window(images.shape[1:])

    def measure(some, others):
        return tf.image.ssim(
            tf.constant(some, tf.float32),
            tf.constant(others, tf.float32),
            max_val=1.0,
            filter_size=window,
            filter_sigma=1.5,
        ).numpy()

    return in_blocks(measure, images, targets, size=_BLOCK_ROWS)


def ssim_window(image_shape: tuple[int, ...]) -> int:
    """Return the side of the SSIM window: 11, or the largest odd number that fits."""
    side = min(SSIM_WINDOW, *image_shape[:2])
    return side if side % 2 else side - 1


def _checked_pairs(
    images: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64, or raise a ValueError."""
    for name, array in (("images", images), ("targets", targets)):
        if array.ndim != 4 or array.dtype.kind != "f":
            raise ValueError(
                f"`{name}` must be floats in [0, 1], [n, height, width, channels]. "
                f"Received: {array.dtype} {array.shape}. Divide uint8 by 255."
            )
    if images.shape != targets.shape:
        raise ValueError(
            "`images` and `targets` must have the same shape. Received: "
            f"{images.shape} and {targets.shape}"
        )
    return images.astype(np.float64), targets.astype(np.float64)
