from __future__ import annotations

from itertools import combinations

from wpn_bench.report.labels import LETTER, WIDTH, Bar, placed


def test_labels_of_points_on_a_heap_lie_apart() -> None:
    span = (30.0, 48.0)
    bars = [Bar(44.0 + i / 5, 92.0 + i, 43.5 + i / 5, 44.5 + i / 5, 90.0 + i, 94.0 + i) for i in range(4)]
    labels = placed([(f"method {i}", "#000") for i in range(4)], bars, [(b.x, b.y) for b in bars], [], span)
    half = LETTER * len("method 0") / 2
    centres = []
    for label in labels:
        x = (label["x"] - span[0]) * WIDTH / (span[1] - span[0])
        y = (label["y"] + 4) * 382 / 109
        if label["showarrow"]:
            centres.append((x + label["ax"] + half * (1 if label["xanchor"] == "left" else -1), y - label["ay"]))
        else:
            centres.append((x + label["xshift"], y + label["yshift"]))
    for (x1, y1), (x2, y2) in combinations(centres, 2):
        assert abs(x1 - x2) >= 2 * half or abs(y1 - y2) >= 18


def test_a_lone_point_is_named_beside_itself() -> None:
    label = placed([("base", "#000")], [Bar(40, 50, 39, 41, 45, 55)], [(40, 50)], [], (30, 50))[0]
    assert not label["showarrow"]
    assert label["xshift"] > 0
