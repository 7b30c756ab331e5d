"""Clean text before a model learns from it: one kind of step a file, and pipeline.py, which runs them in order."""
