"""The record of each task: what it names is there in the installed libraries, and says what other modules said."""

import subprocess
import sys

import peft
import pytest
import transformers

from llmkit.recipe.tasks import TASKS, alike, task_of_adapter, task_of_architecture


@pytest.mark.parametrize("record", TASKS.values(), ids=TASKS)
def test_what_a_record_names_is_there(record):
    assert hasattr(transformers, record.auto_class)
    assert record.peft_type is None or record.peft_type in peft.TaskType.__members__


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("ElectraForPreTraining", "replaced-token-detection"),
        ("BertForPreTraining", "masked-lm"),
        ("GPT2LMHeadModel", "causal-lm"),
        ("LlamaForCausalLM", "causal-lm"),
        ("MarianMTModel", "seq2seq"),
        ("T5ForConditionalGeneration", "seq2seq"),
        ("BertForMultipleChoice", "multiple-choice"),
        ("BertModel", None),
    ],
)
def test_an_architecture_tells_its_task_by_the_longest_suffix(architecture, task):
    assert task_of_architecture(architecture) == task


def test_an_adapter_tells_its_task_by_the_first_that_has_architectures():
    kinds = {"SEQ_CLS": "text-classification", "SEQ_2_SEQ_LM": "seq2seq", "CAUSAL_LM": "causal-lm"}
    assert {kind: task_of_adapter(kind) for kind in (*kinds, None, "FEATURE_EXTRACTION")} == {
        **kinds,
        None: None,
        "FEATURE_EXTRACTION": None,
    }


def test_tasks_of_one_class_of_models_are_alike():
    pairs = {(a, b) for a in TASKS for b in TASKS if a < b and alike(a, b)}
    assert pairs == {("causal-lm", "chat"), ("denoising", "seq2seq")}
    assert not alike("multi-task", "multi-task")


def test_records_are_read_without_torch():
    code = "import sys, llmkit.recipe.tasks; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
