"""What an Accelerate file asks for is known before anything starts, and what llmkit does not do is refused in words."""

import pytest
import yaml

from llmkit import accelerate_file, accelerate_launch
from llmkit.errors import UserError

LOCAL = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_processes": 4}


@pytest.fixture
def written(tmp_path):
    def write(**settings):
        file = tmp_path / "accelerate.yaml"
        file.write_text(yaml.safe_dump({**LOCAL, **settings}))
        return file

    return write


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({}, {"processes": 4}),
        ({"distributed_type": "FSDP", "machine_rank": 1}, {"processes": 4, "strategy": "FSDP"}),
        ({"distributed_type": "DEEPSPEED"}, {"processes": 4, "strategy": "DeepSpeed"}),
        ({"distributed_type": "MULTI_XPU"}, {"processes": 4, "device": "xpu"}),
        ({"use_cpu": True}, {"processes": 4, "device": "cpu"}),
    ],
)
def test_processes_strategy_and_device_are_read(settings, asked, written):
    file = accelerate_file.read(written(**settings))
    assert file.asked() == asked
    assert accelerate_launch.Launched(2, True, file).asked() == {**asked, "processes": 2}  # --processes comes first
    assert accelerate_launch.Launched(8, False, file).asked() == asked


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mixed_precision": "fp8"}, "mixed_precision: fp8 is not supported"),
        ({"distributed_type": "XLA"}, "distributed_type: TPUs are not supported"),
        ({"distributed_type": "MEGATRON_LM"}, "distributed_type: Megatron-LM is not supported"),
        ({"compute_environment": "AMAZON_SAGEMAKER"}, "AMAZON_SAGEMAKER is not supported"),
        ({"distributed_type": "DEEPSPEED", "num_machines": 2}, "pdsh would start llmkit again on each machine"),
        *(
            (
                {"parallelism_config": {"parallelism_config_dp_shard_size": 2, f"parallelism_config_{key}_size": 2}},
                f"parallelism_config: {name} parallelism has no test in llmkit",
            )
            for key, name in (("tp", "tensor"), ("cp", "context"), ("sp", "sequence"))
        ),
    ],
)
def test_what_has_no_test_is_refused(settings, said, written):
    with pytest.raises(UserError) as caught:
        accelerate_file.read(written(**settings))
    (detail,) = caught.value.details
    assert said in detail


def test_all_that_is_refused_is_named_at_once(written):
    with pytest.raises(UserError) as caught:
        accelerate_file.read(written(mixed_precision="fp8", distributed_type="MEGATRON_LM"))
    assert len(caught.value.details) == 2


@pytest.mark.parametrize("text", ["- a list", "machine_rank: x", "{"])
def test_what_is_no_configuration_is_named(text, tmp_path):
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(UserError, match="is not an Accelerate configuration"):
        accelerate_file.read(tmp_path / "wrong.yaml")


def test_a_file_for_several_cpus_starts_its_processes(written, tmp_path):
    """`accelerate launch` alone starts one for MULTI_CPU, which would train at half the batch without a word."""
    file = accelerate_file.read(written(distributed_type="MULTI_CPU", num_processes=2))
    launched = accelerate_launch.Launched(1, False, file, on_cpu=file.on_cpu)
    assert "--multi_gpu" in accelerate_launch.launch_command(tmp_path, launched)
    assert launched.asked() == {"processes": 2, "device": "cpu"}


@pytest.mark.parametrize(("kind", "on_cpu"), [("cpu", True), ("cuda", False), ("xpu", False), ("npu", False)])
def test_only_a_machine_without_an_accelerator_is_made_a_cpu(kind, on_cpu, tmp_path, monkeypatch):
    monkeypatch.setattr(accelerate_launch, "accelerator", lambda: kind)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert ("ACCELERATE_USE_CPU" in accelerate_launch.environment(tmp_path, tmp_path, 2)) is on_cpu
    assert "ACCELERATE_USE_CPU" in accelerate_launch.environment(tmp_path, tmp_path, 2, on_cpu=True)
