"""Exit codes, one-line errors and the arguments shared by the verbs."""

import click
import numpy as np
import pytest

from kgen.models.shared.specs import ClassSpec, InputSpec
from kgen_cli import options
from kgen_cli.errors import Interrupted, describe
from kgen_cli.main import kgen, run
from kgen_cli.tasks import check_ranges


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Start each test in a folder without runs."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def failing(monkeypatch):
    """A verb that raises a chosen error."""
    state = {}

    @click.command("fail")
    @options.debug_option
    def fail():
        raise state["error"]

    monkeypatch.setitem(kgen.commands, "fail", fail)

    def set_error(error):
        state["error"] = error

    return set_error


def test_help_is_done(capsys):
    assert run(["--help"]) == 0
    assert "evaluate" in capsys.readouterr().out


def test_an_unknown_verb_is_wrong_usage_and_gets_a_suggestion(capsys):
    assert run(["fti"]) == 2
    assert "There is no command 'fti'. Did you mean fit?" in capsys.readouterr().err


def test_an_unknown_option_is_wrong_usage(capsys):
    assert run(["list", "--colour"]) == 2
    assert "--colour" in capsys.readouterr().err


def test_an_unknown_run_names_the_known_runs(tmp_path, capsys):
    (tmp_path / "saved_models" / "digits").mkdir(parents=True)
    (tmp_path / "saved_models" / "digits" / "recipe.json").write_text("{}")
    assert run(["evaluate", "digit"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "There is no run 'digit'. Did you mean digits? Known: digits." in error


def test_an_error_in_a_traced_function_shows_its_last_line(failing, capsys):
    failing(
        TypeError(
            'in user code:\n\n    File "vae.py", line 3, in step\n\n'
            "    TypeError: `images` must be a tensor.\n"
        )
    )
    assert run(["fail"]) == 1
    assert capsys.readouterr().err == (
        "Error: TypeError: `images` must be a tensor. "
        "(Run again with --debug for the traceback.)\n"
    )


def test_a_library_error_names_its_type_and_the_debug_option(failing, capsys):
    failing(KeyError("missing"))
    assert run(["fail"]) == 1
    assert capsys.readouterr().err == (
        "Error: KeyError: 'missing' (Run again with --debug for the traceback.)\n"
    )


@pytest.mark.parametrize("arguments", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_shows_the_traceback_before_and_after_the_verb(
    arguments, failing, capsys
):
    failing(ValueError("the rule"))
    assert run(arguments) == 1
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert "the rule" in error


def test_a_file_system_error_names_the_reason_and_the_file(failing, capsys):
    failing(OSError(28, "No space left on device", "run/model.keras"))
    assert run(["fail"]) == 1
    assert capsys.readouterr().err == (
        "Error: No space left on device: run/model.keras. Free some space and type the "
        "command again; kgen fit: with --resume.\n"
    )


def test_an_error_of_kgen_is_one_line_without_its_type():
    text = "`size` must be even.\n  Received: size=3"
    code = compile(f"raise ValueError({text!r})", "made_up", "exec")
    with pytest.raises(ValueError) as caught:
        exec(code, {"__name__": "kgen.models.made_up"})
    assert describe(caught.value) == "`size` must be even. Received: size=3"


def test_a_value_error_of_a_library_keeps_its_type():
    with pytest.raises(ValueError) as caught:
        int("x")
    assert describe(caught.value).startswith("ValueError: invalid literal")


def test_an_error_inside_a_graph_shows_its_python_text():
    class OpError(Exception):
        pass

    OpError.__module__ = "tensorflow.python.framework.errors_impl"
    error = OpError(
        "{{function_node __wrapped__IteratorGetNext_device_/device:CPU:0}} ValueError: "
        "Cannot read a.png as an image.\nTraceback (most recent call last):\n\n  File "
        '"x.py", line 1, in f\n\n\n\t [[{{node PyFunc}}]] [Op:IteratorGetNext] name: '
    )
    assert describe(error) == "Cannot read a.png as an image."


@pytest.mark.parametrize(
    ("text", "received"),
    [
        # Messages of TensorFlow 2.21: a killed worker, and one without heartbeats.
        (
            "Graph execution error:\n\nDetected at node x, device /job:worker/replica:0"
            "/task:1\n\nCollective ops is aborted by: Socket closed\nAdditional GRPC "
            "error information from remote target /job:chief/replica:0/task:0 while "
            "calling /tensorflow.WorkerService/RecvBuf",
            "chief 0 is gone.",
        ),
        (
            "Collective ops is aborted by: Error reported from /job:worker/task:1: The "
            "following tasks are unhealthy (stopped sending heartbeats):\n"
            "/job:worker/replica:0/task:2\nThe tasks have crashed.",
            "worker 2 is gone.",
        ),
        ("Socket closed", "a lost connection."),
    ],
)
def test_a_lost_worker_is_named_with_the_option_that_resumes(text, received):
    unavailable = type("UnavailableError", (Exception,), {"__module__": "tensorflow.x"})
    line = describe(unavailable(text))
    assert f"Received: {received} Start all workers again with --resume" in line
    assert "\n" not in line


def test_an_interruption_exits_130_and_says_how_to_resume(failing, capsys):
    failing(Interrupted("Interrupted. To go on: kgen fit vae --resume"))
    assert run(["fail"]) == 130
    assert "kgen fit vae --resume" in capsys.readouterr().err
    failing(KeyboardInterrupt())
    assert run(["fail"]) == 130


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0", (0,)),
        ("0,1,4-6", (0, 1, 4, 5, 6)),
        (" 3 , 2-2", (3, 2)),
        ("1,1", (1, 1)),
        (str(2**63 - 1), (2**63 - 1,)),
    ],
)
def test_ranges_are_numbers_in_the_order_of_the_text(text, numbers):
    assert options.IntegerRanges().convert(text, None, None) == numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a whole number"),
        ("1,,2", "not a whole number"),
        ("a", "not a whole number"),
        ("-3", "not a whole number"),
        ("3-", "not a whole number"),
        ("1.5", "not a whole number"),
        ("²", "not a whole number"),
        ("6-4", "Write 4-6"),
        (str(2**63), "64 bits"),
        ("0-6300000000", "at most 1000000"),
    ],
)
def test_wrong_ranges_are_refused(text, message):
    with pytest.raises(click.BadParameter, match=message):
        options.IntegerRanges().convert(text, None, None)


def test_a_run_is_found_by_path_and_by_name(tmp_path):
    run_folder = tmp_path / "saved_models" / "vae"
    run_folder.mkdir(parents=True)
    (run_folder / "recipe.json").write_text("{}")
    find = options.RunFolder().convert
    assert find("vae", None, None).resolve() == run_folder
    assert find(str(run_folder), None, None) == run_folder
    assert options.name_of_run(run_folder) == "vae"
    elsewhere = tmp_path / "other"
    assert options.name_of_run(elsewhere) == str(elsewhere)


def test_columns_are_aligned():
    assert options.aligned([("a", "bb"), ("ccc", "d")]) == ["a    bb", "ccc  d"]
    assert options.aligned([]) == []


@pytest.mark.parametrize(
    "spec",
    [
        InputSpec(),
        InputSpec(low=0),
        InputSpec(low=0, above=True),
        InputSpec(low=0, high=1, above=True),
        InputSpec(dtype="int32", low=1, high=4096),
        ClassSpec(3),
    ],
)
def test_options_and_signatures_refuse_the_same_numbers(spec):
    command = click.Command("generate", params=[click.Option(["--number"])])

    def is_taken(number):
        try:
            with click.Context(command):
                check_ranges({"number": spec.describe()}, {"number": number})
        except click.BadParameter:
            return False
        return True

    numbers = np.array([-1, 0, 1, 2, 3, 4096, 4097], spec.dtype)
    taken = [is_taken(number) for number in numbers.tolist()]
    np.testing.assert_array_equal(taken, spec.is_valid(numbers))
