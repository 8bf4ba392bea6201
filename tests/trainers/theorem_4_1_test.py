"""The bound holds in random settings; violations are found and end the program with an error."""

import dataclasses

import numpy as np
import pytest

from trainers import experiment, theorem_4_1


def test_the_bound_holds_in_twenty_settings_without_and_with_correlation():
    lines = []
    assert theorem_4_1.theorem_4_1(settings=20, samples=1000, seed=1, tell=lines.append) == []
    assert len(lines) == 2 * (20 + 2) + 1 + 4


@pytest.mark.parametrize("correlated", [False, True])
def test_random_settings_fulfil_the_conditions(correlated):
    generator = np.random.default_rng(0)
    for _ in range(8):
        setting = theorem_4_1.random_setting(generator, correlated)
        assert setting.horizon % setting.steps == 0
        assert np.abs(np.diff(setting.means)).max() <= setting.drift * (1 + 1e-9)
        off = setting.correlations[~np.eye(setting.horizon, dtype=bool)]
        assert off.max() == pytest.approx(setting.correlation)
        assert off.min() >= 0
        assert np.all(np.linalg.eigvalsh(setting.correlations) > 0)


def test_exact_error_by_hand():
    correlations = np.array([[1, 0.5, 0, 0], [0.5, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    deviations, means = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 1.0, 3.0])
    setting = theorem_4_1.Setting(2, means, 2.0, deviations, correlations, 0.5, "")
    noise = ((1 + 4 + 2 * 0.5 * 2) / 4 + (9 + 16) / 4) / 2
    assert setting.exact_error() == pytest.approx(noise + (0.25 + 1.0) / 2)


@pytest.mark.parametrize("field, factor", [("drift", 0.5), ("correlation", 0.5)])
def test_a_setting_beyond_the_theorem_is_found(field, factor):
    horizon = 40
    correlations = np.full((horizon, horizon), 0.6) + 0.4 * np.eye(horizon)
    deviations = np.ones(horizon)
    means = 0.3 * np.arange(horizon)
    words = "steady, equal variances, same correlation"
    setting = theorem_4_1.Setting(10, means, 0.3, deviations, correlations, 0.6, words)
    generator = np.random.default_rng(0)
    assert theorem_4_1.check(setting, 1000, generator)[1] == []
    wrong = dataclasses.replace(setting, **{field: factor * getattr(setting, field)})
    _, violations = theorem_4_1.check(wrong, 1000, generator)
    assert any("the exact error" in each and "above the bound" in each for each in violations)
    assert any("the simulated error" in each and "above" in each for each in violations)


def test_what_the_bound_does_not_cover():
    found = theorem_4_1.not_covered()
    assert [(round(there, 4), round(said, 4)) for _, there, said in found] == [
        (0.2075, 0.0252),
        (0.1667, 0.1042),
        (0.8544, 0.0625),
        (0.9703, 0.9375),
    ]


def test_too_few_settings_or_samples_are_refused():
    with pytest.raises(ValueError, match="`samples` 100 or more"):
        theorem_4_1.theorem_4_1(settings=1, samples=10)


def test_program(run_program, monkeypatch):
    def program():
        experiment.run(theorem_4_1.main, required=theorem_4_1.REQUIRED)

    config = "--config=configs/theorem_4_1.py", "--config.samples=500"
    code, output = run_program(program, *config, "--config.settings=2")
    assert code == 0
    assert output.endswith("The bound holds in every setting.\n")
    monkeypatch.setattr(theorem_4_1, "_TOLERANCE", -1e9)
    code, output = run_program(program, *config, "--config.settings=1")
    assert code == 1
    assert "The theorem does not hold:" in output
