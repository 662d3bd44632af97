"""Recipes: the model, data and options behind each `kgen fit NAME`, with results."""

import lazy_loader as lazy

# One line for each command: the module is imported when its recipe is asked for.
RECIPES = {
    "bert": "kgen.recipes.bert:BERTRecipe",
    "cfgan": "kgen.recipes.cfgan:CFGANRecipe",
    "gan": "kgen.recipes.gan:GANRecipe",
    "gpt": "kgen.recipes.gpt:GPTRecipe",
    "multvae": "kgen.recipes.multvae:MultVAERecipe",
    "recvae": "kgen.recipes.recvae:RecVAERecipe",
    "vae": "kgen.recipes.vae:VAERecipe",
}

__getattr__, __dir__, _names = lazy.attach(
    __name__,
    submod_attrs={
        "bert": ["BERTRecipe"],
        "cfgan": ["CFGANRecipe"],
        "gan": ["GANRecipe"],
        "gpt": ["GPTRecipe"],
        "multvae": ["MultVAERecipe"],
        "recipe": ["Recipe"],
        "records": [
            "check_options",
            "export_metadata",
            "presets",
            "read_record",
            "recipe_class",
            "recipe_of_run",
        ],
        "recvae": ["RecVAERecipe"],
        "vae": ["VAERecipe"],
    },
)
__all__ = ["RECIPES", *_names]
