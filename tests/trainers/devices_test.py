"""`--device` and `--jit_compile`, on a machine with GPUs that only TensorFlow's list knows of."""

import json

import keras
import pytest
import tensorflow as tf

from configs import digits
from trainers import devices, experiment, search, workdirs


class Machine:
    """Takes the place of TensorFlow's settings of devices."""

    def __init__(self, gpus, monkeypatch, computes=False):
        self.visible, self.growing, self.computes = list(gpus), [], computes
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(gpus))
        monkeypatch.setattr(tf.config, "set_visible_devices", self.show)
        monkeypatch.setattr(tf.config.experimental, "set_memory_growth", self.grow)

    def show(self, gpus, kind):
        self.refuse_when_late()
        self.visible = gpus

    def grow(self, gpu, enable):
        self.refuse_when_late()
        self.growing.append((gpu, enable))

    def refuse_when_late(self):
        if self.computes:
            raise RuntimeError("Visible devices cannot be modified after being initialized")


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_memory_of_every_gpu_grows(device, monkeypatch):
    machine = Machine(["gpu:0", "gpu:1"], monkeypatch)
    assert devices.choose(device) == "gpu"
    assert machine.growing == [("gpu:0", True), ("gpu:1", True)]
    assert machine.visible == ["gpu:0", "gpu:1"]


def test_a_cpu_that_is_asked_for_hides_the_gpus(monkeypatch):
    machine = Machine(["gpu:0"], monkeypatch)
    assert devices.choose("cpu") == "cpu"
    assert machine.visible == [] and machine.growing == []


def test_nothing_assumes_a_gpu(monkeypatch):
    Machine([], monkeypatch, computes=True)
    assert devices.choose("auto") == devices.choose("cpu") == "cpu"
    with pytest.raises(ValueError, match=r"finds no GPU. Install .*keras-fds\[gpu\]"):
        devices.choose("gpu")


def test_a_choice_that_comes_too_late_is_refused(monkeypatch):
    Machine(["gpu:0"], monkeypatch, computes=True)
    with pytest.raises(ValueError, match="--device=cpu comes too late"):
        devices.choose("cpu")


def test_xla_compiles_on_a_gpu_unless_told_otherwise():
    values = {(a, d): devices.jit_compile(a, d) for a in devices.COMPILERS for d in ("cpu", "gpu")}
    assert values == {
        ("auto", "cpu"): False,
        ("auto", "gpu"): "auto",
        ("true", "cpu"): True,
        ("true", "gpu"): True,
        ("false", "cpu"): False,
        ("false", "gpu"): False,
    }


def test_a_gpu_that_is_not_there_is_a_sentence_before_anything_else(tmp_path, run_program):
    workdir = tmp_path / "run"
    code, output = run_program(
        lambda: experiment.run(search.main),
        "--config=configs/digits.py",
        f"--workdir={workdir}",
        "--device=gpu",
    )
    assert code == 1 and "finds no GPU" in output and len(output.splitlines()) == 1
    assert not workdir.exists()


def test_the_program_compiles_by_xla_if_told_to(tmp_path, digits_dir, run_program, monkeypatch):
    seen = []

    def write_config(config, workdir, *arguments, **options):
        seen.append(experiment.make_model(config, experiment.load_arrays(config, "train")))
        workdirs.begin_workdir(workdirs.check_workdir(workdir), config)
        raise ValueError("Seen.")

    monkeypatch.setattr(search, "learn", write_config)
    for flag, expected in (("--jit_compile=true", True), ("--jit_compile=auto", False)):
        code, output = run_program(
            lambda: experiment.run(search.main),
            "--config=configs/digits.py",
            f"--config.data_dir={digits_dir}",
            f"--workdir={tmp_path / flag}",
            flag,
        )
        assert code == 1 and "Seen." in output
        assert seen.pop().jit_compile is expected
        # The experiment is the same, whatever compiles it.
        assert "jit_compile" not in json.loads((tmp_path / flag / "config.json").read_text())


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_models_of_a_config_compute_in_its_dtype_policy(policy, digits_dir):
    config = digits.get_config()
    config.data_dir, config.dtype_policy = str(digits_dir), policy
    model = experiment.make_model(config, experiment.load_arrays(config, "train"))
    assert model.layers[-1].compute_dtype == policy.removeprefix("mixed_")
    assert keras.config.dtype_policy().name == "float32"
    scale = model.optimizer.optimizer.loss_scale_factor
    assert scale == (1024.0 if policy == "mixed_float16" else None)
    config.dtype_policy = "float8"
    with pytest.raises(ValueError, match="`dtype_policy` must be one of.*'float8'"):
        experiment.check_config(config)
