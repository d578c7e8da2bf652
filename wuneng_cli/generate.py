"""``wuneng generate``: let a trained model continue a prompt."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from wuneng.foreign import shown
from wuneng_cli import options
from wuneng_cli.render import print_json, print_line

__all__ = ["EXAMPLES", "SHORT_HELP", "generate"]

SHORT_HELP = "Continue a prompt."
EXAMPLES = """Examples:

\b
  wuneng generate --prompt "Once upon a time"
  wuneng generate runs/text --arm mha --prompt "def main(" --temperature 0
  cat chapter.txt | wuneng generate runs/text --prompt - --max-tokens 500 \\
     --seed 7

The text appears as it is written and ends at the model's end-of-text token or at --max-tokens.
Only what follows the prompt is printed. Of the model's generation_config.json its end-of-text
tokens are used alone.
"""


@options.with_output
def generate(
    output: options.Output,
    prompt: Annotated[
        str,
        typer.Option("--prompt", "-p", metavar="TEXT", help="Text to continue; - reads stdin."),
    ],
    model: options.Model = None,
    max_tokens: Annotated[
        int,
        options.tokens("--max-tokens", "Tokens to write at most."),
    ] = 200,
    temperature: Annotated[
        float,
        typer.Option("--temperature", min=0.0, help="0 always takes the likeliest token."),
    ] = 0.8,
    top_p: Annotated[
        float,
        typer.Option(
            "--top-p",
            min=0.0,
            max=1.0,
            help="Choose among the likeliest tokens that have this probability together.",
        ),
    ] = 0.95,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", min=0, max=2**63 - 1, help="The same seed writes the same text."
        ),
    ] = None,
    arm: options.Arm = None,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    verify: options.Verify = True,
) -> None:
    """Continue a text with a trained model, token by token."""
    from wuneng.records import find_model
    from wuneng_cli.startup import light_imports

    text = _stdin_text() if prompt == "-" else _checked(prompt)
    place = find_model(model, arm=arm)
    with light_imports():
        from wuneng.device import pick_device
        from wuneng.evaluate.generation import Sampling, generate_text
        from wuneng.evaluate.loading import load_model
        from wuneng.ops.backend import check_environment

        check_environment()
        loaded = load_model(place, device=pick_device(device or "auto"), dtype=dtype, check=verify)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    if not output.quiet:
        print_line(f"{loaded.label}, {loaded.model.device}", stderr=True)
        if loaded.remark:
            print_line(loaded.remark, stderr=True)
    # With --json only the result belongs on stdout.
    stream = sys.stderr if output.as_json else sys.stdout

    def write(piece: str) -> None:
        if not (output.as_json and output.quiet):
            # A model may have learnt escape sequences; into a file they go as they are.
            stream.write(shown(piece) if stream.isatty() else piece)
            stream.flush()

    written = generate_text(loaded, text, sampling, write)
    write("\n")
    if not output.quiet:
        rate = written.tokens / max(written.seconds, 1e-9)
        print_line(
            f"{written.tokens} tokens in {written.seconds:.1f} s ({rate:.1f} a second), "
            f"{written.ended}, seed {written.seed}",
            stderr=True,
        )
    if output.as_json:
        print_json({"schema": 1, "model": loaded.describe(), "prompt": text, **written.record()})


def _checked(prompt: str) -> str:
    """The prompt. InputError where the shell handed over bytes that are not UTF-8."""
    from wuneng.errors import InputError

    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"--prompt: expected UTF-8 text, got half a surrogate pair or another byte at "
            f"character {error.start}"
        ) from None
    return prompt


def _stdin_text() -> str:
    """All of stdin. InputError where it is not UTF-8, whatever the locale says."""
    from wuneng.errors import InputError

    content = sys.stdin.buffer.read()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"--prompt -: expected UTF-8 text on stdin, got byte 0x{content[error.start]:02x} at "
            f"offset {error.start}"
        ) from None
