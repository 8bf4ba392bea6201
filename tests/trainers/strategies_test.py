"""The strategies of the programs, and the workers they need."""

import json
import socket
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from configs import digits
from trainers import experiment, search, strategies

TASK = {"type": "worker", "index": 0}


def tf_config(addresses, own=0, job="worker"):
    return json.dumps({"cluster": {"worker": list(addresses)}, "task": {"type": job, "index": own}})


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("one_device", tf.distribute.OneDeviceStrategy),
        ("mirrored", tf.distribute.MirroredStrategy),
    ],
)
def test_strategies_of_this_machine(name, kind):
    strategy = strategies.make(name)
    assert isinstance(strategy, kind)
    assert strategy.num_replicas_in_sync == (2 if name == "mirrored" else 1)  # See conftest.
    assert strategies.is_chief(strategy)


def test_the_default_is_no_strategy():
    assert strategies.make("default") is None
    assert strategies.is_chief(None)
    with strategies.scope(None):
        assert not tf.distribute.has_strategy()


def test_workers_that_start_at_different_times_find_each_other():
    addresses = [free_address(), free_address()]
    found, end = [], threading.Event()

    def start(own):
        strategies.check_workers(tf_config(addresses, own), 20)
        found.append(own)
        host, port = addresses[own].split(":")
        with socket.create_server((host, int(port))):  # As a strategy does.
            end.wait(20)

    workers = [threading.Thread(target=start, args=(own,)) for own in (0, 1)]
    workers[0].start()
    time.sleep(0.5)
    workers[1].start()
    while len(found) < 2 and any(worker.is_alive() for worker in workers):
        time.sleep(0.05)
    end.set()
    for worker in workers:
        worker.join()
    assert sorted(found) == [0, 1]


def test_a_worker_that_does_not_answer_is_told():
    own, other = free_address(), free_address()
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"worker 1 of TF_CONFIG, {other}, did not answer for 0.3"):
        strategies.check_workers(tf_config([own, other]), 0.3)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "needs the environment variable TF_CONFIG"),
        ("{", "must be JSON"),
        (json.dumps({"cluster": {}}), "must be JSON"),
        (tf_config(["nowhere"]), "addresses host:port"),
        (tf_config(["127.0.0.1:99999", "127.0.0.1:2"]), "ports from 1 to 65535"),
        (tf_config(["127.0.0.1:1", "127.0.0.1:-5"]), "ports from 1 to 65535"),
        (tf_config(["127.0.0.1:1", "127.0.0.1:1"]), "an address each. Twice there: 127.0.0.1:1"),
        (
            json.dumps(
                {"cluster": {"worker": {"0": "a:1"}}, "task": {"type": "worker", "index": 0}}
            ),
            "lists of addresses",
        ),
        (tf_config(["127.0.0.1:1"], own=3), "one of its cluster's"),
        (tf_config(["127.0.0.1:1"], job="ps"), "one of its cluster's"),
        (
            json.dumps({"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}),
            "a chief and workers only",
        ),
    ],
)
def test_what_is_wrong_with_tf_config_is_told(text, match):
    with pytest.raises(ValueError, match=match):
        strategies.check_workers(text, 0.1)


def test_a_time_that_is_no_number_is_told():
    with pytest.raises(ValueError, match="--worker_timeout must be a number"):
        strategies.check_workers(tf_config([free_address()]), float("nan"))


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("", 0)) as taken:
        own = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match="cannot be used: Address already in use"):
            strategies.check_workers(tf_config([own, free_address()]), 0.1)


def test_a_search_under_a_strategy_learns_the_same(digits_dir, tmp_path):
    config = digits.get_config()
    config.update(
        {
            "network": "mlp",
            "epochs": (1,),
            "outer_steps": 2,
            "differentiation": "reverse",
            "data_dir": str(digits_dir),
        }
    )
    learned = []
    for name in ("default", "mirrored"):
        workdir = tmp_path / name
        search.search(config, workdir, verbose=0, strategy=strategies.make(name))
        learned.append(keras_fds.load_schedules(workdir / "schedules.json"))
    for name, schedule in learned[0].items():
        np.testing.assert_allclose(learned[1][name].values, schedule.values, rtol=1e-3)


def test_the_program_tells_of_a_missing_cluster(run_program, monkeypatch, tmp_path):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    code, text = run_program(
        lambda: experiment.run(search.main),
        "--config=configs/digits.py",
        f"--workdir={tmp_path}",
        "--strategy=multi_worker",
    )
    assert code == 1
    assert "needs the environment variable TF_CONFIG" in text


def test_outer_steps_at_the_same_time_need_workers_and_a_search(digits_dir, tmp_path):
    config = digits.get_config()
    config.data_dir = str(digits_dir)
    with pytest.raises(ValueError, match="parallel='outer_steps' is for several workers"):
        search.learn(config, tmp_path, verbose=0, parallel="outer_steps")
    config.method = "hd"
    with pytest.raises(ValueError, match="--strategy and --parallel are for method='search'"):
        search.learn(config, tmp_path, verbose=0, parallel="outer_steps")
