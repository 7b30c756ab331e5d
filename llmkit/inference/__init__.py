"""Use finished models: predict, generate text, hold conversations."""
