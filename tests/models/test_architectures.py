"""Each architecture knows the tasks of pretraining that it is made for, and is refused in words for the others."""

import pytest
from transformers import AutoConfig

from llmkit.errors import UserError
from llmkit.models.architectures import check_architecture, fitting_tasks
from llmkit.recipe.schema import PRETRAINING

ENCODER, DECODER, BOTH = ("masked-lm",), ("causal-lm",), ("denoising",)
KINDS = {
    **dict.fromkeys(("bert", "roberta", "modernbert", "distilbert", "deberta-v2", "xlm-roberta", "albert"), ENCODER),
    "electra": ("masked-lm", "replaced-token-detection"),
    **dict.fromkeys(("gpt2", "llama", "qwen2", "qwen3", "mistral", "gpt_neox", "opt", "bloom"), DECODER),
    **dict.fromkeys(("bart", "t5", "marian", "mbart", "mt5", "pegasus"), BOTH),
    **dict.fromkeys(("vit", "wav2vec2", "clip"), ()),
}


@pytest.mark.parametrize("model_type", KINDS)
def test_an_architecture_suits_its_own_tasks_and_is_refused_for_the_others(model_type):
    config = AutoConfig.for_model(model_type)
    assert fitting_tasks(config) == KINDS[model_type]
    for task in PRETRAINING:
        if task in KINDS[model_type]:
            check_architecture(config, task)
            continue
        with pytest.raises(UserError) as refused:
            check_architecture(config, task)
        assert f"({model_type})" in refused.value.message
        for fitting in KINDS[model_type]:
            assert fitting in refused.value.hint


def test_a_bert_that_is_a_decoder_suits_causal_lm():
    config = AutoConfig.for_model("bert", is_decoder=True)
    assert fitting_tasks(config) == ("causal-lm",)
    check_architecture(config, "causal-lm")
    with pytest.raises(UserError):
        check_architecture(config, "masked-lm")


def test_why_an_encoder_is_refused_is_said_in_words():
    with pytest.raises(UserError) as refused:
        check_architecture(AutoConfig.for_model("bert"), "causal-lm")
    assert refused.value.message == (
        "[model]: Bert (bert) is an encoder (each token sees those on both sides); causal-lm does not fit it"
    )
    assert refused.value.hint == "its task is masked-lm; causal-lm is for a decoder, such as gpt2 or llama"


def test_code_of_its_own_is_believed():
    config = AutoConfig.for_model("vit")
    config.auto_map = {"AutoModelForCausalLM": "modeling.Mine"}
    check_architecture(config, "causal-lm")
