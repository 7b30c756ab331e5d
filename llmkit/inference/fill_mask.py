"""The words that a masked language model puts into the blanks of a text."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmkit import hub, process
from llmkit.errors import UserError
from llmkit.inference.rows_io import Answer, Layout, check_finite
from llmkit.runs.finished import data_of

if TYPE_CHECKING:
    from llmkit.data.rows.table import Rows


FILLED = 5  # words that fill a blank, best first


def filler(name: str) -> tuple[Layout, Answer]:
    """How a masked language model reads rows, and the words that it puts into their blanks."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from llmkit.data.files import text_of
    from llmkit.models import loading
    from llmkit.models.config import positions

    wanted = data_of(name, "masked-lm").text_column or "text"
    model = loading.load_model(name, AutoModelForMaskedLM)
    with hub.loading(name, "model"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=hub.commit(name), trust_remote_code=False)
    process.collect_from_here()
    limit = positions(model.config)
    mask = tokenizer.mask_token

    def layout(rows: "Rows") -> dict[str, str]:
        for column in (wanted, "text"):
            if column in rows.columns:
                return {"text": column}
        raise UserError(f"{rows.source} has no column `{wanted}`", f"it has {', '.join(rows.columns)}")

    def fill(text: str, place: str) -> dict[str, Any]:
        read = tokenizer(text, return_tensors="pt", truncation=limit is not None, max_length=limit).to(model.device)
        blanks = (read["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
        pieces = text.split(mask)
        if len(pieces) == 1:
            raise UserError(f"{place}: no {mask} in it", f"write {mask} for the word to guess")
        if len(blanks) < len(pieces) - 1:
            raise UserError(
                f"{place}: {mask} stands beyond the {limit} tokens that the model reads", "shorten the text"
            )
        with torch.inference_mode():
            scores = model(**read).logits[0, blanks].double().softmax(dim=-1)
        check_finite(torch.isfinite(scores).all())
        best = scores.topk(min(FILLED, scores.shape[-1]), dim=-1)
        filled = [
            [
                {"token": tokenizer.decode([token]).strip(), "score": round(score, 6)}
                for token, score in zip(tokens, values, strict=True)
            ]
            for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        words = [guesses[0]["token"] for guesses in filled]
        whole = "".join(itertools.chain.from_iterable(zip(pieces, [*words, ""], strict=True)))
        return {"filled": whole, "tokens": filled[0] if len(filled) == 1 else filled}

    def answer(rows: "Rows", columns: Mapping[str, str]) -> list[dict[str, Any]]:
        return [fill(text_of(row, columns["text"], place), place) for place, row in rows]

    return layout, answer
