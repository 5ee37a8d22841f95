"""The loss on the PTX interpreter: what csrc/cuda/operator.cpp does on a GPU, with the same plans and parameters."""

import ctypes
import functools
import re

import numpy as np
import torch

from devtools.offline.cuda_build import UNITS, Features, Level, Pyramid, plan, plans, ptx_of
from devtools.ptx import GPU, Counts, parse
from fgd_kernels.boxes import PackedBoxes
from fgd_kernels.layout import Layout, layout_of, row_stride

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


@functools.cache
def kernel(name: str):
    """A kernel by its name, from the unit that defines it."""
    step = name.removeprefix("fgd_")
    homes = {"finish": "merge", "terms": "gc_block", "gc_added": "gc_block"}
    for unit in UNITS:
        if step.startswith(unit):
            return module(f"{unit}_mixed" if re.search(r"_b?f\d+_b?f\d+$", step) else unit)[name]
    home = next((unit for prefix, unit in homes.items() if step.startswith(prefix)), "gc_backward")
    return module(home)[name]


@functools.cache
def module(unit: str):
    return parse(ptx_of(unit))


def raw(tensor: torch.Tensor) -> np.ndarray:
    """A contiguous tensor's bytes."""
    return tensor.contiguous().view(torch.uint8).numpy() if tensor.numel() else np.zeros(0, np.uint8)


def storage(tensor: torch.Tensor) -> torch.Tensor:
    """Everything a tensor may reach from its first element on, as it lies in memory."""
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return torch.as_strided(tensor, (reach,), (1,))


class Device:
    """Tensors in the interpreter's memory, and the two passes over them."""

    def __init__(
        self,
        multiprocessors: int = 4,
        check_races: bool = True,
        check_blocks: bool = False,
        threads_per_batch: int = 8192,
    ):
        self.gpu = GPU(check_races=check_races, check_blocks=check_blocks, threads_per_batch=threads_per_batch)
        self.multiprocessors = multiprocessors
        self.counts: dict[str, Counts] = {}
        self.launches: list[str] = []
        self.blocks: dict[str, int] = {}
        self.scratch_bytes: dict[str, int] = {}

    def put(self, tensor: torch.Tensor, shift: int = 0) -> int:
        """The address of a copy; `shift` bytes behind an aligned one."""
        data = raw(tensor)
        return self.gpu.put(np.concatenate([np.zeros(shift, np.uint8), data.reshape(-1)])) + shift

    def read(self, address: int, shape, dtype: torch.dtype) -> torch.Tensor:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if not size:
            return torch.empty(shape, dtype=dtype)
        return torch.from_numpy(self.gpu.get(address, (size,), np.uint8)).view(dtype).reshape(shape)

    def features(self, tensor: torch.Tensor, layout: Layout, shift: int = 0) -> Features:
        row = row_stride(tensor, layout)
        channel, pixel = (row, 1) if layout == Layout.PIXELS_DENSE else (1, row)
        return Features(self.put(storage(tensor), shift), tensor.stride(0), channel, pixel)

    def run(self, pyramid: Pyramid, backward: bool) -> None:
        _, size = plan(pyramid, backward, 0, self.multiprocessors)
        launches, _ = plan(pyramid, backward, self.gpu.empty(size), self.multiprocessors)
        self.scratch_bytes["backward" if backward else "forward"] = size
        for launch in launches:
            name = launch.name.decode()
            arguments = [bytes(launch.params[: launch.params_bytes])]
            self.counts[name] = self.gpu.launch(kernel(name), launch.blocks, launch.threads, arguments)
            self.launches.append(name)
            self.blocks[name] = launch.blocks


class Loss:
    """One call of the operator: the arguments of ops.pyramid_loss, on a Device.

    masks, one (N, H, W) float32 a level, are taken as the foreground's weights in place of the boxes'.
    """

    def __init__(
        self,
        student,
        teacher,
        boxes,
        gc_block=(),
        weights=None,
        spatial_temperature=0.5,
        channel_temperature=0.5,
        shift=0,
        masks=(),
        **device,
    ):
        self.device = Device(**device)
        self.student, self.teacher, self.gc_block = list(student), list(teacher), list(gc_block)
        self.sum_type = torch.promote_types(student[0].dtype, torch.float32)
        self.images = student[0].shape[0]
        self.weights = weights or [1.0] * 4 * len(student)
        self.layouts = [layout_of(s, t) for s, t in zip(student, teacher, strict=True)]
        put, empty, number = self.device.put, self.device.gpu.empty, self.sum_type.itemsize
        self.levels = (Level * len(student))()
        for index, level in enumerate(self.levels):
            self._describe(level, index, shift)
            level.mask = self.device.put(masks[index]) if masks else 0
        self.pyramid = Pyramid(
            levels=ctypes.cast(self.levels, ctypes.POINTER(Level)),
            boxes=put(boxes.values) if boxes.values.numel() else 0,
            box_offsets=put(boxes.offsets),
            image_sizes=put(boxes.sizes),
            terms=empty(4 * len(student) * number),
            sums=(ctypes.c_uint64 * 4)(*(empty(number) for _ in range(4))),
            spatial_temperature=spatial_temperature,
            channel_temperature=channel_temperature,
            level_count=len(student),
            images=self.images,
            student_type=TYPES[student[0].dtype],
            teacher_type=TYPES[teacher[0].dtype],
            box_count=boxes.values.shape[0],
            has_gc_block=bool(self.gc_block),
        )
        self.maps_size = plans().shim_maps_size(ctypes.byref(self.pyramid))
        self.stats_size = plans().shim_stats_size(ctypes.byref(self.pyramid))
        self.pyramid.maps = empty(self.maps_size * number)
        self.pyramid.stats = empty(self.stats_size * number)

    def _describe(self, level: Level, index: int, shift: int) -> None:
        student, layout = self.student[index], self.layouts[index]
        level.student = self.device.features(student, layout, shift)
        level.teacher = self.device.features(self.teacher[index], layout, shift)
        level.channels, level.height, level.width = student.shape[1:]
        level.layout = layout
        level.weights[:] = self.weights[4 * index : 4 * index + 4]
        if self.gc_block:
            tensors = [t.to(self.sum_type) for t in self.gc_block[16 * index : 16 * index + 16]]
            level.gc_block[:] = [self.device.put(t) for t in tensors]
            level.gc_hidden[:] = [tensors[5].numel(), tensors[11].numel()]

    def forward(self):
        """terms (L, 4), the four sums, maps, stats."""
        self.device.run(self.pyramid, backward=False)
        read, p = self.device.read, self.pyramid
        terms = read(p.terms, (len(self.student), 4), self.sum_type)
        sums = torch.stack([read(address, (), self.sum_type) for address in p.sums])
        return terms, sums, read(p.maps, (self.maps_size,), self.sum_type), self.stats()

    def stats(self) -> torch.Tensor:
        return self.device.read(self.pyramid.stats, (self.stats_size,), self.sum_type)

    def backward(self, grads, need_student: bool = True, need_gc_block: bool = True):
        """The student's gradients and the GcBlocks', after forward. What was not asked for stays NaN."""
        p, empty = self.pyramid, self.device.gpu.empty
        p.grads = self.device.put(torch.as_tensor(grads, dtype=self.sum_type))
        p.need_student, p.need_gc_block = need_student, need_gc_block and bool(self.gc_block)
        likes = [torch.empty_like(s) for s in self.student]
        for level, like, layout in zip(self.levels, likes, self.layouts, strict=True):
            level.grad = self.device.features(torch.full_like(like, float("nan")), layout)
        if self.gc_block:
            for i, tensor in enumerate(self.gc_block):
                self.levels[i // 16].gc_grads[i % 16] = empty(tensor.numel() * self.sum_type.itemsize)
        self.device.run(p, backward=True)
        students, parameters = [], []
        for level, like in zip(self.levels, likes, strict=True):
            flat = self.device.read(level.grad.data, (storage(like).numel(),), like.dtype)
            students.append(torch.as_strided(flat, like.shape, like.stride()))
        for i, tensor in enumerate(self.gc_block):
            parameters.append(self.device.read(self.levels[i // 16].gc_grads[i % 16], tensor.shape, self.sum_type))
        return students, parameters


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run: Loss, *inputs):
        ctx.run = run
        terms, sums, _, _ = run.forward()
        ctx.mark_non_differentiable(terms)
        return (*sums.unbind(), terms)

    @staticmethod
    def backward(ctx, *grads):
        run, levels = ctx.run, len(ctx.run.student)
        need_student, need_gc = any(ctx.needs_input_grad[1 : 1 + levels]), any(ctx.needs_input_grad[1 + levels :])
        students, parameters = run.backward(torch.stack(grads[:4]), need_student, need_gc)
        parameters = parameters if need_gc else [None] * len(run.gc_block)
        return (None, *(students if need_student else [None] * levels), *parameters)


def operator(runs: list, **options):
    """Like torch.ops.fgd_kernels.forward; appends every Loss to `runs`. `options` go to Device."""

    def forward(student, teacher, values, offsets, sizes, gc_block, weights, spatial, channel):
        detached = [[t.detach() for t in tensors] for tensors in (student, teacher, gc_block)]
        boxes = PackedBoxes(values, offsets, sizes)
        run = Loss(*detached[:2], boxes, detached[2], weights, spatial, channel, **options)
        runs.append(run)
        return tuple(x.clone() for x in _Differentiable.apply(run, *student, *gc_block))

    return forward
