"""Recipes: what `kgen fit NAME` trains, on what, and what came out of it."""

import lazy_loader as lazy

# One line for each command: the module is imported when its recipe is asked for.
RECIPES = {
    "gan": "kgen.recipes.gan:GANRecipe",
    "multvae": "kgen.recipes.multvae:MultVAERecipe",
    "vae": "kgen.recipes.vae:VAERecipe",
}

__getattr__, __dir__, _names = lazy.attach(
    __name__,
    submod_attrs={
        "base": ["Recipe", "presets", "read_record", "recipe_class", "recipe_of_run"],
        "gan": ["GANRecipe"],
        "multvae": ["MultVAERecipe"],
        "vae": ["VAERecipe"],
    },
)
__all__ = ["RECIPES", *_names]
