"""Copies of the distiller: deepcopy, moving averages, pickles, DistributedDataParallel; and the student out of them."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fgd_kernels as fgd
from fgd_distill import DetectionDistiller, Schedule
from fgd_distill.detectors.checkpoint import student_state_dict
from fgd_distill.digits.detectors import digits_student


@pytest.fixture
def distiller(pair):
    return DetectionDistiller(*pair, fgd.FGDLoss(64, 64, num_levels=3, temperature=4.0))


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def average_of(distiller):
    return AveragedModel(distiller, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def step(model, optimizer, batch):
    losses = model(*batch)
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    return {name: loss.detach() for name, loss in losses.items()}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_give_the_same_losses_and_have_no_hooks(distiller, batch, duplicate):
    distiller(*batch)
    twin = duplicate(distiller)
    assert not any(hooks(model) for model in (distiller, distiller.teacher, twin, twin.teacher))
    assert twin.state_dict().keys() == distiller.state_dict().keys()
    ours = {id(tensor) for tensor in distiller.state_dict(keep_vars=True).values()}
    assert not ours & {id(tensor) for tensor in twin.state_dict(keep_vars=True).values()}
    torch.testing.assert_close(twin(*batch), distiller(*batch), rtol=0, atol=0)


def test_deepcopies_share_teacher_and_cache(distiller):
    class Cache:
        def features(self, batch, targets, compute):
            return compute(batch)

    distiller.teacher_cache = Cache()
    twin = copy.deepcopy(distiller)
    assert twin.teacher is distiller.teacher and twin.teacher_cache is distiller.teacher_cache
    # If something else in the same copy has copied the teacher, it is that one.
    pair = copy.deepcopy([distiller.teacher, distiller])
    assert pair[1].teacher is pair[0] is not distiller.teacher


def test_converting_a_copy_leaves_the_shared_teacher(distiller, batch):
    images, targets = batch
    twin = copy.deepcopy(distiller).to(torch.float64)
    assert next(distiller.teacher.parameters()).dtype == torch.float32
    expected = distiller(images, targets)
    losses = twin([image.double() for image in images], targets)
    for name in fgd.LOSS_NAMES:
        torch.testing.assert_close(losses[name].float(), expected[name], rtol=1e-4, atol=1e-6)
    # The original converts it, and so does a copy that was given a teacher of its own.
    twin.teacher = copy.deepcopy(distiller.teacher)
    twin.to(torch.float16)
    assert next(twin.teacher.parameters()).dtype == torch.float16
    distiller.to(torch.float64)
    assert next(distiller.teacher.parameters()).dtype == torch.float64


def test_the_teacher_goes_where_the_batch_is(distiller, batch, monkeypatch):
    """A copy may have left the teacher elsewhere; here on 'meta', where nothing can be computed."""
    expected = distiller(*batch)
    state = {name: value.clone() for name, value in distiller.teacher.state_dict().items()}
    distiller.teacher.to("meta")

    def move(device, dtype):
        assert dtype == torch.float32
        distiller.teacher.to_empty(device=device).load_state_dict(state)

    monkeypatch.setattr(distiller.teacher, "to", move)
    torch.testing.assert_close(distiller(*batch), expected)


def test_a_moving_average_follows_and_holds_no_second_teacher(distiller, batch):
    average = average_of(distiller)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-2)
    before = digits_student().state_dict()
    weights = []
    for _ in range(2):
        step(distiller, optimizer, batch)
        average.update_parameters(distiller)
        weights.append(distiller.student.head.classification_head.cls_logits.weight.detach().clone())
    followed = average.module.student.head.classification_head.cls_logits.weight
    torch.testing.assert_close(followed, 0.5 * weights[0] + 0.5 * weights[1])
    assert average.module.teacher is distiller.teacher
    assert not any("teacher" in name for name in average.state_dict())
    assert hooks(average) == hooks(distiller.teacher) == 0
    predictions = average.eval()(batch[0])
    assert len(predictions) == 2
    exported = student_state_dict(average.state_dict())
    assert exported.keys() == before.keys()
    digits_student().load_state_dict(exported, strict=True)


def test_copies_are_freed_without_the_garbage_collector(distiller, batch):
    """A deepcopy that carries hooks refers to the steps of the original, and every one of them stays in memory."""
    distiller(*batch)
    gc.collect()
    gc.disable()
    try:
        twin = copy.deepcopy(distiller)
        maps = [weakref.ref(feature) for feature in twin.features(*batch)[1]]
        alive = weakref.ref(twin.student)
        del twin
        assert alive() is None and all(feature() is None for feature in maps)
    finally:
        gc.enable()


@pytest.mark.parametrize("at", [0, 5])
def test_distributed_data_parallel(distiller, batch, process_group, at):
    """Also at a step without distillation: there the criterion's parameters must not count as unused."""
    alone = copy.deepcopy(distiller)
    model = DistributedDataParallel(distiller)
    for each in (alone, distiller):
        each.schedule = Schedule(start=5)
        each.set_step(at)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-2) for m in (model, alone)]
    distiller.check_optimizer(optimizers[0])
    for _ in range(3):  # the second raises if the first did not finish its reduction
        torch.testing.assert_close(step(model, optimizers[0], batch), step(alone, optimizers[1], batch))
    exported = student_state_dict(model.state_dict())
    digits_student().load_state_dict(exported, strict=True)
    averaged = student_state_dict(AveragedModel(model.module).state_dict())
    digits_student().load_state_dict(averaged, strict=True)


def test_a_student_in_distributed_data_parallel_is_refused(pair, process_group):
    student, teacher = pair
    with pytest.raises(TypeError, match="student: .*in DistributedDataParallel; wrap the distiller"):
        DetectionDistiller(DistributedDataParallel(student), teacher, fgd.FGDLoss(64, 64, 3))
