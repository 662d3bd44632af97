"""The `kgen` command: its verbs, exit codes and error messages."""

import sys
import traceback
from collections.abc import Sequence

import click

from kgen import __version__

from . import evaluate, export, fit, generate, list_runs, recommend, serve
from .errors import Interrupted, as_options, describe
from .options import Settings, SuggestingGroup, debug_option


@click.group(
    cls=SuggestingGroup,
    kind="command",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="kgen")
@debug_option
def kgen() -> None:
    """Train, sample, measure, export and serve generative models.

    Start with `kgen fit vae`: it needs no download and takes under a minute.
    """


for module in (fit, generate, recommend, evaluate, export, serve, list_runs):
    kgen.add_command(module.command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed run, 2 wrong usage.

    Args:
        arguments: Words after `kgen`; default: those of the process.
    """
    code = run(arguments)
    # Finalisers (of the thread pools of a broken strategy) would print below the last
    # line, which says what to do.
    sys.unraisablehook = lambda unraisable: None
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = [*(sys.argv[1:] if arguments is None else arguments)]
    settings = Settings(arguments)
    try:
        code = kgen.main(
            arguments, prog_name="kgen", obj=settings, standalone_mode=False
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Interrupted as error:
        click.echo(str(error), err=True)
        return 130
    except click.Abort:  # Click's name for Ctrl-C.
        click.echo("Interrupted.", err=True)
        return 130
    except Exception as error:
        if settings.debug:
            traceback.print_exc()
        else:
            text = as_options(describe(error), settings.names)
            click.echo(f"Error: {text}", err=True)
        return 1
    return code if isinstance(code, int) else 0
