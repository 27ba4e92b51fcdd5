"""The pipeline's graph from dvc.yaml, drawn twice: from left to right, and downwards for phones."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from gptmill.closure import FOLDER

Edges = dict[str, set[str]]


@dataclass(frozen=True)
class Shape:
    """Sizes of one drawing: a node's box, the gaps along and across the flow, and what a line that
    passes by takes across it."""

    down: bool
    width: int
    height: int
    along: int
    across: int
    passing: int

    @property
    def size(self) -> int:
        """A box across the flow."""
        return self.width if self.down else self.height

    @property
    def step(self) -> int:
        """From layer to layer."""
        return (self.height if self.down else self.width) + self.along


WIDE = Shape(down=False, width=104, height=52, along=34, across=20, passing=16)
NARROW = Shape(down=True, width=104, height=52, along=26, across=14, passing=10)


def stages(pipeline: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Each stage with the paths it reads and writes, `foreach` unfolded as DVC names it.

    Without the one that lists the code, which every other needs.
    """
    unfolded = {}
    for name, definition in pipeline.items():
        if name == FOLDER.name:
            continue
        items = definition.get("foreach")
        if items is None:
            unfolded[name] = _paths(definition, "")
            continue
        for item in items:
            unfolded[f"{name}@{item}"] = _paths(definition["do"], str(item))
    return unfolded


def dependencies(unfolded: Mapping[str, Mapping[str, list[str]]]) -> Edges:
    """What each stage needs directly; what follows from other needs is left out."""
    needs: Edges = {
        name: {
            other
            for other, its in unfolded.items()
            if other != name and any(_overlap(d, o) for d in paths["deps"] for o in its["outs"])
        }
        for name, paths in unfolded.items()
    }
    above = {name: _ancestors(name, needs) for name in needs}
    return {
        name: {n for n in direct if not any(n in above[other] for other in direct - {n})}
        for name, direct in needs.items()
    }


def layers(needs: Edges) -> list[list[str]]:
    """Stages by the longest way to them, each beside what it needs.

    A need that reaches over several layers passes through each as `|name`, so that it has a place
    of its own and crosses no box.
    """
    depth: dict[str, int] = {}

    def measure(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((measure(need) for need in needs[name]), default=-1)
        return depth[name]

    rows: list[list[str]] = [[] for _ in range(1 + max(map(measure, needs)))]
    for name in needs:
        rows[depth[name]].append(name)
    for name, direct in needs.items():
        for need in direct:
            for layer in range(depth[need] + 1, depth[name]):
                if f"|{need}" not in rows[layer]:
                    rows[layer].append(f"|{need}")
    for above, row in pairwise(rows):
        row.sort(key=lambda name: (_center(name, above, needs), name.lstrip("|")))
    return rows


def draw(pipeline: Mapping[str, Any], seconds: Mapping[str, float], shape: Shape) -> Markup:
    """The graph as SVG; each box shows its stage's wall time and its share of the longest."""
    needs = dependencies(stages(pipeline))
    rows = layers(needs)
    places = _places(rows, shape)
    deepest = {name: i for i, row in enumerate(rows) for name in row}
    lines = [
        _line(places[start], places[end], shape)
        for name, direct in needs.items()
        for need in sorted(direct)
        for start, end in _hops(need, name, deepest, places)
    ]
    lines += [_passage(place, shape) for name, place in places.items() if name.startswith("|")]
    longest = max(seconds.values(), default=0.0)
    boxes = [
        _box(name, place, shape, seconds.get(timing_name(name)), longest)
        for name, place in places.items()
        if name in needs
    ]
    across = max(_breadth(row, shape) for row in rows) + 2
    along = len(rows) * shape.step - shape.along + 2
    width, height = (across, along) if shape.down else (along, across)
    text = "; ".join(_sentence(name, needs, seconds) for name in needs)
    return Markup(
        f'<svg class="graph {"narrow" if shape.down else "wide"}" viewBox="0 0 {width} {height}" '
        f'style="max-width:{width}px" role="img" aria-label="Pipeline. {escape(text)}">'
        f"{''.join(dict.fromkeys(lines))}{''.join(boxes)}</svg>"
    )


def descriptions(pipeline: Mapping[str, Any]) -> dict[str, str]:
    """What dvc.yaml says that each stage does; of several from one `foreach`, once."""
    texts = {}
    for name, definition in pipeline.items():
        text = str(definition.get("do", definition).get("desc", ""))
        texts[name] = text.replace("${item}", ", ".join(map(str, definition.get("foreach", []))))
    return {name: text for name, text in texts.items() if text}


def timing_name(stage: str) -> str:
    """The name under which a stage's timings lie."""
    return stage.replace("@", "_")


def duration(seconds: float) -> str:
    """Wall time as a person says it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def _paths(definition: Mapping[str, Any], item: str) -> dict[str, list[str]]:
    def names(kind: str) -> list[str]:
        listed = definition.get(kind, [])
        plain = [next(iter(path)) if isinstance(path, dict) else path for path in listed]
        return [str(path).replace("${item}", item) for path in plain]

    return {
        "deps": names("deps"),
        "outs": [path for kind in ("outs", "metrics", "plots") for path in names(kind)],
    }


def _overlap(first: str, second: str) -> bool:
    return first == second or first.startswith(f"{second}/") or second.startswith(f"{first}/")


def _ancestors(name: str, needs: Edges) -> set[str]:
    found: set[str] = set()
    waiting = list(needs[name])
    while waiting:
        need = waiting.pop()
        if need not in found:
            found.add(need)
            waiting += needs[need]
    return found


def _center(name: str, above: list[str], needs: Edges) -> float:
    """Where in the layer above a stage's needs stand, on average."""
    wanted = {name.lstrip("|")} if name.startswith("|") else needs[name]
    found = [i for i, other in enumerate(above) if other.lstrip("|") in wanted]
    # Layers are centered, so positions are counted from the middle.
    middle = (len(above) - 1) / 2
    return sum(i - middle for i in found) / len(found) if found else 0.0


def _room(name: str, shape: Shape) -> int:
    return shape.passing if name.startswith("|") else shape.size


def _breadth(row: list[str], shape: Shape) -> int:
    return sum(_room(name, shape) for name in row) + (len(row) - 1) * shape.across


def _places(rows: list[list[str]], shape: Shape) -> dict[str, tuple[float, float]]:
    """The upper left corner of every box; a passing line's place is keyed by layer too, and is
    that of a box with the line through its middle."""
    broadest = max(_breadth(row, shape) for row in rows)
    places: dict[str, tuple[float, float]] = {}
    for i, row in enumerate(rows):
        across, along = 1 + (broadest - _breadth(row, shape)) / 2, i * shape.step + 1
        for name in row:
            room = _room(name, shape)
            key = f"{name} {i}" if name.startswith("|") else name
            corner = across + (room - shape.size) / 2
            places[key] = (corner, along) if shape.down else (along, corner)
            across += room + shape.across
    return places


def _hops(
    need: str, name: str, deepest: Mapping[str, int], places: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """The way from a stage to one that needs it, through the places kept for it."""
    passing = [f"|{need} {i}" for i in range(deepest[need] + 1, deepest[name])]
    way = [need, *(key for key in passing if key in places), name]
    return list(pairwise(way))


def _line(start: tuple[float, float], end: tuple[float, float], shape: Shape) -> str:
    (x1, y1), (x2, y2) = start, end
    if shape.down:
        x1, y1, x2 = x1 + shape.width / 2, y1 + shape.height, x2 + shape.width / 2
        bend = (y2 - y1) / 2
        path = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} "
    else:
        x1, y1, y2 = x1 + shape.width, y1 + shape.height / 2, y2 + shape.height / 2
        bend = (x2 - x1) / 2
        path = f"M{x1:.0f} {y1:.0f}C{x1 + bend:.0f} {y1:.0f} {x2 - bend:.0f} {y2:.0f} "
    return f'<path class="edge" d="{path}{x2:.0f} {y2:.0f}"/>'


def _passage(place: tuple[float, float], shape: Shape) -> str:
    """The straight piece of a line through a place that is kept for it."""
    x, y = place
    if shape.down:
        x += shape.width / 2
        return f'<path class="edge" d="M{x:.0f} {y:.0f}V{y + shape.height:.0f}"/>'
    y += shape.height / 2
    return f'<path class="edge" d="M{x:.0f} {y:.0f}H{x + shape.width:.0f}"/>'


def _box(
    name: str,
    place: tuple[float, float],
    shape: Shape,
    seconds: float | None,
    longest: float,
) -> str:
    x, y = place
    first, _, second = name.partition("@" if "@" in name else "_")
    time = "no timing" if seconds is None else duration(seconds)
    share = 0.0 if seconds is None or not longest else seconds / longest
    width = max(2.0, share * (shape.width - 16))
    lines = [first, second] if second else [first]
    texts = "".join(
        f'<text class="stage" x="{x + 8:.0f}" y="{y + 15 + 13 * i:.0f}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    return (
        f'<g><title>{escape(name)}: {time}</title><rect class="box" x="{x:.0f}" y="{y:.0f}" '
        f'width="{shape.width}" height="{shape.height}" rx="7"/>{texts}'
        f'<text class="time" x="{x + 8:.0f}" y="{y + 42:.0f}">{time}</text>'
        f'<rect class="share" x="{x + 8:.0f}" y="{y + 46:.0f}" width="{width:.1f}" height="2.5" '
        'rx="1"/></g>'
    )


def _sentence(name: str, needs: Edges, seconds: Mapping[str, float]) -> str:
    time = seconds.get(timing_name(name))
    after = f" after {', '.join(sorted(needs[name]))}" if needs[name] else ""
    return f"{name}{after}" + (f", {duration(time)}" if time is not None else "")
