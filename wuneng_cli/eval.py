"""``wuneng eval``: score a model, and compare it with a baseline on the same items."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wuneng_cli import options
from wuneng_cli.render import print_json, print_line, print_renderable, print_text

if TYPE_CHECKING:
    from wuneng.evaluate.session import EvaluationReport

__all__ = ["evaluate", "register"]

_EXAMPLES = """Examples:

\b
  wuneng eval                                           the latest run on its held-out data
  wuneng eval runs/quickstart --state zero              what is lost without the state
  wuneng eval runs/text --tasks reasoning --data-dir my-test-sets
  wuneng eval runs/text --baseline runs/text/mha-shift --tasks arc,piqa --limit 200
  wuneng eval path/to/llama --tasks mmlu --num-fewshot 5 --batch-size 8

Aliases: arc = arc_easy + arc_challenge; obqa = openbookqa; lambada = lambada_openai; reasoning =
arc_easy, arc_challenge, hellaswag, piqa, winogrande, openbookqa, boolq, sciq and lambada_openai.
Any other task of lm-evaluation-harness goes by its own name (mmlu, gsm8k, copa, ...). `validation`
is the held-out text of the recipe that a run was trained from, `synthetic` its synthetic tasks;
without --tasks, a run is scored on whichever of the two it has.

--data-dir: .jsonl and .jsonl.gz files, recognised by the fields of their rows: ARC, HellaSwag,
PIQA, WinoGrande, OpenBookQA, BoolQ, COPA, LAMBADA, SciQ, MMLU and GSM8K. The split is a word in
the file's name (train, valid, validation, dev, test); ARC files say easy or challenge there, and
LAMBADA's say lambada.
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "eval", short_help="Score a model and compare it with a baseline.", epilog=_EXAMPLES
    )(evaluate)


def evaluate(
    model: options.Model = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            "-t",
            metavar="A,B",
            help="Tasks, groups and aliases. [default: the held-out data of the run's recipe]",
        ),
    ] = None,
    arm: Annotated[
        str | None, typer.Option("--arm", metavar="NAME", help="Which arm of a run.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="MODEL",
            help="Compare with this model on the same items: a directory, or an arm of MODEL's "
            "run. For a run the default is its arm mha (after an upgrade: the source), with "
            "--state the same model untouched; none compares with nothing.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir", metavar="DIR", help="Read test sets from these files; no network."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            callback=options.counted,
            help="Only the first N items of each task.",
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            "--num-fewshot",
            metavar="K",
            min=0,
            callback=options.counted,
            help="Solved examples before each question. [default: the task's own number]",
        ),
    ] = None,
    batch_size: Annotated[
        str,
        typer.Option("--batch-size", metavar="N|auto", help="Sequences per forward call."),
    ] = "auto",
    state: Annotated[
        str,
        typer.Option(
            "--state",
            metavar="keep|zero|permute",
            help="Silence MODEL's state readout, or give every sequence another one's.",
        ),
    ] = "keep",
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where eval.json goes. [default: the run, or runs/eval/<model>]",
        ),
    ] = None,
    log_samples: Annotated[
        bool,
        typer.Option(
            "--log-samples", help="Keep every item's prompt, target and answers in eval.json."
        ),
    ] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    verify: options.Verify = True,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Score MODEL on evaluation tasks and, beside a baseline, say what the difference is worth:
    paired on the same items, with a 95 % interval, a p-value and the chance level.
    """
    from wuneng.device import environment, pick_device, require_one_process

    require_one_process()
    from wuneng.evaluate.choice import choose_models, default_directory, default_tasks
    from wuneng.evaluate.results import result_file, write_report
    from wuneng.evaluate.session import EvaluationRequest, run_evaluation
    from wuneng.evaluate.state_controls import parse_state_control
    from wuneng.ops.backend import check_environment
    from wuneng.records import prove_writable

    check_environment()
    control = parse_state_control(state)
    chosen, other, remark = choose_models(model, baseline, control, arm=arm)
    request = EvaluationRequest(
        model=chosen,
        baseline=other,
        tasks=default_tasks(chosen)
        if tasks is None
        else [name.strip() for name in tasks.split(",") if name.strip()],
        data_dir=data_dir,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=_batch_size(batch_size),
        state=control,
        dtype=dtype,
        log_samples=log_samples,
        check=verify,
    )
    directory = out or default_directory(chosen)
    prove_writable(directory, "--out")  # found out now, not after an hour of evaluation

    def notify(message: str) -> None:
        if not quiet:
            print_line(message, stderr=True)

    if remark:
        notify(remark)
    report = run_evaluation(
        request,
        pick_device(device or "auto"),
        notify=notify,
        progress=not quiet and sys.stderr.isatty(),
    )
    file = result_file(directory, control)
    write_report(report, file, environment(["wuneng", *sys.argv[1:]]))
    _print(report, file, as_json=as_json, quiet=quiet)


def _batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    from wuneng.limits import LARGEST_COUNT

    short = len(text) <= len(str(LARGEST_COUNT))
    if not (short and text.isdecimal() and 1 <= int(text) <= LARGEST_COUNT):
        raise typer.BadParameter(
            f"expected a number from 1 to {LARGEST_COUNT}, or auto, got {text[:80]!r}",
            param_hint="--batch-size",
        )
    return int(text)


def _print(report: EvaluationReport, file: Path, *, as_json: bool, quiet: bool) -> None:
    from wuneng.evaluate.results import remarks, report_record, report_table

    if as_json:
        print_json({"file": str(file), **report_record(report, items=True)})
        return
    print_renderable(report_table(report))
    for line in () if quiet else remarks(report):
        print_text(line)
    print_line(f"\nEverything is in {file}.")
