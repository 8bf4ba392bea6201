"""The simulation of several devices, against counting by hand."""

import pathlib
import re
import shlex

import pytest

from benchmarks import scaling

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "scaling_simulation.md"
SLOW = scaling.Link(bandwidth=1e6, latency=0.25)


def test_a_ring_moves_each_part_once_around_and_once_back():
    """Of 3 devices each sends thirds of 3 MB: two to be summed, two that are summed."""
    assert SLOW.all_reduce(3e6, 3) == pytest.approx(4 * (1.0 + 0.25))
    assert SLOW.all_reduce(3e6, 1) == 0.0


def test_every_mode_sums_what_depends_on_its_batch():
    free = scaling.Link(bandwidth=1e6, latency=0.0)
    for mode, copies in (("plain", 1), ("forward", 10), ("reverse", 3)):
        # A million bytes a copy over two devices take a second.
        of_mode = scaling.data_parallel(5.0, mode, 250_000, 9, free, devices=2)
        assert of_mode == pytest.approx(5.0 / (5.0 + copies))
        shared = scaling.data_parallel(5.0, mode, 250_000, 9, free, 2, same_batch=True)
        assert shared == pytest.approx(2.5 / (2.5 + copies))


def test_a_device_without_a_tangent_less_than_another_waits():
    assert scaling.tangent_parallel(11.0, 10, devices=1) == pytest.approx(1.0)
    assert scaling.tangent_parallel(11.0, 10, devices=2) == pytest.approx(11 / 2 / 6)
    assert scaling.tangent_parallel(11.0, 10, devices=3) == pytest.approx(11 / 3 / 5)
    assert scaling.tangent_parallel(11.0, 10, devices=64) == pytest.approx(11 / 64 / 2)


def test_the_tables_of_the_page_are_what_its_commands_print(run_program):
    from absl import app

    text = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"^python -m benchmarks.scaling(.*)$", text, re.MULTILINE)
    tables = re.findall(r"^\| \| 8 devices.*?\n\n", text + "\n\n", re.DOTALL | re.MULTILINE)
    assert len(commands) == len(tables) == 2
    for arguments, table in zip(commands, tables):
        code, output = run_program(lambda: app.run(scaling.main), *shlex.split(arguments))
        assert code == 0
        assert output.strip() == table.strip()
