"""What a training takes, in closed form and without torch: parameters, memory by kind, disk, operations.

Parameters are exact for the architectures in FAMILIES. Memory is that of tensors at the peak of a step, from what
autograd saves in a layer: bytes a token, counted once with `torch.autograd.graph.saved_tensors_hooks`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit import disk, hub
from llmkit.errors import UserError
from llmkit.recipe import global_batch, upstream
from llmkit.recipe.data_tables import RowData, TextData
from llmkit.recipe.schema import PRETRAINING, Recipe
from llmkit.recipe.tasks import TASKS

# Numbers that an optimizer keeps for each trained parameter, by its name in TrainingArguments.
MOMENTS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused"), 2),
    **dict.fromkeys(("adagrad", "rmsprop"), 1),
}
OPTIMIZER = "adamw_torch_fused"  # transformers' default
LOGITS_AT_ONCE = 2**24  # as in llmkit/speed/fused_loss.py, which imports torch
LONGEST_INPUT, LONGEST_BLOCK = 512, 1024  # tokens, where neither recipe nor model says
LORA_RANK = 8  # peft's


@dataclass(frozen=True)
class Saved:
    """Bytes that autograd saves in one layer: `wide` of them for each token and number of the hidden state, `inner`
    for each of the feed-forward layer's, `scores` for each pair of tokens and head; `shared` times the share of key
    heads among heads comes to `wide`. `dropouts` are those of the hidden state.
    """

    wide: float
    inner: float
    shared: float = 0
    scores: float = 0


@dataclass(frozen=True)
class Kind:
    """What layers of a kind save in fp32 and in bf16, and so where their own weights are frozen (an adapter's)."""

    fp32: Saved
    bf16: Saved
    frozen: tuple[Saved, Saved] | None = None
    dropouts: int = 2


BERT = Kind(Saved(32, 8), Saved(24, 4), (Saved(24, 4), Saved(16, 2)))
GPT2 = Kind(Saved(32, 8), Saved(20, 4), (Saved(24, 4), Saved(16, 2)))
GPT2_NEW = Kind(Saved(32, 20), Saved(20, 10), (Saved(24, 16), Saved(16, 8)))  # its activation in eight operations
NEOX = Kind(Saved(40, 8), Saved(22, 4), (Saved(28, 4), Saved(16, 2)))
LLAMA = Kind(Saved(32, 16, 8), Saved(30, 8, 4), (Saved(16, 12, 8), Saved(12, 6, 4)), 0)
QWEN3 = Kind(Saved(40, 16, 16), Saved(36, 8, 10), (Saved(20, 12, 12), Saved(16, 6, 8)), 0)
ROFORMER = Kind(Saved(33, 8, 0, 4), Saved(25, 4, 0, 6), (Saved(21, 4, 0, 4), Saved(15, 2, 0, 6)))
MODERNBERT = Kind(Saved(40, 16), Saved(24, 8), (Saved(32, 12), Saved(20, 6)), 0)
T5_READS, T5_WRITES = (
    Kind(Saved(40, 4, 0, 4), Saved(38, 4, 0, 4)),
    Kind(Saved(68, 4, 0, 4), Saved(60, 4, 0, 4), None, 3),
)
BART_WRITES = Kind(Saved(56, 8), Saved(42, 4), None, 3)


@dataclass(frozen=True)
class Stack:
    """Layers that are alike: their matrices by name (inputs, outputs), and their other numbers (biases, norms)."""

    layers: int
    hidden: int
    inner: int
    matrices: Mapping[str, tuple[int, int]]
    rest: int
    kind: Kind
    key_share: float = 1.0

    @property
    def layer_matrices(self) -> int:
        return sum(rows * columns for rows, columns in self.matrices.values())

    @property
    def parameters(self) -> int:
        return self.layers * (self.layer_matrices + self.rest)


@dataclass(frozen=True)
class Model:
    """An architecture in numbers.

    Attributes:
        embeddings: numbers of the embeddings and what stands around the layers.
        stacks: an encoder's and a decoder's layers, or one of them.
        head: numbers of the head.
        head_matrices: of them, those that multiply every token that is predicted.
        vocabulary: outputs of the head for each token; 0 where it predicts no tokens.
        heads: of the attention.
        adapted: the matrices that an adapter goes beside where the recipe names none.
        dropout: of the hidden state, and of the attention.
        pooler: numbers of the head that belong to the model below it, and are frozen with it.
        fixed: numbers that are never trained.
    """

    embeddings: int
    stacks: tuple[Stack, ...]
    head: int = 0
    head_matrices: int = 0
    vocabulary: int = 0
    heads: int = 1
    adapted: tuple[str, ...] = ()
    dropout: tuple[float, float] = (0.0, 0.0)
    pooler: int = 0
    fixed: int = 0

    @property
    def parameters(self) -> int:
        return self.embeddings + self.head + sum(stack.parameters for stack in self.stacks)


Config = Callable[..., Any]  # (names..., default) -> the first of a configuration's keys that is set


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _on_encoder(auto: str, h: int, labels: int, pooled: Mapping[str, int], tagged: int = 0) -> int:
    """Count the head of a classifier, tagger, ... of hidden size `h`; `pooled` is what stands before it by class."""
    outputs = 1 if auto.endswith("MultipleChoice") else labels
    return next((size for name, size in pooled.items() if auto.endswith(name)), tagged) + _linear(h, outputs)


def _gpt2(get: Config, auto: str, labels: int) -> Model:
    h, v = get("n_embd"), get("vocab_size")
    inner = get("n_inner") or 4 * h
    matrices = {"c_attn": (h, 3 * h), "c_proj": (h, h), "c_fc": (h, inner), "mlp.c_proj": (inner, h)}
    lm = auto.endswith("CausalLM")
    kind = GPT2_NEW if get("activation_function") in ("gelu_new", "gelu_fast") else GPT2
    return Model(
        embeddings=(v + get("n_positions")) * h + 2 * h,
        stacks=(Stack(get("n_layer"), h, inner, matrices, 9 * h + inner, kind),),
        head=(0 if get("tie_word_embeddings") else v * h) if lm else h * labels,
        head_matrices=v * h if lm else 0,
        vocabulary=v if lm else 0,
        heads=get("n_head"),
        adapted=("c_attn",),
        dropout=(get("resid_pdrop"), get("attn_pdrop")),
    )


def _neox(get: Config, auto: str, labels: int) -> Model:
    h, v, inner = get("hidden_size"), get("vocab_size"), get("intermediate_size")
    matrices = {
        "query_key_value": (h, 3 * h),
        "dense": (h, h),
        "dense_h_to_4h": (h, inner),
        "dense_4h_to_h": (inner, h),
    }
    lm = auto.endswith("CausalLM")
    head = (0 if get("tie_word_embeddings") else v * h) if lm else h * labels
    bias = 4 * h if get("attention_bias", default=True) else 0
    return Model(
        v * h + 2 * h,
        (Stack(get("num_hidden_layers"), h, inner, matrices, bias + inner + h + 4 * h, NEOX),),
        head,
        v * h if lm else 0,
        v if lm else 0,
        get("num_attention_heads"),
        ("query_key_value",),
        (get("hidden_dropout"), get("attention_dropout")),
    )


def _llama(get: Config, auto: str, labels: int) -> Model:
    h, v, inner, heads = get("hidden_size"), get("vocab_size"), get("intermediate_size"), get("num_attention_heads")
    size = get("head_dim") or h // heads
    keys = (get("num_key_value_heads") or heads) * size
    queries = heads * size
    matrices = {
        "q_proj": (h, queries),
        "k_proj": (h, keys),
        "v_proj": (h, keys),
        "o_proj": (queries, h),
        "gate_proj": (h, inner),
        "up_proj": (h, inner),
        "down_proj": (inner, h),
    }
    kind = get("model_type")
    rest = 2 * h + (2 * size if kind == "qwen3" else 0)
    rest += queries + 2 * keys if kind == "qwen2" or get("attention_bias", default=False) else 0
    rest += h if kind != "qwen2" and get("attention_bias", default=False) else 0
    rest += 2 * inner + h if get("mlp_bias", default=False) else 0
    lm = auto.endswith("CausalLM")
    saved = QWEN3 if kind == "qwen3" else LLAMA
    return Model(
        v * h + h,
        (Stack(get("num_hidden_layers"), h, inner, matrices, rest, saved, keys / queries),),
        (0 if get("tie_word_embeddings") else v * h) if lm else h * labels,
        v * h if lm else 0,
        v if lm else 0,
        heads,
        ("q_proj", "v_proj"),
        (0.0, get("attention_dropout", default=0.0)),
    )


def _bert(get: Config, auto: str, labels: int) -> Model:
    kind, v = get("model_type"), get("vocab_size")
    h, inner = get("hidden_size", "dim"), get("intermediate_size", "hidden_dim")
    e = get("embedding_size", default=None) or h
    distil = kind == "distilbert"
    names = ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2") if distil else (
        "query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"
    )  # fmt: skip
    shapes = (*[(h, h)] * 4, (h, inner), (inner, h))
    segments, places = get("type_vocab_size", default=0), get("max_position_embeddings")
    # RoFormer's positions are computed, and kept among its weights.
    fixed = places * (h // get("num_attention_heads", "n_heads")) if kind == "roformer" else 0
    around = fixed or places * e
    around += _linear(e, h) if e != h else 0
    lm = auto.endswith("MaskedLM")
    middle = e if kind in ("roformer", "electra") else h
    pooler = _linear(h, h)
    pooled = {"SequenceClassification": pooler, "MultipleChoice": 0 if kind == "roformer" else pooler}
    # BERT's pooler belongs to the model below its head; RoBERTa has one for choices alone.
    chooses = auto.endswith("MultipleChoice") and kind in ("roberta", "xlm-roberta", "camembert")
    bert = kind == "bert" and auto.endswith(("SequenceClassification", "MultipleChoice"))
    inside = pooler if chooses or bert else 0
    head = _linear(h, middle) + 2 * middle + v if lm else _on_encoder(auto, h, labels, pooled)
    dropouts = Kind(BERT.fp32, BERT.bf16, BERT.frozen, 1) if distil else ROFORMER if kind == "roformer" else BERT
    return Model(
        (v + (0 if distil else segments)) * e + 2 * e + around,
        (
            Stack(
                get("num_hidden_layers", "n_layers"),
                h,
                inner,
                dict(zip(names, shapes, strict=True)),
                4 * h + inner + h + 4 * h,
                dropouts,
            ),
        ),
        head,
        v * middle if lm else 0,
        v if lm else 0,
        get("num_attention_heads", "n_heads"),
        ("q_lin", "v_lin") if distil else ("query", "value"),
        (
            get("hidden_dropout_prob", "dropout"),
            get("attention_probs_dropout_prob", "attention_dropout"),
        ),
        inside,
        fixed,
    )


def _modernbert(get: Config, auto: str, labels: int) -> Model:
    h, v, inner, layers = get("hidden_size"), get("vocab_size"), get("intermediate_size"), get("num_hidden_layers")
    matrices = {"Wqkv": (h, 3 * h), "attn.Wo": (h, h), "Wi": (h, 2 * inner), "mlp.Wo": (inner, h)}
    lm = auto.endswith("MaskedLM")
    return Model(
        v * h + 2 * h - h,  # the first layer has no norm before its attention
        (Stack(layers, h, inner, matrices, 2 * h, MODERNBERT),),
        h * h + h + (v if lm else _linear(h, 1 if auto.endswith("MultipleChoice") else labels)),
        v * h if lm else 0,
        v if lm else 0,
        get("num_attention_heads"),
        ("Wqkv",),
        (0.0, get("attention_dropout", default=0.0)),
    )


def _t5(get: Config, auto: str, labels: int) -> Model:
    h, v, inner, size = get("d_model"), get("vocab_size"), get("d_ff"), get("d_kv") * get("num_heads")
    attention = {"q": (h, size), "k": (h, size), "v": (h, size), "o": (size, h)}
    gated = str(get("feed_forward_proj", default="relu")).startswith("gated")
    forward = dict.fromkeys(("wi_0", "wi_1") if gated else ("wi",), (h, inner)) | {"wo": (inner, h)}
    cross = {f"cross.{name}": shape for name, shape in attention.items()}
    layers = get("num_layers")
    decoder = get("num_decoder_layers") or layers
    buckets = 2 * get("relative_attention_num_buckets") * get("num_heads")
    return Model(
        v * h + 2 * h + buckets,
        (
            Stack(layers, h, inner, {**attention, **forward}, 2 * h, T5_READS),
            Stack(decoder, h, inner, {**attention, **cross, **forward}, 3 * h, T5_WRITES),
        ),
        0 if get("tie_word_embeddings", default=True) else v * h,
        v * h,
        v,
        get("num_heads"),
        ("q", "v"),
        (get("dropout_rate"), 0.0),
    )


def _bart(get: Config, auto: str, labels: int) -> Model:
    h, v, marian = get("d_model"), get("vocab_size"), get("model_type") == "marian"
    attention = dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), (h, h))
    cross = {f"cross.{name}": shape for name, shape in attention.items()}
    stacks = []
    for part, beside, kind in (("encoder", {}, BERT), ("decoder", cross, BART_WRITES)):
        inner = get(f"{part}_ffn_dim")
        matrices = {**attention, **beside, "fc1": (h, inner), "fc2": (inner, h)}
        rest = (4 * h + 2 * h) * (2 if beside else 1) + inner + h + 2 * h
        stacks.append(Stack(get(f"{part}_layers"), h, inner, matrices, rest, kind))
    places = 2 * (get("max_position_embeddings") + (0 if marian else 2)) * h
    return Model(
        v * h + places + (0 if marian else 4 * h),
        tuple(stacks),
        0,
        v * h,
        v,
        get("encoder_attention_heads"),
        ("q_proj", "v_proj"),
        (get("dropout"), get("attention_dropout")),
        fixed=places if marian else 0,
    )


FAMILIES: dict[str, Callable[[Config, str, int], Model]] = {
    "gpt2": _gpt2,
    "gpt_neox": _neox,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _llama),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "roformer"), _bert),
    "modernbert": _modernbert,
    **dict.fromkeys(("t5", "mt5"), _t5),
    **dict.fromkeys(("bart", "marian"), _bart),
}


def model_of(config: Mapping[str, Any], auto_class: str) -> Model | None:
    """Describe the architecture of a configuration under a head of transformers' `auto_class`; None for others.

    Keys that `config` lacks have the defaults of transformers' class, read from its source.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or auto_class.endswith("PreTraining"):
        return None
    defaults, names = upstream.architecture(str(config["model_type"]))
    own = {names.get(key, key): value for key, value in config.items()}
    settings = {**defaults, **own}
    labels = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)

    def get(*keys: str, default: Any = ...) -> Any:
        for key in keys:
            if key in settings:
                return settings[key]
        if default is ...:
            raise KeyError(keys[0])
        return default

    try:
        return family(get, auto_class, labels)
    except (KeyError, TypeError, ZeroDivisionError):  # a configuration of another shape
        return None


@dataclass(frozen=True)
class Needs:
    """What a training takes.

    Attributes:
        parameters: of the model, shared ones once.
        trained: how many of them are trained, those of an adapter included.
        memory: bytes by kind: weights, gradients, optimizer (where it is known), activations, logits.
        peak: bytes of tensors at the peak of a step: gradients come as activations go.
        flops: floating-point operations of a step, of all processes.
        model_bytes: of the finished model on the disk.
        checkpoint_bytes: of each checkpoint.
        checkpoints: how many are kept.
    """

    parameters: int
    trained: int
    memory: Mapping[str, int]
    peak: int
    flops: float
    model_bytes: int
    checkpoint_bytes: int
    checkpoints: int

    @property
    def disk(self) -> int:
        return self.model_bytes + self.checkpoints * self.checkpoint_bytes


@dataclass(frozen=True)
class Batch:
    """A micro-batch and how it is trained on: `size` inputs of `length` tokens, of which a share has `labels`."""

    size: int
    length: int
    labels: float = 1.0
    written: int = 0  # tokens of a decoder's text
    accumulated: int = 1
    processes: int = 1
    bf16: bool = False
    checkpointing: bool = False
    fused: bool = True
    on_gpu: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)  # of [trainer]


def held(parameters: int, trained: int, optimizer: str) -> dict[str, int]:
    """Compute the bytes that training holds in fp32, by what they are for; an optimizer's only where they are known."""
    sizes = {"weights": 4 * parameters, "gradients": 4 * trained}
    return {**sizes, "optimizer": 4 * MOMENTS[optimizer] * trained} if optimizer in MOMENTS else sizes


def needs(model: Model, batch: Batch, train: str = "all", lora: Mapping[str, Any] | None = None) -> Needs:
    """Calculate what a training takes.

    Args:
        model: The model.
        batch: The longest micro-batch.
        train: The recipe's `model.train`.
        lora: The recipe's [lora].

    Returns:
        What it takes.
    """
    parameters, trained, layers = _trained(model, train, lora)
    memory = held(parameters, trained, str(batch.settings.get("optim", OPTIMIZER)))
    tokens = batch.size * batch.length
    written = batch.size * batch.written
    activations = logits = flops = 0.0
    recomputed = 0.0  # one layer at a time, when the logits are gone
    for number, stack in enumerate(model.stacks):
        mine, length = (written, batch.written) if number else (tokens, batch.length)
        through = min(stack.layers, layers)
        one = _saved(stack, model, batch, length, frozen=lora is not None) * mine
        if batch.checkpointing:
            activations += 4 * stack.hidden * mine * through
            recomputed = max(recomputed, one)
        else:
            activations += one * through
        if batch.bf16 and lora is None:  # autocast's copies
            activations += 2 * stack.layer_matrices * through
        backward = 2 if lora is None else 1  # frozen weights have no gradient
        passes = 1 + backward * through / max(1, stack.layers) + (1 if batch.checkpointing else 0)
        flops += 2 * passes * mine * stack.layers * (stack.layer_matrices + 2 * length * stack.hidden)
    predicted = (written or tokens) * batch.labels
    if model.vocabulary:
        rows = max(1, LOGITS_AT_ONCE // model.vocabulary)
        logits = 3 * 4 * model.vocabulary * (min(predicted, rows) if batch.fused else predicted)
        flops += 2 * (3 if lora is None else 2) * predicted * model.head_matrices
    activations += max(0.0, recomputed - logits)
    memory |= {"activations": round(activations), "logits": round(logits)}
    at_once = memory["activations"] + memory["logits"] + (memory["gradients"] if batch.accumulated > 1 else 0)
    peak = memory["weights"] + memory.get("optimizer", 0) + max(at_once, memory["gradients"])
    written_model = 4 * (parameters if lora is None else trained)
    state = memory.get("optimizer", 0)
    kept = batch.settings.get("save_total_limit") or 2
    saves = batch.settings.get("save_strategy", "steps") != "no"
    return Needs(
        parameters,
        trained,
        memory,
        peak,
        flops * batch.accumulated * batch.processes,
        written_model,
        written_model + state,
        kept if saves else 0,
    )


def _trained(model: Model, train: str, lora: Mapping[str, Any] | None) -> tuple[int, int, int]:
    """Count all parameters, those that are trained, and the layers that gradients pass through."""
    every = max(stack.layers for stack in model.stacks)
    if lora is not None:
        rank = lora.get("r", LORA_RANK)
        wanted = lora.get("target_modules") or model.adapted
        beside = 0
        for stack in model.stacks:
            for name, (inputs, outputs) in stack.matrices.items():
                last = name.split(".")[-1]
                if wanted == "all-linear" or last in ([wanted] if isinstance(wanted, str) else wanted):
                    beside += stack.layers * rank * (inputs + outputs)
        head = 0 if model.vocabulary else model.head - model.pooler
        return model.parameters + beside + head, beside + head, every  # peft trains a copy of the head
    if train == "all":
        return model.parameters, model.parameters - model.fixed, every
    count = 0 if train == "head" else int(train.removeprefix("top-"))
    of_layers = sum(min(count, stack.layers) * stack.parameters // stack.layers for stack in model.stacks)
    frozen = 0 if count else model.pooler  # it comes behind the layers
    return model.parameters, model.head - frozen + of_layers, count


def _saved(stack: Stack, model: Model, batch: Batch, length: int, frozen: bool) -> float:
    """Return the bytes that a layer saves for each token."""
    kind = stack.kind
    saved = kind.bf16 if batch.bf16 else kind.fp32
    if frozen and kind.frozen is not None:
        saved = kind.frozen[batch.bf16]
    hidden, attention = model.dropout
    width = 2 if batch.bf16 else 4
    found = (saved.wide + saved.shared * stack.key_share) * stack.hidden + saved.inner * stack.inner
    found += saved.scores * model.heads * length
    found += width * kind.dropouts * stack.hidden if hidden else 0
    if attention and not batch.on_gpu:  # there is a kernel for it; a CPU keeps the scores
        found += 12 * model.heads * length
    return found


# ---- of a recipe ---------------------------------------------------------------------------------------------------


def config_of(recipe: Recipe) -> dict[str, Any] | None:
    """Read the configuration that `[model]` describes: config.json alone, under the recipe's overrides; None where
    there is none. Raises UserError where the Hub does not give it.
    """
    table, config = recipe.model, {}
    if table.name is not None:
        folder = Path(table.name)
        if disk.is_file(folder / "config.json"):
            path = folder / "config.json"
        elif disk.exists(folder):
            return None
        else:
            from huggingface_hub import hf_hub_download

            revision = hub.commit(table.name, table.revision)
            with hub.loading(table.name, "model"):
                path = Path(hf_hub_download(table.name, "config.json", revision=revision))
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
    if recipe.task in PRETRAINING:  # llmkit's own default (`models.config`)
        for key in ("attn_pdrop", "attention_probs_dropout_prob", "attention_dropout"):
            config[key] = 0.0
    config = {**config, **table.config}
    if recipe.tokenizer.type is not None and "vocab_size" not in table.config:
        config["vocab_size"] = recipe.tokenizer.vocab_size
    return config


def on_gpu(recipe: Recipe) -> bool:
    """Tell whether there is a GPU to train on, by its device file."""
    return not recipe.trainer.get("use_cpu") and any(map(disk.exists, map(Path, ("/dev/nvidia0", "/dev/kfd"))))


def of_recipe(recipe: Recipe, processes: int = 1) -> Needs | None:
    """Calculate what a recipe takes by its keys alone; inputs are taken for as long as they may be.

    None where that is not known. Raises UserError where the batch cannot be divided among the `processes`, or the Hub
    does not give the model's config.json.
    """
    config = config_of(recipe)
    batches, _ = global_batch.divide(recipe, processes)
    return None if config is None else of_config(recipe, config, {**recipe.trainer, **batches}, processes)


def of_config(
    recipe: Recipe,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    processes: int,
    longest: int | None = None,
) -> Needs | None:
    """Calculate what a recipe takes whose model is configured so, and whose [trainer] has become `settings`.

    `longest` is the number of tokens of the longest row, where that is known. None where the recipe is made of several
    tasks, the architecture is not in FAMILIES, or the weights are divided among processes or in 4 bits.
    """
    divided = recipe.model.load_in_4bit or settings.get("fsdp") or settings.get("deepspeed")
    if recipe.task not in TASKS or recipe.data is None or divided:
        return None
    model = model_of(config, TASKS[recipe.task].auto_class)
    if model is None:
        return None
    return needs(model, batch_of(recipe, config, processes, settings, longest), recipe.model.train, recipe.lora)


def batch_of(
    recipe: Recipe,
    config: Mapping[str, Any],
    processes: int,
    settings: Mapping[str, Any],
    longest: int | None = None,
) -> Batch:
    """Describe the longest micro-batch of a recipe; the arguments are those of `of_config`."""
    data = recipe.data
    places = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(data, TextData):
        length = data.block_size or min(places or LONGEST_BLOCK, LONGEST_BLOCK)
        written = length if TASKS[recipe.task].auto_class.endswith("Seq2SeqLM") else 0
    else:
        assert isinstance(data, RowData)
        length = longest or data.max_length or min(places or LONGEST_INPUT, LONGEST_INPUT)
        written = getattr(data, "max_target_length", 0) or 0
    gpu = on_gpu(recipe)
    precise = "bf16" in settings or "fp16" in settings
    return Batch(
        size=settings.get("per_device_train_batch_size", 8),
        length=length,
        labels=getattr(data, "mlm_probability", 1.0) if recipe.speed.skip_ignored else 1.0,
        written=written,
        accumulated=settings.get("gradient_accumulation_steps", 1),
        processes=processes,
        bf16=bool(settings.get("bf16") or settings.get("fp16") or (gpu and not precise)),
        checkpointing=bool(settings.get("activation_checkpointing") or settings.get("gradient_checkpointing")),
        fused=recipe.speed.fused_loss and not settings.get("label_smoothing_factor"),
        on_gpu=gpu,
        settings=settings,
    )


def lines(found: Needs, steps: int | None = None, longest: bool = False) -> list[tuple[str, str]]:
    """Say in words what a training takes, as pairs of a name and a text.

    `steps` is the number of all steps, `longest` tells that inputs were taken for as long as they may be.
    """
    parts = ", ".join(f"{name} {in_bytes(size)}" for name, size in found.memory.items() if size)
    upto = " at most" if longest else ""
    unknown = "" if "optimizer" in found.memory else ", without the optimizer's"
    files = f"{in_bytes(found.disk)} at most: the model {in_bytes(found.model_bytes)}"
    if found.checkpoints:
        each = in_bytes(found.checkpoint_bytes)
        files += f", {found.checkpoints} checkpoint{'s' * (found.checkpoints > 1)} of {each}"
    whole = "" if steps is None else f", {found.flops * steps:.3g} in all"
    return [
        ("memory", f"about {in_bytes(found.peak)}{upto} at the peak of a step{unknown}: {parts}"),
        ("disk", files),
        ("compute", f"{found.flops:.3g} operations a step{whole}"),
    ]


def head(recipe: Recipe, processes: int | None) -> list[tuple[str, str]]:
    """Say what a recipe takes before anything heavy is imported; nothing where that is not known.

    What is wrong with the recipe is told by what comes after it.
    """
    if processes is None:
        processes = max(1, len(list(Path("/dev").glob("nvidia[0-9]*")))) if on_gpu(recipe) else 1
    try:
        found = of_recipe(recipe, processes)
    except UserError:
        return []
    steps = recipe.trainer.get("max_steps", -1)
    longest = recipe.task not in PRETRAINING
    return [] if found is None else lines(found, steps if steps > 0 else None, longest)


def in_bytes(count: float) -> str:
    """Write a number of bytes in MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else megabytes(count)


def megabytes(count: float) -> str:
    """Write a number of bytes in MB."""
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"
