"""Blanks are filled with the words of plain transformers."""

import pytest
import torch
from predictions import json_lines, table


def test_blanks_are_filled(said):
    one, two = said("home/masked", "the [MASK] saw 3", "the [MASK] saw 3 of the [MASK] .")
    assert list(one) == ["filled", "tokens"]
    scores = [guess["score"] for guess in one["tokens"]]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert one["filled"] == f"the {one['tokens'][0]['token']} saw 3"
    assert [len(guesses) for guesses in two["tokens"]] == [5, 5]
    first, second = (guesses[0]["token"] for guesses in two["tokens"])
    assert two["filled"] == f"the {first} saw 3 of the {second} ."


def test_the_words_for_a_blank_are_those_of_plain_transformers(said):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("home/masked")
    model = AutoModelForMaskedLM.from_pretrained("home/masked").eval()
    read = tokenizer("the [MASK] saw 3", return_tensors="pt")
    with torch.inference_mode():
        scores = model(**read).logits[0, read["input_ids"][0].tolist().index(tokenizer.mask_token_id)].softmax(-1)
    for guess in said("home/masked", "the [MASK] saw 3")[0]["tokens"]:
        assert guess["score"] == pytest.approx(float(scores[tokenizer.convert_tokens_to_ids(guess["token"])]), abs=1e-5)


def test_blanks_are_filled_from_a_file_with_its_ids(said, refused):
    json_lines("ask.jsonl", [{"id": 7, "text": "the [MASK] saw"}, {"id": 8, "text": "a [MASK]"}])
    said("home/masked", "--input", "ask.jsonl", "--output", "out.csv")
    found = [(row["id"], row["text"], row["filled"][:2]) for row in table("out.csv")]
    assert found == [("7", "the [MASK] saw", "th"), ("8", "a [MASK]", "a ")]
    json_lines("ask.jsonl", [{"id": 7, "content": "the [MASK] saw"}])
    assert "`ask.jsonl` has no column `text`" in refused("home/masked", "--input", "ask.jsonl")


def test_a_text_without_a_blank_or_with_one_out_of_reach_is_refused(refused):
    assert "text 2: no [MASK] in it" in refused("home/masked", "a [MASK]", "a fox")
    assert "text 1: [MASK] is beyond the 32 tokens" in refused("home/masked", "far " * 40 + "[MASK]")
