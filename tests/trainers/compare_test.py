"""A comparison runs every method with every seed, resumes, and refuses before it trains."""

import csv
import json
import sys

import ml_collections
import pytest
import tensorflow as tf

from configs import digits
from trainers import compare, figures, methods, records, workdirs


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
    found = compare.compare(config_of(), folder, seeds=2, tell=lines.append)
    return folder, found[""], lines


def test_every_method_runs_with_every_seed_once(comparison):
    folder, found, lines = comparison
    runs = [(each["method"], each["seed"]) for each in found]
    assert runs == [(method, seed) for method in ("cosine", "shared") for seed in (0, 1)]
    assert len(lines) == 4 and lines[0].startswith("cosine, seed 0: test accuracy ")
    assert json.loads((folder / "results.json").read_text())["records"] == found
    for each in found:
        assert len(each["accuracies"]) == 2 and each["search_seconds"] > 0
        assert (folder / each["method"] / str(each["seed"]) / "search" / "history.csv").exists()
    assert [each["plain_trainings"] for each in found[:2]] == [2.0, 2.0]


def test_an_interrupted_greedy_training_begins_anew(tmp_path):
    begun = tmp_path / "hd" / "0" / "search"
    begun.mkdir(parents=True)
    (begun / "config.json").write_text("{}")
    greedy = methods.greedy(epochs=1, hyperparameters=({"name": "learning_rate"},))
    found = compare.compare(config_of(methods={"hd": greedy}), tmp_path, ["hd"], seeds=1)
    assert [each["method"] for each in found[""]] == ["hd"]
    assert (begun / "schedules.json").exists()


def test_the_table_has_intervals_and_paired_tests_against_the_cosine(comparison):
    folder, found, _ = comparison
    text = (folder / "results.md").read_text()
    assert text == records.table(found) + "\n"
    cosine, shared = text.splitlines()[2:]
    assert cosine.startswith("| cosine | ") and " ± " in cosine and "|  |  | 2 |" in cosine
    own, theirs = (records.accuracies(records.by_method(found)[m]) for m in ("shared", "cosine"))
    mean = sum(own[seed] - theirs[seed] for seed in (0, 1)) / 2
    assert f"| {mean:+.2f} ± " in shared


def test_its_figure_is_drawn(comparison):
    figure = figures.draw("3", comparison[0])
    assert figure.axes[0].get_title() == "learning_rate"
    assert len(figure.axes[0].lines) == 4


@pytest.mark.parametrize("name", ["cost", "seconds"])
def test_accuracy_and_regret_are_drawn_against_cost_and_time(comparison, name):
    folder, found, _ = comparison
    assert [len(each["measured"]) for each in found] == [2, 2, 2, 2]
    accuracy, regret, _ = figures.draw(name, folder).axes
    for rising, falling in zip(accuracy.lines, regret.lines, strict=True):
        assert list(rising.get_ydata()) == sorted(rising.get_ydata())
        assert list(falling.get_ydata()) == sorted(falling.get_ydata(), reverse=True)
        assert (falling.get_ydata() >= 0).all() and (falling.get_xdata() > 0).all()
    assert (folder / f"figure_{name}.png").exists()


def test_seconds_rise_and_end_with_the_search(comparison):
    for each in comparison[1]:
        seconds = [row[0] for row in each["measured"]]
        assert 0 < seconds[0] < seconds[1] == each["search_seconds"]


def test_records_are_rows_and_runs_of_tensorboard(comparison):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, found, _ = comparison
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], int(row["seed"])) for row in rows] == [
        (each["method"], each["seed"]) for each in found
    ]
    for row, each in zip(rows, found):
        run = folder / "tensorboard" / "digits" / each["method"] / str(each["seed"])
        events = EventAccumulator(str(run)).Reload()
        assert "_hparams_/session_start_info" in events.summary_metadata
        (accuracy,) = events.Tensors("test_accuracy")
        value = tf.make_ndarray(accuracy.tensor_proto)
        assert value == pytest.approx(float(row["test_accuracy"]))


def test_a_paired_test_needs_two_seeds_that_differ():
    def record(method, seed, accuracy):
        return {
            "method": method,
            "seed": seed,
            "accuracies": [accuracy],
            "plain_trainings": None,
            "search_seconds": 1.0,
        }

    found = [record("cosine", seed, 0.5) for seed in range(3)]
    found += [record("a", seed, 0.6 + 0.01 * seed) for seed in range(3)]
    rows = records.table(found).splitlines()[2:]
    # Differences of 10, 11 and 12 points: t = 11 √3.
    assert rows[1] == "| a | 61.00 ± 2.48 | +11.00 ± 2.48 | 0.003 | 3 |  | 1 |"
    assert "|  | 1 |" in records.table([found[0], found[3]]).splitlines()[3]


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """Two tasks with a limit in seconds."""
    folder, config = tmp_path_factory.mktemp("timed"), ml_collections.ConfigDict()
    config.tasks = {}
    for name in ("one", "two"):
        task = digits.get_config()
        task.network, task.epochs, task.budget = "mlp", (1,), 4.0
        task.train_epochs, task.train_seeds = 1, 1
        config.tasks[name] = task
    return folder, compare.compare(
        config.lock(),
        folder,
        ["learned", "learned_tenth", "random_decay"],
        seeds=1,
        seconds=3.0,
        tasks=["two"],
    )


def test_a_limit_in_seconds_becomes_a_budget_of_every_method(timed):
    folder, found = timed
    learned, _, random = found["two"]
    content = json.loads((folder / "two" / "results.json").read_text())
    budgets = {
        each: workdirs.search_config_of(folder / "two" / each / "0" / "search")
        for each in ("learned", "learned_tenth", "random_decay")
    }
    assert not any("seconds" in each for each in budgets.values())
    config = json.loads((folder / "two/random_decay/0/search/config.json").read_text())
    assert config["seconds"] == 6.0
    tenth = json.loads((folder / "two/learned_tenth/0/search/config.json").read_text())
    assert tenth["seconds"] == pytest.approx(0.3)
    assert config["budget"] == pytest.approx(6.0 / content["seconds_a_training"])
    for each, limit in ((learned, 3.0), (random, 6.0)):
        ends = [seconds for seconds, *_ in each["measured"]]
        assert all(end < limit for end in ends[:-1])  # The last training may go over it.
    assert (folder / "results.md").read_text() == f"{records.table(found['two'])}\n"


def test_a_search_that_ended_by_the_clock_is_not_resumed(timed, monkeypatch):
    folder, found = timed
    path = folder / "two" / "results.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "records": content["records"][1:]}))
    ends = folder / "two/learned/0/search/seconds.json"
    ends.write_text(json.dumps([*json.loads(ends.read_text())[:-1], 3.0]))
    monkeypatch.setattr(compare, "learn", lambda *arguments, **options: pytest.fail("learns again"))
    config = ml_collections.ConfigDict(content["config"]).lock()
    again = compare.compare(config, folder / "two", ["learned"], seeds=1, seconds=3.0)
    assert again[""][0]["accuracies"] == found["two"][0]["accuracies"]
    with pytest.raises(ValueError, match="differs in --seconds"):
        compare.compare(config, folder / "two", ["learned"], seeds=1, seconds=4.0)


def test_a_search_that_learned_nothing_counts_as_guessing(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "learn", lambda *arguments, **options: None)
    monkeypatch.setattr(compare, "train", lambda *arguments, **options: pytest.fail("trains"))
    found = compare.compare(config_of(), tmp_path / "new", ["cosine"], seeds=1)
    assert found[""][0]["accuracies"] == [0.1] and found[""][0]["learned_nothing"]


def test_a_folder_without_results_has_no_figure(tmp_path):
    with pytest.raises(ValueError, match="has no results.json"):
        figures.draw("1", tmp_path)
    with pytest.raises(ValueError, match="no measurement"):
        figures.draw("2", tmp_path)


@pytest.mark.parametrize(
    "changes, methods, words",
    [
        ({}, ["greed"], "must be among those of the config: cosine, shared"),
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


def test_a_missing_package_is_told_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    config = config_of(methods={"cma_es": methods.black_box(1, 2.0, "cma_es")})
    with pytest.raises(ImportError, match="'cma_es' needs cmaes: pip install cmaes"):
        compare.compare(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_unknown_tasks_are_refused(tmp_path):
    config = ml_collections.ConfigDict({"tasks": {"one": config_of()}})
    with pytest.raises(ValueError, match="must be among those of the config: one"):
        compare.compare(config, tmp_path / "new", tasks=["two"])
    with pytest.raises(ValueError, match="has no `tasks`"):
        compare.compare(config_of(), tmp_path / "new", tasks=["two"])


def test_a_time_that_is_too_short_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must have time for two"):
        compare.compare(config_of(), tmp_path / "new", seconds=0.001)


def test_another_config_is_refused(comparison):
    with pytest.raises(ValueError, match="differs in batch_size"):
        compare.compare(config_of(batch_size=64), comparison[0])
