"""x"""

import pytest

from llmkit.data.text.documents import Documents
from llmkit.models import tokenizer
from llmkit.recipe.schema import Model, Tokenizer


@pytest.fixture(scope="module")
def words():
    """A masked language model's tokenizer, with some hundred ordinary tokens."""
    texts = ["".join(chr(n) for n in range(0x4E00, 0x4E00 + 300))]
    table = Tokenizer(type="characters")
    return tokenizer.load(table, Model(config={}), "masked-lm", Documents(lambda: iter(texts), "hanzi", "`x`"), 128)
