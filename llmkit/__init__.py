"""llmkit: pretrain, fine-tune and use language models, from one recipe, with one command."""

__version__ = "0.1.0"
