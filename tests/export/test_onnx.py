"""`llmkit export --format onnx`: what is compared and refused. Real exports, which take long, are in onnx_models.py."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from conftest import byte_tokenizer
from onnx import TensorProto, helper, numpy_helper
from transformers import BertConfig, BertForMaskedLM
from transformers.modeling_outputs import SequenceClassifierOutput

from llmkit.errors import RunError
from llmkit.export import onnx_compare, onnx_file, onnx_model

CONFIG = SimpleNamespace(vocab_size=300, pad_token_id=0, max_position_embeddings=32, is_encoder_decoder=False)
CONFIG.model_type, CONFIG.get_text_config = "bag", lambda: CONFIG


class Bag(torch.nn.Module):
    """A classifier of three classes: the sum of the vectors of a text's tokens."""

    config = CONFIG

    def __init__(self) -> None:
        super().__init__()
        self.vectors = torch.nn.Embedding(300, 3)

    def forward(self, input_ids, attention_mask):
        return SequenceClassifierOutput(logits=(self.vectors(input_ids) * attention_mask[..., None]).sum(1))


def written(model: Bag, folder: Path, change=lambda vectors: vectors) -> Path:
    """The same model as ONNX, by hand; `change` is what becomes of its tensor."""
    tensor = numpy_helper.from_array(change(model.vectors.weight.detach().numpy()).astype(np.float32), "vectors")
    one = numpy_helper.from_array(np.array([1]), "one")
    last = numpy_helper.from_array(np.array([2]), "last")
    nodes = [
        helper.make_node("Gather", ["vectors", "input_ids"], ["found"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["found", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["logits"], keepdims=0),
    ]
    shape = ["batch", "sequence"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "bag", inputs, outputs, [tensor, one, last])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folder.mkdir()
    onnx.save(made, folder / "model.onnx")
    return folder


@pytest.fixture
def bag() -> Bag:
    torch.manual_seed(0)
    return Bag().eval()


def compare(model: Bag, folder: Path, quantized: bool = False) -> list[str]:
    return onnx_model.compare(str(folder), model, byte_tokenizer(), "text-classification", folder, quantized)


def test_what_agrees_is_said_with_its_figures(bag, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_compare, "on_rows", no_rows)
    said = compare(bag, written(bag, tmp_path / "same"))
    assert said[0].startswith(
        "compared in onnxruntime (f32), made-up inputs of several shapes: logits differ by at most"
    )
    assert "100.00% of 6 best are equal" in said[0]
    assert said[1] == "compared in onnxruntime (f32), no rows were compared: there are none"


def no_rows(*words):
    from llmkit.errors import UserError

    raise UserError("there are none")


def test_a_damaged_tensor_is_found(bag, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_compare, "on_rows", no_rows)

    def damaged(vectors):
        return np.concatenate([vectors[:150], vectors[150:] * 1.01])

    with pytest.raises(RunError, match=r"f32 does not compute what the model does: logits differ by up to"):
        compare(bag, written(bag, tmp_path / "damaged", damaged))
    with pytest.raises(
        RunError, match=r"int8 does not compute what the model does: .* best are equal \(at least 99%\)"
    ):
        compare(bag, written(bag, tmp_path / "upside-down", lambda vectors: -vectors), quantized=True)


def nudged(vectors: np.ndarray) -> np.ndarray:
    """Move every tenth vector by the least that f32 can tell apart."""
    moved = vectors.copy()
    moved[::10] = np.nextafter(vectors[::10], np.float32(0))
    return moved


def test_rounding_explains_no_more_than_pytorch_is_off_itself(bag, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_compare, "on_rows", no_rows)
    with torch.no_grad():
        bag.vectors.weight *= 1e5  # numbers of which f32 has two digits behind the point
    said = compare(bag, written(bag, tmp_path / "same", nudged))
    assert "PyTorch in f32 differs from itself in f64 by up to" in said[1]
    with pytest.raises(RunError, match="does not compute what the model does"):
        compare(bag, written(bag, tmp_path / "other", lambda vectors: vectors * np.float32(1 + 1e-5)))


def test_what_is_not_a_number_is_found(bag, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_compare, "on_rows", no_rows)
    for quantized in (False, True):
        with pytest.raises(RunError, match="does not compute what the model does"):
            compare(bag, written(bag, tmp_path / f"nan-{quantized}", lambda vectors: vectors * np.nan), quantized)


def test_a_metric_that_moves_is_found(bag, tmp_path, monkeypatch):
    same = onnx_compare.Agreement(0.0, 500, 500)

    def rows(theirs: float):
        found = onnx_compare.OnRows("500 rows", "accuracy", {"eval_accuracy": 0.9}, {"eval_accuracy": theirs}, same)
        return lambda *words: found

    folder = written(bag, tmp_path / "same")
    monkeypatch.setattr(onnx_compare, "on_rows", rows(0.904))
    assert "eval_accuracy: 0.9 in PyTorch, 0.904 in onnxruntime" in compare(bag, folder, quantized=True)[-1]
    monkeypatch.setattr(onnx_compare, "on_rows", rows(0.894))
    with pytest.raises(RunError, match=r"eval_accuracy: 0\.9 in PyTorch, 0\.894 in onnxruntime"):
        compare(bag, folder, quantized=True)


def test_perplexity_is_compared_as_a_share_and_scores_in_points():
    assert onnx_model._near("eval_perplexity", 100.0, 100.4, "causal-lm")
    assert not onnx_model._near("eval_perplexity", 10.0, 10.06, "causal-lm")
    assert onnx_model._near("eval_rougeL", 40.0, 40.4, "seq2seq")
    assert not onnx_model._near("eval_rougeL", 40.0, 39.4, "seq2seq")
    assert not onnx_model._near("eval_f1", 0.9, float("nan"), "token-classification")


def test_tokens_of_padding_are_not_compared():
    agreement = onnx_compare.Agreement()
    left, right = (SequenceClassifierOutput(logits=torch.zeros(1, 3, 4)) for _ in range(2))
    right.logits[0, 2] = 5.0
    agreement.add(left, right, torch.tensor([[1, 1, 0]]))
    assert (agreement.logits, agreement.count, agreement.share) == (0.0, 2, 1.0)


def test_caches_have_the_names_that_others_use():
    assert onnx_file._part_of_cache("past.3.1") == "past_key_values.3.value"
    assert onnx_file._part_of_cache("present.0.0") == "present.0.key"
    assert onnx_file._part_of_cache("logits") == "logits"


@pytest.fixture
def bert(tmp_path) -> str:
    """A folder with a masked language model, and no tokenizer: it is refused before one is needed."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=300, **sizes)).save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


def test_options_of_the_other_format_are_refused(llmkit, bert, tmp_path):
    words = ["export", bert, "--output", str(tmp_path / "out")]
    done = llmkit(*words, "--quantize", "int8")
    assert done.exit_code == 2
    assert "--precision q8_0" in done.stderr
    done = llmkit(*words, "--format", "onnx", "--precision", "q8_0")
    assert done.exit_code == 2
    assert "--quantize int8" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_its_extra(llmkit, bert, tmp_path, monkeypatch):
    import importlib.util

    own = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else own(name))
    done = llmkit("export", bert, "--format", "onnx", "--output", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert "exporting needs the package onnxruntime" in done.stderr
    assert "pip install 'llmkit[onnx]'" in done.stderr


def test_a_detector_of_replaced_tokens_is_refused_in_words(llmkit, tmp_path):
    from transformers import ElectraConfig, ElectraForPreTraining

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "embedding_size": 16}
    ElectraForPreTraining(ElectraConfig(vocab_size=300, **sizes)).save_pretrained(tmp_path / "electra")
    done = llmkit("export", str(tmp_path / "electra"), "--format", "onnx", "--output", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert "it is meant to be fine-tuned" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_traced_is_refused_in_words(tmp_path):
    class Counted(torch.nn.Module):
        def forward(self, input_ids):
            return {"logits": input_ids[: int(input_ids.sum())]}  # a size that depends on the values

    graph = onnx_file.Graph(
        "model.onnx", Counted(), {"input_ids": torch.ones(2, 3).long()}, {"input_ids": ("batch", "")}
    )
    from llmkit.errors import UserError

    with pytest.raises(UserError, match="the model cannot be traced for ONNX"):
        onnx_file.write_graph(graph, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_programs_of_a_readme_are_python(tmp_path):
    from llmkit.export import onnx_readme

    model = SimpleNamespace(config=CONFIG, generation_config=SimpleNamespace(eos_token_id=0, decoder_start_token_id=0))
    for task in ("text-classification", "token-classification", "question-answering", "multiple-choice", "masked-lm",
                 "causal-lm", "chat", "seq2seq", "denoising"):  # fmt: skip
        code = onnx_readme.code(model, byte_tokenizer(), task)
        compile(code, task, "exec")
        assert "$" not in code
        assert ("import json" in code) == ("json." in code)
