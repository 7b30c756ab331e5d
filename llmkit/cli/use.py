"""`llmkit generate`, `predict`, `serve` and the others: what a finished model is good for."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmkit.cli import completion
from llmkit.cli.app import (
    USE,
    Json,
    MaybeRecipe,
    Offline,
    Overrides,
    Task,
    app,
    do,
    recipe_and_overrides,
    run_or_model,
    stay_offline,
)
from llmkit.cli.style import Command
from llmkit.errors import UserError, answer

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A run, a checkpoint, a folder or a Hub id.", autocompletion=completion.runs),
]
Quantize = Annotated[
    Literal["int8", "int4"] | None,
    typer.Option(
        "--quantize",
        metavar="int8|int4",
        help="Quantize the weights: int8 on a CPU (fastest with the extra onnx), int8 or int4 on a GPU (less memory).",
    ),
]
Precision = Annotated[
    Literal["bf16", "fp32"] | None,
    typer.Option(
        "--precision",
        metavar="bf16|fp32",
        help="What the weights are read in: bf16 is faster where the processor has it.  "
        "[default: fp32; on a GPU as they were saved]",
        show_default=False,
    ),
]
Int8 = Annotated[
    Literal["int8"] | None,
    typer.Option("--quantize", metavar="int8", help="Compute in int8, with onnxruntime on a CPU: encoders, faster."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Let --output replace a file that is there.")]


@app.command(
    cls=Command,
    rich_help_panel=USE,
    epilog="""\
llmkit generate "Once upon a time" --model runs/gpt2
llmkit generate --chat --model runs/chat
llmkit generate --input prompts.txt --output texts.jsonl max_new_tokens=50""",
)
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="The text to continue; - reads stdin.",
            show_default=False,
            autocompletion=completion.generation_settings,
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Fields of GenerationConfig, assistant_model and, with --chat, system_prompt.",
            show_default=False,
            autocompletion=completion.generation_settings,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="A run, a folder or a Hub id.  [default: the newest finished run]",
            autocompletion=completion.runs,
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Answer the prompt; without a prompt, start a conversation.")
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="A file of prompts; with --chat, of conversations.",
            autocompletion=completion.files,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="With --input: write to a file.  [default: JSON lines on stdout]",
            autocompletion=completion.files,
        ),
    ] = None,
    overwrite: Overwrite = False,
    quantize: Quantize = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, metavar="N", help="Seed for sampling: the same seed gives the same samples."),
    ] = None,
    offline: Offline = False,
) -> None:
    """Continue a prompt, or answer it."""

    def act() -> int:
        stay_offline(offline)
        from llmkit.data.output import Output
        from llmkit.inference import generate as generation

        model_path = None if model is None else run_or_model(model)
        text, arguments = generation.separate(prompt, options or [], needed=not chat and source is None)
        if source is not None and text is not None:
            raise UserError(f"the prompt `{text}` and --input cannot be combined", "put the prompt into the file")
        if source is None and output is not None:
            raise UserError("--output needs --input", "add --input FILE, or redirect stdout to a file: > FILE")
        target = Output.named(output, overwrite)
        if chat:
            from llmkit.inference import chat as chatting

            settings, system_prompt = chatting.settings(arguments)
            if source is not None:
                chatting.chat_rows(source, target, model_path, settings, system_prompt, seed, quantize)
                return 0
            question = generation.read_prompt(text) if text is not None else None
            return chatting.chat(question, model_path, settings, system_prompt, seed, quantize)
        if source is not None:
            from llmkit.inference import batch

            batch.generate_rows(source, target, model_path, generation.settings(arguments, one=True), seed, quantize)
        else:
            generation.generate(
                generation.read_prompt(text), model_path, generation.settings(arguments), seed, quantize
            )
        return 0

    do(act)


@app.command(
    cls=Command,
    rich_help_panel=USE,
    epilog="""\
llmkit predict runs/sst2 "What a day!"
llmkit predict runs/sst2 --input reviews.csv --output labels.csv""",
)
def predict(
    model: Model,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts, one example each.", show_default=False)
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="A file of examples: JSON lines, CSV, TSV, Parquet, text.",
            autocompletion=completion.files,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Write to a file, .jsonl or .csv.  [default: JSON lines on stdout]",
            autocompletion=completion.files,
        ),
    ] = None,
    overwrite: Overwrite = False,
    quantize: Int8 = None,
    precision: Precision = None,
    offline: Offline = False,
) -> None:
    """Label, tag, choose, answer, summarize, translate or fill blanks."""

    def act() -> int:
        stay_offline(offline)
        from llmkit.data.output import Output
        from llmkit.inference import predict as prediction
        from llmkit.instead import refuse_file_as_text

        refuse_file_as_text(model, texts or [])
        target = Output.named(output, overwrite)
        prediction.predict(run_or_model(model), texts or [], source, target, quantize, precision)
        return 0

    do(act)


@app.command(
    cls=Command,
    rich_help_panel=USE,
    epilog="""\
llmkit evaluate runs/sst2
llmkit evaluate runs/sst2 data.path=fresh.csv
llmkit evaluate runs/gpt2 --task causal-lm data.path=book.txt""",
)
def evaluate(
    model: Model,
    recipe: MaybeRecipe = None,
    overrides: Overrides = None,
    task: Task = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Write every row to a .jsonl or .csv file, mistakes first.",
            autocompletion=completion.files,
        ),
    ] = None,
    overwrite: Overwrite = False,
    quantize: Int8 = None,
    precision: Precision = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Evaluate a finished model on its own validation data, or on another recipe's."""
    del as_json  # metrics are JSON anyway

    def act() -> int:
        stay_offline(offline)
        from llmkit import devices
        from llmkit.data.output import Output
        from llmkit.training import evaluate as evaluation

        target = Output.named(output, overwrite)
        path, settings = recipe_and_overrides(recipe, overrides, task, "evaluate", model)
        named = run_or_model(model)
        loaded = evaluation.find_recipe(named, path, task, settings)
        devices.one_gpu()
        in_int8 = None
        if quantize is not None:
            from llmkit.inference import precision as precisions

            in_int8 = precisions.in_int8(named, loaded.task, quantize, precision)
        answer(evaluation.evaluate(named, loaded, target, precision, in_int8))
        return 0

    do(act)


@app.command(
    cls=Command,
    rich_help_panel=USE,
    epilog="""\
llmkit merge runs/chat --output chat-merged""",
)
def merge(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run that trained an adapter ([lora]).", autocompletion=completion.runs),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", metavar="DIR", help="A new folder for the merged model.", autocompletion=completion.files
        ),
    ],
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option(
            "--precision", metavar="fp32|bf16|fp16", help="What the merged weights are written in: half takes half."
        ),
    ] = "fp32",
    offline: Offline = False,
) -> None:
    """Merge an adapter into its base model, and compare their outputs."""

    def act() -> int:
        stay_offline(offline)
        from llmkit.models import merge

        merge.merge(run_or_model(run), output, precision)
        return 0

    do(act)


@app.command(
    cls=Command,
    rich_help_panel=USE,
    epilog="""\
llmkit export runs/gpt2 --output gpt2-gguf
llmkit export runs/chat --output chat-gguf --precision q8_0
llmkit export runs/reviews --output reviews-onnx --format onnx --quantize int8""",
)
def export(
    model: Model,
    output: Annotated[
        str,
        typer.Option("--output", metavar="DIR", help="A new folder for the files.", autocompletion=completion.files),
    ],
    format: Annotated[
        Literal["gguf", "onnx"],
        typer.Option("--format", metavar="gguf|onnx", help="gguf: llama.cpp, Ollama, LM Studio; onnx: onnxruntime."),
    ] = "gguf",
    precision: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"] | None,
        typer.Option(
            "--precision",
            metavar="f32|f16|bf16|q8_0",
            help="What the weights of GGUF are written in.  [default: f16; of ONNX f32]",
            show_default=False,
        ),
    ] = None,
    quantize: Annotated[
        Literal["int8"] | None, typer.Option("--quantize", metavar="int8", help="Write the weights of ONNX in int8.")
    ] = None,
    offline: Offline = False,
) -> None:
    """Write a model for another engine, read it back and compare it."""

    def act() -> int:
        stay_offline(offline)
        from llmkit.export.export import export

        export(run_or_model(model), format, output, precision, quantize)
        return 0

    do(act)


@app.command(
    cls=Command,
    rich_help_panel=USE,
    epilog="""\
llmkit push runs/reviews ada/reviews --license apache-2.0 --dry-run
llmkit push runs/reviews ada/reviews --license apache-2.0 --public""",
)
def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.", autocompletion=completion.runs)],
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the Hub.")],
    license: Annotated[
        str, typer.Option("--license", metavar="ID", help="The model's licence: apache-2.0, mit, cc-by-4.0, other, ...")
    ],
    public: Annotated[bool, typer.Option("--public", help="Let everybody read it.  [default: private]")] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="WHAT",
            help="Also upload report, predictions, record or logs.",
            autocompletion=completion.included,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and print the model card; upload nothing.")
    ] = False,
) -> None:
    """Publish a finished model on the Hugging Face Hub, with its card and recipe."""

    def act() -> int:
        from llmkit.export.push import push

        if address := push(run_or_model(run), repo_id, license, public, include or [], dry_run):
            print(address)  # noqa: T201
        return 0

    do(act)


@app.command(
    cls=Command,
    rich_help_panel=USE,
    epilog="""\
llmkit serve runs/sst2
llmkit serve runs/chat --port 9000 --key-file key.txt
llmkit serve runs/chat --host 0.0.0.0 --allow-host models.example.com""",
)
def serve(
    model: Model,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="The port; 0 takes a free one.")
    ] = 8000,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file",
            metavar="FILE",
            help="The key that clients must send.  [default: LLMKIT_SERVE_KEY, or none]",
            autocompletion=completion.files,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="Also answer to this name of the server."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", metavar="URL", help="Let pages of this site use the server."),
    ] = None,
    quantize: Quantize = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, metavar="N", help="New tokens that a request may ask for.")
    ] = 1024,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", min=1, metavar="N", help="Texts or rows that may wait; more get a 429.")
    ] = 256,
    max_body: Annotated[
        int, typer.Option("--max-body", min=1, metavar="BYTES", help="The largest request; a larger one gets a 413.")
    ] = 1_000_000,
    offline: Offline = False,
) -> None:
    """Serve a model over HTTP, as OpenAI's clients expect, with a page to try it on."""

    def act() -> int:
        stay_offline(offline)
        from llmkit.serve.serve import serve as serving

        return serving(
            run_or_model(model),
            host,
            port,
            key_file,
            allow_host or [],
            allow_origin or [],
            quantize,
            max_tokens,
            max_waiting,
            max_body,
        )

    do(act)
