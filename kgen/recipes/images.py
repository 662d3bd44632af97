"""What the recipes of image models share: their data, and samples to look at."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

from kgen.recipes.recipe import Recipe, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRecipe(Recipe):
    """A recipe whose data are images and whose model generates images from seeds."""

    task: ClassVar[str] = "images"
    next_command: ClassVar[str] = "kgen generate {run}"

    image_size: int | None = option(
        None,
        "Resize and crop to squares of this side, in pixels; default: as they are.",
    )
    channels: int | None = option(
        None, "1 for grey, 3 for RGB; default: as the images are."
    )
    conditional: bool = option(False, "Condition on the labels of the data.")

    def open_data(self, *, download: bool = True) -> Any:
        """Opens the images."""
        from kgen.data import open_images

        return self.call(open_images, self.data, download=download)

    def pipeline_options(self) -> dict[str, Any]:
        """Returns the binarization, if the images are binarized."""
        return {"binarize": self._binarize()}

    def sample_callbacks(self, model: Any, data: Any, folder: Any) -> list[Any]:
        """A grid of images after each epoch, as a file and for TensorBoard."""
        from kgen import training

        @functools.lru_cache(maxsize=1)
        def images_at(step):
            return self.sample(model, data)

        def images():  # drawn once for both that show them
            return images_at(int(model.step.numpy()))

        return [
            training.Samples(images, folder.samples, self.sample_epochs),
            training.TensorBoard(folder.tensorboard, images, self.sample_epochs),
        ]

    def sample(self, model: Any, data: Any = None) -> Any:
        """64 images: the seeds 0 to 63, and the classes in turn."""
        labels = None
        if model.num_classes is not None:
            labels = [seed % model.num_classes for seed in range(64)]
        return model.generate(range(64), labels)

    def evaluate(
        self,
        model: Any,
        data: Any,
        *,
        split: str = "test",
        limit: int | None = None,
        progress: Any = None,
        **options: Any,
    ) -> list[Any]:
        """Distance from real images, diversity and speed; see `evaluate_generator`.

        Args:
            model: The model.
            data: What `open_data` returned.
            split: "test", "validation" or "train".
            limit: Fewer images than the usual 10,000.
            progress: Called with the number of images generated, and their total.
            **options: Of autoencoders alone: not used here.
        """
        from kgen.evaluation import evaluate_generator
        from kgen.evaluation.generators import NUM_IMAGES

        return evaluate_generator(
            model,
            data,
            split=split,
            num_images=min(limit or NUM_IMAGES, NUM_IMAGES),
            seed=self.seed,
            progress=progress,
        )

    def _binarize(self) -> str | None:
        """How pixels become black or white, or None: they stay as they are."""
        return None

    def image_options(self, data: Any) -> dict[str, Any]:
        """Returns arguments of every model of images, from the data."""
        if self.conditional and data.num_classes is None:
            raise ValueError(
                "`conditional` needs data with labels. Received: data without. Give "
                "each class a subfolder, or leave it out."
            )
        num_classes = data.num_classes if self.conditional else None
        return {
            "image_shape": data.image_shape,
            "num_classes": num_classes,
            "dtype": self.dtype(),
        }
