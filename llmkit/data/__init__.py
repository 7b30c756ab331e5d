"""Turn files and Hub data sets into the blocks of tokens, or the examples, that a model learns from."""
