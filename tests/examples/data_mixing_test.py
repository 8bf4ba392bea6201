"""The example runs, and finds that the wrong labels should count less."""

from examples import data_mixing


def test_examples_of_the_worse_source_count_less():
    assert 0.0 < data_mixing.main(outer_steps=4, epochs=2) < 0.7
