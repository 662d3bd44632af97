"""Settings of all tests: TensorFlow's messages, data sets, memory, workers, budgets."""

import collections
import gc
import os
import signal
import sys
from pathlib import Path

import pytest

import processes

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
# If this is set, the optimizers of tf2onnx may fail, and do not copy each graph first:
# an export of a GPT takes half as long.
os.environ.setdefault("TF2ONNX_CATCH_ERRORS", "0")

# CPU seconds that the checks of a row may cost the default tests. RecVAE takes 10,
# and 12 on a busy machine; rows of the costly checks take 25 to 47.
ROW_LIMIT_SECONDS, COVERING_ROW_LIMIT_SECONDS = 15.0, 100.0


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with `data/` and `tfds/`; a test that needs it is skipped without."""
    folder = os.environ.get("KGEN_TEST_DATA")
    if not folder:
        pytest.skip("KGEN_TEST_DATA is not set: it names the folder of data sets")
    if not Path(folder).is_dir():
        pytest.fail(f"KGEN_TEST_DATA names no folder: {folder}")
    return Path(folder)


@pytest.fixture(scope="module", autouse=True)
def free_memory():
    """Frees the models of the module before; a call frees those of this one."""

    def free():
        if "keras" not in sys.modules:
            return
        # TensorFlow keeps each gradient of `tf.custom_gradient`, and by it the graph:
        # https://github.com/tensorflow/tensorflow/issues/97697. A few MB for each SiLU.
        gradients = sys.modules["tensorflow.python.framework.ops"].gradient_registry
        for name in [one for one in gradients.list() if "CustomGradient-" in one]:
            del gradients._registry[name]
        sys.modules["keras"].backend.clear_session()  # It also collects garbage.

    free()
    return free


def pytest_collection_finish():
    """All modules are imported now."""
    gc.collect()
    processes.collect_garbage_seldom()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Two workers for all tests, none for some: each worker imports TensorFlow."""
    root = config.rootpath
    named = {Path(config.invocation_params.dir, arg).resolve() for arg in config.args}
    return 2 if named <= {root, root / "tests"} and not config.option.keyword else 0


def pytest_collection_modifyitems(items):
    """The longest files come first, since a worker takes whole files."""
    items.sort(key=lambda item: item.path.parent.name != "tests")


class RowBudget:
    """Adds up the CPU time of each row of the conformance suite, and limits it."""

    def __init__(self):
        self.seconds = collections.defaultdict(float)
        self.limits = {}

    def pytest_runtest_logreport(self, report):
        properties = dict(report.user_properties)
        if report.when == "call" and "row" in properties:
            name = properties["row"]
            self.seconds[name] += properties["seconds"]
            covering = properties["covering"]
            self.limits[name] = (
                COVERING_ROW_LIMIT_SECONDS if covering else ROW_LIMIT_SECONDS
            )

    def pytest_terminal_summary(self, terminalreporter):
        if not self.seconds:
            return
        terminalreporter.section("CPU seconds of each row of the conformance suite")
        for name, seconds in self.seconds.items():
            limit = self.limits[name]
            over = " TOO MUCH" if seconds > limit else ""
            terminalreporter.line(f"{seconds:6.1f} of {limit:.0f}  {name}{over}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        if any(seconds > self.limits[name] for name, seconds in self.seconds.items()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config):
    # A shell starts what runs in its background with Ctrl-C ignored, and children
    # inherit that, where tests send them the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(RowBudget())
