"""From files and Hub data sets to the blocks of tokens that a model learns from."""
