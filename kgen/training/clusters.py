"""Clusters of processes, read from TF_CONFIG, and a barrier before training."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

_EXAMPLE = (
    'Set it to {"cluster": {"worker": ["host:port", ...]}, "task": {"type": '
    '"worker", "index": 0}} on each worker, with its own index; on a single machine, '
    "do without it."
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Addresses of the processes that train together, and the place of this one.

    Attributes:
        jobs: Addresses "host:port" of each type: "chief" (at most one), "worker".
        task_type: Type of this process.
        task_index: Index of this process in its type, from 0.
    """

    jobs: dict[str, list[str]]
    task_type: str
    task_index: int

    @property
    def addresses(self) -> list[str]:
        """Addresses of all processes, the chief first: worker 0, if none is named."""
        return [*self.jobs.get("chief", []), *self.jobs.get("worker", [])]

    @property
    def own_address(self) -> str:
        """Address of this process."""
        return self.jobs[self.task_type][self.task_index]


def read_cluster(text: str) -> Cluster:
    """Reads TF_CONFIG, also in the forms of Kubeflow, Vertex AI and AI Platform.

    Their further entries ("environment", "job", "trial" ...) are ignored. "master" is
    an old name of the chief, which TensorFlow no longer accepts. Parameter servers and
    evaluators are refused by every process: they would be idle, and TensorFlow would
    wait for a parameter server to lead.

    Raises:
        ValueError: If it is not JSON, or not a cluster that can train.
    """
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise _refusal(text, f"be JSON ({error})") from error
    config = config if isinstance(config, dict) else {}
    cluster, task = config.get("cluster"), config.get("task")
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise _refusal(text, "name a cluster and a task")
    jobs: dict[str, list[str]] = {}
    for name, addresses in cluster.items():
        if addresses:  # Some write `"ps": []`.
            jobs.setdefault(_kind(name, text), []).extend(_addresses(addresses, text))
    every = [address for addresses in jobs.values() for address in addresses]
    if not every:
        raise _refusal(text, "name at least one worker")
    if len({*every}) < len(every):
        raise _refusal(text, "give each worker an address of its own")
    if len(jobs.get("chief", [])) > 1:
        raise _refusal(text, "name one chief (or master) at most")
    kind, index = _kind(task.get("type"), text), str(task.get("index"))
    count = len(jobs.get(kind, []))
    if not index.isdecimal() or int(index) >= count:
        rule = f"have a task index below the number of {kind} addresses, {count}"
        raise _refusal(text, rule)
    return Cluster(jobs, kind, int(index))


def wait_for_cluster(
    cluster: Cluster, timeout_seconds: float, report: Callable[[str], None]
) -> None:
    """Waits until every process of the cluster answers at its address.

    TensorFlow itself would wait for an hour, without naming the missing processes.

    Args:
        cluster: All processes; each of them must call this.
        timeout_seconds: Longest time to wait.
        report: Called with a line after five seconds of waiting.

    Raises:
        OSError: If the port of this process is taken.
        TimeoutError: If some do not answer in time.
    """
    port = int(cluster.own_address.rpartition(":")[2])
    dual = socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            ("", port),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
        )
    except OSError as error:
        raise OSError(
            "The port of a worker's own address in TF_CONFIG must be free. Received: "
            f"{cluster.own_address} ({error.strerror}). End what is using the port, or "
            "give all workers another address for this one."
        ) from error
    # Others connect to this listener or, once it is closed, to TensorFlow's own.
    with listener:
        started = time.monotonic()
        missing = [a for a in cluster.addresses if a != cluster.own_address]
        reported = False
        while missing := [a for a in missing if not _answers(a)]:
            waited = time.monotonic() - started
            if waited > timeout_seconds:
                raise TimeoutError(
                    "All workers must start within `worker_timeout`, here "
                    f"{timeout_seconds:g} seconds. Received no answer from: "
                    f"{', '.join(missing)}. Look at their output, check the "
                    "addresses in TF_CONFIG and the firewalls, or give them more time."
                )
            if waited > 5 and not reported:
                report(f"waiting up to {timeout_seconds:g} s for {', '.join(missing)}")
                reported = True
            time.sleep(0.2)


def _kind(name: Any, text: str) -> str:
    if name in ("ps", "evaluator"):
        raise _refusal(
            text,
            "name no parameter server (ps) and no evaluator",
            f"Leave {name} out of the job: all workers train in step, and the chief "
            "validates after each epoch.",
        )
    kind = "chief" if name == "master" else name
    if kind not in ("chief", "worker"):
        raise _refusal(text, "name only chief (or master) and worker, and a task type")
    return kind


def _addresses(addresses: Any, text: str) -> list[str]:
    lines: list[Any] = addresses if isinstance(addresses, list) else [None]
    found = [re.fullmatch(r"\S+:(\d{1,5})", str(line)) for line in lines]
    if not all(match and 0 < int(match[1]) < 2**16 for match in found):
        raise _refusal(text, 'list the addresses of all workers, each "host:port"')
    return lines


def _refusal(text: str, rule: str, way_out: str = _EXAMPLE) -> ValueError:
    return ValueError(f"TF_CONFIG must {rule}. Received: {text!r}. {way_out}")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except OSError:  # such as a name that is not resolved yet
        return False
    return True
