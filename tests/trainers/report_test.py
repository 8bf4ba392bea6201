"""The pages that programs leave behind, from rows like those of history.csv."""

import base64
import csv
import math
import re
import xml.etree.ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

import keras_fds
from trainers import curves, report, workdirs

RATES = 12
VOID = ("meta", "img")


def history(num_steps=9, **optional):
    """Rows of a search that does worse at outer steps 4 and 6; 6 has no validation loss."""
    rows = []
    for i in range(num_steps):
        row = {"outer_step": i + 1, "horizon": 110, "loss": 1 / (i + 1), "accuracy": 0.9}
        row |= {"val_loss": 2.0 / (i + 1) + (i == 3), "val_accuracy": 0.5 + 0.05 * i}
        row |= {"best": float(i not in (3, 5))}
        row |= {name: values[i] for name, values in optional.items()}
        for k in range(RATES):
            row[f"learning_rate[{k}]"] = 0.1 + 0.01 * k + 0.1 * i
            row[f"hypergradient/learning_rate[{k}]"] = (-1) ** k * 10.0 ** (-i - k / 4)
        row |= {
            "a.b.kernel_regularizer.l2[0]": 1e-4,
            "hypergradient/a.b.kernel_regularizer.l2[0]": i,
        }
        if i == 5:
            row.update(val_loss=math.nan)
        rows.append(row)
    return rows


NOISY = {
    "accepted": [1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0],
    "val_loss_error": [0.5 / (i + 1) for i in range(9)],
}


class Page(HTMLParser):
    """Collects a page's pictures and text, and checks that every element ends."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.pictures = []
        self.rows = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            assert attributes["alt"]
            prefix, data = attributes["src"].split(",")
            assert prefix == "data:image/svg+xml;base64"
            self.pictures.append(xml.etree.ElementTree.fromstring(base64.b64decode(data)))
        if tag == "tr":
            self.rows.append((attributes.get("class"), []))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][1].append(data)


ORIGIN = report.describe_origin("python -m trainers.search --config='a b'", 7)


def search_page(rows):
    return report.search_page("A <title>", "b & c", rows, ORIGIN)


@pytest.fixture(scope="module")
def noisy():
    """The page of a search that rejected some outer steps."""
    return search_page(history(**NOISY))


def training_page(summary, rows, search_rows):
    schedules = {"learning_rate": keras_fds.BucketedSchedule([0.1, 0.2], 60)}
    return Page(report.training_page("Training", "", summary, rows, schedules, search_rows, ORIGIN))


@pytest.mark.parametrize("kind", ["plain", "noisy"])
def test_page_is_whole_and_holds_its_pictures(kind, noisy):
    text = noisy if kind == "noisy" else search_page(history())
    page = Page(text)
    assert len(page.pictures) == 3
    assert "A <title>" in page.text and "b & c" in page.text
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_best_outer_step_is_shown_with_its_values():
    page = Page(search_page(history(num_steps=5)))
    assert "Of outer step 5, the best one, over a horizon of 110 inner steps" in page.text
    rates = next(cells for _, cells in page.rows if cells[:1] == ["learning_rate"])
    assert rates[1:] == [f"{0.5 + 0.01 * k:.4g}" for k in range(RATES)]
    assert [cells[0] for kind, cells in page.rows if kind == "best"] == ["5"]


def test_what_the_outer_rule_rejected_is_marked(noisy):
    page = Page(noisy)
    rejected = [cells for kind, cells in page.rows if kind == "rejected"]
    assert [cells[0] for cells in rejected] == ["4", "6"]
    assert all(cells[-1] == "rejected" for cells in rejected)
    best = next(cells for kind, cells in page.rows if kind == "best")
    assert best[0] == "9" and best[-1] == "best"
    (panel,) = curves.draw_validation(history(**NOISY)).axes
    labels = panel.get_legend_handles_labels()[1]
    shown = ["validation loss", "± one standard error", "rejected", "not finite", "best: 0.2222"]
    assert labels == shown
    lowest, highest = panel.get_ylim()
    assert lowest < 2.0 / 9 - 0.5 / 9 and highest > 2.5
    (panel,) = curves.draw_validation(history(num_steps=5)).axes
    assert panel.get_legend_handles_labels()[1] == ["validation loss", "best: 0.4"]


def test_rows_may_be_those_of_a_csv_file(tmp_path):
    rows = history(num_steps=2, **NOISY)
    del rows[0]["val_loss_error"]
    with open(tmp_path / "history.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[1])
        writer.writeheader()
        writer.writerows(rows)
    read = workdirs.read_history(tmp_path)
    np.testing.assert_equal(read, rows)
    assert Page(search_page(read)).text == Page(search_page(rows)).text


def test_nothing_finite_still_gives_a_page():
    rows = history(num_steps=2)
    for row in rows:
        row.update({name: math.nan for name in row if "loss" in name or "hyper" in name})
        row["best"] = 0.0
    assert "none had a finite validation loss" in Page(search_page(rows)).text


def test_hypergradients_have_a_panel_each_and_a_line_a_bucket():
    figure = curves.draw_hypergradients(history())
    rates, l2, _ = figure.axes
    assert [rates.get_title(), l2.get_title()] == ["learning_rate", "a.b.kernel_regularizer.l2"]
    lines = [line for line in rates.get_lines() if not line.get_label().startswith("_")]
    assert len(lines) == RATES and rates.get_yscale() == "symlog"
    np.testing.assert_allclose(lines[2].get_ydata(), [10 ** (-i - 0.5) for i in range(9)])
    assert l2.get_xlabel() == "outer step" and l2.get_ylabel() == "hypergradient"


def test_training_shows_every_seed():
    summary = {"accuracy": 0.95, "loss": 0.2, "accuracy_interval": [0.9, 1.0]}
    summary["seeds"] = [{"seed": s, "accuracy": 0.95, "loss": 0.2} for s in (4, 5)]
    rows = [{"epoch": e % 3, "loss": 0.5 / (e + 1)} for e in range(6)]
    page = training_page(summary, rows, [])
    assert "90.00% to 100.00%" in page.text and "Stretched to 60 training steps" in page.text
    assert len(page.pictures) == 2
    (panel,) = curves.draw_training(rows, [4, 5]).axes
    assert panel.get_legend_handles_labels()[1] == ["seed 4", "seed 5"]
    assert [len(line.get_xdata()) for line in panel.get_lines()] == [3, 3]
    one = {**summary, "accuracy_interval": None, "seeds": summary["seeds"][:1]}
    assert "interval" not in training_page(one, rows[:3], []).text


def test_training_tells_of_its_search_too():
    summary = {"accuracy": 0.95, "loss": 0.2, "accuracy_interval": None}
    summary["seeds"] = [{"seed": 0, "accuracy": 0.95, "loss": 0.2}]
    page = training_page(summary, [{"epoch": 0, "loss": 0.5}], history())
    assert len(page.pictures) == 5
    for heading in ("learned schedules", "validation", "hypergradients", "outer steps"):
        assert f"The search: {heading}" in page.text


def test_origin_tells_how_to_get_the_same_again(noisy):
    page = Page(noisy)
    assert "python -m trainers.search --config='a b'" in page.text
    facts = {cells[0]: cells[1] for _, cells in page.rows}
    assert facts["seed"] == "7" and re.match(r"\d+\.\d+", facts["tensorflow"])
    assert re.search(r"\d+ cores; ", facts["machine"])
