"""The weights of a model: from scratch or pretrained, and how many there are."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from llmkit import hub
from llmkit.errors import UserError
from llmkit.models.config import remote_code
from llmkit.models.loading import quiet
from llmkit.models.trainable import WITH_HEAD, adapt, check_4bit, freeze, in_4bit, outermost
from llmkit.recipe.schema import Model


def create_model(
    table: Model,
    config: Any,
    model_class: Any,
    seed: int,
    lora: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    task_type: str | None = None,
    pieces: Mapping[int, Sequence[int]] | None = None,
) -> tuple[Any, list[str]]:
    """The model in fp32, weights drawn from `seed` or read from `model.name`, and notes on what is new in it.

    What `model.train` leaves out is frozen; `[lora]` freezes all but the adapter and the head. `task_type` is peft's.
    `generation` replaces how a causal language model generates; of an encoder-decoder what it names, and the length.
    `pieces`: the tokens that a pretrained tokenizer was extended by, each with the tokens that it was split into.
    Raises UserError where weights are missing that only pretraining could give, where `model.train` names what the
    model does not have, and where new tokens would not be trained.
    """
    if pieces and (lora is not None or table.train != "all"):
        raise UserError(
            "new tokens need embeddings that are trained, and "
            + ("an adapter leaves them as they are" if lora is not None else f'model.train is "{table.train}"'),
            "train the whole model, or take out tokenizer.add_tokens and tokenizer.add_from_text",
        )
    if table.load_in_4bit:
        check_4bit()
    options = {} if table.attn_implementation is None else {"attn_implementation": table.attn_implementation}
    new: set[str] = set()
    notes: list[str] = []
    from transformers import set_seed  # which brings peft along; who generates needs neither

    set_seed(seed)
    try:
        if table.init == "scratch":
            model = _from_config(table, config, model_class, dtype=torch.float32, **options)
        else:
            if table.load_in_4bit:
                with torch.device("meta"):
                    sketch = _from_config(table, config, model_class)
                options["quantization_config"] = in_4bit(sketch)
            model, new, notes = _pretrained(table, config, model_class, task_type, options)
            if pieces:
                notes = [*notes, _give_rows(model, pieces)]
    except ValueError as problem:  # sizes that do not divide, an architecture without this head
        raise UserError(f"[model]: {str(problem).splitlines()[0]}") from problem
    if generation is not None and config.is_encoder_decoder:
        settings = model.generation_config
        settings.max_length = settings.max_new_tokens = None  # the recipe says how long: there, or by its data
        settings.update(**generation)
    elif generation is not None:
        tokens = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**{**tokens, **generation})
    if table.train != "all":
        freeze(model, table.train, new)
    if lora is not None:
        if table.name is not None:  # the adapter's settings say what it fits
            table = table.model_copy(update={"revision": hub.commit(table.name, table.revision)})
        model = adapt(model, lora, task_type, new, table)
    return model, notes


def _pretrained(
    table: Model, config: Any, model_class: Any, task_type: str | None, options: dict[str, Any]
) -> tuple[Any, set[str], list[str]]:
    """The model with the weights of `model.name`, the names of the tensors that are new in it, and a note on them."""
    assert table.name is not None  # the recipe's check: pretrained weights have a name
    with quiet(), hub.loading(table.name, "model"):
        model, found = model_class.from_pretrained(
            table.name,
            config=config,
            revision=hub.commit(table.name, table.revision),
            trust_remote_code=table.trust_remote_code,
            use_safetensors=table.use_safetensors or None,  # where there are both, safetensors
            weights_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # found below, and named
            **remote_code(table, model_class.__name__, vars(config)),
            **options,
        )
    kind, pooler = type(model).__name__, f"{model.base_model_prefix}.pooler"  # a masked language model has none
    missing = set(found["missing_keys"])
    lacking = sorted(key for key in missing if _in_base(model, key) and not key.startswith(pooler))
    if lacking:
        raise UserError(
            f"the weights of `{table.name}` lack {len(lacking)} tensors of {kind}, such as {lacking[0]}",
            "are they of this architecture, and saved whole? transformers would fill them with random numbers",
        )
    resized = {
        key: f"{key} is {list(there)} there and {list(here)} here" for key, there, here in found["mismatched_keys"]
    }
    wrong = sorted(key for key in resized if task_type not in WITH_HEAD or _in_base(model, key))
    if wrong:
        raise UserError(
            f"the weights of `{table.name}` have other sizes than {kind} with this configuration",
            "only the head of a classifier or of question answering is made anew; see model.config",
            tuple(resized[key] for key in wrong),
        )
    new = missing | resized.keys()
    if not new:
        return model, new, []
    sizes = f" (`{table.name}` has another size: {'; '.join(sorted(resized.values()))})" if resized else ""
    return model, new, [f"new in this run: {', '.join(outermost(model, new))}{sizes}"]


def _give_rows(model: Any, pieces: Mapping[int, Sequence[int]]) -> str:
    """Enlarge the embeddings and the output layer for new tokens, if need be; each begins at the mean of its pieces.

    As in fast vocabulary transfer (https://arxiv.org/abs/2402.09977). What was tied stays tied. Returns a note.
    """
    size = max(pieces) + 1
    if size > model.get_input_embeddings().num_embeddings:
        with quiet():
            model.resize_token_embeddings(size, mean_resizing=False)
    output = model.get_output_embeddings()
    rows = [model.get_input_embeddings().weight]
    if output is not None:
        rows += [output.weight, *([output.bias] if output.bias is not None else [])]
    if getattr(model, "final_logits_bias", None) is not None:  # BART's and Marian's, [1, V]
        rows.append(model.final_logits_bias[0])
    with torch.no_grad():
        for table in rows:
            for token, former in pieces.items():
                table[token] = table[list(former)].mean(0)
    if len(pieces) == 1:
        return "1 token is new: its embedding begins at the mean of its pieces'"
    return f"{len(pieces):,} tokens are new: their embeddings begin at the mean of their pieces'"


def _in_base(model: Any, key: str) -> bool:
    return model.base_model is model or key.startswith(f"{model.base_model_prefix}.")


def _from_config(table: Model, config: Any, model_class: Any, **options: Any) -> Any:
    code = remote_code(table, model_class.__name__, vars(config))
    try:
        return model_class.from_config(config, trust_remote_code=table.trust_remote_code, **code, **options)
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as problem:  # sizes that do not divide, ...
        raise hub.code_refused(problem, table.name or config.model_type) or UserError(
            f"[model]: {type(config).__name__} with these settings makes no model: {' '.join(str(problem).split())}",
            "see model.config",
        ) from problem


def count_parameters(module: torch.nn.Module, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
    """The parameters of a module that is made of several models, as transformers counts them: shared ones once."""
    tables = {id(inside.weight) for inside in module.modules() if isinstance(inside, torch.nn.Embedding)}
    counted = (p for p in module.parameters() if p.requires_grad or not only_trainable)
    return sum(p.numel() for p in counted if not exclude_embeddings or id(p) not in tables)


def num_parameters(table: Model, config: Any, model_class: Any) -> int:
    """Parameters of this architecture, tied ones once, counted without memory for them."""
    if (getattr(config, "pad_token_id", None) or 0) >= config.vocab_size:  # Marian's own, before it has a tokenizer
        config = copy.copy(config)
        config.pad_token_id = 0
    with torch.device("meta"):
        model = _from_config(table, config, model_class)
    return sum(parameter.numel() for parameter in model.parameters())
