"""The site's search, opened as a file without a server, answers questions that people ask in public. `make browser`."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import ROOT

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no `chromium`: `make browser` installs Debian's", allow_module_level=True)
pytest.importorskip("sphinx")

# What is typed, the pages that answer it, and where somebody asked.
QUESTIONS = {
    "always predicts the same class": ("guide/not-learning", "stackoverflow: TFBertForSequenceClassification"),
    "resume training from checkpoint": ("guide/resume", "lucidrains/denoising-diffusion-pytorch#27"),
    "train longer more epochs": ("guide/resume", "junyanz/pytorch-CycleGAN-and-pix2pix#350"),
    "CUDA out of memory": ("guide/memory", "discussed under every tool"),
    "train on my own CSV": ("guide/own-csv", "undertheseanlp/classification#6"),
    "model never stops generating": ("guide/not-learning tutorials/chat", "huggingface/trl#1623"),
    "domain texts without labels": ("tutorials/domain", "huggingface/transformers#11159"),
    "add domain vocabulary": ("guide/pretrain tutorials/domain", "google-research/bert#9"),
    "NCCL timeout hangs": ("guide/gpus", "axolotl-ai-cloud/axolotl#889"),
    "merge LoRA adapter base model": ("guide/lora", "unslothai/unsloth#123"),
    "wandb offline": ("guide/trackers", "wandb/wandb#402"),
    "texts longer than 512 tokens": ("guide/finetune", "huggingface/transformers#21131"),
    "Chinese ROUGE is 0": ("tutorials/chinese concepts/metrics", "huggingface/evaluate#465"),
    "offline cluster no internet": ("guide/offline", "huggingface/transformers#10379"),
    "same seed different results": ("guide/not-learning reliability", "wzhouad/ATLOP#5"),
    "NER custom entities": ("tutorials/names", "huggingface/transformers#19311"),
    "class weights imbalanced": ("guide/not-learning guide/finetune", "huggingface/transformers#12997"),
    "loss only on assistant": ("tutorials/chat guide/coming-from", "huggingface/trl#3279"),
    "perplexity stride sliding window": ("guide/evaluate", "huggingface/evaluate#688"),
    "UnicodeDecodeError csv": ("help/troubleshooting", "stackoverflow: pandas, 'utf-8' codec can't decode"),
    "generated text garbage": ("guide/not-learning tutorials/small-gpt", "karpathy/nanoGPT#69"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(ROOT / "docs"), str(built)]
    subprocess.run(command, check=True)
    return built


def found(site: Path, words: str, profile: Path) -> list[str]:
    """The pages that the search lists, in its order."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command = [str(CHROMIUM), *options, "--virtual-time-budget=8000", "--dump-dom"]
    address = f"{(site / 'search.html').as_uri()}?q={quote(words)}"
    page = subprocess.run([*command, address], check=True, capture_output=True, text=True, timeout=120).stdout
    results = re.search(r'<ul[^>]*class="search"[^>]*>(.*?)</ul>', page, re.DOTALL)
    links = re.findall(r'href="([^"?#]+)\.html', results[1] if results else "")
    return list(dict.fromkeys(link.removeprefix(f"{site.as_uri()}/") for link in links))


@pytest.mark.parametrize("words", QUESTIONS)
def test_a_question_is_answered_by_one_of_the_first_three_pages_found(site, words, tmp_path):
    assert set(QUESTIONS[words][0].split()) & set(found(site, words, tmp_path)[:3])
