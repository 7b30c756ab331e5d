"""Finished models in use: predictions, text and conversations."""
