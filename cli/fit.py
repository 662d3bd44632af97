"""`kgen fit RECIPE`: trains a model by a recipe."""

import dataclasses
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kgen import recipes
from kgen.training import RunFolder
from kgen.training.clusters import read_cluster

from . import recipe_options
from .errors import Interrupted, as_options, describe
from .options import (
    Settings,
    SuggestingGroup,
    aligned,
    debug_option,
    is_run,
    name_of_run,
    typed,
    unknown,
)
from .startup import load_tensorflow
from .tasks import EXAMPLES, tasks


class RecipeGroup(SuggestingGroup):
    """The recipes as commands, each made from its dataclass when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names in the recipe table."""
        return list(recipes.RECIPES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Builds the command of one recipe."""
        return recipe_command(cmd_name) if cmd_name in recipes.RECIPES else None


@click.group(
    "fit",
    cls=RecipeGroup,
    kind="recipe",
    invoke_without_command=True,
    subcommand_metavar="[RECIPE] [OPTIONS]",
)
@debug_option
@click.pass_context
def command(context: click.Context) -> None:
    """Train a model by a recipe; without one, list the recipes."""
    if context.invoked_subcommand is None:
        click.echo("Recipes (kgen fit RECIPE --help shows the options of one):")
        for line in recipe_lines():
            click.echo(f"  {line}")


def recipe_lines() -> list[str]:
    """Returns a line for each recipe: its name and what it trains."""
    return aligned(
        (name, recipe_options.summary(recipes.recipe_class(name)))
        for name in recipes.RECIPES
    )


def recipe_command(name: str) -> click.Command:
    """Builds `kgen fit NAME` from the fields of the recipe's dataclass."""
    recipe_class = recipes.recipe_class(name)
    presets = recipes.presets(name)
    summary = recipe_options.summary(recipe_class)
    built = click.Command(
        name,
        callback=_trainer(recipe_class, presets),
        params=[
            *recipe_options.options(recipe_class),
            click.Option(
                ["--preset"],
                metavar="NAME",
                help="Start from a named set of options instead of the defaults shown "
                f"here: {', '.join(presets) or 'none'}.",
            ),
            click.Option(
                ["--resume"],
                is_flag=True,
                help="Go on where an interrupted run stopped.",
            ),
            click.Option(
                ["--overwrite"],
                is_flag=True,
                help="Replace the run that is in the folder.",
            ),
            click.Option(
                ["--dry-run"], is_flag=True, help="Print the plan and train nothing."
            ),
        ],
        help=summary,
        short_help=summary,
    )
    return debug_option(built)


def _trainer(recipe_class: type, presets: dict[str, Any]) -> Callable[..., None]:
    """Returns the callback of one recipe's command."""

    @click.pass_context
    def train(
        call: click.Context,  # `context` is an option of some recipes
        /,
        preset: str | None,
        resume: bool,
        overwrite: bool,
        dry_run: bool,
        **options: Any,
    ) -> None:
        if resume and overwrite:
            raise click.UsageError("--resume and --overwrite exclude each other.")
        if preset is not None and preset not in presets:
            raise click.UsageError(unknown("preset", preset, list(presets)))
        names = [field.name for field in dataclasses.fields(recipe_class)]
        call.ensure_object(Settings).names = names
        given = typed(call, options)
        start = recipe_class() if preset is None else presets[preset]
        try:
            recipe = dataclasses.replace(start, **given)
            _check_surroundings(recipe)
            if resume and is_run(recipe.run_folder):
                # With its own options, but for those that are typed again.
                started = recipes.recipe_of_run(recipe.run_folder)
                if started.recipe_name == recipe.recipe_name:
                    recipe = dataclasses.replace(started, **given)
                recipes.check_options(recipe, recipes.read_record(recipe.run_folder))
        except (ValueError, TypeError) as error:
            raise click.UsageError(as_options(describe(error), names)) from error

        # Before TensorFlow is loaded. Workers may find the run that the chief started.
        if not dry_run and "TF_CONFIG" not in os.environ:
            RunFolder(recipe.run_folder).check_free(resume or overwrite)
        try:
            load_tensorflow()
            folder = recipe.run(
                resume=resume, overwrite=overwrite, dry_run=dry_run, report=click.echo
            )
        except KeyboardInterrupt:
            settings = call.ensure_object(Settings)
            raise Interrupted(_how_to_resume(settings.arguments)) from None
        if folder is not None:
            _say_what_comes_next(folder)

    return train


def _check_surroundings(recipe: Any) -> None:
    """Refuse files that do not exist, and workers that do not know their cluster."""
    named = recipe.data if isinstance(recipe.data, str) else ""
    is_path = named.startswith(("/", "~", ".")) or Path(named).suffix[1:].isalpha()
    if is_path and not Path(named).expanduser().exists():
        raise ValueError(f"There is no file or folder {named}.")
    if recipe.strategy == "multiworker":
        read_cluster(os.environ.get("TF_CONFIG", ""))


def _say_what_comes_next(folder: Path) -> None:
    run = shlex.quote(name_of_run(folder))
    click.echo(f"The run is in {folder}. What to type next:")
    for verb, task in tasks(folder).items():
        click.echo(f"  kgen {verb} {run} {EXAMPLES[task.kind]}".rstrip())
    click.echo(f"  kgen evaluate {run}")
    click.echo(f"  tensorboard --logdir {shlex.quote(str(folder))}")


def _how_to_resume(arguments: list[str]) -> str:
    kept = [word for word in arguments if word not in ("--resume", "--overwrite")]
    return f"Interrupted. To go on: {shlex.join(['kgen', *kept, '--resume'])}"
