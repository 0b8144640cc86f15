"""A map and a tree show what they were given: arrows, values, probabilities, and texts that can be read."""

import re
from itertools import combinations

import matplotlib.pyplot as plt
import pytest
import torch

from rlhf_lab.classroom import mdp_plots, plots
from rlhf_lab.maths import mdp

MAP = ["..G", "SO#"]
WORDS = {
    "Go to the bookshop.": "bookshop",
    "Go to the library.": "library",
    "Do you want to buy a book?": "ask",
    "I do not know.": "do not know",
    "That is not what I wanted.": "wrong place",
    "You asked that already. Goodbye.": "asked already",
    "Hello, I am looking for a place to read.": "Hello",
}


def words_of(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


def test_map_points_where_the_policy_goes():
    world = mdp.gridworld(MAP, gamma=0.5)
    values, policy = mdp.value_iteration(world)
    with plots.style():
        figure, ax = plt.subplots()
        mdp_plots.policy_map(ax, MAP, world, values, policy)
    arrows = {note.xyann: note.xy for note in ax.texts if not note.get_text()}
    moves = sorted((round(b[0] - a[0], 2), round(b[1] - a[1], 2)) for a, b in arrows.items())
    assert moves == [(0, 0.34), (0.34, 0), (0.34, 0)]  # S goes north, both cells of the upper row east
    assert sorted(words_of(ax)) == ["0.25", "0.50", "1.00", "goal", "pit"]
    plt.close(figure)


def test_a_map_of_another_process_is_refused():
    figure, ax = plt.subplots()
    with pytest.raises(ValueError, match="expected the map of this process"):
        mdp_plots.policy_map(ax, MAP, mdp.chain(3), torch.zeros(4), torch.zeros(4, 2))
    plt.close(figure)


@pytest.fixture(params=[0.5, 0.9])
def tree(request):
    """(axes, share of buyers) of the tree of a solved desk."""
    desk = mdp.dialogue(buyers=request.param)
    totals = mdp.dialogue("delayed").rewards[:, 0]
    figure = mdp_plots.history_tree(desk, *mdp.value_iteration(desk), totals, WORDS)
    figure.canvas.draw()
    yield figure.axes[0], request.param
    plt.close(figure)


def test_tree_shows_every_dialogue_with_its_probabilities(tree):
    ax, buyers = tree
    words = words_of(ax)
    ends = [word for word in words if re.search(r"[+-]\d\.\d$", word)]
    assert len(ends) == 13  # those that can happen
    assert ends.count("Thank you!  +1.0") == 2
    assert ends.count("Thank you!  +0.8") == 2
    chances = [float(word) for word in words if word.replace(".", "").isdigit()]
    assert sorted(chances) == sorted([buyers] * 3 + [round(1 - buyers, 9)] * 3 + [1] * 9)
    assert {"worth 0.8", "worth 1.0"} <= {line for word in words for line in word.split("\n")}


def test_tree_draws_one_best_reply_a_square(tree):
    ax, buyers = tree
    thick = [line for line in ax.lines if line.get_linewidth() > 2]
    assert len(thick) == 3
    (first,) = (line for line in thick if line.get_xdata()[0] == mdp_plots.COLUMNS[0])
    replies = {"bookshop": 0, "ask": 0}
    for text in ax.texts:
        if text.get_text() in replies and text.get_position()[0] == mdp_plots.COLUMNS[1]:
            replies[text.get_text()] = abs(text.get_position()[1] - first.get_ydata()[1])
    assert min(replies, key=replies.get) == ("ask" if buyers == 0.5 else "bookshop")


def test_tree_can_be_read(tree):
    ax, _ = tree
    texts = [(text, text.get_window_extent()) for text in ax.texts]
    assert min(text.get_fontsize() for text, _ in texts) >= 8
    for (one, a), (other, b) in combinations(texts, 2):
        apart = a.x1 < b.x0 or b.x1 < a.x0 or a.y1 < b.y0 or b.y1 < a.y0
        assert apart, f"{one.get_text()!r} on {other.get_text()!r}"
    assert all(box.x0 > 0 and box.x1 < ax.figure.bbox.width and box.y0 >= 0 for _, box in texts)
