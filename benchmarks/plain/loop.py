"""The recipe `shakespeare-char` as a bare PyTorch loop, nanoGPT's way: the same model, steps and evaluation.

    python benchmarks/plain/loop.py OUTPUT_DIR STEPS SEED

Leaves the time of every hundredth step in `metrics.jsonl`, and in `result.json` the validation loss.
"""

import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import load_dataset
from transformers import GPT2Config, GPT2LMHeadModel

WARMUP, BATCH, BLOCK = 100, 12, 64
PEAK, LAST = 1e-3, 1e-4
EVAL_BATCH, LOGGED = 64, 100
SPECIAL = 3  # llmkit's tokenizer has an end, padding and an unknown character too: the models are to be of one size


def rate(step: int, steps: int) -> float:
    if step < WARMUP:
        return PEAK * step / WARMUP
    return LAST + 0.5 * (PEAK - LAST) * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))


def main(folder: Path, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    parts = load_dataset("karpathy/tiny_shakespeare", split=["train", "validation+test"])
    texts = ["".join(part["text"]) for part in parts]
    ids = {character: index for index, character in enumerate(sorted(set("".join(texts))))}
    vocabulary = len(ids) + SPECIAL
    train, validation = (torch.tensor([ids[character] for character in text]) for text in texts)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_layer=4,
        n_head=4,
        n_embd=128,
        n_positions=BLOCK,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        use_cache=False,
        activation_function="gelu_pytorch_tanh",
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99), fused=True)
    offsets = torch.arange(BLOCK)
    model.train()
    with (folder / "metrics.jsonl").open("w") as log:
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = rate(step - 1, steps)
            starts = torch.randint(len(train) - BLOCK, (BATCH, 1))
            logits = model(train[starts + offsets]).logits
            loss = F.cross_entropy(logits.flatten(0, 1), train[starts + offsets + 1].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step == 1 or step % LOGGED == 0:
                print(json.dumps({"step": step, "time": time.time(), "loss": loss.item()}), file=log)
    model.eval()
    starts = torch.arange(0, len(validation) - BLOCK, BLOCK)[:, None]
    total = count = 0.0
    with torch.no_grad():
        for batch in starts.split(EVAL_BATCH):
            logits = model(validation[batch + offsets]).logits
            total += F.cross_entropy(
                logits.flatten(0, 1), validation[batch + offsets + 1].flatten(), reduction="sum"
            ).item()
            count += batch.numel() * BLOCK
    done = {"parameters": model.num_parameters(), "steps": steps, "units": steps * BATCH * BLOCK}
    (folder / "result.json").write_text(json.dumps({**done, "eval_loss": total / count}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), steps=int(sys.argv[2]), seed=int(sys.argv[3]))
