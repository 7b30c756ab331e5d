"""Use a finished model from Python: predict, generate, chat, evaluate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.api.guest import guest
from llmkit.api.overrides import overrides_of
from llmkit.errors import UserError

if TYPE_CHECKING:
    from llmkit.inference.generate import GenerationSession
    from llmkit.inference.precision import Precision
    from llmkit.models.quantization import Precision as Quantized


def load(
    model: str | Path,
    *,
    quantize: "Quantized | None" = None,
    precision: "Precision | None" = None,
    offline: bool = False,
) -> "Model":
    """Return a finished model: a run, a checkpoint, a folder or a Hub id. Its weights are read when they are needed.

    `quantize` is that of `llmkit generate`, `predict` and `evaluate`, `precision` ("bf16" or "fp32") that of the latter
    two. Raises UserError where there is no such model.
    """
    from llmkit.cli.app import run_or_model
    from llmkit.runs.finished import check_model, one_task_of

    with guest(offline=offline):
        name = run_or_model(str(model))
        check_model(name)
        return Model(name, one_task_of(name), quantize, precision, offline)


@dataclass(frozen=True)
class Model:
    """A finished model, which `load` returns; `task` is what it was made for."""

    name: str
    task: str
    quantize: "Quantized | None" = None
    precision: "Precision | None" = None
    offline: bool = False

    def predict(self, rows: Any) -> Any:
        """Predict, as `llmkit predict` does.

        Args:
            rows: A text, or a dict with the columns of a row; a list of either; or a DataFrame.

        Returns:
            A dict a row, with the keys that `llmkit predict` writes: one for one row, a list for a list. For a
            DataFrame another one, with the predictions behind its columns.

        Raises:
            UserError: The model does not predict, or a row cannot be read.
        """
        from llmkit.data.output import own_name

        if hasattr(rows, "iloc"):
            import pandas as pd

            answers = self._predict(rows.to_dict("records"))
            named = [{own_name(key, rows.columns): value for key, value in answer.items()} for answer in answers]
            return pd.concat([rows, pd.DataFrame(named, index=rows.index)], axis="columns")
        if isinstance(rows, str | Mapping):
            return self._predict([rows])[0]
        return self._predict(list(rows))

    def _predict(self, rows: Sequence[str | Mapping[str, Any]]) -> list[dict[str, Any]]:
        from llmkit.inference.rows_io import predictions

        with guest(offline=self.offline):
            resolve_columns, predict_rows = self._predictor
            read = (
                (f"row {number}", {"text": row} if isinstance(row, str) else dict(row))
                for number, row in enumerate(rows, 1)
            )
            return [answer for _, answer in predictions(read, None, resolve_columns, predict_rows)]

    @cached_property
    def _predictor(self) -> Any:
        from llmkit.inference.predict import predictor

        return predictor(self.name, self.task, self.quantize, self.precision)

    def generate(self, prompt: str, *, seed: int | None = None, **settings: Any) -> Any:
        """Continue a prompt, as `llmkit generate` does, and return the prompt with its continuation.

        Args:
            prompt: The text to continue.
            seed: What samples are drawn from: the same seed gives the same text.
            **settings: Fields of transformers' GenerationConfig, such as `max_new_tokens`.

        Returns:
            A text; a list of them where `num_return_sequences` asks for several.

        Raises:
            UserError: The model does not generate, or a setting is wrong.
        """
        from llmkit.inference import generate

        with guest(offline=self.offline):
            session = self._seeded(seed, generate.settings(_pairs(settings)))
            tokens = generate.encode(prompt, session.tokenizer)
            config = generate.generation_config(session.model, session.tokenizer, session.options, len(tokens))
            texts = generate.write(session, [tokens], config)
            found = session.tokenizer.batch_decode(texts, skip_special_tokens=True)
        return found if config.num_return_sequences > 1 else found[0]

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        system_prompt: str | None = None,
        seed: int | None = None,
        **settings: Any,
    ) -> str:
        """Answer a question, or a conversation whose last message is the user's, and return the answer.

        Args:
            messages: A question, or messages with `role` and `content`.
            system_prompt: None takes that of the model's own recipe, "" is none; for a question alone.
            seed: What samples are drawn from.
            **settings: Fields of transformers' GenerationConfig.
        """
        from llmkit.inference import chat, generate

        with guest(offline=self.offline):
            session = self._seeded(seed, generate.settings(_pairs(settings), one=True))
            chat.check_template(session)
            if isinstance(messages, str):
                prompt = chat.system_prompt_of(session, system_prompt)
                messages = [*([{"role": "system", "content": prompt}] if prompt else []), _user(messages)]
            tokens = chat.render([dict(message) for message in messages], session)
            config = generate.generation_config(session.model, session.tokenizer, session.options, len(tokens))
            written = generate.write(session, [tokens], config)[0][len(tokens) :]
            return str(session.tokenizer.decode(written, skip_special_tokens=True))

    def _seeded(self, seed: int | None, options: dict[str, Any]) -> "GenerationSession":
        import torch

        if seed is not None:
            torch.manual_seed(seed)
        self._session.options = options
        return self._session

    @cached_property
    def _session(self) -> "GenerationSession":
        from llmkit.inference import generate

        if self.precision is not None:
            raise UserError("precision is for predict and evaluate", "load the model without it to generate")
        return generate.load(self.name, "causal-lm", {}, None, self.quantize)

    def evaluate(
        self,
        data: Any = None,
        *,
        recipe: str | Path | None = None,
        task: str | None = None,
        output: str | Path | None = None,
        overwrite: bool = False,
        **overrides: Any,
    ) -> dict[str, Any]:
        """Evaluate on the model's own validation data, or on other `data`, as `llmkit evaluate` does.

        `data` and `overrides` are those of `finetune`; `output` is a file for every row, mistakes first; one that is
        there is overwritten only with `overwrite`. Returns the metrics.
        """
        from llmkit import devices
        from llmkit.runs.finished import recipe_of

        with guest(offline=self.offline):
            from llmkit.data.output import Output
            from llmkit.training import evaluate

            target = Output.named(None if output is None else Path(output), overwrite)
            own = recipe_of(self.name) if recipe is None and task is None else recipe
            settings = overrides_of(own, task, data, overrides)
            found = evaluate.find_recipe(self.name, None if recipe is None else str(recipe), task, settings)
            devices.one_gpu()
            in_int8 = None
            if self.quantize is not None:
                from llmkit.inference import precision

                in_int8 = precision.in_int8(self.name, found.task, self.quantize, self.precision)
            return evaluate.evaluate(self.name, found, target, self.precision, in_int8)


def _user(question: str) -> dict[str, str]:
    return {"role": "user", "content": question}


def _pairs(settings: Mapping[str, Any]) -> list[str]:
    """Write fields of GenerationConfig as the command line's `KEY=VALUE`."""
    from llmkit.recipe.toml import toml_value

    return [f"{key}={value if isinstance(value, str) else toml_value(value)}" for key, value in settings.items()]
