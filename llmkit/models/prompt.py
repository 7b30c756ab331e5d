"""Tokenize a text for a causal language model to go on from."""

from typing import Any

from llmkit.errors import UserError


def encode(prompt: str, tokenizer: Any) -> list[int]:
    """Tokenize a prompt: with the BOS token if the tokenizer adds one, never with a token that ends a text."""
    begin = tokenizer.bos_token_id
    always = tokenizer("")["input_ids"][:1] == [begin]
    tokens = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    if always and tokens[:1] != [begin]:
        return [begin, *tokens]
    if tokens:
        return tokens
    start = begin if begin is not None else tokenizer.eos_token_id
    if start is None:
        raise UserError("the prompt is empty, and the tokenizer has no token to begin a text with", "give a prompt")
    return [start]
