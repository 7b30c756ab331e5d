"""Write a language model as GGUF, for llama.cpp, Ollama and LM Studio; read it back, and keep it only if it agrees.

Layout and names are those of llama.cpp's own converter, of which the package `gguf` (0.19) holds the tables. What that
converter does to tensors is done here: q and k of llama's family are interleaved for its rotary embedding, GPT-2's
Conv1D weights are transposed, vectors and learned positions stay in fp32.
"""

import copy
import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from llmkit import hub, process
from llmkit.errors import RunError, UserError
from llmkit.models import loading
from llmkit.recipe.schema import GENERATION_DEFAULTS

Precision = Literal["f32", "f16", "bf16", "q8_0"]
BLOCK = 32  # weights that share a scale in q8_0
# The largest difference of a logit; of q8_0 that of the perplexity, as a share, and the share of equal best tokens.
LOGITS: dict[str, float] = {"f32": 1e-4, "f16": 0.2, "bf16": 0.2}
PERPLEXITY, EQUAL = 0.005, 0.99
LENGTH = 128  # tokens of each text that the two are compared on
QUESTIONS = (
    "What is the capital of France?",
    "Write three sentences about a lighthouse.",
    "Explain why the sky is blue.",
    "用一句话介绍北京。",
)

# The splits of text before BPE that llama.cpp knows by name, as tokenizers writes them.
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def write(name: str, output: Path, precision: Precision, modelfile: Path) -> dict[str, float]:
    """Write the model `name` into the file `output`, and how Ollama runs it into `modelfile`.

    Returns how far the file is from the model, as `compare` measures it. Raises UserError where GGUF, or this writer of
    it, has no place for the architecture or the tokenizer, and RunError where the file does not agree with the model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with hub.loading(name, "model"):
        config = AutoConfig.from_pretrained(name, revision=hub.commit(name), trust_remote_code=False)
    architecture_of(config)  # before weights are read that may not fit
    model = loading.load_model(name, AutoModelForCausalLM).float().cpu()
    tokenizer = loading.load_tokenizer(name, hub.commit(name))
    process.collect_from_here()
    write_file(model, tokenizer, output, precision)
    modelfile.write_text(modelfile_of(model, tokenizer, output.name))
    return compare(model, tokenizer, output, precision)


def write_file(model: Any, tokenizer: Any, output: Path, precision: Precision) -> None:
    """Write a model and its tokenizer as GGUF."""
    import gguf

    config = model.config
    architecture = architecture_of(config)
    pre = pre_tokenizer_of(tokenizer)
    writer = gguf.GGUFWriter(output, architecture)
    writer.add_name(output.stem)
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if precision == 'f32' else 'MOSTLY'}_{precision.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in sizes(config, architecture).items():
        name = key.format(arch=architecture)
        if "epsilon" in key or "freq_base" in key:
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, int(value))
    _add_tokenizer(writer, model, tokenizer, pre)
    kind = gguf.GGMLQuantizationType[precision.upper()]
    for tensor, values in tensors(model, architecture):
        own = kind
        if values.ndim == 1 or tensor.startswith("position_embd"):
            own = gguf.GGMLQuantizationType.F32
        elif precision == "q8_0" and values.shape[-1] % BLOCK:
            own = gguf.GGMLQuantizationType.F16
        writer.add_tensor(tensor, gguf.quants.quantize(values, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- the model -----------------------------------------------------------------------------------------------------


def architecture_of(config: Any) -> str:
    """Return GGUF's name of the architecture; raise UserError for one that is not written."""
    kind = config.model_type
    if kind not in ("llama", "qwen2", "qwen3", "gpt2"):
        raise UserError(
            f"{kind} cannot be written as GGUF: llmkit writes llama (and SmolLM), qwen2, qwen3 and gpt2",
            "use --format onnx, or convert_hf_to_gguf.py of llama.cpp",
        )
    rope = getattr(config, "rope_parameters", None) or {}
    if kind != "gpt2" and rope.get("rope_type", "default") != "default":
        raise UserError(f"a rotary embedding of the type {rope['rope_type']} cannot be written as GGUF by llmkit")
    if getattr(config, "use_sliding_window", False):
        raise UserError("sliding windows cannot be written as GGUF by llmkit")
    odd = {"activation_function": "gelu_new", "hidden_act": "silu", "scale_attn_weights": True}
    odd |= {"scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False, "add_cross_attention": False}
    for key, usual in odd.items():
        value = getattr(config, key, usual)
        if value != usual and not (key == "activation_function" and value == "gelu_pytorch_tanh"):
            raise UserError(f"{key} = {value} cannot be written as GGUF: llama.cpp computes {kind} with {usual}")
    return str(kind)


def sizes(config: Any, architecture: str) -> dict[str, float]:
    """Return what llama.cpp must know of the architecture, by GGUF's key."""
    from gguf import Keys

    heads = config.num_attention_heads
    found = {
        Keys.LLM.CONTEXT_LENGTH: config.max_position_embeddings,
        Keys.LLM.EMBEDDING_LENGTH: config.hidden_size,
        Keys.LLM.BLOCK_COUNT: config.num_hidden_layers,
        Keys.LLM.VOCAB_SIZE: config.vocab_size,
        Keys.Attention.HEAD_COUNT: heads,
    }
    if architecture == "gpt2":
        return found | {
            Keys.LLM.FEED_FORWARD_LENGTH: config.n_inner or 4 * config.hidden_size,
            Keys.Attention.LAYERNORM_EPS: config.layer_norm_epsilon,
        }
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return found | {
        Keys.LLM.FEED_FORWARD_LENGTH: config.intermediate_size,
        Keys.Attention.HEAD_COUNT_KV: config.num_key_value_heads,
        Keys.Attention.LAYERNORM_RMS_EPS: config.rms_norm_eps,
        Keys.Attention.KEY_LENGTH: size,
        Keys.Attention.VALUE_LENGTH: size,
        Keys.Rope.FREQ_BASE: config.rope_parameters["rope_theta"],
        Keys.Rope.DIMENSION_COUNT: size,
    }


def tensors(model: Any, architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each tensor under GGUF's name, in fp32 and in GGUF's layout; one that is shared only once."""
    import gguf

    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if tied and name == "lm_head.weight":
            continue
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if own is None:
            raise UserError(f"GGUF has no place for the tensor {name} of {architecture}")
        values = parameter.detach().float()
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = interleaved(values, heads)
        if (
            architecture == "gpt2"
            and values.ndim == 2
            and name.rpartition(".")[0].endswith(("c_attn", "c_proj", "c_fc"))
        ):
            values = values.T
        yield own, values.contiguous().numpy()


def interleaved(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of each head from two halves, as transformers rotates them, to pairs, as llama.cpp does."""
    shape = (heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)


# ---- the tokenizer -------------------------------------------------------------------------------------------------


def splits() -> dict[str, list[dict[str, Any]]]:
    """Return the splits of text that llama.cpp knows, by its names, as steps of tokenizers' pre-tokenizers."""

    def split(pattern: str) -> dict[str, Any]:
        return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}

    after = {**_BYTES, "use_regex": False}
    return {
        "gpt-2": [{**_BYTES, "use_regex": True}],
        "smollm": [{"type": "Digits", "individual_digits": True}, {**_BYTES, "use_regex": True}],
        "qwen2": [split(_QWEN2), after],
        "llama-bpe": [split(_LLAMA3), after],
    }


def pre_tokenizer_of(tokenizer: Any) -> str:
    """Return llama.cpp's name of how the tokenizer splits text; raise UserError for one that it cannot name."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model, pre, normalizer = content["model"], content["pre_tokenizer"], content["normalizer"]

    def refuse(why: str) -> UserError:
        return UserError(
            f"llama.cpp cannot be told of this tokenizer: {why}",
            'GGUF is written for byte-level BPE: train with tokenizer.type = "byte-bpe", or export with --format onnx',
        )

    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise refuse(f"it is {model['type']}{', with bytes as a fallback' * bool(model.get('byte_fallback'))}")
    if model.get("dropout") or model.get("ignore_merges") or model.get("continuing_subword_prefix"):
        raise refuse("its BPE has an option that GGUF has no word for")
    steps = (pre or {}).get("pretokenizers", [pre])
    shown = [{**step, "trim_offsets": True} if step and step["type"] == "ByteLevel" else step for step in steps]
    name = next((name for name, known in splits().items() if shown == known), None)
    if name is None:
        raise refuse(
            f"its pre-tokenizer ({', '.join(step['type'] for step in steps if step)}) is not one that it knows"
        )
    if normalizer is not None and not (normalizer["type"] == "NFC" and name == "qwen2"):
        raise refuse(f"it normalizes text ({normalizer['type']})")
    return name


def _add_tokenizer(writer: Any, model: Any, tokenizer: Any, pre: str) -> None:
    import gguf

    tokens, types = vocabulary(tokenizer, model.config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType[kind] for kind in types])
    writer.add_token_merges(merges(tokenizer))
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_eot_token_id, end_of_turn(model, tokenizer)),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(adds_bos(tokenizer))
    if template := chat_template(tokenizer):
        writer.add_chat_template(template)


def vocabulary(tokenizer: Any, size: int) -> tuple[list[str], list[str]]:
    """Return the `size` tokens by id and their types; ids that the tokenizer does not use get a name of their own."""
    tokens, types = [f"[PAD{number}]" for number in range(size)], ["UNUSED"] * size
    for token, number in tokenizer.get_vocab().items():
        tokens[number], types[number] = token, "NORMAL"
    for number, added in tokenizer.added_tokens_decoder.items():
        tokens[number], types[number] = added.content, "CONTROL" if added.special else "USER_DEFINED"
    return tokens, types


def merges(tokenizer: Any) -> list[str]:
    found = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in found]


def chat_template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def adds_bos(tokenizer: Any) -> bool:
    """Tell whether the tokenizer puts its first token before a text; raise UserError if it adds any other."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    if whole not in (bare, [tokenizer.bos_token_id, *bare]):
        raise UserError("the tokenizer adds tokens to a text that llama.cpp would not add")
    return whole != bare


def end_of_turn(model: Any, tokenizer: Any) -> int | None:
    """Return the token that ends an answer, where that is not the end of the text."""
    ends = model.generation_config.eos_token_id
    others = [end for end in (ends if isinstance(ends, list) else [ends]) if end not in (None, tokenizer.eos_token_id)]
    return others[0] if others else None


# ---- what was written ----------------------------------------------------------------------------------------------


def compare(model: Any, tokenizer: Any, file: Path, precision: Precision) -> dict[str, float]:
    """Read a GGUF file back with transformers and compare it with the model that it was written from.

    Vocabulary, merges, special tokens and chat template must be equal, and so must the tokens of texts. Returns, for
    texts that the model writes, `tokens` (their number), `logits` (the largest difference), `equal` (the share of
    positions with the same best token) and `perplexity` (the difference as a share).

    Raises:
        RunError: They differ by more than the precision explains.
    """
    from transformers import AutoModelForCausalLM

    wrong = _differences(model, tokenizer, file)
    if wrong:
        raise RunError(f"the GGUF file does not agree with the model: {', '.join(wrong)}", "nothing is left of it")
    with loading.quiet(), redirect_stderr(io.StringIO()):  # upstream's bar
        # With the model's own configuration: of GPT-2 and Qwen3 transformers 5.23 reads only a part of it there.
        again = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=copy.deepcopy(model.config),
            dtype=torch.float32,
            trust_remote_code=False,
        ).eval()
    logits, equal, losses = 0.0, 0, [0.0, 0.0]
    texts = written(model, tokenizer)
    for ids in texts:
        with torch.inference_mode():
            ours, theirs = (each(ids[None]).logits[0] for each in (model, again))
        logits = max(logits, (ours - theirs).abs().max().item())
        equal += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        for number, values in enumerate((ours, theirs)):
            losses[number] += torch.nn.functional.cross_entropy(values[:-1], ids[1:], reduction="sum").item()
    count = sum(len(ids) for ids in texts)
    change = math.exp((losses[1] - losses[0]) / max(1, count - len(texts))) - 1
    found = {"tokens": float(count), "logits": logits, "equal": equal / count, "perplexity": change}
    if precision in LOGITS:
        agrees = found["logits"] <= LOGITS[precision]
    else:
        agrees = found["equal"] >= EQUAL and abs(found["perplexity"]) <= PERPLEXITY
    if not agrees:
        shown = ", ".join(f"{key} {value:.2e}" for key, value in found.items() if key != "tokens")
        raise RunError(
            f"{precision} does not compute what the model does: {shown}",
            "nothing is left of it" + ("; write --precision f16" if precision in ("q8_0", "bf16") else ""),
        )
    return found


def written(model: Any, tokenizer: Any) -> list[torch.Tensor]:
    """Return texts that the model writes with llmkit's own settings, so that it knows their kind: ids of each text.

    A model with a chat template answers questions; another begins anew.
    """
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id or 0
    starts = [[begin]] * len(QUESTIONS)
    if chat_template(tokenizer):
        turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
        starts = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False) for turn in turns]
    texts, state = [], torch.get_rng_state()
    torch.manual_seed(0)
    try:
        for start in starts:
            ids = torch.tensor([start[: model.config.max_position_embeddings // 2]])
            room = min(LENGTH, model.config.max_position_embeddings - ids.shape[1])
            options = {**GENERATION_DEFAULTS, "num_beams": 1, "max_new_tokens": room, "pad_token_id": begin}
            with torch.inference_mode(), loading.quiet():
                texts.append(model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0])
        return texts
    finally:
        torch.set_rng_state(state)


def _differences(model: Any, tokenizer: Any, file: Path) -> list[str]:
    """Name what the file's tokenizer has that the model's has not, or the other way round."""
    import gguf

    fields = gguf.GGUFReader(file).fields

    def value(key: str) -> Any:
        return fields[key].contents() if key in fields else None

    tokens, types = vocabulary(tokenizer, model.config.vocab_size)
    keys = gguf.Keys.Tokenizer
    expected = {
        "tokens": (keys.LIST, tokens),
        "types of tokens": (keys.TOKEN_TYPE, [int(gguf.TokenType[kind]) for kind in types]),
        "merges": (keys.MERGES, merges(tokenizer)),
        "chat template": (keys.CHAT_TEMPLATE, chat_template(tokenizer)),
        "first token": (keys.BOS_ID, tokenizer.bos_token_id),
        "last token": (keys.EOS_ID, tokenizer.eos_token_id),
        "end of a turn": (keys.EOT_ID, end_of_turn(model, tokenizer)),
    }
    wrong = [name for name, (key, wanted) in expected.items() if value(key) != wanted]
    architecture = architecture_of(model.config)
    for key, wanted in sizes(model.config, architecture).items():
        if not math.isclose(value(key.format(arch=architecture)) or math.nan, wanted, rel_tol=1e-6):
            wrong.append(key.format(arch=architecture))
    again = rebuilt(value(keys.LIST), value(keys.TOKEN_TYPE), value(keys.MERGES), value(keys.PRE))
    texts = [*SAMPLES, tokenizer.decode(written(model, tokenizer)[0])]
    if any(again(text) != tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts):
        wrong.append("tokens of a text")
    return wrong


SAMPLES = (
    "It rained for 12 days, didn't it? In 2024 the price rose by 3,750.50 dollars.\n\n\tdef f(x):\n    return x**2\n",
    "我们在北京吃了三碗面。 Größe, façade, naïve — «да»; 🙂👩‍👩‍👧 ok...   end ",
)


def rebuilt(tokens: list[str], types: list[int], merges: list[str], pre: str) -> Callable[[str], list[int]]:
    """Build a tokenizer from what a GGUF file says alone; return what tokenizes a text with it."""
    import gguf
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    def step(settings: dict[str, Any]) -> Any:
        if settings["type"] == "Split":
            return pre_tokenizers.Split(Regex(settings["pattern"]["Regex"]), "isolated")
        if settings["type"] == "Digits":
            return pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=settings["use_regex"])

    ids = {token: number for number, token in enumerate(tokens)}
    normal = [token for token, number in ids.items() if types[number] == gguf.TokenType.NORMAL]
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    known = {token for pair in pairs for token in (*pair, "".join(pair))}
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*normal, *sorted(known)]))}
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    built.pre_tokenizer = pre_tokenizers.Sequence([step(each) for each in splits()[pre]])
    if pre == "qwen2":
        built.normalizer = normalizers.NFC()
    special = {int(gguf.TokenType.CONTROL): True, int(gguf.TokenType.USER_DEFINED): False}
    added = [AddedToken(token, special=special[types[number]], normalized=False)
             for token, number in ids.items() if types[number] in special]  # fmt: skip
    built.add_tokens(added)
    names = {built.token_to_id(token): number for token, number in ids.items() if built.token_to_id(token) is not None}
    return lambda text: [names[number] for number in built.encode(text, add_special_tokens=False).ids]


def modelfile_of(model: Any, tokenizer: Any, file: str) -> str:
    """Return a Modelfile for Ollama: the file, the settings of generation, the chat template in its language."""
    lines = [f"FROM ./{file}"]
    own = model.generation_config.to_diff_dict()
    for key, name in (("temperature", "temperature"), ("top_k", "top_k"), ("top_p", "top_p"),
                      ("repetition_penalty", "repeat_penalty")):  # fmt: skip
        if own.get(key) is not None:
            lines.append(f"PARAMETER {name} {own[key]}")
    ends = {tokenizer.eos_token_id, end_of_turn(model, tokenizer)} - {None}
    lines += [f'PARAMETER stop "{tokenizer.decode([end])}"' for end in sorted(ends)]
    if template := _go_template(tokenizer):
        lines.append(f'TEMPLATE """{template}"""')
    elif not chat_template(tokenizer):
        lines.append('TEMPLATE """{{ .Prompt }}"""')  # a writer: the prompt is continued as it is
    return "\n".join(lines) + "\n"


def _go_template(tokenizer: Any) -> str | None:
    """Write the chat template for one turn in Ollama's language; None where it is more than text around it."""
    if not chat_template(tokenizer):
        return None

    def render(*messages: tuple[str, str]) -> str:
        turns = [{"role": role, "content": content} for role, content in messages]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    system, user = "<<the system's>>", "<<the user's>>"
    try:
        alone, both = render(("user", user)), render(("system", system), ("user", user))
    except Exception:  # the template takes no system prompt, or other messages than these
        return None
    if alone.count(user) != 1 or not both.endswith(alone) or both.count(system) != 1:
        return None
    before = both.removesuffix(alone).replace(system, "{{ .System }}")
    return f"{{{{ if .System }}}}{before}{{{{ end }}}}{alone.replace(user, '{{ .Prompt }}')}{{{{ .Response }}}}"
