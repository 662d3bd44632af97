"""Image quality: by hand, and against scikit-image."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from kgen.evaluation import mean_squared_error, psnr, ssim
from kgen.evaluation.blocks import in_blocks
from kgen.evaluation.image_quality import ssim_window


def pair(*shape):
    rng = np.random.default_rng(0)
    images = rng.random((3, *shape)).astype(np.float32)
    noise = 0.1 * rng.standard_normal(images.shape)
    return images, np.clip(images + noise, 0, 1).astype(np.float32)


def test_mse_and_psnr_by_hand():
    images = np.zeros([2, 2, 2, 1], np.float32)
    targets = images.copy()
    targets[0] = 0.1  # MSE .01, PSNR 10 log10(1 / .01) = 20 dB
    targets[1, 0, 0] = 0.2  # MSE .04 / 4 = .01 as well
    np.testing.assert_allclose(mean_squared_error(images, targets), 0.01, rtol=1e-6)
    np.testing.assert_allclose(psnr(images, targets), 20.0, rtol=1e-6)


def test_equal_images_have_infinite_psnr_and_ssim_one():
    images, _ = pair(12, 12, 1)
    assert (psnr(images, images) == np.inf).all()
    np.testing.assert_allclose(ssim(images, images), 1.0, rtol=1e-6)


@pytest.mark.parametrize("shape", [(16, 20, 1), (11, 11, 3)])
def test_ssim_equals_scikit_image(shape):
    images, targets = pair(*shape)
    expected = [
        structural_similarity(
            one.astype(np.float64),
            other.astype(np.float64),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=-1,
        )
        for one, other in zip(images, targets, strict=True)
    ]
    np.testing.assert_allclose(ssim(images, targets), expected, atol=2e-6)


def test_ssim_of_small_images_by_its_definition():
    """7x7 windows, the largest that fit 8x8: four positions, weighted moments."""
    images, targets = pair(8, 8, 1)
    offsets = np.arange(-3, 4)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    expected = []
    for one, other in zip(images[..., 0], targets[..., 0], strict=True):
        values = []
        for top in (0, 1):
            for left in (0, 1):
                x = one[top : top + 7, left : left + 7].astype(np.float64)
                y = other[top : top + 7, left : left + 7].astype(np.float64)
                mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
                variance_x = (weights * x**2).sum() - mean_x**2
                variance_y = (weights * y**2).sum() - mean_y**2
                covariance = (weights * x * y).sum() - mean_x * mean_y
                luminance = (2 * mean_x * mean_y + 1e-4) / (
                    mean_x**2 + mean_y**2 + 1e-4
                )
                structure = (2 * covariance + 9e-4) / (variance_x + variance_y + 9e-4)
                values.append(luminance * structure)
        expected.append(np.mean(values))
    np.testing.assert_allclose(ssim(images, targets), expected, atol=2e-6)


def test_ssim_window_is_odd_and_fits():
    assert ssim_window((28, 28, 1)) == 11
    assert ssim_window((8, 28, 1)) == 7
    assert ssim_window((1, 1, 1)) == 1


def test_in_blocks_joins_its_blocks():
    values = np.arange(7)
    sizes = []

    def double(rows):
        sizes.append(len(rows))
        return 2 * rows

    np.testing.assert_array_equal(in_blocks(double, values, size=3), 2 * values)
    assert sizes == [3, 3, 1]


def test_images_must_be_floats_in_pairs():
    images, targets = pair(8, 8, 1)
    with pytest.raises(ValueError, match="Divide uint8 by 255"):
        psnr((images * 255).astype(np.uint8), targets)
    with pytest.raises(ValueError, match="same shape"):
        psnr(images[:1], targets)
