"""What tests of models share."""

from functools import cache

import pytest
from tiny_models import DECODERS, OWN, SIZES, VOCABULARY
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedTokenizerFast,
    set_seed,
)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A function from a model type to the folder of a tiny language model with a tokenizer."""

    @cache
    def made(kind: str) -> str:
        folder = tmp_path_factory.mktemp(kind)
        set_seed(1)
        config = AutoConfig.for_model(kind, **{**SIZES, **OWN.get(kind, {})})
        model_class = AutoModelForCausalLM if kind in DECODERS else AutoModelForMaskedLM
        model_class.from_config(config).save_pretrained(folder)
        words = WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w3")
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="w0").save_pretrained(folder)
        return str(folder)

    return made
