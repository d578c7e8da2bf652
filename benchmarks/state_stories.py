"""Short stories whose answer follows from all that happened in them: text for `recipes/upgrade-*`.

    python benchmarks/state_stories.py lamp lamp.jsonl      a lamp that is switched on and off
    python benchmarks/state_stories.py cups cups.jsonl      a ball under one of three cups
    python benchmarks/state_stories.py boxes boxes.jsonl    things in boxes that change places
    python benchmarks/state_stories.py rooms rooms.jsonl    who carries what, and where it was left
    python benchmarks/state_stories.py fact fact.jsonl      a fact, asked for many lines later

Each line is {"question", "answer"}. A lamp's answer is the parity of the pushes; a ball's follows
from every swap in turn, and a box's from every move: no line says it. Rooms are as bAbI's second
task (Weston et al. 2015, arXiv 1502.05698): two lines of the story say it together. A fact is to be
looked up, which attention does, unless its window ends before. Stories of 1 to 12 events, drawn
alike (of a fact, 12 to 20 lines); a seed gives the same file.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

LONGEST = 12
STORIES = 24_000
_ROOMS = ("kitchen", "garden", "hall", "shop")
_LINES = ("The sun is up.", "A bird sings.", "They run and play.", "It is a big tree.")


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


def boxes(draw: random.Random) -> tuple[str, str]:
    """Three things in four boxes; what is in one goes to the empty one, again and again."""
    names, things = ["red", "blue", "green", "white"], ("key", "ball", "coin")
    *full, empty = draw.sample(names, len(names))
    place = dict(zip(things, full, strict=True))
    events = []
    for _ in range(draw.randint(1, LONGEST)):
        thing = draw.choice(things)
        events.append(f"move {place[thing]} {empty}")
        place[thing], empty = empty, place[thing]
    asked = draw.choice(things)
    start = ", ".join(f"the {thing} in {box}" for thing, box in zip(things, full, strict=True))
    return f"See {start}. {', '.join(events)}. Now the {asked} is in", place[asked]


def rooms(draw: random.Random) -> tuple[str, str]:
    """Two children, two things and four rooms; a thing is where whoever has it is, or left it."""
    children, things = ("Tom", "Sue"), ("milk", "book")
    where = {child: draw.choice(_ROOMS) for child in children}
    lies: dict[str, str] = {thing: draw.choice(_ROOMS) for thing in things}
    holds: dict[str, str] = {}
    story = [f"{child} is in the {room}." for child, room in where.items()]
    story += [f"The {thing} is in the {room}." for thing, room in lies.items()]
    for _ in range(draw.randint(1, LONGEST)):
        child = draw.choice(children)
        held = [thing for thing, holder in holds.items() if holder == child]
        here = [t for t in things if t not in holds and lies[t] == where[child]]
        if here and draw.random() < 0.6:
            holds[thing := draw.choice(here)] = child
            story.append(f"{child} takes the {thing}.")
        elif held and draw.random() < 0.3:
            lies[thing := draw.choice(held)] = where[child]
            del holds[thing]
            story.append(f"{child} drops the {thing}.")
        else:
            where[child] = draw.choice([room for room in _ROOMS if room != where[child]])
            story.append(f"{child} goes to the {where[child]}.")
    asked = draw.choice(things)
    answer = where[holds[asked]] if asked in holds else lies[asked]
    return f"{' '.join(story)} The {asked} is now in the", answer


def fact(draw: random.Random) -> tuple[str, str]:
    """What three children were given, and then lines about nothing of it."""
    children, colours = ("Tom", "Sue", "Ben"), ("red", "blue", "green")
    given = dict(zip(children, draw.sample(colours, len(colours)), strict=True))
    story = [f"{child} has a {colour} hat." for child, colour in given.items()]
    story += [draw.choice(_LINES) for _ in range(draw.randint(LONGEST, 20))]
    asked = draw.choice(children)
    return f"{' '.join(story)} {asked} has a hat that is", given[asked]


KINDS = {"lamp": lamp, "cups": cups, "boxes": boxes, "rooms": rooms, "fact": fact}


def main() -> None:
    """Write the stories that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("story", choices=tuple(KINDS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, make = random.Random(given.seed), KINDS[given.story]
    with given.out.open("w", encoding="utf-8") as file:
        for _ in range(STORIES):
            question, answer = make(draw)
            file.write(json.dumps({"question": question, "answer": answer}) + "\n")


if __name__ == "__main__":
    main()
