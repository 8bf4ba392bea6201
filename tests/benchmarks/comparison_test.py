"""Tables of results are put into their blocks of a page; others stay."""

import json

import pytest

from benchmarks import comparison

PAGE = """# Title

<!-- table: digits -->
Not measured yet.
<!-- end -->

<!-- table: low_data -->
Not measured yet.
<!-- end -->
"""


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    record = {
        "method": "cosine",
        "seed": 0,
        "accuracies": [0.5],
        "plain_trainings": 3.0,
        "search_seconds": 2.0,
        "measured": [[1.0, 1.0, 0.4], [2.0, 3.0, 0.5]],
        "schedules": {"long": [0] * 1000},
    }
    content = {"config": {"budget": 12.0}, "machine": "two cores", "records": [record]}
    (folder / "results.json").write_text(json.dumps(content))
    comparison.add(folder, "digits", tmp_path / "out")
    return tmp_path / "out"


def test_a_block_is_filled_and_filled_again(results):
    page = comparison.filled(PAGE, results)
    assert "| cosine | 50.00 |" in page and "12 plain trainings a search; two cores." in page
    assert page.count("Not measured yet.") == 1
    assert comparison.filled(page, results) == page
    assert "schedules" not in json.loads((results / "digits.json").read_text())["records"][0]
    assert (results / "digits.png").exists()


def test_results_without_a_block_are_told(results):
    (results / "digits.json").rename(results / "other.json")
    with pytest.raises(ValueError, match="no block for other"):
        comparison.filled(PAGE, results)


def test_a_folder_without_a_comparison_is_told(tmp_path):
    with pytest.raises(ValueError, match="no comparison in"):
        comparison.add(tmp_path, "digits", tmp_path / "out")
