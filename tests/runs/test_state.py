"""Training state is written as safetensors writes it, and hashed meanwhile."""

import pytest
import torch
from safetensors.torch import load_file

from llmkit import disk, verified
from llmkit.runs import state


@pytest.mark.parametrize("dtype", state.DTYPES, ids=str)
def test_tensors_of_every_type_come_back(dtype, tmp_path):
    saved = {"a": torch.arange(7).to(dtype), "b": [torch.zeros((), dtype=dtype), (1, torch.ones(2, 0, 3).to(dtype))]}
    state.write(saved, tmp_path, "x")
    found = state.read(tmp_path, "x")
    assert found["b"][1][0] == 1
    for one, other in ((saved["a"], found["a"]), (saved["b"][0], found["b"][0]), (saved["b"][1][1], found["b"][1][1])):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.reshape(-1).view(torch.uint8).tolist() == other.reshape(-1).view(torch.uint8).tolist()


def test_tensors_of_several_types_begin_where_their_numbers_are_aligned(tmp_path):
    odd = [torch.ones(3, dtype=torch.uint8), torch.full((2, 2), 0.5).t(), torch.tensor(2.0, dtype=torch.float64)]
    state.write(odd, tmp_path, "x")
    found = load_file(tmp_path / "x.safetensors")
    assert [found[str(number)].tolist() for number in range(3)] == [tensor.tolist() for tensor in odd]


def test_the_checksum_is_known_without_reading_the_file(tmp_path, monkeypatch):
    state.write({"moment": torch.randn(1000)}, tmp_path, "optimizer")
    content = disk.checksum(tmp_path / "optimizer.safetensors")
    monkeypatch.setattr(disk, "checksum", lambda path: pytest.fail(f"{path} was read"))
    assert verified.checksum(tmp_path / "optimizer.safetensors") == content


def test_what_safetensors_cannot_hold_goes_into_a_file_of_torchs(tmp_path):
    state.write({"a": torch.zeros(2, dtype=torch.complex64)}, tmp_path, "x")
    assert (tmp_path / "x.pt").is_file()
    assert state.read(tmp_path, "x")["a"].dtype == torch.complex64
