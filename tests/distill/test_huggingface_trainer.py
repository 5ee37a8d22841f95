"""Hugging Face's Trainer with a teacher: every family resumes bit for bit; two processes train one criterion."""

import os

import pytest
import torch
from test_adapters_detr import build as detr
from test_adapters_huggingface import build as rt_detr
from test_adapters_rf_detr import lw_detr, rf_detr

import fgd_kernels as fgd
from fgd_distill.criterion import WEIGHTS

transformers = pytest.importorskip("transformers", reason="pip install --no-deps -r requirements-adapters.txt")
pytest.importorskip("accelerate", reason="pip install --no-deps -r requirements-adapters.txt")

FAMILIES = {
    "RTDetrV2": lambda width: rt_detr("RTDetrV2", width),
    "DFine": lambda width: rt_detr("DFine", width),
    "Detr": lambda width: detr(family="Detr", width=width),
    "DeformableDetr": lambda width: detr(family="DeformableDetr", width=width),
    "RfDetr": lambda width: rf_detr(width=2 * width),
    "LwDetr": lambda width: lw_detr(width=2 * width),
}

NORMALISED = {"Detr", "RTDetrV2"}  # the others have weights


def images(count: int = 8) -> list[dict]:
    generator = torch.Generator().manual_seed(5)
    return [
        {
            "pixel_values": torch.rand(3, 64, 64, generator=generator),
            "labels": {
                "class_labels": torch.tensor([number % 4]),
                "boxes": torch.cat([torch.full((1, 2), 0.5), 0.3 + 0.4 * torch.rand(1, 2, generator=generator)], dim=1),
            },
        }
        for number in range(count)
    ]


def collate(items: list[dict]) -> dict:
    stacked = torch.stack([item["pixel_values"] for item in items])
    return {"pixel_values": stacked, "labels": [item["labels"] for item in items]}


def trainer_of(family: str, folder, seed: int = 0, weights: str | None = None, **options):
    from fgd_distill.huggingface import FGDTrainer

    torch.manual_seed(0)
    teacher = FAMILIES[family](32)
    torch.manual_seed(seed)
    student = FAMILIES[family](16)
    settings = {"max_steps": 2, "save_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 2} | options
    arguments = transformers.TrainingArguments(
        str(folder / "run"), use_cpu=True, report_to=[], disable_tqdm=True, remove_unused_columns=False,
        dataloader_num_workers=0, learning_rate=1e-3, **settings
    )  # fmt: skip
    weighed = {"normalise": "detector"} if family in NORMALISED else {}
    more = {"teacher": teacher, "weights": weights, "distillation": {"verbose": False, "temperature": 2.0, **weighed}}
    return FGDTrainer(student, arguments, train_dataset=images(), data_collator=collate, **more)


def learnt(trainer) -> dict:
    criterion = {f"criterion.{name}": value for name, value in trainer.distiller.criterion.state_dict().items()}
    return {name: value.clone() for name, value in {**trainer.model.state_dict(), **criterion}.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_are_one_and_one(family, tmp_path):
    accumulated = {"gradient_accumulation_steps": 2 if family == "Detr" else 1}
    whole = trainer_of(family, tmp_path, **accumulated)
    start = learnt(whole)
    whole.train()
    end = learnt(whole)
    assert any(not torch.equal(start[name], end[name]) for name in end if name.startswith("criterion."))
    counted = end.get("criterion.shares.counts", torch.zeros(1))[0]  # of the detector's own loss
    assert counted == {"Detr": 4, "RTDetrV2": 2}.get(family, 0)
    resumed = trainer_of(family, tmp_path, seed=1, **accumulated)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert not [name for name, value in learnt(resumed).items() if not torch.equal(value, end[name])]


def train_one_of_two(rank: int, folder) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # asked for, but the processes meet in a file
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    # The processes begin with different numbers: what they end with shows who was heard.
    trainer = trainer_of("RTDetrV2", folder, seed=rank, save_strategy="no", ddp_find_unused_parameters=True)
    assert trainer.args.world_size == 2
    seen = [learnt(trainer)]
    trainer.train()
    torch.save([*seen, learnt(trainer)], folder / f"seen{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_one_student_and_one_criterion(tmp_path):
    torch.multiprocessing.spawn(train_one_of_two, (tmp_path,), nprocs=2)
    (start, end), (other_start, other_end) = (torch.load(tmp_path / f"seen{rank}.pt") for rank in range(2))
    own = [name for name in start if name.startswith("criterion.")]
    assert own and all(torch.equal(start[name], other_start[name]) for name in own)
    trained = [name for name in end if "running" not in name and "num_batches" not in name]
    assert not [name for name in trained if not torch.equal(end[name], other_end[name])]
    assert any(not torch.equal(start[name], end[name]) for name in own)


@pytest.mark.parametrize("family", ["DFine", "DeformableDetr", "LwDetr"])
def test_calibrated_weights(family, tmp_path):
    """They fit, disturb nothing, and come back when a training resumes."""
    trainer = trainer_of(family, tmp_path, weights="calibrate")
    plain = trainer_of(family, tmp_path, max_steps=1, save_strategy="no")
    seen = [[], []]
    for each, batches in zip((trainer, plain), seen, strict=True):
        each.distiller.register_forward_pre_hook(lambda _, given, to=batches: to.append(given[0]["pixel_values"]))
        each.train()
    assert len(seen[0]) == 2 and torch.equal(seen[0][0], seen[1][0])  # the order is the one without calibration
    found, preset = ([getattr(each.distiller.criterion, name) for name in WEIGHTS] for each in (trainer, plain))
    assert found != preset and trainer.distiller.criterion.temperature == 2.0
    line = trainer.state.log_history[0]
    own = line["loss"] - sum(line[name] for name in fgd.LOSS_NAMES)
    assert 1 < (line["loss"] - own) / own < 9  # three times it, on other batches
    resumed = trainer_of(family, tmp_path, seed=1, weights="calibrate")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert [getattr(resumed.distiller.criterion, name) for name in WEIGHTS] == found
    end = learnt(trainer)
    assert not [name for name, value in learnt(resumed).items() if not torch.equal(value, end[name])]
    (tmp_path / "run" / "checkpoint-1" / "fgd_weights.yaml").unlink()
    with pytest.raises(ValueError, match="weights: expected .*fgd_weights.yaml, which a calibrated training writes"):
        trainer_of(family, tmp_path, weights="calibrate").train(
            resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1")
        )


def test_mixed_precision(tmp_path):
    """The criterion gets bfloat16 features; its terms are near those of float32."""
    logged, seen = [], []
    for bf16 in (False, True):
        trainer = trainer_of("RTDetrV2", tmp_path, bf16=bf16, max_steps=1, save_strategy="no")
        trainer.distiller.criterion.register_forward_hook(lambda c, inputs, out: seen.append(inputs[0][0].dtype))
        trainer.train()
        logged.append(trainer.state.log_history[0])
    assert seen == [torch.float32, torch.bfloat16]
    exact, rounded = (line["loss_fgd_fg"] for line in logged)
    assert rounded == pytest.approx(exact, rel=0.05) and rounded != exact


def test_what_it_cannot_train_is_refused(tmp_path):
    from fgd_distill.huggingface import FGDTrainer

    student, teacher = FAMILIES["RTDetrV2"](16), FAMILIES["RTDetrV2"](32)
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": []}
    with pytest.raises(TypeError, match="model: expected the student, got None; with model_init"):
        FGDTrainer(None, transformers.TrainingArguments(**arguments), teacher=teacher, model_init=lambda: student)
    for options, more in ((arguments | {"label_smoothing_factor": 0.1}, {}), (arguments, {"compute_loss_func": print})):
        with pytest.raises(ValueError, match="compute_loss_func: expected None and label_smoothing_factor=0"):
            FGDTrainer(student, transformers.TrainingArguments(**options), teacher=teacher, **more)


@pytest.mark.parametrize("divided", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_models_that_are_divided_are_refused(tmp_path, monkeypatch, divided):
    prepare = transformers.Trainer.create_accelerator_and_postprocess
    monkeypatch.setattr(
        transformers.Trainer,
        "create_accelerator_and_postprocess",
        lambda trainer: prepare(trainer) or setattr(trainer, divided, True),
    )
    with pytest.raises(ValueError, match="args: expected whole models in each process for distillation, got FSDP"):
        trainer_of("RTDetrV2", tmp_path)
