"""Building detectors by name, and their weights."""
