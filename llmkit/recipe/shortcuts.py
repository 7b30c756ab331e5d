"""Resolve `--task NAME`: a bundled recipe, or a bundled recipe with the settings below."""

from typing import Any

SMALL, LARGER = "tiny/gpt2", "gpt2-small"  # the recipes to pretrain with

# Wang et al. 2018 (arXiv:1804.07461), table 1: the metric of each task of GLUE.
_GLUE: dict[str, dict[str, Any]] = {
    "cola": {"evaluation.metrics": ["matthews_correlation"]},
    "sst2": {"evaluation.metrics": ["accuracy"]},
    "mrpc": {"evaluation.metrics": ["f1", "accuracy"]},
    "qqp": {"evaluation.metrics": ["f1", "accuracy"]},
    "stsb": {
        "evaluation.metrics": ["pearson", "spearmanr"],
        "data.problem_type": "regression",
        "trainer.train_sampling_strategy": "random",  # its pairs come from several sources, each of a length of its own
    },
    "mnli": {
        "evaluation.metrics": ["accuracy"],
        "data.validation_split": ["validation_matched", "validation_mismatched"],
    },
    "qnli": {"evaluation.metrics": ["accuracy"]},
    "rte": {"evaluation.metrics": ["accuracy"]},
    "wnli": {"evaluation.metrics": ["accuracy"]},
}
_EPOCHS = {"mrpc": 3, "stsb": 3, "rte": 3, "cola": 3, "wnli": 3}  # the small ones

# A value of None removes the recipe's own: for the user's files, `data.path` must be given.
NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: ("glue", {"data.name": name, **settings, "trainer.num_train_epochs": _EPOCHS.get(name, 1)})
        for name, settings in _GLUE.items()
    },
    "squad": ("squad", {"data.path": "rajpurkar/squad"}),
    "squad_v2": ("squad", {"data.path": "rajpurkar/squad_v2"}),
    "wnut_17": ("ner", {}),
    "conll2003": ("ner", {"data.path": "tomaarsen/conll2003"}),
    # On all of the user's own text: to pretrain, and for `llmkit evaluate` with any language model.
    "causal-lm": (
        "gpt2-small",
        {f"data.{key}": None for key in ("path", "name", "validation_fraction", "block_size")}
        | {"trainer.per_device_eval_batch_size": 2},  # 1,024 x 50,000 logits a block are 200 MB
    ),
    "masked-lm": (
        "bert-base",
        {f"data.{key}": None for key in ("path", "name", "validation_fraction", "block_size", "mlm_probability")}
        | {"trainer.per_device_eval_batch_size": 8},
    ),
    "text-classification": ("glue", {"data.path": None, "data.name": None}),
    "question-answering": ("squad", {"data.path": None}),
    "token-classification": ("ner", {"data.path": None}),
    "multiple-choice": ("swag", {"data.path": None, "data.name": None}),
    "seq2seq": (
        "summarization",
        {f"data.{key}": None for key in ("path", "name", "source_prefix", "max_eval_samples")}
        | {"evaluation.metrics": None},
    ),
}
