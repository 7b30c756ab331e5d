"""GPUs on paper: what the vendors' sheets say, and how long a training would take there."""

from dataclasses import dataclass

# Memory (GB) and the peak of dense bf16 (floating-point operations a second), without sparsity, of the vendors' data
# sheets as resellers and catalogues quote them (November 2026): NVIDIA L4 (242 with sparsity), L40S (362.05), A100
# 80GB SXM (312), H100 SXM5 (1,979 with sparsity), H200 SXM (989), B200 SXM (2,250); AMD Instinct MI300X (1,307).
GPUS = {
    "L4": (24, 121e12),
    "L40S": (48, 362e12),
    "A100 80GB": (80, 312e12),
    "H100 SXM": (80, 989e12),
    "H200": (141, 989e12),
    "B200": (180, 2250e12),
    "MI300X": (192, 1307e12),
}
# Of the peak. Published runs of models from 1 to 8 billion parameters: 33 to 56 %; small models come to less.
UTILISATION = 0.4
COUNTS = (1, 8, 64)


@dataclass(frozen=True)
class OnPaper:
    """A number of GPUs: `way` is how they work together, None where it does not fit; `seconds` of training."""

    gpu: str
    count: int
    way: str | None
    seconds: float


def on_paper(flops: float, weights_and_state: float, rest: float) -> list[OnPaper]:
    """Calculate how long a training takes, without what the GPUs tell one another.

    Args:
        flops: of the whole training.
        weights_and_state: bytes that FSDP divides: weights, gradients, optimizer.
        rest: bytes that each GPU holds in any case, of its micro-batch.

    Returns:
        For each GPU and number of them. DDP where one GPU holds everything, else FSDP where its share fits.
    """
    found = []
    for name, (memory, peak) in GPUS.items():
        for count in COUNTS:
            room, way = memory * 1e9, None
            if weights_and_state + rest <= room:
                way = "DDP" if count > 1 else "one"
            elif count > 1 and weights_and_state / count + rest <= room:
                way = "FSDP"
            found.append(OnPaper(name, count, way, flops / (peak * UTILISATION * count)))
    return found
