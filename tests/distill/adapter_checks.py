"""What every adapter's tests ask: one box in the frame of the maps, and training steps that lower the loss."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import nn

import fgd_kernels as fgd
from fgd_distill.adapters import adapter_for, probe_channels
from fgd_distill.distiller import DetectionDistiller
from fgd_kernels import reference


def two_images():
    """Images of two sizes, 48x64 and 60x48; the first has one box of class 2, the second none."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 48, 64, generator=generator), torch.rand(3, 60, 48, generator=generator)]
    targets = [
        {"boxes": torch.tensor([[8.0, 12.0, 50.0, 30.0]]), "labels": torch.tensor([2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    return images, targets


def make_distiller(student: nn.Module, teacher: nn.Module, share: float = 1.0, batch=None) -> DetectionDistiller:
    """A distiller in training mode, with the adapter's own layers. The paper's weights fit trained detectors of 256
    channels; here they are scaled until the terms amount to ``share`` of the detector's own loss on ``batch``."""
    adapter = adapter_for(student)
    channels = [probe_channels(model, adapter.default_layers(model), adapter) for model in (student, teacher)]
    weights = fgd.PRESETS["two_stage"] | {"temperature": 2.0}
    losses = DetectionDistiller(student, teacher, fgd.FGDLoss(*channels, **weights)).train()(*(batch or two_images()))
    own, terms = (
        sum(losses[name] for name in names) for names in (losses.keys() - set(fgd.LOSS_NAMES), fgd.LOSS_NAMES)
    )
    factor = share * (own / terms).item()
    scaled = {name: weights[name] * factor for name in ("alpha", "beta", "gamma", "lambda_")}
    return DetectionDistiller(student, teacher, fgd.FGDLoss(*channels, **(weights | scaled))).train()


def assert_one_box_covers(distiller, batch, frame, box, map_size, rows, columns) -> None:
    """The first image's only box, in the frame of the padded batch, and the pixels of the first map that it covers.

    Args:
        distiller: in training mode.
        batch: images and targets.
        frame: height and width of the padded batch, in pixels.
        box: xyxy in that frame.
        map_size: height and width of the first feature map.
        rows, columns: the first and the last that the box covers.
    """
    features = distiller.features(*batch)
    assert features.frames == [frame] * 2 and features.step.batch.shape == (2, 3, *frame)
    boxes = features.step.boxes
    assert boxes[0].tolist() == [pytest.approx(box)] and boxes[1].shape == (0, 4)
    assert [s.shape[-2:] for s in features.student] == [t.shape[-2:] for t in features.teacher]
    assert features.student[0].shape[-2:] == map_size
    packed = fgd.pack_boxes(boxes, features.frames, device="cpu")
    foreground = reference.foreground_mask(packed.values, packed.offsets, packed.sizes, *map_size) > 0
    expected = torch.zeros(2, *map_size, dtype=torch.bool)
    expected[0, rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
    assert torch.equal(foreground, expected)


def assert_the_frame_is_the_steps(adapter, model: nn.Module, batch, resized: bool = False) -> None:
    """The batch and the boxes of a training step, from a model that stays in eval mode and as it was; and a batch looks
    like the images.

    Args:
        adapter: of the model.
        model: a detector.
        batch: images and targets.
        resized: whether the family resizes, so that pixels cannot be compared.
    """
    before = {name: value.clone() for name, value in model.eval().state_dict().items()}
    torch.manual_seed(2)  # some draw a size
    frame = adapter.frame(model, *batch)
    assert not model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.manual_seed(2)
    step = adapter.student_step(model.train(), *batch)
    assert torch.equal(frame.batch, step.batch) and not frame.batch.requires_grad
    assert len(frame.boxes) == len(step.boxes) and all(map(torch.equal, frame.boxes, step.boxes))
    picture = adapter.picture(model, frame.batch)
    assert picture.dtype == torch.float32 and picture.shape == frame.batch.shape
    assert 0 <= picture.min() < 0.1 and 0.9 < picture.max() <= 1
    for seen, image in zip(picture, batch[0], strict=True):
        if not resized:
            torch.testing.assert_close(seen[:, : image.shape[1], : image.shape[2]], image, rtol=0, atol=1e-5)


def assert_steps_lower_the_loss(
    distiller, batch, own_losses: Iterable[str], steps: int = 6, lr: float = 1e-3, since: int = 0
) -> None:
    """A few steps lower the detector's own losses (after step ``since``) and, apart, the distillation's; every
    parameter learns."""
    own_losses = set(own_losses)
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=lr)
    distiller.check_optimizer(optimizer)
    history = []
    for _ in range(steps):
        torch.manual_seed(1)  # some draw samples or noise
        losses = distiller(*batch)
        assert losses.keys() == own_losses | set(fgd.LOSS_NAMES)
        assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    silent = [name for name, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent
    for terms, start in ((own_losses, since), (fgd.LOSS_NAMES, 0)):
        first, last = (sum(step[name] for name in terms) for step in (history[start], history[-1]))
        assert last < 0.9 * first, (terms, history)


def snippet(name: str, page: str = "guides/detectors.md") -> str:
    """The Python of a page of docs/ that is marked as runnable under this name."""
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    return text.split(f"<!-- runnable: {name} -->\n```python\n")[1].split("```")[0]
