"""``wuneng convert``: bring a checkpoint to WuNeng, or take one out, and prove the logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wuneng_cli import options
from wuneng_cli.conversion_text import checks_table, is_same, same_line, summary
from wuneng_cli.render import print_fact, print_json, print_line, print_renderable, print_text

if TYPE_CHECKING:
    from wuneng.convert import GraftSettings

__all__ = ["EXAMPLES", "SHORT_HELP", "convert"]

SHORT_HELP = "Turn a checkpoint into WuNeng, or back."
EXAMPLES = """Examples:

\b
  wuneng convert Qwen/Qwen2.5-0.5B upgraded
      add state and middle heads
  wuneng convert my-llama upgraded --state-heads 4 --cross-head concat \\
                                 --dtype bf16
  wuneng convert my-llama upgraded --state-from rwkv7.pth \\
                                 --state-head-dim 64 --cross-head none
  wuneng convert rwkv7.pth rwkv7 --tokenizer world
                                 the same function, as a WuNeng
  wuneng convert runs/text shared --to transformers
                                 for people without this package
  wuneng convert runs/text shared --push-to-hub me/my-model
                                 and onto Hugging Face's hub
  wuneng convert upgraded sharded --to dcp
      a distributed checkpoint
  wuneng convert sharded again   and back

The new heads start silent: the converted model gives its source's logits, which is checked before
the destination appears. Train them afterwards.
"""


@options.with_output
def convert(
    output: options.Output,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A transformers directory or hub name (Llama, Qwen2, Qwen3 and its MoE, Mistral, "
            "Granite, SmolLM3, Phi-3, OLMo 2/3, Gemma 2/3, RWKV-7, WuNeng), a run, an RWKV-7 .pth, "
            "or a distributed checkpoint.",
        ),
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DESTINATION", help="A directory that does not exist yet.")
    ],
    state_heads: Annotated[
        int | None,
        typer.Option(
            "--state-heads", metavar="S", min=0, help="State heads in a layer. [default: 2]"
        ),
    ] = None,
    state_kind: Annotated[
        str | None,
        typer.Option(
            "--state-kind",
            metavar="KIND",
            help="What they are: rwkv7, gated_delta or kda. [default: rwkv7]",
        ),
    ] = None,
    state_layers: Annotated[
        str | None,
        typer.Option(
            "--state-layers",
            metavar="LIST",
            help="Which layers get them, from 0, as in 0,2,8-11. [default: all]",
        ),
    ] = None,
    state_head_dim: Annotated[
        int | None,
        typer.Option(
            "--state-head-dim", metavar="N", min=1, help="Their size. [default: attention's]"
        ),
    ] = None,
    cross_head: Annotated[
        str | None,
        typer.Option(
            "--cross-head",
            metavar="KIND",
            help="Middle heads: gated, concat, additive or none. [default: gated; none if "
            "--state-head-dim differs from attention's]",
        ),
    ] = None,
    snapshots: Annotated[
        int | None,
        typer.Option(
            "--snapshots", metavar="N", min=0, help="Earlier states read as well. [default: 0]"
        ),
    ] = None,
    key_source: Annotated[
        str | None,
        typer.Option(
            "--key-source", metavar="SOURCE", help="attention or own. [default: attention]"
        ),
    ] = None,
    value_source: Annotated[
        str | None,
        typer.Option(
            "--value-source",
            metavar="SOURCE",
            help="attention, attention_output or own. [default: attention]",
        ),
    ] = None,
    state_from: Annotated[
        str | None,
        typer.Option(
            "--state-from",
            metavar="RWKV7",
            help="Start the state heads from slices of this RWKV-7: a warm start, not an "
            "equivalence.",
        ),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", metavar="FORM", help="wuneng, transformers or dcp.")
    ] = "wuneng",
    stock: Annotated[
        bool | None,
        typer.Option(
            "--stock/--remote-code",
            help="With --to transformers: a stock architecture, or modelling code that travels "
            "along. [default: stock where nothing is lost]",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="NAME", help="fp32, bf16 or fp16. [default: the source's]"),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="bytes|world|PATH",
            help="For an RWKV-7 .pth: bytes; world, whose vocabulary file is beside it or in the "
            "package rwkv; such a file; or a directory with a tokenizer. [default: "
            "rwkv_vocab*.txt beside it]",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", min=0, max=2**63 - 1, help="Of the new parameters."),
    ] = 0,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare logits before anything is kept.",
        ),
    ] = True,
    checksums: Annotated[
        bool,
        typer.Option(
            "--checksums/--no-checksums",
            help="Compare the source's files with their checksums, where it has some, before use.",
        ),
    ] = True,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="OWNER/NAME",
            help="Upload the result to this repository on Hugging Face's hub.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make that repository private.")
    ] = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Convert a checkpoint and prove that it still computes the same.

    A Transformer keeps every tensor and gains silent state and middle heads; an RWKV-7 becomes a
    WuNeng without attention; a WuNeng becomes a directory that transformers loads by itself. On any
    failure nothing is left at DESTINATION.
    """
    from wuneng.device import require_one_process
    from wuneng.records import find_source

    require_one_process()
    find_source(source)  # before what takes seconds to import
    from wuneng.convert import Request, VerificationError
    from wuneng.convert import convert as carry_out
    from wuneng.ops.backend import check_environment

    check_environment()
    request = Request(
        source=source,
        destination=destination,
        to=to,
        graft=_graft(
            state_heads,
            state_kind,
            state_layers,
            state_head_dim,
            cross_head,
            snapshots,
            key_source,
            value_source,
        ),
        dtype=dtype,
        seed=seed,
        state_from=state_from,
        tokenizer=tokenizer,
        stock=stock,
        verify=verify,
        check_source=checksums,
        push_to_hub=push_to_hub,
        private=private,
        progress=not (output.quiet or output.as_json),
    )

    def note(line: str) -> None:
        if not output.quiet:
            print_line(line, stderr=True)

    try:
        outcome = carry_out(request, note)
    except VerificationError as error:
        if error.checks and not output.as_json:
            print_renderable(checks_table(error.checks), stderr=True)
        raise
    if output.as_json:
        uploaded = {} if outcome.uploaded is None else {"uploaded": outcome.uploaded}
        print_json({"directory": str(outcome.directory), **outcome.record, **uploaded})
        return
    if outcome.checks and (output.verbose or not all(map(is_same, outcome.checks))):
        print_renderable(checks_table(outcome.checks))
    elif outcome.checks:
        print_text(same_line(outcome.checks))
    for line in summary(outcome.record):
        print_fact(line)
    if outcome.uploaded is not None:
        print_fact(f"  uploaded    {outcome.uploaded}")
    print_line(f"\nEverything is in {outcome.directory}.")


def _graft(
    state_heads: int | None,
    state_kind: str | None,
    state_layers: str | None,
    state_head_dim: int | None,
    cross_head: str | None,
    snapshots: int | None,
    key_source: str | None,
    value_source: str | None,
) -> GraftSettings | None:
    """The heads that the options describe; None when none of them was given."""
    from wuneng.convert import GraftSettings

    given: dict[str, Any] = {
        "state_heads": state_heads,
        "state_kind": state_kind,
        "state_layers": None if state_layers is None else _layers(state_layers),
        "state_head_dim": state_head_dim,
        "cross_head": cross_head,
        "snapshots": snapshots,
        "key_source": key_source,
        "value_source": value_source,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return GraftSettings(**given) if given else None


def _layers(text: str) -> tuple[int, ...]:
    """``0,2,8-11`` as layer numbers. Usage error for anything else."""
    layers: list[int] = []
    for piece in text.split(","):
        first, _, last = piece.strip().partition("-")
        if not first.isdecimal() or not (last.isdecimal() or last == ""):
            raise typer.BadParameter(
                f"expected layer numbers such as 0,2,8-11, got {text!r}",
                param_hint="--state-layers",
            )
        end = int(last or first)
        if end > 100_000:
            raise typer.BadParameter(f"no layer {end}", param_hint="--state-layers")
        if end < int(first):
            raise typer.BadParameter(
                f"expected a range from its first layer to its last, got {piece.strip()!r}",
                param_hint="--state-layers",
            )
        layers += range(int(first), end + 1)
    return tuple(layers)
