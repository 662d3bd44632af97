"""Options of all recipes of image models: size, channels and labels."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from kgen.arguments import PositiveInt
from kgen.recipes.recipe import Recipe, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRecipe(Recipe):
    """A recipe whose data are images and whose model generates images from seeds."""

    evaluations: ClassVar[tuple[str, ...]] = ("evaluate_generator",)

    image_size: PositiveInt | None = option(
        None,
        "Resize and crop to squares of this side, in pixels; default: as they are.",
    )
    channels: PositiveInt | None = option(
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

    def sample(self, model: Any, data: Any = None) -> Any:
        """Generates 64 images, from the seeds 0 to 63 and the classes in turn."""
        labels = None
        if model.num_classes is not None:
            labels = [seed % model.num_classes for seed in range(64)]
        return model.generate(range(64), labels)

    def evaluate(
        self, model: Any, data: Any, *, limit: int | None = None, **options: Any
    ) -> list[Any]:
        """Measures the model on `limit` images, and 10,000 generated ones at most."""
        from kgen.evaluation.generators import NUM_IMAGES

        return super().evaluate(
            model,
            data,
            limit=limit,
            num_images=min(limit or NUM_IMAGES, NUM_IMAGES),
            binarize=self._binarize(),
            **options,
        )

    def _binarize(self) -> str | None:
        """Returns the binarization of pixels, or None for none."""
        return None

    def model_options(self, data: Any, steps_per_epoch: int) -> dict[str, Any]:
        """Returns the shape of the images and the number of their classes."""
        if self.conditional and data.num_classes is None:
            raise ValueError(
                "`conditional` needs data with labels. Received: data without. Give "
                "each class a subfolder, or leave it out."
            )
        num_classes = data.num_classes if self.conditional else None
        return {"image_shape": data.image_shape, "num_classes": num_classes}
