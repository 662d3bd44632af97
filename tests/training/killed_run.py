"""A run that says each step it has taken, to be killed by `test_resume.py`.

Usage: python killed_run.py FOLDER STEPS_PER_EXECUTION
"""

import sys
from pathlib import Path

import keras

from kgen.recipes import VAERecipe

STEPS_PER_EPOCH = 11  # 1,439 training rows in batches of 128, the rest dropped
EPOCHS = 6


class WatchedRecipe(VAERecipe):
    """The recipe of `kgen fit vae`, which prints each step."""

    def make_model(self, data, steps_per_epoch):
        model = super().make_model(data, steps_per_epoch)
        fit = model.fit

        def watched(*args, callbacks, **options):
            said = keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: print(
                    int(model.step.numpy()), flush=True
                )
            )
            return fit(*args, callbacks=[*callbacks, said], **options)

        model.fit = watched
        return model


def run(folder: Path, steps_per_execution: int) -> None:
    """Starts the run in this folder, or goes on with it."""
    recipe = WatchedRecipe(
        epochs=EPOCHS,
        batch_size=128,
        latent_dim=4,
        hidden_units=(16,),
        steps_per_execution=steps_per_execution,
        checkpoint_seconds=0,
        sample_epochs=EPOCHS,
        measure="none",
        export="none",
        folder=str(folder.parent),
        name=folder.name,
    )
    recipe.run(resume=True, report=lambda line: None)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
