"""Create a model's weights, from scratch or pretrained, and count them."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from llmkit import hub
from llmkit.errors import UserError, in_words
from llmkit.models.config import remote_code
from llmkit.models.loading import quiet, whole_weights
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
    subtokens: Mapping[int, Sequence[int]] | None = None,
) -> tuple[Any, list[str]]:
    """Create the model in fp32, with weights drawn from `seed` or loaded from `model.name`.

    `model.train` decides which weights are frozen; with [lora] all are but the adapter and the head.

    Args:
        table: The recipe's [model].
        config: The model's configuration.
        model_class: An auto class, such as AutoModelForCausalLM.
        seed: What new weights are drawn from.
        lora: The recipe's [lora]; None trains no adapter.
        generation: The recipe's [generation]: replaces a causal language model's generation config; of an
            encoder-decoder's only the keys it names, and the length.
        task_type: peft's name of the task.
        subtokens: For each token that a pretrained tokenizer was extended by, those that it was split into.

    Returns:
        The model, and notes on what is new in it.

    Raises:
        UserError: Pretrained weights are missing outside the head, `model.train` names a part that the model does not
            have, or new tokens would not be trained.
    """
    if subtokens and (lora is not None or table.train != "all"):
        raise UserError(
            "new tokens need trainable embeddings, and "
            + ("an adapter does not train them" if lora is not None else f'model.train is "{table.train}"'),
            "train the whole model, or remove tokenizer.add_tokens and tokenizer.add_from_text",
        )
    if table.load_in_4bit:
        check_4bit()
    options = {} if table.attn_implementation is None else {"attn_implementation": table.attn_implementation}
    new_tensors: set[str] = set()
    notes: list[str] = []
    from transformers import set_seed  # imports peft, which generation does not need

    set_seed(seed)
    try:
        if table.init == "scratch":
            model = _from_config(table, config, model_class, dtype=torch.float32, **options)
        else:
            if table.load_in_4bit:
                with torch.device("meta"):
                    empty_model = _from_config(table, config, model_class)
                options["quantization_config"] = in_4bit(empty_model)
            model, new_tensors, notes = _pretrained(table, config, model_class, task_type, options)
            if subtokens:
                notes = [*notes, _initialize_new_tokens(model, subtokens)]
    except ValueError as problem:  # sizes that do not divide, an architecture without this head
        raise UserError(f"[model]: {str(problem).splitlines()[0]}") from problem
    if generation is not None and config.is_encoder_decoder:
        settings = model.generation_config
        settings.max_length = settings.max_new_tokens = None  # the recipe or its data sets the length
        settings.update(**generation)
    elif generation is not None:
        tokens = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**{**tokens, **generation})
    if table.train != "all":
        freeze(model, table.train, new_tensors)
    if lora is not None:
        if table.name is not None:  # the adapter's settings say what it fits
            table = table.model_copy(update={"revision": hub.commit(table.name, table.revision)})
        model = adapt(model, lora, task_type, new_tensors, table)
    return model, notes


def _pretrained(
    table: Model, config: Any, model_class: Any, task_type: str | None, options: dict[str, Any]
) -> tuple[Any, set[str], list[str]]:
    """Load the model with the weights of `model.name`; return it, the names of its new tensors, and notes on them.

    `options` are further arguments of `from_pretrained`; the others are those of `create_model`.
    """
    assert table.name is not None  # the recipe's check: pretrained weights have a name
    with quiet(), hub.loading(table.name, "model"), whole_weights(table.name) as folder:
        model, loading_info = model_class.from_pretrained(
            folder,
            config=config,
            revision=hub.commit(table.name, table.revision),
            trust_remote_code=table.trust_remote_code,
            use_safetensors=table.use_safetensors or None,  # where there are both, safetensors
            weights_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below
            **remote_code(table, model_class.__name__, vars(config)),
            **options,
        )
    kind, pooler = type(model).__name__, f"{model.base_model_prefix}.pooler"  # a masked language model has none
    missing = set(loading_info["missing_keys"])
    lacking = sorted(key for key in missing if _in_base(model, key) and not key.startswith(pooler))
    if lacking:
        raise UserError(
            f"the weights of `{table.name}` lack {len(lacking)} tensors that {kind} needs, such as {lacking[0]}",
            "check that they are complete and for this architecture; transformers would fill in random numbers",
        )
    size_notes = {
        key: f"{key} is {list(there)} in the weights and {list(here)} in this model"
        for key, there, here in loading_info["mismatched_keys"]
    }
    mismatched = sorted(key for key in size_notes if task_type not in WITH_HEAD or _in_base(model, key))
    if mismatched:
        raise UserError(
            f"the weights of `{table.name}` do not have the shapes of {kind} with this configuration",
            "llmkit replaces only the head of a classifier or a question-answering model; check model.config",
            tuple(size_notes[key] for key in mismatched),
        )
    new_tensors = missing | size_notes.keys()
    if not new_tensors:
        return model, new_tensors, []
    sizes = f" (`{table.name}` has another size: {'; '.join(sorted(size_notes.values()))})" if size_notes else ""
    return model, new_tensors, [f"newly initialized: {', '.join(outermost(model, new_tensors))}{sizes}"]


def _initialize_new_tokens(model: Any, subtokens: Mapping[int, Sequence[int]]) -> str:
    """Initialize the rows of new tokens to the mean of their subtokens' rows; enlarge the embeddings if need be.

    As in fast vocabulary transfer (https://arxiv.org/abs/2402.09977), in the output layer too. Tied weights stay tied.
    Returns a note.
    """
    size = max(subtokens) + 1
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
            for token, ids in subtokens.items():
                table[token] = table[list(ids)].mean(0)
    if len(subtokens) == 1:
        return "1 new token: its embedding starts as the mean of its subtokens' embeddings"
    return f"{len(subtokens):,} new tokens: each embedding starts as the mean of its subtokens' embeddings"


def _in_base(model: Any, key: str) -> bool:
    return model.base_model is model or key.startswith(f"{model.base_model_prefix}.")


def _from_config(table: Model, config: Any, model_class: Any, **options: Any) -> Any:
    code = remote_code(table, model_class.__name__, vars(config))
    try:
        return model_class.from_config(config, trust_remote_code=table.trust_remote_code, **code, **options)
    except Exception as problem:  # sizes that do not divide, a setting of another kind, ...
        raise hub.code_refused(problem, table.name or config.model_type) or UserError(
            f"[model]: {type(config).__name__} does not work with these settings: {in_words(problem)}",
            "check model.config",
        ) from problem


def count_parameters(module: torch.nn.Module, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
    """Count the parameters of a module made of several models as transformers does: shared ones once."""
    embeddings = {id(submodule.weight) for submodule in module.modules() if isinstance(submodule, torch.nn.Embedding)}
    counted = (p for p in module.parameters() if p.requires_grad or not only_trainable)
    return sum(p.numel() for p in counted if not exclude_embeddings or id(p) not in embeddings)


def num_parameters(table: Model, config: Any, model_class: Any) -> int:
    """Count the parameters of an architecture, tied ones once, on the meta device, which takes no memory."""
    if (getattr(config, "pad_token_id", None) or 0) >= config.vocab_size:  # Marian's own, before it has a tokenizer
        config = copy.copy(config)
        config.pad_token_id = 0
    with torch.device("meta"):
        model = _from_config(table, config, model_class)
    return sum(parameter.numel() for parameter in model.parameters())
