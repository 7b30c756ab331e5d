"""The other side of `shakespeare.py`: the same model, steps and evaluation in a bare PyTorch loop, nanoGPT's way.

    python benchmarks/plain_loop.py input.txt VOCABULARY SEED

Prints its parameters and validation loss as JSON.
"""

import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

STEPS, WARMUP, BATCH, BLOCK = 2000, 100, 12, 64
PEAK, LAST = 1e-3, 1e-4
EVAL_BATCH = 64


def rate(step: int) -> float:
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    return LAST + 0.5 * (PEAK - LAST) * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def main(path: str, vocabulary: int, seed: int) -> None:
    torch.manual_seed(seed)
    text = Path(path).read_text()
    ids = {character: index for index, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([ids[character] for character in text])
    cut = int(len(tokens) * 0.9)
    train, validation = tokens[:cut], tokens[cut:]
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
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        starts = torch.randint(len(train) - BLOCK, (BATCH, 1))
        logits = model(train[starts + offsets]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), train[starts + offsets + 1].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
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
    print(json.dumps({"parameters": model.num_parameters(), "eval_loss": total / count}))


if __name__ == "__main__":
    main(sys.argv[1], vocabulary=int(sys.argv[2]), seed=int(sys.argv[3]))
