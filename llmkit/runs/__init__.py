"""Runs on the disk: their directories, their checkpoints, and what a finished one says of itself."""
