"""Sweeps: a recipe is trained once for each of several values of its keys, and the best is found."""
