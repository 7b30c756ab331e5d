"""Numbers that upstream does not check: each would fail later, or train a model that is of no use."""

import pytest
from recipe_texts import PLAIN, problems

from llmkit import recipe


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.gradient_accumulation_steps=-1", "must be at least 1, not -1"),
        ("trainer.gradient_accumulation_steps=0", "must be at least 1, not 0"),
        ("trainer.per_device_train_batch_size=0", "must be at least 1, not 0"),
        ("trainer.per_device_eval_batch_size=-8", "must be at least 1, not -8"),
        ("trainer.num_train_epochs=0", "must be above 0, not 0"),
        ("trainer.num_train_epochs=-3", "must be above 0, not -3"),
        ("trainer.max_steps=0", "must be at least 1, or -1 for `num_train_epochs`, not 0"),
        ("trainer.max_steps=-5", "must be at least 1, or -1 for `num_train_epochs`, not -5"),
        ("trainer.adam_epsilon=0", "must be above 0, not 0"),
        ("trainer.max_grad_norm=nan", "must be a finite number, not nan"),
        ("trainer.max_grad_norm=-1", "must be at least 0, not -1"),
        ("trainer.learning_rate=-1", "must be at least 0, not -1"),
        ("trainer.learning_rate=nan", "must be a finite number, not nan"),
        ("trainer.learning_rate=inf", "must be a finite number, not inf"),
        ("trainer.seed=-1", "must be at least 0, not -1"),
        ("trainer.seed=4294967296", "must be below 4.29497e+09, not 4.29497e+09"),
        ("trainer.adam_beta1=1.5", "must be below 1, not 1.5"),
        ("trainer.adam_beta2=1", "must be below 1, not 1"),
        ("trainer.weight_decay=-0.1", "must be at least 0, not -0.1"),
        ("trainer.lr_scheduler_kwargs.min_lr=nan", "must be a finite number, not nan"),
        ("trainer.dataloader_num_workers=-1", "must be at least 0, not -1"),
        ("lora.r=0", "must be at least 1, not 0"),
        ("lora.lora_dropout=1", "must be below 1, not 1"),
        ("model.config.initializer_range=nan", "must be a finite number, not nan"),
        ("model.config.a={ b = [1.0, inf] }", "must be a finite number, not inf"),
        ("generation.temperature=nan", "must be a finite number, not nan"),
    ],
)
def test_a_number_out_of_bounds(write, override, said):
    assert [message.rpartition(": ")[2] for message in problems(write(PLAIN), override)] == [said]


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.max_steps=-1", "trainer.num_train_epochs=0.5"],
        ["trainer.max_steps=5", "trainer.num_train_epochs=0"],  # which then does not count
        ["trainer.learning_rate=0", "trainer.weight_decay=0", "trainer.warmup_steps=0.1", "trainer.adam_beta1=0"],
        ["trainer.max_grad_norm=inf"],
        ["trainer.max_grad_norm=0", "trainer.seed=0", "trainer.data_seed=7", "trainer.dataloader_num_workers=0"],
        ["model.config.pad_token_id=-1"],
    ],
)
def test_numbers_at_their_bounds(write, overrides):
    assert recipe.load(write(PLAIN), overrides)
