"""The `tf.distribute` strategy that a program trains under, and the workers it needs."""

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time

from absl import flags

NAMES = ("default", "one_device", "mirrored", "multi_worker")
STRATEGY = flags.DEFINE_enum(
    "strategy",
    "default",
    NAMES,
    "What trains: TensorFlow's default device, the first device, all devices of this machine, or "
    "the workers of the environment variable TF_CONFIG.",
)
PARALLEL = flags.DEFINE_enum(
    "parallel",
    None,
    ["outer_steps"],
    "With --strategy=multi_worker: every worker makes outer steps of its own, in rounds. Without "
    "it the workers share every training.",
)
WORKER_TIMEOUT = flags.DEFINE_float(
    "worker_timeout", 120.0, "Seconds to wait for the other workers of TF_CONFIG.", 0.0
)
_JOBS = ("chief", "worker")
STARTING = 60.0  # Seconds in which a worker that answers has started TensorFlow.
_END_PARENT = """
import os, signal, sys, time
seconds, told, parent = sys.argv[1:]
time.sleep(float(seconds))
if os.getppid() == int(parent):
    print(told, file=sys.stderr, flush=True)
    os.kill(int(parent), signal.SIGKILL)
"""


def make(name, timeout=120.0):
    """Makes a strategy; call it before any other use of TensorFlow.

    Args:
        name: One of `NAMES`.
        timeout: Seconds to wait for the other workers. Defaults to `120.0`.

    Returns:
        A `tf.distribute.Strategy`, or `None` for `"default"`.

    Raises:
        ValueError: TF_CONFIG is missing or damaged, or names a worker that cannot be reached. When
            workers are there, but do not connect, the process ends with a message.
    """
    if name == "default":
        return None
    if name == "multi_worker":
        check_workers(os.environ.get("TF_CONFIG"), timeout)
    import tensorflow as tf

    kinds = [device.device_type for device in tf.config.get_visible_devices()]
    kind = "GPU" if "GPU" in kinds else "CPU"
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(f"{kind}:0")
    if name == "multi_worker":
        with _at_most(timeout + STARTING):
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        # It has TensorFlow catch SIGTERM, and go on. Here it interrupts, as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return strategy
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    return tf.distribute.MirroredStrategy(devices)


@contextlib.contextmanager
def _at_most(seconds):
    """Ends the process, by another one, when TensorFlow waits for the other workers for too long.

    While it waits no thread of this process runs.
    """
    told = (
        "Something listens at the addresses of TF_CONFIG, but the workers did not connect in "
        f"{seconds:g} seconds. Look for a worker that has ended, or another program at its port."
    )
    process = [sys.executable, "-c", _END_PARENT, str(seconds), told, str(os.getpid())]
    with subprocess.Popen(process) as watching:
        try:
            yield
        finally:
            watching.kill()


def scope(strategy):
    """The scope of a strategy, or of none."""
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def is_one_process(strategy):
    """Whether no other process trains under a strategy."""
    return len(_cluster_of(strategy)) < 2


def is_chief(strategy):
    """Whether this process writes the files."""
    workers = _cluster_of(strategy)
    if not workers:
        return True
    resolver = strategy.cluster_resolver
    return (resolver.task_type, resolver.task_id) == workers[0][0]


def wait_for_all(strategy):
    """Returns once every process has called it."""
    import tensorflow as tf

    if not is_one_process(strategy):
        strategy.reduce(tf.distribute.ReduceOp.SUM, tf.identity(1.0), axis=None)


def check_workers(tf_config, timeout=120.0):
    """Raises a `ValueError` unless all workers answer within a time.

    While it waits, it answers the other workers itself.

    Args:
        tf_config: The text of the environment variable TF_CONFIG, or `None`.
        timeout: Seconds.
    """
    if not math.isfinite(timeout):
        raise ValueError(f"--worker_timeout must be a number of seconds. Received: {timeout}")
    cluster, own = _read(tf_config)
    addresses = dict(_workers_of(cluster))
    if own not in addresses:
        raise ValueError(
            f"The task of TF_CONFIG must be one of its cluster's. Received: {tf_config}"
        )
    deadline, port = time.monotonic() + timeout, _host_and_port(addresses.pop(own))[1]
    with socket.socket() as answering:
        answering.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            answering.bind(("", port))
        except OSError as error:
            raise ValueError(
                f"Port {port}, which TF_CONFIG gives this worker, cannot be used: {error.strerror}."
            ) from error
        answering.listen()
        for (job, index), address in addresses.items():
            while not _answers(address):
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"The {job} {index} of TF_CONFIG, {address}, did not answer for "
                        f"{timeout:g} seconds. Start it, or correct TF_CONFIG; "
                        "--worker_timeout changes the time."
                    )
                time.sleep(0.2)


def _read(tf_config):
    """`(cluster, task)`, such as `({"worker": ["host:1234"]}, ("worker", 0))`."""
    if not tf_config:
        raise ValueError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG, such as "
            '\'{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}\'.'
        )
    try:
        config = json.loads(tf_config)
        cluster, task = config["cluster"], config["task"]
        own = task["type"], int(task["index"])
        if not all(isinstance(addresses, list) for addresses in cluster.values()):
            raise ValueError("addresses come in lists")
        for _, address in _workers_of(cluster):
            _host_and_port(address)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            "TF_CONFIG must be JSON with a `cluster` of lists of addresses host:port, ports from 1 "
            f"to 65535, and a `task` with `type` and `index`. Received: {tf_config}"
        ) from error
    unknown = sorted(set(cluster) - set(_JOBS))
    if unknown:
        raise ValueError(
            f"The cluster of TF_CONFIG may have a chief and workers only. Received: {unknown}"
        )
    addresses = [address for _, address in _workers_of(cluster)]
    twice = sorted({each for each in addresses if addresses.count(each) > 1})
    if twice:
        raise ValueError(
            f"The workers of TF_CONFIG need an address each. Twice there: {', '.join(twice)}"
        )
    return cluster, own


def _cluster_of(strategy):
    """`(task, address)` of all workers of a strategy, none when it has no cluster."""
    resolver = getattr(strategy, "cluster_resolver", None)
    return _workers_of(resolver.cluster_spec().as_dict()) if resolver else []


def _workers_of(cluster):
    """`(task, address)` of all workers, the chief first."""
    return [
        ((job, index), address)
        for job in _JOBS
        for index, address in enumerate(cluster.get(job, ()))
    ]


def _host_and_port(address):
    host, _, port = address.rpartition(":")
    if not 0 < int(port) < 2**16:
        raise ValueError(f"no port: {port}")
    return host, int(port)


def _answers(address):
    try:
        with socket.create_connection(_host_and_port(address), timeout=1.0):
            return True
    except OSError:
        return False
