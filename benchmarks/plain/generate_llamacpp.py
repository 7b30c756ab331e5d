"""A model goes on from prompts in llama.cpp, one after another, greedily.

python benchmarks/plain/generate_llamacpp.py FILE.gguf TOKENS PROMPTS.jsonl

Writes exactly TOKENS new tokens behind the `prompt` of each line; prints each prompt with its completion as JSON.
"""

import json
import os
import sys
from pathlib import Path

import xllamacpp

model, count, file = sys.argv[1:]
parameters = xllamacpp.CommonParams()
parameters.model.path = model
parameters.n_ctx, parameters.n_parallel, parameters.verbosity, parameters.warmup = 1024, 1, 0, False
threads = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(parameters)
for line in Path(file).read_text().splitlines():
    prompt = json.loads(line)["prompt"]
    asked = {"prompt": prompt, "n_predict": int(count), "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    print(json.dumps({"prompt": prompt, "completion": server.handle_completions(asked)["choices"][0]["text"]}))
