"""Windows of tokens as blocks hand them to tasks."""

import numpy as np

from llmkit.data.text.pack import TokenStream, Window

LENGTH = 126  # between [CLS] and [SEP]; 15 % of it are 18.9, rounded 19


def windows(words, number, length=LENGTH, epoch=0, with_special=False):
    draw = np.random.default_rng(0)
    first = 0 if with_special else 5
    ids = draw.integers(first, len(words), (number, length))
    return [window(row, index, epoch) for index, row in enumerate(ids)]


def window(ids, index=0, epoch=0, starts=()) -> Window:
    return Window(np.asarray(ids, np.int64), np.array(starts, np.int64), index, epoch)


def stream_of(*documents, num_bytes=1) -> TokenStream:
    """Documents of token ids, each with the separator that ends it."""
    lengths = [len(document) for document in documents]
    return TokenStream(np.concatenate(documents).astype(np.uint16), np.cumsum(lengths), num_bytes)
