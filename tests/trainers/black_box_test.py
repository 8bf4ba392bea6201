"""Black boxes train with what Optuna suggests, within a budget, and go on where they ended."""

import csv

import numpy as np
import optuna
import pytest

import keras_fds
from configs import digits
from trainers import black_box, experiment, search, train, trials

FIRST = optuna.trial.FixedTrial


def config_of(**changes):
    config = digits.get_config()
    config.method = "tpe"
    config.network = "mlp"
    config.epochs = (3,)
    config.budget = 2.0
    config.train_epochs, config.train_seeds = 1, 1
    config.update(changes)
    return config.lock()


def rows(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("black_box")
    lines = []
    study = black_box.search(config_of(), folder, tell=lines.append)
    return folder, study, lines


def test_trials_are_counted_and_the_best_schedules_written(searched, tmp_path):
    folder, study, lines = searched
    assert len(study.trials) == 2 == len(rows(folder))
    assert lines[1].endswith("2.00 of 2 spent")
    assert [row["val_loss"] for row in rows(folder)] == [str(t.value) for t in study.trials]
    schedules = keras_fds.load_schedules(folder / "schedules.json")
    assert schedules["learning_rate"].num_buckets == 20
    assert schedules["learning_rate"].interpolation == "linear"
    peak = np.exp(study.best_params["peak"])
    assert 0.5 * peak <= schedules["learning_rate"].values.max() <= peak
    config = trials.with_knots(config_of())
    found = train.train(config, folder / "schedules.json", tmp_path / "train", verbose=0)
    assert 0 <= found["accuracy"] <= 1


def test_more_budget_goes_on(searched):
    folder, study, _ = searched
    before = [trial.value for trial in study.trials]
    study = black_box.search(config_of(budget=3.0), folder, tell=lambda line: None)
    assert [trial.value for trial in study.trials[:2]] == before and len(study.trials) == 3
    whole = black_box.search(config_of(budget=3.0), folder.parent / "whole", tell=lambda line: None)
    assert [trial.params for trial in whole.trials] == [trial.params for trial in study.trials]


def test_hyperband_ends_trials_early_and_counts_their_part(tmp_path):
    config = config_of(budget=8.0, method="random", space="values", hyperband=True)
    study = black_box.search(config, tmp_path, tell=lambda line: None)
    states = [trial.state for trial in study.trials]
    assert optuna.trial.TrialState.PRUNED in states and optuna.trial.TrialState.COMPLETE in states
    for trial, row in zip(study.trials, rows(tmp_path)):
        complete = trial.state == optuna.trial.TrialState.COMPLETE
        part = trial.user_attrs["spent"]
        assert part == (1.0 if complete else pytest.approx(trial.last_step / 3))
        assert row["complete"] == str(int(complete)) and "learning_rate[6]" in row
    assert 7.0 < black_box.spent(study) <= 8.0


@pytest.mark.parametrize("warmup, end", [(0.0, 0.0), (0.2, 0.1)])
def test_a_decay_rises_to_one_and_falls_to_its_end(warmup, end):
    times = np.linspace(0, 1, 101)
    found = black_box.decay(times, warmup, end)
    assert found.max() == pytest.approx(1.0) and found[-1] == pytest.approx(end)
    assert times[found.argmax()] == pytest.approx(warmup)
    assert np.all(np.diff(found[times >= warmup]) <= 1e-12)


@pytest.mark.parametrize("space, count", [("values", 9), ("decay", 5)])
def test_suggested_values_lie_where_the_default_rule_searches(space, count):
    interpolation = "linear" if space == "decay" else "constant"
    hyperparameters = [
        keras_fds.Hyperparameter("learning_rate", 7, interpolation=interpolation, max_value=0.5),
        keras_fds.Hyperparameter("momentum"),
        keras_fds.Hyperparameter("weight_decay"),
    ]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(20):
        trial = study.ask()
        values = black_box.suggest(trial, hyperparameters, space)
        assert len(trial.params) == count
        assert values["learning_rate"].min() >= 0 and values["learning_rate"].max() <= 0.5
        assert 0 <= values["momentum"] <= 0.98 and 1e-6 <= values["weight_decay"] <= 10


def test_a_vector_is_chosen_element_by_element_or_left_alone():
    weights = keras_fds.Hyperparameter("sample_weight", 2, groups=3, max_value=2.0)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(0)).ask()
    assert (black_box.suggest(trial, [weights], "decay")["sample_weight"] == 1).all()
    assert not trial.params
    found = black_box.suggest(trial, [weights], "values")["sample_weight"]
    assert found.shape == (2, 3) and len(np.unique(found)) == 6 and found.max() <= 2
    assert list(trial.params)[4] == "sample_weight[1][1]"


def test_a_limit_in_seconds_ends_it(tmp_path):
    study = black_box.search(config_of(budget=50.0, seconds=0.1), tmp_path, tell=lambda line: None)
    assert len(study.trials) == 1
    (row,) = rows(tmp_path)
    assert float(row["seconds"]) >= 0.1 and row["best"] == "1"


def test_a_database_holds_many_studies_and_goes_on(tmp_path):
    storage = f"sqlite:///{tmp_path / 'trials.db'}"
    for seed, folder in ((0, "a"), (1, "b")):
        config = config_of(budget=1.0, epochs=(1,), seed=seed, storage=storage)
        black_box.search(config, tmp_path / folder, tell=lambda line: None)
        assert len(rows(tmp_path / folder)) == 1
    config = config_of(budget=2.0, epochs=(1,), storage=storage)
    study = black_box.search(config, tmp_path / "a", tell=lambda line: None)
    assert len(study.trials) == 2 == len(rows(tmp_path / "a"))
    black_box.search(config, tmp_path / "c", tell=lambda line: None)  # Nothing is left to do.
    assert len(rows(tmp_path / "c")) == 2 and (tmp_path / "c" / "schedules.json").exists()


@pytest.mark.parametrize("storage", ["nonsense", "mysql://nobody@localhost:1/none"])
def test_a_storage_that_cannot_be_reached_is_refused(tmp_path, storage):
    config = config_of(budget=1.0, epochs=(1,), storage=storage)
    with pytest.raises(ValueError, match="`storage` must be the URL of a database"):
        black_box.search(config, tmp_path, tell=lambda line: None)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"outer_steps": 3}, "within a `budget`"),
        ({"epochs": (0.5,)}, "whole epochs"),
        ({"validation_split": 0.0}, "held-out examples"),
        ({"budget": 0.5}, "`budget` must be at least 1"),
        ({"budget": float("nan")}, "`budget` must be at least 1"),
        ({"seconds": -5.0}, "`seconds` must be above 0"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        black_box.search(config_of(**changes), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_results_are_refused(searched, tmp_path):
    with pytest.raises(ValueError, match="trials of another config"):
        black_box.search(config_of(method="random"), searched[0])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        black_box.search(config_of(), tmp_path)


@pytest.mark.parametrize("field", ["method", "space"])
def test_unknown_words_are_refused(field):
    with pytest.raises(ValueError, match=f"`{field}` must be one of '"):
        experiment.check_config(config_of(**{field: "grid"}))


def test_it_is_a_method_of_the_search(tmp_path):
    tell = search.learn(config_of(budget=1.0), tmp_path / "search", verbose=0)
    assert tell is black_box.conclusion
    assert (tmp_path / "search" / "schedules.json").exists()
