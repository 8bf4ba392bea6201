"""The example finds the wrong labels, and the test accuracy rises."""

from examples import data_cleaning


def test_wrong_labels_are_found():
    area, before, after = data_cleaning.main()
    assert area >= 0.95
    assert after >= before + 0.05
