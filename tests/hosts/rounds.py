"""One run, two workers under different host names, and a hand that kills them at random."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.hosts.workers import BEAT, PATIENCE, Hosts, hosts
from tests.train.small_run import RECIPE
from tests.train.tiny import UNTIMED
from wuneng.records import read_json, read_jsonl

SEEDS, STEPS = 3, 12
UNITS = [f"{arm}/seed-{seed}" for seed in range(SEEDS) for arm in ("wuneng", "mha")]


def write_recipe(place: Path) -> Path:
    """Six units of a second or so."""
    path = place / "recipe.yaml"
    training = {**RECIPE["training"], "steps": STEPS, "checkpoint_every": 4}
    path.write_text(yaml.safe_dump({**RECIPE, "training": training, "seed": list(range(SEEDS))}))
    return path


def left(run: Path, unit: str) -> dict[str, Any]:
    """What a finished unit left, less what the clock says."""
    place = run / unit
    rows = read_jsonl(place / "metrics.jsonl")
    return {
        "weights": (place / "model" / "model.safetensors").read_bytes(),
        "quality": read_json(place / "result.json")["quality"],
        "metrics": [{k: v for k, v in row.items() if k not in UNTIMED} for row in rows],
    }


@dataclass
class Disturbed:
    """What happened in a round, and what was wrong after it."""

    kills: int = 0
    stops: int = 0
    taken_over: int = 0
    woken: int = 0
    """Workers that were stopped, and found their unit taken over."""
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def disturbed_round(
    recipe: Path,
    out: Path,
    expected: dict[str, Any],
    draw: random.Random,
    kills: int,
    stops: int,
    pause: float = 6.0,
) -> Disturbed:
    """Train ``recipe`` in ``out`` with two workers, killed and stopped up to so many times.

    Args:
        pause: seconds between two of them, at most.
    """
    found, began = Disturbed(), time.monotonic()
    with hosts(recipe, out) as workers:
        running = {host: workers.start(host) for host in "ab"}
        while not (out / "results.json").exists() or any(p.is_alive() for p in running.values()):
            if time.monotonic() - began > 600:
                found.wrong.append("not done after ten minutes")
                break
            time.sleep(draw.uniform(0.1, pause))
            host = draw.choice("ab")
            stop = found.stops < stops and draw.random() < 0.3
            if (out / "results.json").exists() or not running[host].is_alive():
                pass  # nothing to disturb
            elif stop:
                _stop(running[host].pid, draw)
                found.stops += 1
            elif found.kills < kills:
                running[host].kill()
                found.kills += 1
            for name, process in running.items():
                if not process.is_alive() and process.exitcode != 0:
                    running[name] = workers.start(name)
        _check(found, workers, out, expected)
    found.seconds = time.monotonic() - began
    return found


def _stop(process: int, draw: random.Random) -> None:
    """For longer than a lease, or not."""
    with suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(process, signal.SIGSTOP)
        time.sleep(draw.uniform(0.5, 2.5) * BEAT * PATIENCE)
        os.kill(process, signal.SIGCONT)


def _check(found: Disturbed, workers: Hosts, out: Path, expected: dict[str, Any]) -> None:
    said = workers.said()
    found.taken_over = said.count("taken over from")
    found.woken = said.count("another process has taken over")
    finished = workers.finished()
    found.wrong += [f"{unit} was finished twice" for unit in UNITS if finished.count(unit) > 1]
    if "Traceback" in said:
        found.wrong.append(said[said.index("Traceback") :][:4000])
    for unit in UNITS:
        if not (out / unit / "result.json").exists():
            found.wrong.append(f"{unit} is not finished")
        elif left(out, unit) != expected[unit]:
            found.wrong.append(f"{unit} is not what an undisturbed run leaves")
    names = [path.name for path in out.rglob("*")]
    found.wrong += [f"{n} was left" for n in names if n.startswith((".claim", ".partial"))]
