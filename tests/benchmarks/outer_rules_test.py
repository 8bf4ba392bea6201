"""The proving ground: its hypergradients, its costs, what it resumes."""

import json

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="benchmarks/requirements.txt has it")
pytest.importorskip("optuna", reason="benchmarks/requirements.txt has it")

# ruff: noqa: E402
from benchmarks.outer_rules import inner_loop, models, optimizers, report, run, searchers, tasks
from benchmarks.outer_rules.data import Data, Examples, digits, python_topics
from benchmarks.outer_rules.inner_loop import InnerLoop, Measured

pytestmark = pytest.mark.sweep()  # They compile for minutes.

HORIZON = 10
MODELS = {
    "perceptron": models.perceptron(64, (5,), 10),
    "convolutional": models.convolutional((2, 3), 8, 10),
    "recurrent": models.recurrent(8, 4, 10),
}
STARTS = {"sgd": (0.3, 0.8, 1e-2), "adamw": (0.02, 0.8, 0.1)}


def tiny_digits():
    data = digits()
    pool = Examples(inputs=data.pool.inputs[:60], labels=data.pool.labels[:60])
    test = Examples(inputs=data.test.inputs[:20], labels=data.test.labels[:20])
    return Data(pool, test, 10)


def tiny_loop(model="perceptron", optimizer="sgd"):
    return InnerLoop(
        model=MODELS[model],
        optimizer=tasks.OPTIMIZERS[optimizer](),
        data=tiny_digits(),
        batch_size=8,
        horizon=HORIZON,
        num_validation=20,
    )


@pytest.fixture
def in_float64():
    with jax.enable_x64(True):
        yield


def check_by_finite_differences(loop, schedule, tolerance=1e-5):
    key, split = jax.random.PRNGKey(1), loop.split(0)
    width = 1e-7  # Wider ones meet the kinks of relu.
    measured = loop.measure_with_hypergradients(schedule, key, split)
    assert np.isclose(measured.loss, loop.measure(schedule, key, split).loss, rtol=1e-10)
    expected = np.zeros_like(schedule)
    for place in np.ndindex(*schedule.shape):
        losses = []
        for side in (-1, 1):
            moved = schedule.copy()
            moved[place] += side * width
            losses.append(loop.measure(moved, key, split).loss)
        expected[place] = (losses[1] - losses[0]) / (2 * width)
    scale = np.abs(expected).max(axis=0)
    assert (scale > 0).all()
    errors = np.abs(measured.hypergradients - expected) / scale
    assert errors.max() < tolerance, errors


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [("perceptron", "sgd"), ("convolutional", "adamw"), ("recurrent", "adamw")],
)
def test_hypergradients_are_finite_differences(in_float64, model, optimizer):
    loop = tiny_loop(model, optimizer)
    check_by_finite_differences(loop, np.tile(STARTS[optimizer], (HORIZON, 1)))


def test_hypergradients_of_attention_are_finite_differences(in_float64):
    data = python_topics(length=4, size=40, num_characters=8)
    loop = InnerLoop(models.attention(4, 6, 2, 8), optimizers.adamw(), data, 8, HORIZON, 10)
    check_by_finite_differences(loop, np.tile(STARTS["adamw"], (HORIZON, 1)))


def test_sgd_is_that_of_keras_fds():
    import keras

    import keras_fds

    stock = keras_fds.optimizers.SGD(0.2, momentum=0.7, weight_decay=0.05)
    variable = keras.Variable(np.array([1.0, -2.0], "float32"))
    pure = optimizers.sgd(global_clipnorm=1e9)
    weights = jax.numpy.array([1.0, -2.0])
    slots = pure.slots(weights)
    for gradient in ([0.5, 0.1], [-0.3, 0.2], [0.1, 0.4]):
        stock.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        numbers = jax.numpy.array([0.2, 0.7, 0.05])
        weights, slots = pure.update(numbers, jax.numpy.array(gradient), slots, weights)
    np.testing.assert_allclose(weights, variable.numpy(), rtol=1e-6)


def test_adamw_is_that_of_keras():
    import keras

    stock = keras.optimizers.AdamW(0.1, weight_decay=0.05, beta_1=0.7, beta_2=0.99, epsilon=1e-6)
    variable = keras.Variable(np.array([1.0, -2.0], "float32"))
    pure = optimizers.adamw()
    weights = jax.numpy.array([1.0, -2.0])
    slots = pure.slots(weights)
    for gradient in ([0.5, 0.1], [-0.3, 0.2], [0.1, 0.4]):
        stock.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        numbers = jax.numpy.array([0.1, 0.7, 0.05])
        weights, slots = pure.update(numbers, jax.numpy.array(gradient), slots, weights)
    # Decay and step are added here; Keras decays first, which is the same.
    np.testing.assert_allclose(weights, variable.numpy(), rtol=1e-4)


# ---------------------------------------------------------------------------------------- data
def test_a_split_holds_out_others_by_seed_and_shares_nothing():
    loop = tiny_loop()
    split = loop.split(0)
    assert sorted(np.concatenate(split)) == list(range(60))
    assert set(split.validation) != set(loop.split(1).validation)


def test_labels_of_the_pool_alone_are_replaced():
    clean, replaced = digits(), digits(replaced=0.5)
    np.testing.assert_array_equal(clean.test.labels, replaced.test.labels)
    # A label drawn anew is the same in a tenth of all cases.
    assert 0.4 < np.mean(clean.pool.labels != replaced.pool.labels) < 0.5


def test_the_label_of_a_character_is_the_next_one():
    data = python_topics(length=5, size=50)
    np.testing.assert_array_equal(data.pool.inputs[:, 1:], data.pool.labels[:, :-1])


def test_batches_of_an_epoch_are_all_different():
    loop = tiny_loop()
    batches = np.asarray(loop._batches(jax.random.PRNGKey(0), loop.split(0).train, HORIZON))
    assert batches.shape == (HORIZON, 8)
    assert len(set(batches[:5].ravel())) == 40
    assert set(batches.ravel()) <= set(loop.split(0).train)


# -------------------------------------------------------------------------------------- searches
class Alternating(searchers.Searcher):
    """Plain trainings, and passes with hypergradients over half the horizon."""

    def propose(self, observations):
        if len(observations) == 4:
            return None
        with_hypergradients = len(observations) % 2 == 1
        horizon = self.horizon // 2 if with_hypergradients else self.horizon
        schedule = searchers.decay(STARTS["sgd"], horizon, "cosine")
        return searchers.Proposal(schedule, with_hypergradients)

    def answer(self, observations):
        return observations[-1].proposal.schedule


def test_a_pass_with_hypergradients_costs_four_trainings_of_its_horizon():
    loop = tiny_loop()
    steps = list(run.search(loop, Alternating("sgd", HORIZON, 0), 0, budget=40))
    assert [cost for cost, _, _ in steps] == [1, 3, 4, 6]
    kinds = [each.measured.hypergradients is not None for each in steps[-1][1]]
    assert kinds == [False, True, False, True]


def test_a_search_never_exceeds_its_budget():
    steps = list(run.search(tiny_loop(), Alternating("sgd", HORIZON, 0), 0, budget=3.5))
    assert [cost for cost, _, _ in steps] == [1, 3]


def test_an_answer_counts_from_its_cost_on():
    first, second = object(), object()
    answers = run.answers_at((2, 4, 8), [(4.0, first), (8.5, second)])
    assert answers == [None, first, first]


@pytest.mark.parametrize("name", run.SEARCHERS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_searcher_proposes_schedules_and_goes_on_after_a_break_down(name, optimizer):
    if name.startswith("gp"):
        pytest.importorskip("torch", reason="benchmarks/requirements.txt has it")
    searcher = run.SEARCHERS[name](optimizer, 50, 0)
    observations = []
    for loss in 3 * (2.0, np.nan, 1.5, 1.0):
        proposal = searcher.propose(observations)
        if proposal is None:
            break
        schedule = proposal.schedule
        assert schedule.shape[1] == 3 and schedule.dtype == np.float32
        assert (schedule >= 0).all() and (schedule[:, 1] < 1).all()
        slopes = -np.ones(schedule.shape) if proposal.with_hypergradients else None
        measured = Measured(loss, 0.01, not np.isfinite(loss), slopes)
        observations.append(searchers.Observation(proposal, measured))
    searcher.propose(observations)
    assert searcher.answer(observations).shape == (50, 3)


def test_break_downs_are_those_of_fit():
    steady = np.ones(40)
    assert not inner_loop.broke_down(1.0, steady)
    assert inner_loop.broke_down(np.nan, steady)
    assert inner_loop.broke_down(1.0, np.append(steady, np.inf))
    assert inner_loop.broke_down(1.0, np.append(steady, np.full(10, 21.0)))
    assert not inner_loop.broke_down(1.0, np.append(steady, np.full(9, 21.0)))


# ----------------------------------------------------------------------------- results and report
@pytest.fixture
def tiny_task():
    task = tasks.Task(
        data="digits",
        model="perceptron",
        optimizer="sgd",
        data_arguments={},
        model_arguments={"num_inputs": 64, "hidden": (5,)},
        batch_size=50,
        horizon=20,
        num_validation=100,
    )
    return {"tiny": task}


def test_what_is_written_is_not_run_again(tmp_path, tiny_task, monkeypatch):
    run.run(tmp_path, tiny_task, ["tpe_3"], range(2))
    path = run.path_of(tmp_path, "tiny", "tpe_3")
    before = path.read_text()
    path.write_text(before + '{"seed": 2, "finger')  # As a kill leaves it.
    ran = []
    run_seed = run.run_seed
    monkeypatch.setattr(run, "run_seed", lambda *given: ran.append(given[-1]) or run_seed(*given))
    run.run(tmp_path, tiny_task, ["tpe_3"], range(3))
    assert ran == [2]
    assert path.read_text().startswith(before)
    assert set(run.read(tmp_path, "tiny", tiny_task["tiny"], "tpe_3")) == {0, 1, 2}


def test_the_same_seed_gives_the_same_record(tmp_path, tiny_task):
    loop = tiny_task["tiny"].build()
    first, again = (run.run_seed(tiny_task["tiny"], loop, "rule_7", 3) for _ in range(2))
    assert first["losses"] == again["losses"] and first["at"] == again["at"]


def test_results_of_another_task_do_not_count(tmp_path, tiny_task):
    task = tiny_task["tiny"]
    record = {"seed": 0, "fingerprint": "other"}
    run.append(run.path_of(tmp_path, "tiny", "tpe_3"), record)
    assert run.read(tmp_path, "tiny", task, "tpe_3") == {}
    assert json.loads(run.path_of(tmp_path, "tiny", "tpe_3").read_text()) == record


def test_the_report_has_a_row_a_searcher_and_a_picture(tmp_path, tiny_task):
    searched = ["rule_15", "tpe_3"]
    run.run(tmp_path, tiny_task, searched, range(2))
    report.write(tmp_path, tiny_task, [*searched, "grid_cosine"])
    text = (tmp_path / "results.md").read_text()
    assert "| rule_15 | " in text and "| tpe_3 | " in text and "grid_cosine" not in text
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_intervals_are_those_of_student():
    mean, half = report.mean_and_half([1.0, 2.0, 3.0])
    assert mean == 2.0
    np.testing.assert_allclose(half, 4.302653 / np.sqrt(3), rtol=1e-6)


def test_two_tasks_are_held_back():
    assert len(tasks.OPEN) >= 4 and len(tasks.HELD_BACK) == 2
