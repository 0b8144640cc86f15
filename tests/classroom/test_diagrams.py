"""Every drawing draws, says what it shows, and can be read at 750 pixels: no text on a text, on an arrow or outside."""

from itertools import combinations, pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.core.pylabtools import print_figure

from rlhf_lab.classroom import diagrams, plots
from rlhf_lab.classroom.drawing import INCH

SMALLEST = 8.0  # points
NAMES = {
    "pipeline": [None, "base", "sft", "feedback", "reward model", "ppo"],
    "backup": ["v", "q", "v*", "q*", "td", "sarsa", "expected sarsa", "q-learning", "monte carlo"],
    "data_flow": ["reinforce", "actor-critic", "ppo", "dqn", "rlhf", "transformer"],
}
DRAWINGS = {f"{what} {name}": (what, [name]) for what, names in NAMES.items() for name in names}
DRAWINGS |= {"agent_environment": ("agent_environment", []), "batch_layout": ("batch_layout", [])}


def draw(case):
    what, arguments = DRAWINGS[case]
    return getattr(diagrams, f"_draw_{what}")(*arguments)


@pytest.fixture(scope="module")
def drawing(request):
    """(figure, alternative text, [(text, its box in pixels)]) of a case."""
    figure, alt = draw(request.param)
    figure.canvas.draw()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    yield figure, alt, [(text, text.get_window_extent()) for text in texts]
    plt.close(figure)


every_drawing = pytest.mark.parametrize("drawing", DRAWINGS, indirect=True)


def overlap(one, other):
    """How many pixels two boxes share in their smaller direction."""
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    return min(wide, high)


def along(line):
    """Points on a drawn line, at most 2 pixels apart, in pixels."""
    corners = line.get_transform().transform(line.get_xydata())
    for a, b in pairwise(corners):
        yield from np.linspace(a, b, 2 + int(np.hypot(*(b - a)) / 2))


@every_drawing
def test_texts_keep_apart_and_inside(drawing):
    figure, _, texts = drawing
    assert len(texts) >= 4
    close = [(a.get_text(), b.get_text()) for (a, x), (b, y) in combinations(texts, 2) if overlap(x, y) > 0]
    assert close == []
    width, height = figure.canvas.get_width_height()
    outside = [
        text.get_text() for text, box in texts if min(box.x0, box.y0) < 2 or box.x1 > width - 2 or box.y1 > height - 1
    ]
    assert outside == []


@every_drawing
def test_no_line_runs_through_a_text(drawing):
    figure, _, texts = drawing
    hit = [
        text.get_text()
        for line in figure.axes[0].lines
        for text, box in texts
        if any(box.x0 - 1 < x < box.x1 + 1 and box.y0 < y < box.y1 for x, y in along(line))
    ]
    assert hit == []


@every_drawing
def test_texts_fit_their_boxes(drawing):
    figure, _, texts = drawing
    for patch in figure.axes[0].patches:
        box = patch.get_window_extent()
        for text, extent in texts:
            x, y = (extent.x0 + extent.x1) / 2, (extent.y0 + extent.y1) / 2
            if box.x0 < x < box.x1 and box.y0 < y < box.y1:
                fits = (
                    box.x0 <= extent.x0 - 3 and extent.x1 + 3 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1
                )
                assert fits, f"{text.get_text()!r} is wider than its box"


@every_drawing
def test_letters_are_large_enough(drawing):
    figure, _, texts = drawing
    scale = figure.dpi / INCH  # letters of 110 dots an inch
    assert min(text.get_fontsize() * scale for text, _ in texts) >= SMALLEST


def test_every_drawing_says_something_of_its_own():
    alts = {}
    for case in DRAWINGS:
        figure, alts[case] = draw(case)
        plt.close(figure)
    assert len(set(alts.values())) == len(alts)
    assert all(len(alt) >= 40 and alt.endswith(".") for alt in alts.values()), alts


@every_drawing
def test_what_is_shown_carries_its_text(drawing, request, monkeypatch):
    _, alt, _ = drawing
    shown = []
    monkeypatch.setattr(plots, "display", lambda figure, metadata: shown.append(metadata["image/png"]["alt"]))
    what, arguments = DRAWINGS[request.node.callspec.params["drawing"]]
    before = plt.get_fignums()
    assert getattr(diagrams, what)(*arguments) is None  # a last line of a cell shows nothing twice
    assert shown == [alt]
    assert plt.get_fignums() == before  # nothing is left open


@pytest.mark.parametrize(("what", "argument"), [("pipeline", "here"), ("backup", "kind"), ("data_flow", "name")])
def test_an_unknown_name_lists_the_known_ones(what, argument):
    with pytest.raises(ValueError, match=f"{argument} is 'rlvr'; expected one of") as error:
        getattr(diagrams, what)("rlvr")
    for name in NAMES[what]:
        assert name is None or repr(name) in str(error.value)


def test_only_the_stage_that_is_named_is_marked():
    words = {}
    for here in NAMES["pipeline"]:
        figure, _ = diagrams._draw_pipeline(here)
        words[here] = [text.get_position()[0] for text in figure.axes[0].texts if text.get_text() == "you are here"]
        plt.close(figure)
    assert words.pop(None) == []
    places = [where for (where,) in words.values()]
    assert places == sorted(set(places))  # from left to right, in the order of the stages


@pytest.mark.parametrize(("kind", "states", "actions"), [("v", 7, 3), ("q", 3, 7), ("td", 2, 1), ("sarsa", 1, 2)])
def test_backup_has_open_states_and_filled_actions(kind, states, actions):
    figure, _ = diagrams._draw_backup(kind)
    open_ones = [patch.get_facecolor()[:3] == (1, 1, 1) for patch in figure.axes[0].patches]
    plt.close(figure)
    assert (sum(open_ones), len(open_ones) - sum(open_ones)) == (states, actions)


def test_layout_follows_the_contract():
    """The score on the last real token, a discount of 0 there, one value more than tokens, positions from the mask."""
    tokens, rows = diagrams.TOKENS[0], diagrams.DETAILS
    reply = tokens[4:]
    last = max(i for i, token in enumerate(reply) if token)
    assert [i for i, text in enumerate(rows["reward"]) if "score" in text] == [last]
    assert rows["discount"][: last + 1] == ("1",) * last + ("0",)
    assert len(rows["value"]) == len(reply) + 1
    assert set(rows["value"][last + 1 :]) == {"0"}
    assert [text == "True" for text in rows["mask"]] == [bool(token) for token in tokens]
    assert [text for text in rows["position"] if text] == [str(i) for i in range(sum(map(bool, tokens)))]


def test_drawn_as_an_image_in_a_notebook():
    """The inline backend adds a small margin: 750 pixels in all, so that nothing is scaled down."""
    figure, _ = draw("pipeline ppo")
    png = print_figure(figure, fmt="png", base64=False)
    width = int.from_bytes(png[16:20], "big")
    plt.close(figure)
    assert 745 <= width <= 750


# -- rows of tokens ----------------------------------------------------------------------------------------------
ROWS = {"row 0": ["pad", "When", "?", "At", "nine", "end"], "row 1": ["Where", "is", "it", "Here", "end", "pad"]}
PADDING = [[True, False, False, False, False, False], [False] * 5 + [True]]


def test_token_cells_say_what_they_are_given_and_are_pale_at_padding(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "show", lambda alt, figure: shown.append((alt, figure)))
    diagrams.token_cells(ROWS, 3, PADDING, "two rows of six tokens")
    [(alt, figure)] = shown
    figure.canvas.draw()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert alt == "two rows of six tokens"
    assert texts == ["prompt", "reply", "row 0", *ROWS["row 0"], "row 1", *ROWS["row 1"]]
    faces = [patch.get_facecolor() for patch in figure.axes[0].patches]
    colours = [faces[0], faces[1], faces[3]]  # padding, prompt, reply
    kinds = [[0, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 0]]
    assert faces == [colours[kind] for row in kinds for kind in row]
    assert len(set(colours)) == 3
    words = {word for cells in ROWS.values() for word in cells}
    written = [text for text in figure.axes[0].texts if text.get_text() in words]
    for patch, text in zip(figure.axes[0].patches, written, strict=True):
        box, extent = patch.get_window_extent(), text.get_window_extent()
        assert box.x0 <= extent.x0
        assert extent.x1 <= box.x1
    plt.close(figure)


@pytest.mark.parametrize("rows", [{"a": ["x"], "b": ["x", "y"]}, {"a": ["x"] * 18}, {}])
def test_token_cells_refuse_what_cannot_be_drawn(rows):
    with pytest.raises(ValueError, match="expected as many in each row, at most 17"):
        diagrams.token_cells(rows, 1, [[False] * len(cells) for cells in rows.values()], "alt")
