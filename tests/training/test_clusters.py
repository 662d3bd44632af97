"""TF_CONFIG in all its forms, and workers that are late or missing."""

import json
import socket
import threading

import pytest

from kgen.training.clusters import Cluster, read_cluster, wait_for_cluster


def config(cluster, kind="worker", index=0, **others):
    return json.dumps(
        {"cluster": cluster, "task": {"type": kind, "index": index}} | others
    )


TWO = ["a:1", "b:1"]


@pytest.mark.parametrize(
    ("text", "cluster"),
    [
        # By hand, as TensorFlow's own documentation has it.
        (config({"worker": TWO}, index=1), Cluster({"worker": TWO}, "worker", 1)),
        # Kubeflow's training operator: a DNS name of each pod, and "environment".
        (
            config(
                {
                    "chief": ["vae-chief-0.jobs.svc:2222"],
                    "worker": ["vae-worker-0.jobs.svc:2222"],
                },
                kind="chief",
                environment="cloud",
            ),
            Cluster(
                {
                    "chief": ["vae-chief-0.jobs.svc:2222"],
                    "worker": ["vae-worker-0.jobs.svc:2222"],
                },
                "chief",
                0,
            ),
        ),
        # AI Platform's older runtimes say master; some write the index as a string.
        (
            config({"master": ["m:1"], "worker": TWO}, "master", "0"),
            Cluster({"chief": ["m:1"], "worker": TWO}, "chief", 0),
        ),
        (
            config({"master": ["m:1"], "worker": TWO}, "worker", "1"),
            Cluster({"chief": ["m:1"], "worker": TWO}, "worker", 1),
        ),
        # Vertex AI: the job's specification beside it; one machine is a chief alone.
        (
            config(
                {"chief": ["cmle-training-workerpool0-abc-0:2222"]},
                "chief",
                environment="cloud",
                job={"python_module": "", "args": []},
            ),
            Cluster({"chief": ["cmle-training-workerpool0-abc-0:2222"]}, "chief", 0),
        ),
        # A kind without an address is no kind.
        (
            config({"ps": [], "evaluator": None, "worker": TWO}),
            Cluster({"worker": TWO}, "worker", 0),
        ),
        (
            config({"worker": ["[::1]:2222"]}),
            Cluster({"worker": ["[::1]:2222"]}, "worker", 0),
        ),
    ],
)
def test_every_form_is_read(text, cluster):
    assert read_cluster(text) == cluster


def test_the_chief_is_the_first_of_the_addresses():
    text = config({"worker": ["w:1", "w:2"], "master": ["m:1"]}, index=1)
    cluster = read_cluster(text)
    assert cluster.addresses == ["m:1", "w:1", "w:2"]
    assert cluster.own_address == "w:2"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "be JSON"),
        ("{cluster", "be JSON"),
        ("[1, 2]", "name a cluster and a task"),
        ("null", "name a cluster and a task"),
        (json.dumps({"cluster": {"worker": TWO}}), "name a cluster and a task"),
        (json.dumps({"task": {"type": "worker"}}), "name a cluster and a task"),
        (config({}), "name at least one worker"),
        (config({"worker": []}), "name at least one worker"),
        (config({"worker": TWO, "ps": ["p:1"]}), "name no parameter server"),
        (config({"worker": TWO, "ps": ["p:1"]}, "ps"), "name no parameter server"),
        (config({"worker": TWO}, "evaluator"), "and no evaluator"),
        (config({"worker": TWO, "boss": ["b:2"]}), "name only chief"),
        (config({"worker": TWO}, None), "name only chief"),
        # The operator's form for a changing number of workers: each sees itself.
        (config({"worker": {"1": "b:1"}}, index=1), "list the addresses"),
        (config({"worker": "a:1"}), "list the addresses"),
        (config({"worker": ["a"]}), 'each "host:port"'),
        (config({"worker": ["a:99999"]}), 'each "host:port"'),
        (config({"worker": ["a:1", "a:1"]}), "an address of its own"),
        (config({"chief": ["a:1"], "worker": ["a:1"]}), "an address of its own"),
        (config({"chief": ["a:1"], "master": ["b:1"]}), "name one chief"),
        (config({"worker": TWO}, index=2), "a task index below .* worker .*, 2"),
        (config({"worker": TWO}, index=-1), "a task index below"),
        (config({"worker": TWO}, index=None), "a task index below"),
        (config({"worker": TWO}, "chief"), "a task index below .* chief .*, 0"),
    ],
)
def test_a_wrong_one_is_shown_with_the_rule_and_a_way_out(text, rule):
    with pytest.raises(ValueError, match=f"^TF_CONFIG must .*{rule}") as caught:
        read_cluster(text)
    assert f"Received: {text!r}." in str(caught.value)
    assert str(caught.value).count("\n") == 0
    way_out = ("Set it to", '"task": {"type": "worker", "index": 0}}')
    if "parameter server" in str(caught.value):
        way_out = ("Leave", "out of the job", "the chief validates")
    assert all(part in str(caught.value) for part in way_out)


def free_ports(count):
    """Ports that differ: all are bound until all are known."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def local_cluster(ports, index):
    return Cluster({"worker": [f"localhost:{port}" for port in ports]}, "worker", index)


def test_workers_that_start_one_after_the_other_find_each_other():
    ports, arrived = free_ports(3), []

    def arrive(index):
        wait_for_cluster(local_cluster(ports, index), 30, lambda line: None)
        arrived.append(index)
        # What TensorFlow does next: its own server, on the same port.
        servers.append(socket.create_server(("localhost", ports[index])))

    servers: list[socket.socket] = []
    threads = [threading.Thread(target=arrive, args=(index,)) for index in range(3)]
    try:
        for thread in threads:
            assert arrived == []
            thread.start()
            thread.join(0.3)
        for thread in threads:
            thread.join(30)
        assert sorted(arrived) == [0, 1, 2]
    finally:
        for server in servers:
            server.close()


def test_a_worker_that_never_comes_is_named():
    ports, lines = free_ports(3), []
    with socket.create_server(("localhost", ports[1])):
        with pytest.raises(TimeoutError) as caught:
            wait_for_cluster(local_cluster(ports, 0), 0.5, lines.append)
    message = str(caught.value)
    assert f"Received no answer from: localhost:{ports[2]}." in message
    assert "`worker_timeout`, here 0.5 seconds" in message
    assert lines == []  # Half a second is nothing to talk about.


def test_a_host_that_has_no_name_yet_is_waited_for():
    [port] = free_ports(1)
    jobs = {"worker": [f"localhost:{port}", "no-such-host.invalid:2222"]}
    with pytest.raises(TimeoutError, match="answer from: no-such-host.invalid:2222"):
        wait_for_cluster(Cluster(jobs, "worker", 0), 0.1, lambda line: None)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"must be free.*localhost:{port}.*in use"):
            wait_for_cluster(local_cluster([port, 1], 0), 5, lambda line: None)
