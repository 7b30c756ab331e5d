"""Read the first documents of a source."""

from collections.abc import Sequence

from llmkit.data.text.documents import Documents

CHARACTERS = 10_000_000  # a source is read no further


def first(documents: Documents, limit: int) -> tuple[list[str], bool]:
    """Return the first documents, `limit` at most, and whether there are more."""
    texts, characters = list[str](), 0
    for text in documents:
        if len(texts) == limit or characters > CHARACTERS:
            return texts, True
        texts.append(text)
        characters += len(text)
    return texts, False


def number_of(texts: Sequence[str], partial: bool) -> str:
    """Say how many documents were read, and how many characters they have."""
    count = f"{len(texts):,} document{'s' * (len(texts) != 1)}, {sum(map(len, texts)):,} characters"
    return f"the first {count} are read" if partial else count
