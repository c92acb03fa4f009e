"""Hostile inputs, drawn by number: ``python -m tests.fuzz --count 10000 --seed 0``, or ``--only 4711``."""
