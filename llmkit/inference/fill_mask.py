"""Fill the blanks of a text with a masked language model."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmkit import hub, process
from llmkit.errors import UserError
from llmkit.inference.precision import load
from llmkit.inference.rows_io import PredictRows, ResolveColumns, check_finite
from llmkit.runs.finished import data_of

if TYPE_CHECKING:
    from llmkit.data.rows.table import Rows
    from llmkit.inference.precision import Precision
    from llmkit.models.quantization import Precision as Quantized


FILLED = 5  # guesses for each blank, best first


def blank_filler(
    name: str, task: str = "masked-lm", quantize: "Quantized | None" = None, precision: "Precision | None" = None
) -> tuple[ResolveColumns, PredictRows]:
    """Load a masked language model; return how it resolves columns, and how it fills the blanks of rows."""
    import torch

    from llmkit.data.rows.reader import Unusable, text_in
    from llmkit.models import loading
    from llmkit.models.config import positions

    wanted = data_of(name, "masked-lm").text_column or "text"
    model = load(name, task, quantize, precision)
    tokenizer = loading.load_tokenizer(name, hub.commit(name))
    process.collect_from_here()
    limit = positions(model.config)
    mask = tokenizer.mask_token

    def resolve_columns(rows: "Rows") -> dict[str, str]:
        for column in (wanted, "text"):
            if column in rows.columns:
                return {"text": column}
        raise UserError(f"{rows.source} has no column `{wanted}`", f"it has {', '.join(rows.columns)}")

    def fill(text: str) -> dict[str, Any]:
        inputs = tokenizer(text, return_tensors="pt", truncation=limit is not None, max_length=limit).to(model.device)
        blanks = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
        segments = text.split(mask)
        if len(segments) == 1:
            raise Unusable("no blank", f"no {mask} in it: write {mask} for the word to guess")
        if len(blanks) < len(segments) - 1:
            raise Unusable("too long", f"{mask} is beyond the {limit} tokens that the model reads: shorten the text")
        with torch.inference_mode():
            scores = model(**inputs).logits[0, blanks].double().softmax(dim=-1)
        check_finite(torch.isfinite(scores).all())
        best = scores.topk(min(FILLED, scores.shape[-1]), dim=-1)
        filled = [
            [
                {"token": tokenizer.decode([token]).strip(), "score": round(score, 6)}
                for token, score in zip(tokens, values, strict=True)
            ]
            for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        best_words = [guesses[0]["token"] for guesses in filled]
        filled_text = "".join(itertools.chain.from_iterable(zip(segments, [*best_words, ""], strict=True)))
        return {"filled": filled_text, "tokens": filled[0] if len(filled) == 1 else filled}

    def predict_rows(rows: "Rows", columns: Mapping[str, str]) -> list[dict[str, Any]]:
        return [fill_row(row, columns["text"]) for _, row in rows]

    def fill_row(row: Any, column: str) -> dict[str, Any]:
        try:
            return fill(text_in(row, column))
        except Unusable as fault:
            return {"error": str(fault)}

    return resolve_columns, predict_rows
