"""Tiny models of each architecture, and what they compute."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    set_seed,
)

from llmkit.errors import UserError
from llmkit.models import loading
from llmkit.models.config import load_config
from llmkit.models.weights import create_model
from llmkit.recipe.schema import Model

VOCABULARY = 40
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
SIZES |= {"max_position_embeddings": 24, "vocab_size": VOCABULARY}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
OWN = {
    "distilbert": {"hidden_dim": 32},
    "albert": {"embedding_size": 8},
    "gpt2": {"pad_token_id": None},
    "electra": {"embedding_size": 8},
    "llama": {"num_key_value_heads": 2},
    "modernbert": {"local_attention": 8},
}
DECODERS = ("gpt2", "llama")
# What a classifier made of each language model has that its weights do not hold.
NEW = {
    "bert": {"bert.pooler", "classifier"},
    "distilbert": {"pre_classifier", "classifier"},
    "roberta": {"classifier"},
    "albert": {"albert.pooler", "classifier"},
    "modernbert": {"classifier"},
    "electra": {"classifier"},
    "gpt2": {"score"},
    "llama": {"score"},
}
LABELS = {"num_labels": 3, "id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
IDS = torch.tensor([[5, 9, 13, 7], [8, 3, 21, 30]])


def classifier(folder, seed=0, lora=None, **options):
    """`create_model` for three labels, and its notes."""
    table = Model(name=folder, **options)
    config, _ = load_config(table, finetuning=True)
    config.update(LABELS)
    return create_model(table, config, AutoModelForSequenceClassification, seed, lora, task_type="SEQ_CLS")


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def outputs(model, ids=IDS):
    """All logits in a row; inputs one by one, since a batch of GPT-2's needs a padding token."""
    with torch.no_grad():
        found = [model.eval()(input_ids=row[None]) for row in ids]
    return torch.cat([x[key].flatten() for x in found for key in ("logits", "start_logits", "end_logits") if key in x])


def refused(call, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


NARROW = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
NARROW |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": VOCABULARY}
NARROW |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
STACKS = {
    "bart": NARROW,
    "marian": {**NARROW, "decoder_vocab_size": VOCABULARY},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": VOCABULARY},
}
STACKS["t5"] |= {"decoder_start_token_id": 0}


def language_model(kind, folder, **config):
    """A language model of one kind, saved with biases and rows that are all different, and its class."""
    if kind in STACKS:
        model_class, sizes = AutoModelForSeq2SeqLM, STACKS[kind]
    else:
        model_class = AutoModelForCausalLM if kind in DECODERS else AutoModelForMaskedLM
        sizes = {**SIZES, **OWN.get(kind, {})}
    set_seed(1)
    model = model_class.from_config(AutoConfig.for_model(kind, **{**sizes, **config}))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.2)
    with loading.quiet():
        model.save_pretrained(folder)
        return model_class.from_pretrained(folder), model_class
