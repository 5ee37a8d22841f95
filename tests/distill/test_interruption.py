"""SIGTERM and Ctrl-C end a training with a checkpoint and a status that says so. About 40 seconds."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from fgd_distill.data import worker_signals
from fgd_distill.training.interruption import StopOnSignal
from fgd_distill.training.module import DetectionModule
from fgd_distill.training.run import run

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(autouse=True)
def _heard():
    """Signals as a program in the foreground has them: a shell starts its background jobs with SIGINT ignored."""
    before = {number: signal.getsignal(number) for number in CODES}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def training(fit_args, tmp_path):
    """Runs six steps, four of which are an epoch, with validation after every third; returns the CLI."""

    def train(folder, *more):
        return run([*fit_args(tmp_path / folder, steps=6, batch_size=6), "--trainer.val_check_interval=3", *more])

    return train


def send_within(monkeypatch, method, call, number):
    """Sends a signal to this process within that call, counted from 1, of a method of the module."""
    original, calls = getattr(DetectionModule, method), []

    def counted(self, *args):
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(self, *args)

    monkeypatch.setattr(DetectionModule, method, counted)


@pytest.mark.parametrize(
    ("method", "call", "number", "done", "more"),
    [
        ("training_step", 2, signal.SIGTERM, 2, ()),
        ("training_step", 3, signal.SIGTERM, 3, ()),
        ("training_step", 4, signal.SIGINT, 4, ()),
        ("validation_step", 1, signal.SIGTERM, 3, ()),
        ("training_step", 3, signal.SIGTERM, 2, ("--trainer.accumulate_grad_batches=2", "--trainer.max_steps=3")),
    ],
    ids=["step", "a validation is due", "end of an epoch", "validation", "accumulating"],
)
def test_the_step_is_ended_and_the_training_goes_on(
    training, tmp_path, capsys, monkeypatch, method, call, number, done, more
):
    handlers = {each: signal.getsignal(each) for each in CODES}
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        send_within(patched, method, call, number)
        training("cut", *more)
    assert stopped.value.code == CODES[number]
    assert handlers == {each: signal.getsignal(each) for each in CODES}
    told = capsys.readouterr().out
    assert f"{number.name} ended the training after {done} steps" in told
    checkpoint = re.search("to go on: --ckpt_path=(.*)", told)[1]
    assert checkpoint.startswith(str(tmp_path / "cut")) and torch.load(checkpoint)["global_step"] == done
    validated = []

    def record(module):
        if not module.trainer.sanity_checking:
            validated.append((module.global_step, float(module.trainer.callback_metrics["val/AP"])))

    monkeypatch.setattr(DetectionModule, "on_validation_end", record)
    resumed = training("resumed", f"--ckpt_path={checkpoint}", *more)
    after_it = validated[:]
    validated.clear()
    whole = training("whole", *more)
    # None is left out, and one that was stopped begins anew.
    assert after_it == [(step, ap) for step, ap in validated if step > done or (step == done == 3)]
    assert resumed.trainer.global_step == whole.trainer.global_step
    differs = {
        name
        for name, value in whole.model.state_dict().items()
        if not torch.equal(value, resumed.model.state_dict()[name])
    }
    assert differs == set()
    assert resumed.trainer.callback_metrics["val/AP"] == whole.trainer.callback_metrics["val/AP"]


# Runs fit with a second step that sends signals to its own process, the first argument says how many.
SCRIPT = """
import os, signal, sys
from fgd_distill.commands import main
from fgd_distill.training.module import DetectionModule

step = DetectionModule.training_step

def signalled(self, *args):
    if self.global_step == 1:
        for _ in range(int(sys.argv[1])):
            os.kill(os.getpid(), signal.SIGTERM)
    return step(self, *args)

DetectionModule.training_step = signalled
main.main(sys.argv[2:])
"""


@pytest.mark.parametrize(("signals", "status", "checkpoints"), [(1, 143, 1), (2, -signal.SIGTERM, 0)])
def test_the_status_of_the_process(fit_args, tmp_path, signals, status, checkpoints):
    """The second signal ends it at once: a shell has 143 for that, too."""
    command = [sys.executable, "-c", SCRIPT, str(signals), *fit_args(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr[-2000:]
    assert len(list(tmp_path.rglob("*.ckpt"))) == checkpoints
    assert "weights_only" not in done.stderr  # what Lightning says of it, and no checkpoint is read that way


def test_what_is_ignored_stays_ignored(training, monkeypatch):
    """A shell's script starts what runs in the background without Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        send_within(monkeypatch, "training_step", 2, signal.SIGINT)
        assert training("whole", "--trainer.limit_val_batches=0").trainer.global_step == 6
    finally:
        signal.signal(signal.SIGINT, before)


def test_slurm_requeues_as_before(training, tmp_path, monkeypatch, capsys):
    """SLURM announces the end by SIGUSR1, for which Lightning writes its own checkpoint and asks for a requeue; the
    SIGTERM that follows ends the step. The next run goes on from Lightning's checkpoint."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "asked"}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")
    slurm = {"JOB_ID": "7", "JOB_NAME": "fit", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in {**slurm, "JOB_NUM_NODES": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    more = ["--trainer.limit_val_batches=0"]
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        send_within(patched, "training_step", 2, signal.SIGTERM)
        send_within(patched, "training_step", 2, signal.SIGUSR1)  # around the other: it comes first
        training("job", *more)
    assert stopped.value.code == 143
    assert "SIGTERM ended the training after 2 steps" in capsys.readouterr().out
    assert (tmp_path / "asked").read_text().split() == ["requeue", "7"]
    assert (tmp_path / "job" / "hpc_ckpt_1.ckpt").is_file()
    steps = []
    monkeypatch.setattr(DetectionModule, "on_train_batch_start", lambda self, *_: steps.append(self.global_step))
    training("job", *more)
    assert steps == [1, 2, 3, 4, 5]


class OneOfTwo:
    """The strategy of a process whose neighbour got the signal."""

    def __init__(self, environment):
        self.cluster_environment = environment

    def reduce_boolean_decision(self, decision, all):
        assert decision is False and all is False
        return True


@pytest.mark.parametrize(("environment", "code"), [(LightningEnvironment(), 0), (TorchElasticEnvironment(), 143)])
def test_processes_stop_together(environment, code):
    """The process that Lightning started beside the first ends with 0, because Lightning kills the first otherwise."""
    saved = []
    trainer = SimpleNamespace(
        strategy=OneOfTwo(environment),
        checkpoint_callback=SimpleNamespace(dirpath="/nowhere"),
        save_checkpoint=saved.append,  # every process of a sharded training writes its part
        is_global_zero=False,
        is_last_batch=False,
        enable_validation=False,
        check_val_every_n_epoch=1,
        accumulate_grad_batches=2,
        fast_dev_run=False,
        sanity_checking=False,
        global_step=9,
        local_rank=1,
    )
    callback = StopOnSignal()
    callback.on_train_batch_end(trainer, None, None, None, batch_idx=0)  # gradients are being accumulated
    with pytest.raises(SystemExit) as stopped:
        callback.on_train_batch_end(trainer, None, None, None, batch_idx=1)
    assert stopped.value.code == code and saved == ["/nowhere/interrupted-step=9.ckpt"]


# A process that stands for a loader's, and its parent.
WORKER = """
import multiprocessing, sys, time
import worker_signals  # as a module of its own: the package would import torch

def work(ready):
    worker_signals.outlive_signals()
    ready.set()
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=work, args=(ready,), daemon=True)
    worker.start()
    ready.wait()
    print(worker.pid, flush=True)
    sys.stdin.readline()
    print(worker.is_alive(), flush=True)
    worker.terminate()
    worker.join(30)
    print(worker.exitcode, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at a process by /proc")
def test_loader_processes_end_for_their_parent_alone():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(Path(worker_signals.__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", WORKER], env=environment, **pipes) as parent:
        worker = int(parent.stdout.readline())
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker, number)
        status = Path(f"/proc/{worker}/status")
        while re.search(r"ShdPnd:\s*0*[1-9a-f]", status.read_text()):
            time.sleep(0.01)  # two signals of a kind at once would be one
        told, _ = parent.communicate("\n", timeout=60)
    assert told.split() == ["True", "0"]
