"""Error messages of failed commands, one line each."""

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
# Added by TensorFlow to the text of an error: the node before it, the op after it.
_GRAPH_DETAILS = re.compile(r"\{\{.*?\}\} |\s*\[Op:.*")

# The task at the other end of a broken connection, or without heartbeats.
_LOST_TASK = re.compile(
    r"(?:remote target |sending heartbeats\):\s*)/job:(\w+)/replica:0/task:(\d+)"
)
_MAKE_ROOM = ". Free some space and type the command again; kgen fit: with --resume."


class Interrupted(Exception):
    """Interruption by Ctrl-C, with the command that resumes."""


def as_options(text: str, names: Iterable[str]) -> str:
    """Replace argument names in a message by options: --image-size 16."""
    for name in names:
        flag = f"--{name.replace('_', '-')}"
        text = text.replace(f"`{name}`", flag)
        text = re.sub(rf"\b{name}=", f"{flag} ", text)
    return text


def describe(error: Exception) -> str:
    """Return the message of an error as one line.

    Errors of kgen and of the file system are complete sentences. Others are shown with
    their type and the option that prints the traceback.
    """
    if type(error).__module__.startswith("tensorflow"):
        if type(error).__name__ == "UnavailableError":  # Of collectives, no other op.
            return (
                "A worker has stopped or cannot be reached, and its output says why. "
                f"Received: {_unavailable(error)} Start all workers again with "
                "--resume: they continue from the last checkpoint."
            )
        if "File too large" in str(error):  # TensorFlow raises no OSError.
            return f"{_one_line(str(error))}{_MAKE_ROOM}"
        raised_in_graph = _PYTHON_ERROR.search(str(error))
        if raised_in_graph:
            return _one_line(raised_in_graph.group(1))
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return f"{error.strerror}{place}{_MAKE_ROOM if full else ''}"
    if isinstance(error, OSError) or _is_raised_by_kgen(error):
        return _one_line(str(error))
    lines = str(error).strip().split("\n")
    # In a traced function: the traceback first, the message last.
    line = lines[-1] if lines[0] == "in user code:" else lines[0]
    name = type(error).__name__
    line = _GRAPH_DETAILS.sub("", line.strip().removeprefix(f"{name}: "))
    return f"{name}: {line} (Run again with --debug for the traceback.)"


def _unavailable(error: Exception) -> str:
    """Return the task of the lost worker if TensorFlow names it."""
    task = _LOST_TASK.search(str(error))
    return f"{task[1]} {task[2]} is gone." if task else "a lost connection."


def _is_raised_by_kgen(error: Exception) -> bool:
    """Whether kgen raised the error, not a library or a bug."""
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
