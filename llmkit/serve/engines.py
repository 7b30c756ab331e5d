"""What the model's thread runs: texts that are written together, and rows that are predicted together."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmkit.errors import UserError
from llmkit.inference import generate, rows_io
from llmkit.inference.batch import BUDGET
from llmkit.inference.rows_io import PredictRows, ResolveColumns
from llmkit.serve.worker import Job, put

ROWS = 64  # texts that are written together
# Settings that look at the prompt, with the value that does nothing: padding would count as tokens of the text.
BY_PROMPT = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0}
# Settings with which a text is not written token by token, or its end depends on the batch.
ALONE = (
    "prompt_lookup_num_tokens",
    "guidance_scale",
    "stop_strings",
    "max_time",
    "penalty_alpha",
    "forced_eos_token_id",
)


@dataclass(eq=False, kw_only=True)
class TextJob(Job):
    """One text to write behind `prompt`: `limit` new tokens at most. Its events are tokens, then the reason it ended.

    Where `live` is false, its tokens come all at the end. `seed` seeds the batch, which is this job alone.
    """

    prompt: list[int]
    config: Any
    limit: int
    seed: int | None = None
    live: bool = True


@dataclass(eq=False, kw_only=True)
class RowsJob(Job):
    """Rows to predict. Its one event is the list of answers."""

    table: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Ended:
    """The end of a text: "stop", by its own end token, or "length"."""

    reason: str


@dataclass
class Writer:
    """Writes texts with a causal language model."""

    session: generate.GenerationSession
    written: int = field(default=0, init=False)  # tokens

    @property
    def budget(self) -> int:
        """Tokens of a batch."""
        return BUDGET["cpu" if self.session.model.device.type == "cpu" else "cuda"]

    def config(self, options: dict[str, Any]) -> Any:
        """Resolve the settings of a request; UserError for those that conflict."""
        options = {"num_return_sequences": 1, **options}
        return generate.choose_settings(self.session.model, self.session.tokenizer, options)

    def key(self, config: Any, prompt: Sequence[int], seed: int | None) -> tuple[Any, bool]:
        """Return what texts that are written together must share, and whether tokens are known one by one."""
        settings = {key: value for key, value in config.to_diff_dict().items() if key not in generate.LENGTHS}
        live = config.num_beams == 1 and all(getattr(config, name, None) is None for name in ALONE)
        if not live or seed is not None:
            return object(), live
        looks = any((getattr(config, name, None) or usual) != usual for name, usual in BY_PROMPT.items())
        return (json.dumps(settings, sort_keys=True, default=str), len(prompt) if looks else None), live

    def run(self, jobs: list[TextJob]) -> None:
        """Write the texts of jobs that share their settings."""
        import torch

        from llmkit.inference import prefill

        if jobs[0].seed is not None:
            torch.manual_seed(jobs[0].seed)
        config = copy.copy(jobs[0].config)
        config.max_new_tokens, config.max_length = max(job.limit for job in jobs), None
        ends = generate.ends(config)
        over, counts = [False] * len(jobs), [0] * len(jobs)

        def step(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            if not jobs[0].live:
                return torch.full((len(ids),), jobs[0].gone, device=ids.device)
            events: list[tuple[Job, Any]] = []
            for row, token in enumerate(ids[:, -1].tolist()):
                job = jobs[row]
                if over[row] or job.gone:
                    over[row] = True
                    continue
                events.append((job, token))
                counts[row] += 1
                self.written += 1
                if token in ends or counts[row] >= job.limit:
                    over[row] = True
                    events.append((job, Ended("stop" if token in ends else "length")))
            put(events)
            return torch.tensor(over, device=ids.device)

        prompts = [job.prompt for job in jobs]
        try:
            cache = prefill.read(self.session.model, prompts, config)
            options = {} if cache is None else {prefill.CACHE: cache}
            ids = generate.write(self.session, prompts, config, stopping_criteria=[step], **options)
        except torch.OutOfMemoryError:
            if len(jobs) == 1 or any(counts):
                raise
            torch.cuda.empty_cache()
            for half in (jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]):
                self.run(half)
            return
        if not jobs[0].live:
            tokens = ids[0, len(prompts[0]) :].tolist()
            self.written += len(tokens)
            stopped = not tokens or tokens[-1] in ends or len(tokens) < jobs[0].limit
            put([(jobs[0], token) for token in tokens] + [(jobs[0], Ended("stop" if stopped else "length"))])
        put([(job, Ended("stop")) for job, done in zip(jobs, over, strict=True) if job.live and not done])


@dataclass
class Predictor:
    """Predicts for rows with a model of any other head."""

    resolve_columns: ResolveColumns
    predict_rows: PredictRows
    written: int = field(default=0, init=False)

    def run(self, jobs: list[RowsJob]) -> None:
        """Predict the rows of jobs that have the same columns."""
        from llmkit.data.rows.table import Rows

        rows = [(f"row {number}", row) for job in jobs for number, row in enumerate(job.table, 1)]
        names = tuple(dict.fromkeys(name for _, row in rows for name in row))
        table = Rows(rows.__iter__, names, {}, "", "the request")
        answers = list(self.predict_rows(table, self.resolve_columns(table)))
        for job in jobs:
            put([(job, answers[: job.rows])])
            del answers[: job.rows]


def rows_of(body: Any) -> list[dict[str, Any]]:
    """Read the body of /predict: a text, an object with the columns of a row, or a list of either."""
    rows = body if isinstance(body, list) else [body]
    wrong = [number for number, row in enumerate(rows, 1) if not isinstance(row, str | dict)]
    if wrong or not rows:
        what = f"row {wrong[0]} is neither a text nor an object" if wrong else "the list is empty"
        raise UserError(what, 'send a text, an object with the columns of a row, or a list of them: ["one", "two"]')
    if len(rows) > rows_io.CHUNK:
        raise UserError(f"there are {len(rows):,} rows", f"send at most {rows_io.CHUNK} at once")
    return [{"text": row} if isinstance(row, str) else row for row in rows]
