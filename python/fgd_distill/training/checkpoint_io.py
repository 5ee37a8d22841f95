"""How a training's checkpoints are written and read, in place of Lightning's own way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ..errors import FGDFileNotFoundError, FGDValueError
from ..files import remove_stale
from ..tensor_files import read_tensors, save_tensors

EXPECTED = "a checkpoint of fgd-distill fit"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it, so that the former one stays until the new one is whole.

    Lightning builds it in memory, writes it to TMPDIR and copies it over the target where that is another file system.
    Addresses with a protocol, such as ``s3://``, are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        remove_stale(Path(path).parent)
        save_tensors(path, checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """The content of a checkpoint. Whatever ``weights_only`` says, no code of the file is run.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no checkpoint, or damaged.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        if not Path(path).is_file():
            raise FGDFileNotFoundError(f"ckpt_path: expected a file, found none at {path}")
        remove_stale(Path(path).parent)  # of the run that was killed and goes on now, in another folder
        content = read_tensors(path, EXPECTED, map_location)
        if not isinstance(content, Mapping) or not {"state_dict", "pytorch-lightning_version"} <= content.keys():
            got = (
                f"the keys {sorted(map(str, content))[:8]}" if isinstance(content, Mapping) else type(content).__name__
            )
            raise FGDValueError(f"{path}: expected {EXPECTED}, got {got}")
        return dict(content)


def use_whole_checkpoints(trainer: pl.Trainer) -> None:
    """Has a trainer write its checkpoints so, unless it was given a plugin that does it in another way."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpoints()


def keep_best(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Lets a resumed training remember the best checkpoint so far, which lies in another folder than its own.

    Lightning's ModelCheckpoint forgets it where the folder has changed, and would call the next one the best.

    Args:
        trainer: about to resume.
        checkpoint: that it resumes from; changed in place.
    """
    kept = checkpoint.get("callbacks", {})
    for callback in trainer.checkpoint_callbacks:
        state = kept.get(callback.state_key)
        if state is not None and "dirpath" in state:
            state["dirpath"] = getattr(callback, "dirpath", state["dirpath"])
