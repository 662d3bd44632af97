"""What a user reads when a command fails: one line."""

import errno
import re
import traceback
from collections.abc import Iterable

# An exception raised by Python code inside a TensorFlow graph comes back as an
# OpError whose text holds the original: "ValueError: text\nTraceback (most ...".
_PYTHON_ERROR = re.compile(
    r"(?:^|\n|\}\} )[A-Z]\w*Error: (.+?)(?=\nTraceback|\n\n|\n\t|$)",
    re.DOTALL,
)
# What TensorFlow adds to the text of an error: the node before, the op behind it.
_GRAPH_DETAILS = re.compile(r"\{\{.*?\}\} |\s*\[Op:.*")

# The other end of a broken connection, or one that heartbeats no longer come from.
_GONE = re.compile(
    r"(?:remote target |sending heartbeats\):\s*)/job:(\w+)/replica:0/task:(\d+)"
)


class Interrupted(Exception):
    """Ctrl-C, with the line that says what to type next."""


def as_options(text: str, names: Iterable[str]) -> str:
    """Writes the arguments of these names as they are typed: --image-size 16."""
    for name in names:
        flag = f"--{name.replace('_', '-')}"
        text = text.replace(f"`{name}`", flag)
        text = re.sub(rf"\b{name}=", f"{flag} ", text)
    return text


def describe(error: Exception) -> str:
    """Returns the one line that says what went wrong.

    Errors that kgen raised, and those of the file system, are complete sentences and
    stand alone. Any other is named with its type and the way to the traceback.
    """
    if type(error).__module__.startswith("tensorflow"):
        if type(error).__name__ == "UnavailableError":  # Of collectives, no other op.
            return (
                "All workers must go on to the end, and one has stopped or cannot be "
                f"reached; what it printed says why. Received: {_unavailable(error)} "
                "Start all of them again with --resume: they go on from the last "
                "checkpoint."
            )
        if "File too large" in str(error):  # No OSError, where TensorFlow writes.
            return f"{_one_line(str(error))}. Make room; a fit goes on with --resume."
        raised_in_graph = _PYTHON_ERROR.search(str(error))
        if raised_in_graph:
            return _one_line(raised_in_graph.group(1))
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = ". Make room; a fit goes on with --resume." if full else ""
        return f"{error.strerror}{place}{advice}"
    if isinstance(error, OSError) or _is_raised_by_kgen(error):
        return _one_line(str(error))
    lines = str(error).strip().split("\n")
    # From inside a traced function: its traceback first, then what went wrong.
    line = lines[-1] if lines[0] == "in user code:" else lines[0]
    name = type(error).__name__
    line = _GRAPH_DETAILS.sub("", line.strip().removeprefix(f"{name}: "))
    return f"{name}: {line} (Run again with --debug for the traceback.)"


def _unavailable(error: Exception) -> str:
    """Returns what TensorFlow knows of the worker that is gone: its task, at best."""
    task = _GONE.search(str(error))
    return f"{task[1]} {task[2]} is gone." if task else "a lost connection."


def _is_raised_by_kgen(error: Exception) -> bool:
    """Whether the error is one of kgen's own, as opposed to a library's or a bug's."""
    if type(error).__module__.startswith("kgen"):
        return True
    known = ValueError | TypeError | FloatingPointError | ImportError
    if not isinstance(error, known):
        return False
    frames = list(traceback.walk_tb(error.__traceback__))
    module = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    return module.split(".")[0] in ("kgen", "kgen_cli")


def _one_line(text: str) -> str:
    return " ".join(text.split())
