"""Two processes over loopback find what one process finds, also after a kill."""

import contextlib
import json
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests import distribute_problem

ROOT = pathlib.Path(__file__).parents[1]
KILLED_AT = 1  # The second outer step.
KILLED_IN_ROUNDS_AT = 3  # What the second worker makes in the second round.


def free_ports(number):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]


def run_workers(folder, *arguments):
    """Runs both workers to their ends; `(exit codes, all they printed)`."""
    ports = free_ports(2)
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distribute_worker", folder, own, *ports, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own in ("0", "1")
    ]
    try:
        texts = [worker.communicate(timeout=300)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [worker.returncode for worker in workers], texts


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`(folder, first, second, third)`: two runs whose second worker is killed, and a last one."""
    folder = tmp_path_factory.mktemp("workers")
    killed = f"search {KILLED_AT}", f"rounds_of_dataset {KILLED_IN_ROUNDS_AT}"
    return folder, *(run_workers(folder, each) for each in killed), run_workers(folder)


def read(path):
    return json.loads(path.read_text())


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-10)


def test_hypergradients_are_those_of_one_process(runs, float64):
    folder, *_ = runs
    of_workers = [read(folder / f"hypergradients_{own}.json") for own in (0, 1)]
    for mode in ("forward", "reverse"):
        expected = distribute_problem.hypergradients(mode)
        for found in of_workers:
            assert_close(found[mode], expected)
            if mode == "forward":
                assert_close(found["tangents"], expected)


def test_a_killed_worker_ends_the_other_with_a_sentence(runs):
    _, first, second, _ = runs
    for codes, texts in (first, second):
        assert codes == [1, -9], texts
        assert "ConnectionError: Another worker has stopped" in texts[0]
        assert "the search resumes" in texts[0]


def test_a_restart_resumes_and_ends_as_one_process_does(runs, float64):
    folder, _, (_, texts), _ = runs
    assert f"Resuming after outer step {KILLED_AT} of 3" in texts[0]
    expected = distribute_problem.search()
    for own in (0, 1):
        assert_close(read(folder / f"search_{own}.json"), expected)


def test_workers_make_the_outer_steps_that_one_process_makes_one_after_another(runs, float64):
    folder, *_ = runs
    expected = distribute_problem.rounds()
    assert [len(each["val_loss"]) for each in expected] >= [4, 6]
    for own in (0, 1):
        for found, of_one in zip(read(folder / f"rounds_{own}.json"), expected, strict=True):
            assert_close(found, of_one)


def test_a_restart_resumes_at_the_start_of_a_round_and_ends_as_without_a_kill(runs):
    folder, *_, (codes, texts) = runs
    assert codes == [0, 0], texts
    assert f"Resuming after outer step {KILLED_IN_ROUNDS_AT - 1}." in texts[0]
    expected = read(folder / "whole_0.json")
    for own in (0, 1):
        assert read(folder / f"whole_{own}.json") == expected
        assert read(folder / f"rounds_of_dataset_{own}.json") == expected


@pytest.mark.sweep()
def test_lenet_learns_the_same_schedules(tmp_path, float64):
    codes, texts = run_workers(tmp_path, "lenet")
    assert codes == [0, 0], texts
    expected = distribute_problem.lenet()
    for own in (0, 1):
        assert_close(read(tmp_path / f"lenet_{own}.json"), expected)


def test_the_chief_tells_and_writes(runs):
    folder, _, (_, texts), _ = runs
    assert "The cost of this search" in texts[0]
    assert "2 make outer steps at once" in texts[0]
    assert "Outer step" not in texts[1]
    assert "The cost" not in texts[1]
    for name in ("search", "rounds_of_dataset"):
        assert (folder / f"{name}_results_0" / "history.csv").exists()
        assert list((folder / f"{name}_results_1").iterdir()) == []
