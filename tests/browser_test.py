"""What people see: TensorBoard on the logs of a search, and reports, in a real browser.

    make browser

It needs Debian's `chromium` and `chromium-driver`. `--screenshots=FOLDER` keeps the pictures.
"""

import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from trainers import experiment, search, train

webdriver = pytest.importorskip("selenium.webdriver", reason="`make browser` installs selenium.")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="There is no chromium with chromium-driver."
)
ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 60  # Until something must be there.


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits_dir, run_program):
    """The folder with `search` and `training`, the results of the programs."""
    folder = tmp_path_factory.mktemp("runs")
    config = ROOT / "configs" / "digits.py"
    fields = {"data_dir": digits_dir, "network": "mlp", "epochs": "(10,)", "train_epochs": 10}
    given = [f"--config={config}", *(f"--config.{name}={fields[name]}" for name in fields)]
    schedules = f"--schedules={folder / 'search' / 'schedules.json'}"
    for program, name, *more in ((search, "search"), (train, "training", schedules)):
        arguments = [*given, f"--workdir={folder / name}", *more]
        code, output = run_program(lambda: experiment.run(program.main), *arguments)  # noqa: B023
        assert code == 0, output
    return folder


@pytest.fixture(scope="module")
def tensorboard(runs):
    """The address of a TensorBoard that shows the search."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--host=127.0.0.1", f"--port={port}"]
    server = subprocess.Popen(
        [*command, f"--logdir={runs / 'search' / 'tensorboard'}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{address}/data/plugin/scalars/tags"))
        yield address
    finally:
        server.terminate()
        server.wait()


def answers(address):
    try:
        with urllib.request.urlopen(address) as page:
            return b"schedules/learning_rate" in page.read()
    except urllib.error.URLError:
        return False


def wait_for(condition):
    """Waits until a condition holds; what it returns."""
    end = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, "It did not come."
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=1400,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def keep_screenshot(browser, request, tmp_path):
    """A function that keeps a picture of the page, in `--screenshots` or a temporary folder."""
    folder = request.config.getoption("--screenshots") or tmp_path

    def keep(name, whole_page=False):
        folder.mkdir(parents=True, exist_ok=True)
        if whole_page:
            height = browser.execute_script("return document.documentElement.scrollHeight")
            browser.set_window_size(1000, height + 200)
        time.sleep(1)  # Charts fade in.
        assert browser.save_screenshot(str(folder / f"{name}.png"))
        browser.set_window_size(1400, 1000)

    return keep


def shown(browser, selector, least=1):
    """Waits until a page shows that many elements; those that it shows."""

    def displayed():
        found = browser.execute_script(EVERYWHERE, selector)
        return [each for each in found if each.is_displayed()]

    return wait_for(lambda: len(displayed()) >= least and displayed())


# Elements by a selector, also those within the shadows of others.
EVERYWHERE = """
const found = (root) => [
    ...root.querySelectorAll(arguments[0]),
    ...[...root.querySelectorAll("*")].flatMap((e) => (e.shadowRoot ? found(e.shadowRoot) : [])),
];
return found(document);
"""


# ----------------------------------------------------------------------------------- TensorBoard
def test_tensorboard_shows_the_schedules_as_curves(browser, tensorboard, keep_screenshot):
    browser.get(f"{tensorboard}/?tagFilter=^schedules/&smoothing=0#timeseries")
    shown(browser, "scalar-card line-chart path", least=2)
    titles = shown(browser, "scalar-card tb-truncated-path", least=2)
    names = ["".join(each.text.split()) for each in titles[:2]]  # They are told in parts.
    assert names == ["schedules/learning_rate", "schedules/momentum"]
    keep_screenshot("tensorboard_schedules")


def test_tensorboard_shows_the_picture(browser, tensorboard, keep_screenshot):
    browser.get(f"{tensorboard}/?tagFilter=^schedules$#timeseries")
    (picture,) = shown(browser, "image-card img")
    wait_for(lambda: picture.get_property("naturalWidth") > 500)
    keep_screenshot("tensorboard_picture")


def test_tensorboard_shows_the_table_of_hyperparameters(browser, tensorboard, keep_screenshot):
    browser.get(f"{tensorboard}/#hparams")

    def cells():
        return [each.text for each in shown(browser, "vaadin-grid-cell-content")]

    wait_for(lambda: {"learning_rate/num_buckets", "best validation loss"} <= set(cells()))
    keep_screenshot("tensorboard_hyperparameters")


# --------------------------------------------------------------------------------------- reports
@pytest.mark.parametrize("run", ["search", "training"])
def test_report_shows_all_its_pictures(browser, runs, run, keep_screenshot):
    browser.get((runs / run / "report.html").as_uri())
    pictures = shown(browser, "img")
    assert all(picture.get_property("naturalWidth") > 0 for picture in pictures)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    browser.set_window_size(1000, 1000)
    cut_off = (
        "return [...document.querySelectorAll('*')].filter(e => e.scrollWidth > e.clientWidth + 1)"
    )
    assert [each.text for each in browser.execute_script(cut_off) if each.size["width"]] == []
    keep_screenshot(f"report_{run}", whole_page=True)
