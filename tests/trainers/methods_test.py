"""The rivals of a config follow what it learns, its horizon and its budget."""

import pytest

from configs import characters, data_cleaning, data_sources, digits, low_data
from trainers import compare, methods


def test_all_of_them_run_on_schedules():
    config = digits.get_config()
    config.budget, config.epochs = 6.0, (7,)
    found = methods.rivals(config)
    assert list(found)[:4] == ["learned", "cosine", "linear", "schedule_free"]
    assert {name: each["budget"] for name, each in found.items() if "space" in each} == {
        f"{method}_{space}": 12.0 if method == "random" else 6.0
        for method in ("random", "tpe", "gp", "cma_es")
        for space in ("decay", "values")
    }
    assert all(each["epochs"] == (7,) for each in found.values() if each)
    assert found["tpe_values"]["hyperband"] and "hyperband" not in found["gp_values"]
    assert found["cosine"]["budget"] == 12 == found["schedule_free"]["budget"]


def test_an_expert_chooses_the_optimizers_numbers_only():
    found = methods.rivals(low_data.get_config())
    for name in ("learned_schedules", "tpe_decay"):
        names = [each["name"] for each in found[name]["hyperparameters"]]
        assert names == ["learning_rate", "momentum", "weight_decay"]
    assert "hyperparameters" not in found["tpe_values"]
    grid = methods.rivals(characters.get_config())["linear"]["outer"]
    assert grid["beta_2"] == (0.99,) and grid["learning_rate"][0] == 1e-3


@pytest.mark.parametrize("config, countable", [(data_cleaning, False), (data_sources, True)])
def test_only_short_vectors_are_for_black_boxes(config, countable):
    found = methods.rivals(config.get_config())
    assert ("tpe_values" in found) == countable
    names = [each["name"] for each in found["tpe_decay"]["hyperparameters"]]
    assert names == ["learning_rate"]


def test_a_config_without_methods_is_compared_with_all_rivals():
    config = digits.get_config().lock()
    assert list(compare.methods_of(config)) == list(methods.rivals(config))
    changed = compare.of_method(config, "schedule_free")
    assert changed.optimizer.name == "keras.optimizers.ScheduleFreeAdamW"
