"""The command ``fgd-distill``."""
