"""Hugging Face's RT-DETR, RT-DETRv2 and D-FINE from a config, offline: training steps, frame and predictions."""

import os

import pytest
import torch
from adapter_checks import (
    assert_one_box_covers,
    assert_steps_lower_the_loss,
    assert_the_frame_is_the_steps,
    make_distiller,
    snippet,
    two_images,
)

import fgd_kernels as fgd
from fgd_distill import distil
from fgd_distill.adapters import adapter_for
from fgd_distill.adapters.huggingface import HuggingFaceAdapter
from fgd_distill.inheriting import inherit

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="pip install --no-deps -r requirements-adapters.txt")

MODELS = {
    "RTDetr": "RTDetrForObjectDetection",
    "RTDetrV2": "RTDetrV2ForObjectDetection",
    "DFine": "DFineForObjectDetection",
}
LOSSES = {"loss_vfl", "loss_bbox", "loss_giou"}


def build(family: str = "RTDetr", width: int = 16, depth: int = 1):
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=width // 2,
        hidden_sizes=[width // 2, width, width * 3 // 2, width * 2],
        depths=[depth] * 4,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = getattr(transformers, f"{family}Config")(
        backbone_config=backbone,
        encoder_in_channels=backbone.hidden_sizes[1:],
        encoder_hidden_dim=width,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        d_model=width,
        decoder_in_channels=[width] * 3,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        decoder_layers=2,
        num_queries=20,
        num_denoising=10,
        num_labels=4,
    )
    return getattr(transformers, MODELS[family])(config)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return build(), build(width=32, depth=2)


@pytest.mark.parametrize("family", MODELS)
def test_training_steps_lower_the_loss_and_boxes_share_the_maps_frame(family):
    torch.manual_seed(0)
    distiller = make_distiller(build(family), build(family, width=32, depth=2)).train()
    assert isinstance(distiller.adapter, HuggingFaceAdapter)
    assert distiller.student_layers == [f"model.encoder.{n}" for n in ("fpn_blocks.1", "pan_blocks.0", "pan_blocks.1")]
    # Padded to multiples of 32; at stride 8 the box covers rows 12/8 to ceil(30/8), columns 8/8 to ceil(50/8).
    box = [8.0, 12.0, 50.0, 30.0]
    assert_one_box_covers(distiller, two_images(), (64, 64), box, (8, 8), (1, 4), (1, 7))
    own = LOSSES | ({"loss_fgl", "loss_ddf"} if family == "DFine" else set())
    assert_steps_lower_the_loss(distiller, two_images(), own)


def test_losses_are_the_models_own(pair):
    """Their sum is what transformers minimises, with boxes and without."""
    student, _ = pair
    student.train()
    images, targets = two_images()
    batch = torch.zeros(2, 3, 64, 64)
    for number, image in enumerate(images):
        batch[number, :, : image.shape[1], : image.shape[2]] = image
    relative = torch.tensor([[29 / 64, 21 / 64, 42 / 64, 18 / 64]])
    for first in (slice(0, 1), slice(0, 0)):
        labels = [
            {"class_labels": torch.tensor([2])[first], "boxes": relative[first]},
            {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
        ]
        targets[0] = {name: value[first] for name, value in targets[0].items()}
        torch.manual_seed(3)  # of the denoising queries
        theirs = student(pixel_values=batch, labels=labels)
        torch.manual_seed(3)
        ours = HuggingFaceAdapter().student_step(student, images, targets)
        assert torch.equal(ours.batch, batch) and ours.losses.keys() == LOSSES
        torch.testing.assert_close(sum(ours.losses.values()), theirs.loss)
        torch.manual_seed(3)
        own_batch = HuggingFaceAdapter().student_step(student, {"pixel_values": batch, "labels": labels}, None)
        torch.testing.assert_close(own_batch.losses, ours.losses)
        torch.testing.assert_close(own_batch.boxes, ours.boxes)


def test_the_teachers_decoder_does_not_run(pair):
    student, teacher = pair
    teacher.model.decoder.register_forward_hook(lambda *args: pytest.fail("the decoder ran"))
    make_distiller(student, teacher)(*two_images())


def test_predictions_are_those_of_the_image_processor(pair):
    student = pair[0].eval()
    image = two_images()[0][0][:, :, :48].repeat(1, 2, 2)[:, :64, :96]
    with torch.no_grad():
        output = student(pixel_values=image[None])
    processor = transformers.RTDetrImageProcessor()
    (theirs,) = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(64, 96)])
    (ours,) = HuggingFaceAdapter().predict(student, [image])
    torch.testing.assert_close(ours["scores"], theirs["scores"])
    assert torch.equal(ours["labels"], theirs["labels"])
    torch.testing.assert_close(ours["boxes"][:, 0::2], theirs["boxes"][:, 0::2].clamp(0, 96))
    torch.testing.assert_close(ours["boxes"][:, 1::2], theirs["boxes"][:, 1::2].clamp(0, 64))


def test_neck_and_head_are_inherited():
    torch.manual_seed(1)
    student, teacher = build(), build(depth=2)
    report = inherit(student, teacher)
    assert not report.mismatched and not report.skipped
    name = "model.decoder.class_embed.1.weight"
    assert torch.equal(student.state_dict()[name], teacher.state_dict()[name])
    assert not any(name.startswith("model.backbone") for name in report.loaded)


def test_the_frame_without_a_step(pair):
    adapter = HuggingFaceAdapter()
    assert_the_frame_is_the_steps(adapter, pair[0], two_images())
    assert (adapter.preset(pair[0]), adapter.first_label(pair[0])) == (None, 0)


def test_relatives_whose_neck_is_not_known_are_refused():
    """Not by an AttributeError from deep inside; their classes are of the package, so they get this adapter."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    yolos = transformers.YolosForObjectDetection(transformers.YolosConfig(image_size=[32, 32], **small))
    assert type(adapter_for(yolos)) is HuggingFaceAdapter
    for asked in (yolos, yolos.vit, torch.nn.Identity()):
        for method in ("default_layers", "neck_and_head"):
            with pytest.raises(TypeError, match="model: expected RT-DETR.*got .*your-own-family"):
                getattr(HuggingFaceAdapter(), method)(asked)
    with pytest.raises(TypeError, match="expected RT-DETR.*got YolosForObjectDetection"):
        distil(yolos, build(), verbose=False)


def test_wrong_input_is_told(pair):
    student, teacher = pair
    adapter = adapter_for(student)
    images, targets = two_images()
    with pytest.raises(ValueError, match=r"targets\[0\].*labels from 0 to 3, got 4 to 4"):
        adapter.student_step(student, images, [targets[0] | {"labels": torch.tensor([4])}, targets[1]])
    with pytest.raises(ValueError, match="targets: expected one dict for each of 2 images, got list of 1"):
        adapter.student_step(student, images, targets[:1])
    with pytest.raises(TypeError, match=r"images\[1\].*expected a float tensor.*uint8"):
        adapter.student_step(student, [images[0], images[1].byte()], targets)
    with pytest.raises(ValueError, match=r"images\[0\]: expected \(3, H, W\), got \(1, 48, 64\)"):
        adapter.student_step(student, [images[0][:1], images[1]], targets)
    with pytest.raises(TypeError, match="teacher: expected RT-DETR.*RTDetrModel"):
        adapter.check_pair(student, teacher.model)


# ---- its Trainer -----------------------------------------------------------------------------------------------------


@pytest.fixture
def make_trainer(tmp_path):
    """Makes a trainer with a student and a teacher of its own; the data are eight noisy images with a box each."""
    pytest.importorskip("accelerate", reason="pip install --no-deps -r requirements-adapters.txt")
    from fgd_distill.huggingface import FGDTrainer

    generator = torch.Generator().manual_seed(5)
    data = [
        {
            "pixel_values": torch.rand(3, 64, 64, generator=generator),
            "labels": {
                "class_labels": torch.tensor([number % 4]),
                "boxes": torch.cat([torch.full((1, 2), 0.5), 0.3 + 0.4 * torch.rand(1, 2, generator=generator)], dim=1),
            },
        }
        for number in range(8)
    ]

    def collate(items):
        return {
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            "labels": [item["labels"] for item in items],
        }

    def make(trainer=FGDTrainer, **options):
        torch.manual_seed(0)
        student, teacher = build(), build(width=32, depth=2)
        settings = {"max_steps": 4, "save_steps": 2, "logging_steps": 2, "per_device_train_batch_size": 2} | options
        arguments = transformers.TrainingArguments(
            str(tmp_path / settings.pop("folder", "run")), use_cpu=True, report_to=[], disable_tqdm=True,
            remove_unused_columns=False, dataloader_num_workers=0, learning_rate=1e-3, weight_decay=0.1, **settings
        )  # fmt: skip
        named = {"teacher": teacher, "distillation": {"verbose": False}} if trainer is FGDTrainer else {}
        return trainer(student, arguments, train_dataset=data, eval_dataset=data[:2], data_collator=collate, **named)

    return make


def learnt(trainer):
    """Everything that a training changes, by name."""
    criterion = {f"criterion.{name}": value for name, value in trainer.distiller.criterion.state_dict().items()}
    return {name: value.clone() for name, value in {**trainer.model.state_dict(), **criterion}.items()}


def test_its_trainer_learns_saves_the_plain_student_and_resumes_bit_for_bit(make_trainer, tmp_path):
    whole = make_trainer()
    start = learnt(whole)
    whole.train()
    end = learnt(whole)
    criterion = [name for name in end if ".align." in name or (".3." in name and "channel_add" in name)]
    assert criterion and not [name for name in criterion if torch.equal(start[name], end[name])]
    logged = [line for line in whole.state.log_history if "loss" in line]
    terms = LOSSES | set(fgd.LOSS_NAMES)
    assert terms <= logged[0].keys() and len(logged) == 2
    assert sum(logged[1][name] for name in terms) == pytest.approx(logged[1]["loss"], rel=1e-4)

    resumed = make_trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert not [name for name, value in learnt(resumed).items() if not torch.equal(value, end[name])]

    whole.save_model(str(tmp_path / "student"))
    loaded = transformers.RTDetrForObjectDetection.from_pretrained(tmp_path / "student")
    assert all(torch.equal(value, end[name]) for name, value in loaded.state_dict().items())


def test_its_trainer_gives_the_criterion_to_every_optimizer(make_trainer):
    trainer = make_trainer(max_steps=1, save_strategy="no")
    trainer.train()
    trainer.train()  # with the same optimizer, which accelerate has wrapped
    trainer.optimizer = trainer.lr_scheduler = None  # what Trainer's own search for hyper-parameters does
    before = learnt(trainer)
    trainer.train()
    after = learnt(trainer)
    weights = [name for name in after if name.startswith("criterion.") and name.endswith("channel_add_conv_s.3.weight")]
    assert weights and not [name for name in weights if torch.equal(before[name], after[name])]


def test_its_trainer_is_not_compiled_as_a_whole(make_trainer):
    with pytest.raises(
        ValueError, match="args: expected torch_compile=False for distillation, got True; compile parts"
    ):
        make_trainer(torch_compile=True)


def test_its_trainer_ends_with_the_best_model(make_trainer, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = make_trainer(eval_strategy="steps", eval_steps=2, **best)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-2")  # the loss falls
    saved = transformers.RTDetrForObjectDetection.from_pretrained(tmp_path / "run" / "checkpoint-2").state_dict()
    assert not [name for name, value in trainer.model.state_dict().items() if not torch.equal(value, saved[name])]


def test_its_trainer_evaluates_the_student_alone(make_trainer):
    trainer = make_trainer()
    plain = make_trainer(transformers.Trainer)
    assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


def test_its_trainer_takes_a_batch_in_parts(make_trainer):
    """Two batches of two a step are as good as one of four, but for how the detector's loss counts boxes."""
    logged = []
    for size in (2, 4):
        batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        trainer = make_trainer(folder=str(size), max_steps=1, logging_steps=1, **batches)
        trainer.train()
        logged.append(trainer.state.log_history[0])
    assert logged[0]["loss_fgd_fg"] == pytest.approx(logged[1]["loss_fgd_fg"], rel=1e-4)
    assert logged[0]["loss"] == pytest.approx(logged[1]["loss"], rel=0.2)


def test_its_trainer_refuses_what_would_lose_the_criterion(make_trainer, tmp_path):
    plain = make_trainer(transformers.Trainer)
    plain.train()
    with pytest.raises(ValueError, match="optimizer state: expected the criterion's tensors.*without distillation"):
        make_trainer().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


def test_the_guide_s_trainer(make_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = make_trainer()
    names = {
        "student": made.model,
        "teacher": made.distiller.teacher,
        "train_images": made.train_dataset,
        "val_images": made.eval_dataset,
        "collate": made.data_collator,
        "options": {"use_cpu": True, "report_to": [], "disable_tqdm": True},
    }
    code = snippet("huggingface").replace("max_steps=1000, save_steps=500", "max_steps=1, save_steps=1, **options")
    exec(compile(code, "detectors.md", "exec"), names)
    assert (tmp_path / "runs" / "student" / "model.safetensors").exists()
