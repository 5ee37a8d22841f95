"""How exact a backend is: one call of the loss as a value (case.py), and what it may be wrong by (budget.py).

Tests and the fuzz campaign (devtools/fuzz) judge by the same rule.
"""
