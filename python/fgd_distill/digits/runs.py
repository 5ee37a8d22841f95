"""One training of the digits student, as the demo and the ablations run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.cli import LightningCLI

from ..training.run import run


def fit(data: Path, seed: int, steps: int, overlay: Sequence[str], workers: int) -> LightningCLI:
    """One training of the student through the command line's path, validated at its end."""
    return run(
        [
            "fit",
            "--config=digits_student.yaml",
            *overlay,
            f"--seed_everything={seed}",
            f"--data.root={data}",
            f"--data.seed={seed}",
            f"--data.num_workers={workers}",
            f"--trainer.max_steps={steps}",
            f"--trainer.val_check_interval={steps}",
            f"--model.lr_scheduler.init_args.total_steps={steps}",
            "--trainer.enable_checkpointing=false",
        ]
    )
