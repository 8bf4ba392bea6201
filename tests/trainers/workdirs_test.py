"""Folders of results: what is kept, what is refused, and what a search goes on with."""

import json
import math

import pytest

from configs import digits
from trainers import workdirs


@pytest.fixture
def config():
    return digits.get_config()


def test_begin_workdir_removes_only_what_the_programs_write(config, tmp_path):
    events = tmp_path / "tensorboard" / "train"
    events.mkdir(parents=True)
    for path in (
        tmp_path / "model.keras",
        tmp_path / "test.json",
        events / "events.out.tfevents.1",
    ):
        path.write_text("old")
    for path in (tmp_path / "notes.txt", events / "mine.csv"):
        path.write_text("kept")
    with pytest.raises(ValueError, match="is not empty. Choose another one, or pass --overwrite"):
        workdirs.check_workdir(tmp_path)
    assert workdirs.check_workdir(tmp_path, overwrite=True) == tmp_path
    workdirs.begin_workdir(tmp_path, config)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"config.json", "notes.txt", "mine.csv"}
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["hyperparameters"][0]["num_buckets"] == 7
    assert written["tangent_clipvalue"] is None


def test_a_search_of_a_version_without_the_optional_fields_can_be_resumed(config, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    older = config.to_dict()
    for field in workdirs.OPTIONAL_FIELDS:
        del older[field]
    workdirs.write_json(tmp_path / "config.json", older)
    assert workdirs.holds_search(tmp_path, config)
    assert workdirs.search_config(config).keys().isdisjoint(workdirs.OPTIONAL_FIELDS)
    config.cache_dir = "elsewhere"
    assert workdirs.holds_search(tmp_path, config)
    config.augmentation = "crop_flip"
    assert workdirs.search_config(config)["augmentation"] == "crop_flip"
    with pytest.raises(ValueError, match=r"differs in augmentation \('none' there\)"):
        workdirs.holds_search(tmp_path, config)
    workdirs.write_config(tmp_path, config)
    assert workdirs.holds_search(tmp_path, config)


def test_workdirs_that_cannot_be_made_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`workdir` must be a directory that .*: Not a directory"):
        workdirs.check_workdir(tmp_path / "file" / "run")


def test_json_holds_null_for_what_is_not_finite(tmp_path):
    content = {"loss": float("nan"), "seeds": [{"loss": float("inf")}, 1.5], "count": 3}
    workdirs.write_json(tmp_path / "test.json", content)
    read = json.loads((tmp_path / "test.json").read_text())
    assert read == {"loss": None, "seeds": [{"loss": None}, 1.5], "count": 3}


def test_best_row_is_the_outer_rules_last_best_one(tmp_path):
    assert workdirs.read_history(tmp_path) == []
    rows = ("1,0.5,1", "2,0.1,1", "3,nan,0", "4,0.25,1", "5,0.2,0")  # 3 and on: a longer horizon.
    (tmp_path / "history.csv").write_text("\n".join(["outer_step,val_loss,best", *rows, ""]))
    rows = workdirs.read_history(tmp_path)
    assert len(rows) == 5
    assert workdirs.best_row(rows)["outer_step"] == 4


def test_verdict_names_the_best_outer_step_and_lower_ones():
    row = {"accepted": 1, "best": 0, "horizon": 10, "val_accuracy": 0.5}
    rows = [
        {**row, "outer_step": 1, "val_loss": 0.25, "best": 1},
        {**row, "outer_step": 2, "val_loss": 0.2},
        {**row, "outer_step": 3, "val_loss": 0.1, "accepted": 0},
        {**row, "outer_step": 4, "val_loss": 0.1, "horizon": 5},
        {**row, "outer_step": 5},
    ]
    verdict = workdirs.verdict_on(rows)
    assert verdict.startswith(
        "The best of 5 outer steps was number 1: validation loss 0.2500, accuracy 50.0%. "
        "Number 2 had a lower loss"
    )
    rows[0]["best"] = 0
    assert workdirs.verdict_on(rows).startswith("5 outer steps are finished, none with a finite")


def test_history_leaves_out_what_holds_nothing(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,loss,val_loss\n0,,NA\n1,nan,0.5\n")
    first, second = workdirs.read_history(tmp_path)
    assert first == {"epoch": 0}
    assert math.isnan(second.pop("loss")) and second == {"epoch": 1, "val_loss": 0.5}


def test_a_folder_is_empty_with_what_a_kill_left(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.partial.json").write_text("{")
    assert workdirs.check_workdir(tmp_path) == tmp_path


def test_a_write_that_fails_leaves_the_older_file(tmp_path):
    path = tmp_path / "test.json"
    workdirs.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        workdirs.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_search_goes_on_with_more_outer_steps_and_with_nothing_else(config, tmp_path):
    assert not workdirs.holds_search(tmp_path, config)
    workdirs.begin_search(tmp_path, config, going_on=False)
    (tmp_path / "history.csv").write_text("outer_step\n1\n")
    config.outer_steps = 99
    config.train_seeds = 1
    assert workdirs.holds_search(tmp_path, config)
    workdirs.begin_search(tmp_path, config, going_on=True)
    assert (tmp_path / "history.csv").exists()
    assert json.loads((tmp_path / "config.json").read_text())["outer_steps"] == 99
    config.batch_size = 64
    config.hyperparameters[0]["step_size"] = 0.2
    with pytest.raises(ValueError, match=r"batch_size \(128 there\), hyperparameters \("):
        workdirs.holds_search(tmp_path, config)


def test_results_of_a_training_are_no_search(config, tmp_path):
    workdirs.begin_workdir(tmp_path, config)
    assert not workdirs.holds_search(tmp_path, config)
    with pytest.raises(ValueError, match="The workdir is not empty"):
        workdirs.check_workdir(tmp_path)


def test_what_is_there_after_an_interrupt(config, tmp_path):
    assert workdirs.what_is_there(tmp_path) == "Interrupted before anything was finished."
    workdirs.begin_search(tmp_path, config, going_on=False)
    (tmp_path / "history.csv").write_text("outer_step\n1\n2\n")
    assert workdirs.what_is_there(tmp_path) == (
        f"Interrupted. {tmp_path} holds what is finished: config.json, history.csv (2 rows).\n"
        "To resume, start the same command again, without --overwrite."
    )
