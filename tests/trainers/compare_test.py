"""A comparison runs every method with every seed, resumes, and refuses before it trains."""

import json

import pytest

from configs import digits
from trainers import compare, figures, methods


def config_of(**changes):
    config = digits.get_config()
    config.network = "mlp"
    config.epochs = (1,)
    config.train_epochs, config.train_seeds = 1, 2
    config.outer_steps = 1
    config.differentiation = "reverse"
    config.hyperparameters = [{"name": "learning_rate", "num_buckets": 2, "step_size": 0.1}]
    config.outer = {"name": "SignDescent"}
    config.methods = {
        "shared": {"outer_steps": 2},
        "cosine": methods.decay_grid(epochs=1, num_knots=5, learning_rate=(0.1, 0.3)),
    }
    config.update(changes)
    return config.lock()


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    lines = []
    compare.compare(config_of(), folder, ["cosine"], seeds=1, tell=lines.append)
    records = compare.compare(config_of(), folder, seeds=2, tell=lines.append)
    return folder, records, lines


def test_every_method_runs_with_every_seed_once(comparison):
    folder, records, lines = comparison
    runs = [(each["method"], each["seed"]) for each in records]
    assert runs == [(method, seed) for method in ("cosine", "shared") for seed in (0, 1)]
    assert len(lines) == 4 and lines[0].startswith("cosine, seed 0: test accuracy ")
    assert json.loads((folder / "results.json").read_text())["records"] == records
    for each in records:
        assert len(each["accuracies"]) == 2 and each["search_seconds"] > 0
        assert (folder / each["method"] / str(each["seed"]) / "search" / "history.csv").exists()
    assert [each["plain_trainings"] for each in records[:2]] == [2.0, 2.0]


def test_the_table_has_intervals_and_differences_to_the_cosine(comparison):
    folder, records, _ = comparison
    text = (folder / "results.md").read_text()
    assert text == compare.table(records) + "\n"
    cosine, shared = text.splitlines()[2:]
    assert cosine.startswith("| cosine | ") and " ± " in cosine and "|  | 2 |" in cosine
    own, theirs = (compare.accuracies(compare.by_method(records)[m]) for m in ("shared", "cosine"))
    mean = sum(own[seed] - theirs[seed] for seed in (0, 1)) / 2
    assert f"| {mean:+.2f} ± " in shared


def test_its_figure_is_drawn(comparison):
    figure = figures.draw("3", comparison[0])
    assert figure.axes[0].get_title() == "learning_rate"
    assert len(figure.axes[0].lines) == 4


def test_its_cost_is_drawn(comparison):
    folder, records, _ = comparison
    assert [len(each["course"]) for each in records] == [2, 2, 2, 2]
    (panel,) = figures.draw("cost", folder).axes
    assert len(panel.lines) == 2
    for line in panel.lines:
        assert (line.get_ydata() >= 0).all() and (abs(line.get_xdata()) > 0).all()
        assert list(line.get_ydata()) == sorted(line.get_ydata(), reverse=True)


def test_a_folder_without_results_has_no_figure(tmp_path):
    with pytest.raises(ValueError, match="has no results.json"):
        figures.draw("1", tmp_path)
    with pytest.raises(ValueError, match="no measurement"):
        figures.draw("2", tmp_path)


@pytest.mark.parametrize(
    "changes, methods, words",
    [
        ({}, ["greed"], "must be among those of `config.methods`: cosine, shared"),
        ({"methods": {"a": {"hyperparameters": ({"name": "rate_of_learning"},)}}}, None, "rate_of"),
        ({"methods": {"a": {"outer": {"name": "Best"}}}}, None, "`outer` of the config must name"),
        ({"methods": {"a": {"epochs": ()}}}, None, "`epochs` must be one or more positive"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_training(tmp_path, changes, methods, words):
    config = digits.get_config()
    config.methods = {"cosine": {}, "shared": {}}
    if changes:
        config.methods = changes["methods"]
    with pytest.raises(ValueError, match=words):
        compare.compare(config.lock(), tmp_path / "new", methods)
    assert not (tmp_path / "new").exists()


def test_another_config_is_refused(comparison):
    with pytest.raises(ValueError, match="differs in batch_size"):
        compare.compare(config_of(batch_size=64), comparison[0])
