"""Short stories whose answer follows from all that happened in them: text for `recipes/upgrade-*`.

    python benchmarks/state_stories.py lamp lamp.jsonl      a lamp that is switched on and off
    python benchmarks/state_stories.py cups cups.jsonl      a ball under one of three cups

Each line is {"question", "answer"}. A lamp's answer is the parity of the pushes; a ball's follows
from every swap in turn. Nothing can be looked up: what counts is kept on the way, or computed anew
from all of the story. Stories of 1 to 12 events, drawn alike; a seed gives the same file.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

LONGEST = 12
STORIES = 24_000


def lamp(draw: random.Random) -> tuple[str, str]:
    """A lamp, pushes and pauses."""
    is_on = draw.random() < 0.5
    start = "on" if is_on else "off"
    events = [draw.choice(("push", "wait")) for _ in range(draw.randint(1, LONGEST))]
    is_on ^= events.count("push") % 2 == 1
    return f"The lamp is {start}. {' '.join(events)}. Now the lamp is", "on" if is_on else "off"


def cups(draw: random.Random) -> tuple[str, str]:
    """Three cups, of which two change places again and again."""
    names = ("red", "blue", "green")
    ball = start = draw.choice(names)
    events = []
    for _ in range(draw.randint(1, LONGEST)):
        one, other = draw.sample(names, 2)
        events.append(f"swap {one} {other}")
        ball = {one: other, other: one}.get(ball, ball)
    return f"The ball is {start}. {', '.join(events)}. Now the ball is", ball


def main() -> None:
    """Write the stories that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("story", choices=("lamp", "cups"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, make = random.Random(given.seed), {"lamp": lamp, "cups": cups}[given.story]
    with given.out.open("w", encoding="utf-8") as file:
        for _ in range(STORIES):
            question, answer = make(draw)
            file.write(json.dumps({"question": question, "answer": answer}) + "\n")


if __name__ == "__main__":
    main()
