"""Architectures in numbers: parameters, matrices, and the bytes that autograd saves in a layer for each token.

Parameters are exact for those in FAMILIES. The bytes were counted once with `torch.autograd.graph.saved_tensors_hooks`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.recipe import upstream


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
