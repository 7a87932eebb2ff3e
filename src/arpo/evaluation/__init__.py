"""Evaluations: what they are of, their episodes, their statistics, and how two of them differ."""
