"""One call of FGDLoss as a value, its random inputs, and what a backend computes of them."""

import copy
import dataclasses

import torch

import fgd_kernels as fgd

EPS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}
FACTORS = (1.0, 0.7, 1.3, 0.9)  # upstream gradients: unequal, so that no term's gradient hides behind another's


@dataclasses.dataclass
class Case:
    """One call of FGDLoss: `levels` are (channels, height, width), boxes one count an image."""

    name: str
    levels: tuple = ((24, 13, 17),)
    boxes: tuple = (3, 0)
    student_dtype: torch.dtype = torch.float32
    teacher_dtype: torch.dtype = torch.float32
    channels_last: bool = False
    scale: float = 1.0
    student_channels: int | None = None
    frozen: bool = False  # the GcBlocks take no gradient
    fixed_student: bool = False  # the student's features take none
    loss: dict = dataclasses.field(default_factory=dict)
    features: str = "normal"  # a key of FEATURES: how the student's maps are like the teacher's
    maps: bool = False  # the foreground comes as random maps and not as boxes
    sliced: bool = False  # features are slices of larger tensors, parameters as usual

    @property
    def images(self) -> int:
        return len(self.boxes)


def make_boxes(counts, frame=(104, 136)) -> list[torch.Tensor]:
    """Random boxes; some reach out of the image, every third image with boxes has one that covers everything."""
    out = []
    for index, count in enumerate(counts):
        box = torch.rand(count, 4) * torch.tensor([frame[1], frame[0], frame[1] / 2, frame[0] / 2])
        box[:, 2:] += box[:, :2]
        if count and index % 3 == 2:
            box[0] = torch.tensor([-9.0, -9.0, 999.0, 999.0])
        out.append(box)
    return out


def _tied(s: torch.Tensor, t: torch.Tensor):
    """Few values, so that many activations are equal."""
    return tuple((x.float() / x.float().abs().mean().clamp(min=1e-30)).round().to(x.dtype) for x in (s, t))


def _equal_image(s: torch.Tensor, t: torch.Tensor):
    first = t[:1].to(s.dtype)
    return torch.cat([first, s[1:]]), torch.cat([first.to(t.dtype), t[1:]])


def _equal_region(s: torch.Tensor, t: torch.Tensor):
    rows = torch.arange(s.shape[2], device=s.device)[:, None] < (s.shape[2] + 1) // 2
    return torch.where(rows, t.to(s.dtype), s), t


# (student, teacher) of a level, both normal, to what the kernels see. Equal maps need channels and types alike.
FEATURES = {
    "normal": lambda s, t: (s, t),
    "relu": lambda s, t: (torch.relu(s), torch.relu(t)),
    "tied": _tied,
    "constant": lambda s, t: (torch.full_like(s, float(s.flatten()[0])), t),
    "near": lambda s, t: ((t.float() * (1 + 2.0**-9)).to(s.dtype), t),
    "equal": lambda s, t: (t.to(s.dtype), t),
    "equal, relu": lambda s, t: (torch.relu(t).to(s.dtype), torch.relu(t)),
    "equal image": _equal_image,
    "equal region": _equal_region,
    "equal magnitudes": lambda s, t: ((-t).to(s.dtype), t),
}


def in_larger(x: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    """The same values as a slice of channels and images of a larger tensor."""
    n, c, h, w = x.shape
    larger = torch.zeros(2 * n, c + 3, h, w, dtype=x.dtype, device=x.device).contiguous(memory_format=layout)
    place = larger[::2, 2 : c + 2]
    place.copy_(x)
    return place


def random_weights(features: torch.Tensor) -> torch.Tensor:
    """Foreground (N, H, W) of weights that no boxes have; half the pixels are background, of the last image all."""
    weights = torch.rand(len(features), *features.shape[2:], device=features.device)
    weights = torch.where(weights < 0.5, 0.0, weights / weights[0].numel())
    weights[-1] = 0
    return weights


def make_inputs(case: Case, device="cpu"):
    """(student levels, teacher levels, boxes, image sizes, criterion): all leaves, GcBlocks away from their zeros.

    Where the foreground comes as maps they take the boxes' place, and there are no image sizes.
    """
    layout = torch.channels_last if case.channels_last else torch.contiguous_format

    def maps(dtype, channels=None):
        made = (torch.randn(case.images, channels or c, h, w, device=device) for c, h, w in case.levels)
        return [(case.scale * m).to(dtype) for m in made]

    student = maps(case.student_dtype, case.student_channels)
    teacher = maps(case.teacher_dtype)
    alike = FEATURES[case.features]
    pairs = [alike(s, t) for s, t in zip(student, teacher, strict=True)]
    place = (lambda x: in_larger(x, layout)) if case.sliced else (lambda x: x.contiguous(memory_format=layout))
    student, teacher = ([place(x) for x in maps] for maps in zip(*pairs, strict=True))
    channels = [c for c, _, _ in case.levels]
    criterion = fgd.FGDLoss(case.student_channels or channels, channels, len(channels), **case.loss).to(device)
    for name, parameter in criterion.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.1)
        if name.endswith("1.weight"):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
        parameter.requires_grad_(not case.frozen or "align" in name)
    if case.maps:
        return student, teacher, [random_weights(s) for s in student], None, criterion
    boxes = [box.to(device) for box in make_boxes(case.boxes)]
    return student, teacher, boxes, [(104, 136)] * case.images, criterion


def duplicate(module: torch.nn.Module, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """The module with parameters of its own, of `dtype` if one is given. A deepcopy takes longer than a small case."""
    other = copy.copy(module)
    other._parameters = {
        name: p if p is None else torch.nn.Parameter(p.detach().to(dtype or p.dtype, copy=True), p.requires_grad)
        for name, p in module._parameters.items()
    }
    other._modules = {name: m if m is None else duplicate(m, dtype) for name, m in module._modules.items()}
    return other


def evaluate(inputs, backend: str, dtype: torch.dtype | None = None, fixed_student: bool = False) -> dict:
    """Loss terms and every gradient, in float64, as `backend` computes them (in `dtype`, if one is given)."""
    student, teacher, boxes, sizes, criterion = inputs
    criterion = duplicate(criterion, dtype)
    if dtype is not None:
        student, teacher = [s.to(dtype) for s in student], [t.to(dtype) for t in teacher]
    criterion.backend = backend
    leaves = [s.detach().clone(memory_format=torch.preserve_format) for s in student]
    for leaf in leaves:
        leaf.requires_grad_(not fixed_student)
    ground_truth = {"foreground": boxes} if sizes is None else {"boxes": boxes, "image_sizes": sizes}
    losses = criterion(leaves, teacher, **ground_truth)
    results = {name: value.detach().double().cpu() for name, value in losses.items()}
    total = sum(factor * value for factor, value in zip(FACTORS, losses.values(), strict=True))
    if total.requires_grad:
        total.backward()
    named = [(f"student[{i}]", leaf) for i, leaf in enumerate(leaves)] + list(criterion.named_parameters())
    results |= {name: leaf.grad.double().cpu() for name, leaf in named if leaf.grad is not None}
    return results
