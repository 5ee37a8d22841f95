"""Tools that tests and benchmarks share, and no package ships: see the rooms' own docstrings."""
