"""What a training does not say: advertisements, deprecations inside of libraries, and everything once more from each
process."""

from __future__ import annotations

import logging
import warnings

from pytorch_lightning.utilities import rank_zero_only

UNWANTED = ("💡", "TPU available: False", "GPU available: False", "`weights_only` was not set")
LOGGERS = (
    "pytorch_lightning.utilities.rank_zero",
    "lightning_fabric.utilities.rank_zero",
    "pytorch_lightning.trainer.connectors.checkpoint_connector",
)
# Of libraries, about each other; a user can do nothing about them.
DEPRECATIONS = (r".*treespec, LeafSpec", r".*deprecated in v4\.49\.0")


class _Unwanted(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(UNWANTED)


class _FirstProcess(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return first_process() or record.levelno >= logging.ERROR


def first_process() -> bool:
    """Whether this is the training's only process, or the first of several, as its environment tells."""
    return getattr(rank_zero_only, "rank", 0) == 0


def be_quiet() -> None:
    """Has this process keep to what concerns the user; for the whole of it, once or more often."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Unwanted) for known in logger.filters):
            logger.addFilter(_Unwanted())
    data = logging.getLogger("fgd_distill.data")
    if not any(isinstance(known, _FirstProcess) for known in data.filters):
        data.addFilter(_FirstProcess())
    for message in DEPRECATIONS:
        warnings.filterwarnings("ignore", message=message)
    if not first_process():
        warnings.filterwarnings("ignore", module=r"fgd_distill\.")
