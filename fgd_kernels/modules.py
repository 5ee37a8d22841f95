"""The loss as modules: FGDLoss for a pyramid, FeatureLoss for one level with the published class's interface."""

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .backend import check_backend
from .boxes import PackedBoxes, is_integer
from .errors import FGDTypeError, FGDValueError
from .foreground import Foreground
from .functional import LOSS_NAMES, check_settings, fgd_loss, level_factors
from .non_local import NonLocalBlock, non_local_terms

# Section 4.2 of the paper: α, β, γ, λ; T is 0.5 for all. The authors' published configurations use another γ
# (5e-4 for one-stage detectors with anchors, 8e-4 for those without) and T = 0.8 for FCOS.
PRESETS = {
    "two_stage": {"alpha": 5e-5, "beta": 2.5e-5, "gamma": 5e-5, "lambda_": 5e-7, "temperature": 0.5},
    "one_stage_anchor": {"alpha": 1e-3, "beta": 5e-4, "gamma": 1e-3, "lambda_": 5e-6, "temperature": 0.5},
    "one_stage_anchor_free": {"alpha": 1.6e-3, "beta": 8e-4, "gamma": 8e-3, "lambda_": 8e-6, "temperature": 0.5},
}
RELATIONS = ("gc", "non_local", "none")


class FGDLevel(nn.Module):
    """What one level learns: the align convolution, if channel counts differ, and the relation (12) of each network.

    Two GcBlocks, with parameter names, shapes and initialisation of the published FeatureLoss; or two Non-local blocks;
    or neither.
    """

    def __init__(self, student_channels: int, teacher_channels: int, relation: str = "gc") -> None:
        super().__init__()
        student_channels, teacher_channels = checked_channels(student_channels, teacher_channels)
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        differ = student_channels != teacher_channels
        self.align = nn.Conv2d(student_channels, teacher_channels, kernel_size=1) if differ else None
        self.relation = relation
        if relation == "gc":
            self.conv_mask_s = nn.Conv2d(teacher_channels, 1, kernel_size=1)
            self.conv_mask_t = nn.Conv2d(teacher_channels, 1, kernel_size=1)
            self.channel_add_conv_s = self._transform(teacher_channels)
            self.channel_add_conv_t = self._transform(teacher_channels)
        elif relation == "non_local":
            self.non_local_s = NonLocalBlock(teacher_channels)
            self.non_local_t = NonLocalBlock(teacher_channels)
        self.reset_parameters()

    @staticmethod
    def _transform(channels: int) -> nn.Sequential:
        hidden = max(channels // 2, 1)
        return nn.Sequential(
            nn.Conv2d(channels, hidden, kernel_size=1),
            nn.LayerNorm([hidden, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, kernel_size=1),
        )

    def reset_parameters(self) -> None:
        """W_k: Kaiming normal over fan_in, bias 0. The last convolutions: 0, so that relations start as identity."""
        if self.relation == "non_local":
            self.non_local_s.reset_parameters()
            self.non_local_t.reset_parameters()
        if self.relation != "gc":
            return
        parameters = dict(self.named_parameters())
        for mask in ("conv_mask_s", "conv_mask_t"):
            nn.init.kaiming_normal_(parameters[f"{mask}.weight"], mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(parameters[f"{mask}.bias"])
        for transform in ("channel_add_conv_s", "channel_add_conv_t"):
            nn.init.zeros_(parameters[f"{transform}.3.weight"])
            nn.init.zeros_(parameters[f"{transform}.3.bias"])

    def aligned(self, features: Tensor, name: str) -> Tensor:
        """The student's features with the teacher's channel count."""
        if not isinstance(features, Tensor) or features.ndim != 4:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise (FGDValueError if isinstance(features, Tensor) else FGDTypeError)(
                f"{name}: expected a tensor (N, {self.student_channels}, H, W), got {got}"
            )
        if features.shape[1] != self.student_channels:
            raise FGDValueError(f"{name}: expected {self.student_channels} channels, got {features.shape[1]}")
        return features if self.align is None else self.align(features)

    def gc_block(self) -> list[Tensor]:
        """The 16 tensors of both GcBlocks, in the order of `reference.GcBlockPair`; none for another relation."""
        if self.relation != "gc":
            return []
        # Looked up in the modules' own dictionaries: by attribute, five levels take as long as a small kernel.
        own = cast("dict[str, nn.Module]", self._modules)
        s, t = (cast("dict[str, nn.Module]", own[f"channel_add_conv_{net}"]._modules) for net in "st")
        layers = (own["conv_mask_s"], own["conv_mask_t"], s["0"], s["1"], s["3"], t["0"], t["1"], t["3"])
        return [_parameter(layer, name) for layer in layers for name in ("weight", "bias")]


class FGDLoss(nn.Module):
    """Focal and global distillation over a feature pyramid; `fgd_loss` has the equations.

    Its parameters (align convolutions and GcBlocks) are trained with the student: hand them to the optimizer.

    Args:
        student_channels: channels of the student's levels; one number for all, or one a level.
        teacher_channels: the same for the teacher. Where they differ, a 1x1 convolution aligns the student.
        num_levels: number of levels; 5 if both channel arguments are single numbers.
        preset: 'two_stage', 'one_stage_anchor' or 'one_stage_anchor_free': the paper's weights (section 4.2).
        alpha, beta, gamma, lambda_, temperature: each overrides the preset, whose values fit the paper's detectors; for
            other models `fgd-distill calibrate` finds them (docs/guides/weights.md).
        level_weights: one factor a level, or 'inverse_area' for 1 / (H·W) of each level; None for 1.
        attention: 'both', 'spatial', 'channel' or 'none' (the paper's table 5).
        split: False distils each image as one area, weighted by beta (table 1).
        relation: 'gc' for GcBlocks in the global term; 'non_local' for Non-local blocks (table 6), outside of the fused
            pass and much dearer; 'none' for no global term (table 4).
        backend: 'auto', or one of `fgd_kernels.backends()`.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range; the message names it.
    """

    loss_names = LOSS_NAMES  # the keys that a call returns

    def __init__(
        self,
        student_channels: int | Sequence[int],
        teacher_channels: int | Sequence[int],
        num_levels: int | None = None,
        preset: str = "one_stage_anchor",
        *,
        alpha: float | None = None,
        beta: float | None = None,
        gamma: float | None = None,
        lambda_: float | None = None,
        temperature: float | None = None,
        level_weights: Sequence[float] | str | None = None,
        attention: str = "both",
        split: bool = True,
        relation: str = "gc",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(preset, str) or preset not in PRESETS:
            raise FGDValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
        given = {"alpha": alpha, "beta": beta, "gamma": gamma, "lambda_": lambda_, "temperature": temperature}
        chosen = PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
        self.alpha, self.beta, self.gamma, self.lambda_, self.temperature = chosen.values()
        if not isinstance(relation, str) or relation not in RELATIONS:
            raise FGDValueError(f"relation: expected one of {', '.join(RELATIONS)}, got {relation!r}")
        self.level_weights, self.attention, self.split, self.backend = level_weights, attention, split, backend
        self.relation = relation
        self.channels = channels = channels_per_level(student_channels, teacher_channels, num_levels)
        check_settings(**chosen, attention=attention, level_weights=level_weights, levels=len(channels))
        check_backend(backend)
        self.levels: Collection[FGDLevel] = nn.ModuleList(  # type: ignore[assignment]
            FGDLevel(s, t, relation) for s, t in channels
        )

    def forward(
        self,
        student_features: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        boxes: Sequence[Tensor] | PackedBoxes | None = None,
        image_sizes: Sequence[Sequence[float]] | Tensor | None = None,
        *,
        foreground: Foreground | None = None,
        validate: bool = False,
        return_levels: bool = False,
    ) -> dict[str, Tensor] | tuple[dict[str, Tensor], Tensor]:
        """The weighted terms loss_fgd_fg, loss_fgd_bg, loss_fgd_attention, loss_fgd_global; they sum to the loss.

        Args:
            student_features: one (N, C_s, H, W) a level.
            teacher_features: one (N, C_t, H, W) a level, without gradient.
            boxes, image_sizes, foreground, validate, return_levels: see `fgd_loss`.

        Returns:
            As `fgd_loss`: four 0-dim tensors by name; with `return_levels` a pair of them and of each level's (L, 4).

        Raises:
            TypeError, ValueError, RuntimeError: as `fgd_loss`; or the channels are not those of the constructor.
        """
        if isinstance(student_features, Tensor | Mapping) or not isinstance(student_features, Sequence):
            got = type(student_features).__name__
            raise FGDTypeError(f"student_features: expected a list of {len(self.levels)} tensors, got {got}")
        if len(student_features) != len(self.levels):
            raise FGDValueError(
                f"student_features: expected {len(self.levels)} levels (num_levels), got {len(student_features)}"
            )
        aligned = [
            level.aligned(features, f"student_features[{index}]")
            for index, (level, features) in enumerate(zip(self.levels, student_features, strict=True))
        ]
        relate = self.relation == "non_local"
        found = fgd_loss(
            aligned,
            teacher_features,
            boxes,
            image_sizes,
            foreground=foreground,
            gc_block=[p for level in self.levels for p in level.gc_block()],
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            lambda_=self.lambda_,
            temperature=self.temperature,
            attention=self.attention,
            split=self.split,
            level_weights=self.level_weights,
            backend=self.backend,
            validate=validate,
            return_levels=return_levels or relate,
        )
        if not relate:
            return found
        losses, levels = self._with_non_local(aligned, list(teacher_features), *cast(tuple[dict, Tensor], found))
        return (losses, levels) if return_levels else losses

    def _with_non_local(
        self, student: list[Tensor], teacher: list[Tensor], losses: dict[str, Tensor], levels: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The global term, which is 0 in `losses` and `levels`, put in its place."""
        blocks = [(cast(FGDLevel, level).non_local_s, cast(FGDLevel, level).non_local_t) for level in self.levels]
        terms = non_local_terms(blocks, student, teacher)
        factors = level_factors(self.level_weights, student)
        terms = terms * terms.new_tensor([self.lambda_ * factor for factor in factors])
        levels = torch.cat([levels[:, :-1], terms.detach()[:, None].to(levels.dtype)], dim=1)
        return losses | {LOSS_NAMES[-1]: terms.sum().to(levels.dtype)}, levels

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, beta={self.beta}, gamma={self.gamma}, lambda_={self.lambda_}, "
            f"temperature={self.temperature}, relation={self.relation!r}, backend={self.backend!r}"
        )


class FeatureLoss(FGDLevel):
    """One level, with the published class's constructor, forward, state-dict keys and initialisation.

    Two things differ from the published class, both at the image's border: boxes are clamped to the image (a box
    that started outside wrapped around), and the frame of the boxes is the padded batch, if `img_metas` has it.

    Args:
        student_channels, teacher_channels: channels of the two feature maps.
        name: the loss's name, kept for logs.
        temp: T of (7) and (8).
        alpha_fgd, beta_fgd, gamma_fgd, lambda_fgd: the weights; the default is for one-stage detectors with anchors.
        backend: 'auto', or one of `fgd_kernels.backends()`.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        name: str,
        temp: float = 0.5,
        alpha_fgd: float = 0.001,
        beta_fgd: float = 0.0005,
        gamma_fgd: float = 0.001,
        lambda_fgd: float = 0.000005,
        backend: str = "auto",
    ) -> None:
        super().__init__(student_channels, teacher_channels)
        self.name, self.temp, self.backend = name, temp, backend
        self.alpha_fgd, self.beta_fgd, self.gamma_fgd, self.lambda_fgd = alpha_fgd, beta_fgd, gamma_fgd, lambda_fgd

    def forward(
        self, preds_S: Tensor, preds_T: Tensor, gt_bboxes: Sequence[Tensor], img_metas: Sequence[Mapping]
    ) -> Tensor:
        """The weighted loss, 0-dim.

        Args:
            preds_S: the student's features (N, C_s, H, W).
            preds_T: the teacher's features (N, C_t, H, W). Unlike in `FGDLoss`, a gradient that it may carry is cut.
            gt_bboxes: one tensor (n_i, 4) an image, x1, y1, x2, y2 in pixels.
            img_metas: one mapping an image; of its keys 'batch_input_shape', 'pad_shape' and 'img_shape' the first
                that is there gives the height and width of the frame that the feature map covers.

        Raises:
            TypeError, ValueError, RuntimeError: as `fgd_loss`.
        """
        if not isinstance(preds_T, Tensor):
            raise FGDTypeError(f"preds_T: expected a tensor (N, C_t, H, W), got {type(preds_T).__name__}")
        for name, value in (("gt_bboxes", gt_bboxes), ("img_metas", img_metas)):
            if not isinstance(value, Sequence | Tensor):
                raise FGDTypeError(f"{name}: expected a list, one entry an image, got {type(value).__name__}")
        losses = fgd_loss(
            self.aligned(preds_S, "preds_S"),
            preds_T.detach(),
            list(gt_bboxes),
            [_frame(meta, index) for index, meta in enumerate(img_metas)],
            gc_block=self.gc_block(),
            alpha=self.alpha_fgd,
            beta=self.beta_fgd,
            gamma=self.gamma_fgd,
            lambda_=self.lambda_fgd,
            temperature=self.temp,
            backend=self.backend,
        )
        return torch.stack(list(cast(dict[str, Tensor], losses).values())).sum()


def _parameter(layer: nn.Module, name: str) -> Tensor:
    parameter = layer._parameters.get(name)
    return getattr(layer, name) if parameter is None else parameter  # not its own where it is parametrised


def checked_channels(student_channels: int, teacher_channels: int) -> tuple[int, int]:
    """One level's channels; ValueError unless they are integers above 0."""
    for name, channels in (("student_channels", student_channels), ("teacher_channels", teacher_channels)):
        if not is_integer(channels) or channels < 1:
            raise FGDValueError(f"{name}: expected an integer >= 1, got {channels!r}")
    return int(student_channels), int(teacher_channels)


def channels_per_level(student, teacher, num_levels: int | None) -> list[tuple[int, int]]:
    """(student's, teacher's) channels of each level, from what `FGDLoss` takes."""
    several = [isinstance(c, Sequence) and not isinstance(c, str) for c in (student, teacher)]
    lengths = [len(c) for c, listed in zip((student, teacher), several, strict=True) if listed]
    levels = num_levels if num_levels is not None else (lengths[0] if lengths else 5)
    if not is_integer(levels) or levels < 1:
        raise FGDValueError(f"num_levels: expected an integer >= 1, got {levels!r}")
    each = []
    for name, channels, listed in zip(
        ("student_channels", "teacher_channels"), (student, teacher), several, strict=True
    ):
        if listed and len(channels) != levels:
            raise FGDValueError(f"{name}: expected {levels} numbers, one a level, got {len(channels)}")
        each.append(list(channels) if listed else [channels] * levels)
    return list(zip(*each, strict=True))


def _frame(meta: Mapping, index: int) -> tuple[float, float]:
    if not isinstance(meta, Mapping):
        raise FGDTypeError(f"img_metas[{index}]: expected a mapping, got {type(meta).__name__}")
    for key in ("batch_input_shape", "pad_shape", "img_shape"):
        if key in meta:
            try:
                return meta[key][0], meta[key][1]
            except (TypeError, IndexError):
                raise FGDTypeError(
                    f"img_metas[{index}][{key!r}]: expected (height, width, ..), got {meta[key]!r}"
                ) from None
    raise FGDValueError(
        f"img_metas[{index}]: expected 'batch_input_shape', 'pad_shape' or 'img_shape', got {list(meta)}"
    )
