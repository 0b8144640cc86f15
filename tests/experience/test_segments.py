"""Pieces of episodes for people to compare: what is cut, what it earned, which pairs, and what is drawn and told."""

import io
import itertools
import math

import gymnasium
import matplotlib.image
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from rlhf_lab.experience import scenes
from rlhf_lab.experience.episodes import Episodes, collect_episodes, open_envs, policy_for
from rlhf_lab.experience.scenes import MOST, WIDTH, Canvas, describe, frames
from rlhf_lab.experience.segments import cut_segments, pair_segments
from rlhf_lab.maths.tensors import length_mask
from rlhf_lab.models.policies import sampling
from rlhf_lab.records import Segment, SegmentChoice

torch.set_num_threads(1)
DRAWN = ("CartPole-v1", "FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "MountainCar-v0", "Pendulum-v1",
         "Acrobot-v1", "MountainCarContinuous-v0")  # fmt: skip


def episodes(lengths=(7, 3, 4), terminal=(True, False, True)):
    """Rows of one number, which counts steps from 100 times the row; step t of row b earns 10 b + t."""
    lengths, steps = torch.tensor(lengths), max(lengths)
    mask = length_mask(lengths, steps)
    count = torch.arange(steps + 1) + 100 * torch.arange(len(lengths))[:, None]
    rewards = (torch.arange(steps) + 10.0 * torch.arange(len(lengths))[:, None]) * mask
    discounts = torch.where(mask, 0.9, 0.0)
    discounts[torch.tensor(terminal), lengths[torch.tensor(terminal)] - 1] = 0.0
    seen = count.float()[..., None] * length_mask(lengths + 1, steps + 1)[..., None]
    return Episodes(seen, count[:, :-1] * mask, rewards, discounts, mask, ())


def played(environment, count=3, steps=60, seed=0):
    torch.manual_seed(seed)  # of the policy's weights
    with open_envs(environment, count, seed=seed, continuous=True) as envs:
        act = sampling(policy_for(envs[0]), torch.Generator().manual_seed(seed))
        return collect_episodes(envs, act, gamma=0.99, max_steps=steps)


def segment(environment, observations, actions):
    return Segment(environment, tuple(map(tuple, observations)), tuple((float(a),) for a in actions))


# -- cutting ----------------------------------------------------------------------------------------------------------
def test_pieces_of_a_case_made_by_hand():
    returns = cut_segments(episodes(), "Toy", 3)
    found = [(one.observations[0][0], [a[0] for a in one.actions], earned) for one, earned in returns.items()]
    assert found == [(0, [0, 1, 2], 3), (3, [3, 4, 5], 12), (100, [100, 101, 102], 33), (200, [200, 201, 202], 63)]
    ends = {s.observations[0][0]: (len(s.actions), r) for s, r in cut_segments(episodes(), "Toy", 3, True).items()}
    assert ends == {0: (3, 3), 3: (3, 12), 6: (1, 6), 100: (3, 33), 200: (3, 63), 203: (1, 23)}


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=4), st.integers(1, 9), st.booleans())
def test_pieces_hold_what_was_seen_and_earned_once_each(rows, steps, short_ends):
    """The spec: step t of a row is in piece t // steps; a last one that is too short stays only where it ended."""
    all_of_them = episodes(*zip(*rows, strict=True))
    expected = {}
    for b, (length, terminal) in enumerate(rows):
        for piece, group in itertools.groupby(range(length), lambda t: t // steps):
            inside = list(group)
            if len(inside) == steps or (short_ends and terminal):
                expected[b, piece] = (inside, sum(10.0 * b + t for t in inside))
    if not expected:
        with pytest.raises(ValueError, match=f"steps is {steps}; expected at most {max(n for n, _ in rows)}"):
            cut_segments(all_of_them, "Toy", steps, short_ends)
        return
    found = cut_segments(all_of_them, "Toy", steps, short_ends)
    assert len(found) == len(expected)
    for ((b, _), (inside, earned)), (one, value) in zip(expected.items(), found.items(), strict=True):
        assert [row[0] for row in one.observations] == [100.0 * b + t for t in [*inside, inside[-1] + 1]]
        assert [row[0] for row in one.actions] == [100.0 * b + t for t in inside]
        assert value == earned


@pytest.mark.parametrize("environment", DRAWN)
def test_pieces_of_real_episodes_are_records_without_a_reward(environment):
    returns = cut_segments(played(environment), environment, 5, short_ends=True)
    one = next(iter(returns))
    assert {one.environment for one in returns} == {environment}
    assert set(vars(one)) == {"environment", "observations", "actions"}
    assert SegmentChoice("Which one is better?", one, one, 0).left == one
    total = float(played(environment).rewards.sum())
    if environment in ("Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0"):  # 60 steps, no piece twice
        assert sum(returns.values()) == pytest.approx(total, rel=1e-5)


def test_of_equal_pieces_the_first_is_kept():
    twice = episodes((3, 3), (True, True))
    fields = (twice.observations, twice.actions, twice.rewards, twice.discounts, twice.mask)
    same = Episodes(*(values[[0, 0]] for values in fields), returns=())
    assert len(cut_segments(same, "Toy", 3)) == 1


@pytest.mark.parametrize(("steps", "message"), [(0, "at least 1"), (2.0, "a whole number"), (8, "at most 7")])
def test_impossible_lengths_are_refused(steps, message):
    with pytest.raises(ValueError, match=f"steps is {steps}; expected {message}"):
        cut_segments(episodes(), "Toy", steps)


# -- pairs ------------------------------------------------------------------------------------------------------------
PIECES = [segment("Toy", [(0.0,), (float(i),)], [0]) for i in range(5)]


def test_every_pair_is_drawn_once_and_none_of_a_segment_with_itself():
    pairs = pair_segments(PIECES, 10, torch.Generator().manual_seed(0))
    assert {frozenset(pair) for pair in pairs} == {frozenset(pair) for pair in itertools.combinations(PIECES, 2)}
    assert pairs == pair_segments(PIECES, 10, torch.Generator().manual_seed(0))
    assert pairs != pair_segments(PIECES, 10, torch.Generator().manual_seed(1))


def test_pairs_and_sides_are_drawn_evenly():
    """Chi-square over the 20 ordered pairs, 4,000 draws of 1: false-alarm rate 1e-4 at 50.8 (19 degrees of freedom)."""
    source = torch.Generator().manual_seed(0)
    counts = dict.fromkeys(itertools.permutations(PIECES, 2), 0)
    for _ in range(4000):
        counts[pair_segments(PIECES, 1, source)[0]] += 1
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 50.8


@pytest.mark.parametrize(
    ("pieces", "count", "message"),
    [(PIECES, 11, "at most 10, the number of pairs of 5"), (PIECES[:1] * 3, 1, "at most 0"), (PIECES, 0, "at least 1")],
)
def test_too_many_pairs_are_refused(pieces, count, message):
    with pytest.raises(ValueError, match=f"count is {count}; expected {message}"):
        pair_segments(pieces, count, torch.Generator())


# -- pictures ---------------------------------------------------------------------------------------------------------
def picture(png):
    return matplotlib.image.imread(io.BytesIO(png))[..., :3]


def like(pixels, colour):
    """Which pixels have nearly that colour."""
    return np.abs(pixels - np.array(colour)).max(-1) < 0.05


def centre(pixels, colour):
    """(x, y) of the pixels of a colour, in pixels from the upper left."""
    rows, columns = np.nonzero(like(pixels, colour))
    return columns.mean() + 0.5, rows.mean() + 0.5


@pytest.mark.parametrize("environment", DRAWN)
def test_frames_are_small_pictures_of_one_size_that_change(environment):
    longest = max(cut_segments(played(environment), environment, 40, short_ends=True), key=lambda s: len(s.actions))
    pngs = frames(longest)
    assert len(pngs) == min(len(longest.observations), MOST) <= 25
    pictures = [picture(png) for png in pngs]
    assert {one.shape for one in pictures} == {pictures[0].shape}
    assert pictures[0].shape[1] == WIDTH == 200
    assert max(map(len, pngs)) < 8000
    assert len(set(pngs)) == len(pngs)
    assert frames(longest) == pngs
    shares = [like(one[-3], scenes.ORANGE).mean() for one in pictures]
    assert shares == pytest.approx(np.linspace(0, 1, len(pngs)), abs=1 / len(longest.actions) + 1 / 200)


def test_the_first_and_the_last_view_are_kept_and_the_others_lie_evenly(monkeypatch):
    seen = []
    long = segment("Toy-v0", [(float(t),) for t in range(101)], [0] * 100)
    draw = lambda segment, t: seen.append(t) or Canvas(0, 1, 0, 0.1)  # noqa: E731
    monkeypatch.setattr(scenes, "NUMBERS", scenes.Scene(draw, str))
    assert len(frames(long)) == 25
    assert (seen[0], seen[-1]) == (0, 100)
    assert set(np.diff(seen)) <= {4, 5}


def test_shapes_lie_where_they_are_put():
    """Areas and centres in pixels, each pixel 1 / 20 of a unit."""
    canvas = Canvas(-5, 5, -2, 2)
    assert canvas.pixels.shape == (80, 200, 3)
    for draw, area, middle in (
        (lambda c: c.disc(1, 1, 0.5, scenes.BLUE), math.pi / 4, (1, 1)),
        (lambda c: c.box(-4, -2, -1, 0, scenes.BLUE), 2.0, (-3, -0.5)),
        (lambda c: c.line((0, 0), (3, 1), 0.2, scenes.BLUE), 0.2 * math.hypot(3, 1) + math.pi / 100, (1.5, 0.5)),
        (lambda c: c.line((2, -1), (2, -1), 0.6, scenes.BLUE), math.pi * 0.09, (2, -1)),
    ):
        canvas = Canvas(-5, 5, -2, 2)
        draw(canvas)
        cover = (1 - canvas.pixels[..., 0]).astype(float)  # blue has no red in it
        assert cover.sum() / 400 == pytest.approx(area, rel=0.02)
        assert (cover * canvas.x).sum() / cover.sum() == pytest.approx(middle[0], abs=0.02)
        assert (cover * canvas.y).sum() / cover.sum() == pytest.approx(middle[1], abs=0.02)


def test_an_arrow_points_where_it_says():
    for way in ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)):
        canvas = Canvas(-1, 1, -1, 1)
        canvas.arrow(0, 0, way, 0.4)
        x, y = np.broadcast_arrays(canvas.x, canvas.y)
        there = like(canvas.pixels, scenes.ORANGE)
        along, across = x[there] * way[0] + y[there] * way[1], np.abs(x[there] * way[1] + y[there] * way[0])
        assert 0.35 < along.max() < 0.45
        assert along.min() > -0.05
        assert across[along < 0.1].max() > 0.13 > 0.05 > across[along > 0.32].max()


def test_what_lies_outside_is_left_out():
    canvas = Canvas(0, 1, 0, 1)
    canvas.disc(50, 50, 1, scenes.BLUE)
    canvas.line((-9, -9), (-5, -9), 1, scenes.BLUE)
    assert (canvas.pixels == 1).all()


def test_a_canvas_that_is_copied_is_not_changed():
    board = Canvas(0, 1, 0, 1)
    board.copy().disc(0.5, 0.5, 0.4, scenes.INK)
    assert (board.pixels == 1).all()


def test_the_pole_leans_where_the_angle_says_and_the_cart_stands_at_its_place():
    """The pole's length is 1, and the picture is 5.2 wide: its middle lies half of it above the cart, to the right."""
    for x, angle in ((0.0, 0.0), (1.0, 0.5), (-2.0, -0.5)):
        picture_ = picture(frames(segment("CartPole-v1", [(x, 0, angle, 0)] * 2, [1]))[0])
        at, above = centre(picture_, scenes.BLUE)
        unit = 200 / 5.2
        assert at == pytest.approx((x + math.sin(angle) / 2 + 2.6) * unit, abs=1)
        assert above == pytest.approx((1.4 - 0.1 - math.cos(angle) / 2) * unit, abs=1)
    for action, side in ((0, -1), (1, 1)):
        shown = picture(frames(segment("CartPole-v1", [(0, 0, 0, 0)] * 2, [action]))[0])[:-6]
        assert (centre(shown, scenes.ORANGE)[0] - 100) * side > 5


@pytest.mark.parametrize(
    ("environment", "columns"), [("FrozenLake-v1", 4), ("FrozenLake8x8-v1", 8), ("CliffWalking-v1", 12)]
)
def test_the_walker_stands_in_its_cell(environment, columns):
    size, rows = 200 / columns, 4 if columns == 12 else columns
    for cell in range(rows * columns):
        at, down = centre(picture(frames(segment(environment, [(cell,)] * 2, [0]))[1])[:-6], scenes.BLUE)
        assert (at // size, down // size) == (cell % columns, cell // columns)


@pytest.mark.parametrize("environment", ["FrozenLake-v1", "CliffWalking-v1"])
def test_moves_go_where_gymnasium_goes(environment):
    """From a free cell in the middle, without slipping."""
    env = gymnasium.make(environment, is_slippery=False).unwrapped
    columns, moves = (4, scenes.LAKE_MOVES) if "Lake" in environment else (12, scenes.CLIFF_MOVES)
    cell = 9 if columns == 4 else 17
    for action, (across, down) in enumerate(moves):
        assert env.P[cell][action][0][1] == cell + across + columns * down
    if columns == 12:
        assert [letter == "C" for letter in "".join(scenes.CLIFF)] == env._cliff.ravel().tolist()
        return
    wide = gymnasium.make("FrozenLake8x8-v1").unwrapped
    for name, made in ((environment, env), ("FrozenLake8x8-v1", wide)):
        desc = tuple("".join(map(bytes.decode, row)) for row in made.desc)
        assert scenes._lake(segment(name, [(0,)] * 2, [0])) == desc


def test_pendulum_and_acrobot_stand_as_gymnasium_says():
    up = picture(frames(segment("Pendulum-v1", [(1, 0, 0)] * 2, [0]))[0])
    left = picture(frames(segment("Pendulum-v1", [(0, 1, 0)] * 2, [0]))[0])  # a positive angle goes against the clock
    assert centre(up, scenes.BLUE)[1] < 60
    assert centre(left, scenes.BLUE)[0] < 80
    env = gymnasium.make("Acrobot-v1").unwrapped
    env.reset(seed=0)
    for one, two in ((0.0, 0.0), (2.0, 0.5), (3.0, -0.4)):
        env.state = np.array([one, two, 0.0, 0.0])
        seen = env._get_ob()
        height = scenes._joints(seen)[1][1]
        assert height == pytest.approx(-math.cos(one) - math.cos(one + two), abs=1e-6)
        assert (height > 1) == bool(env._terminal())


# -- words ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (
            segment("CartPole-v1", [(0, 0, 0, 0), (-0.5, 0, -0.1, 0), (-1, 0, -0.3, 0)], [0, 0]),
            "2 steps. The cart goes from the middle to 1.0 left of the middle; the pole leans by 17 degrees at most. "
            "The pole has fallen.",
        ),
        (
            segment("CartPole-v1", [(2.3, 0, 0.1, 0), (2.5, 0, 0.1, 0)], [1]),
            "1 step. The cart goes from 2.3 right of the middle to 2.5 right of the middle; the pole leans by 6 "
            "degrees at most. The cart has left the track.",
        ),
        (
            segment("FrozenLake-v1", [(13,), (13,), (14,), (15,)], [2, 2, 2]),
            "3 steps on the ice: starts at row 4, column 2; stays, 2 x right. Ends at the goal.",
        ),
        (
            segment("FrozenLake8x8-v1", [(0,), (8,)], [1]),
            "1 step on the ice: starts at row 1, column 1; down. Ends on the ice.",
        ),
        (
            segment("CliffWalking-v1", [(36,), (24,), (25,), (36,), (36,), (36,), (24,), (36,)], [0, 1, 2, 1, 3, 0, 2]),
            "7 steps along the cliff: starts at row 4, column 1; up, right, 2 x falls off the cliff, back at the "
            "start, stays, up, down. Is still on its way.",
        ),
        (
            segment("CliffWalking-v1", [(35,), (47,)], [2]),
            "1 step along the cliff: starts at row 3, column 12; down. Ends at the goal.",
        ),
        (
            segment("MountainCar-v0", [(-0.5, 0), (0.51, 0)], [2]),
            "1 step. The car goes from -0.50 to 0.51; the valley is at -0.52. It reaches the flag.",
        ),
        (
            segment("Pendulum-v1", [(-1, 0, 0), (0, -1, 0), (1, 0, 0)], [0.5, 0.5]),
            "2 steps. The pendulum goes from 180 to 0 degrees from upright; in 1 of 3 views it is within 30 degrees.",
        ),
        (
            segment("Acrobot-v1", [(1, 0, 1, 0, 0, 0), (-1, 0, 1, 0, 0, 0)], [0]),
            "1 step. The tip gets as high as 2.0, above the line at 1; hanging down it is at -2.",
        ),
        (
            segment("Mine-v0", [(1, 2), (3, 4)], [0]),
            "1 step of 'Mine-v0'. What was seen, from first to last: 1 to 3, 2 to 4.",
        ),
    ],
)
def test_what_happens_is_told(one, expected):
    assert describe(one) == expected


def test_falls_are_those_that_gymnasium_punishes():
    """Over 2,000 random steps: as many falls are told as steps cost 100."""
    returns = cut_segments(played("CliffWalking-v1", count=2, steps=1000), "CliffWalking-v1", 10)
    for one, earned in returns.items():
        runs = describe(one).split("; ", 1)[1].split(", ")
        falls = sum(int(run.split(" x ")[0]) if " x " in run else 1 for run in runs if "falls" in run)
        assert falls == (-earned - 10) / 99
    assert sum(earned < -10 for earned in returns.values()) > 20


@pytest.mark.parametrize(
    "one",
    [
        segment("CartPole-v1", [(0,), (1,)], [0]),
        segment("CartPole-v1", [(1e300, 0, 0, 0), (-1e300, 0, 0, 0)], [0]),
        segment("FrozenLake-v1", [(0,), (16,)], [0]),
        segment("FrozenLake-v1", [(0,), (0.5,)], [0]),
        segment("FrozenLake-v1", [(0,), (-1,)], [0]),
        segment("FrozenLake-v1", [(0,), (1,)], [4]),
        segment("FrozenLake-v1", [(0, 0), (1, 0)], [1]),
        Segment("CliffWalking-v1", ((0.0,), (1.0,)), ((),)),
        Segment("CliffWalking-v1", ((), ()), ((1.0,),)),
        segment("<script>\ud83d", [(1.7e308, -1.7e308), (-1.7e308, 1.7e308)], [0]),
        segment("", [()] * 2, [0]),
    ],
    ids=range(11),
)
def test_numbers_that_are_not_the_environments_are_drawn_as_numbers(one):
    assert describe(one).startswith("1 step of '")
    assert len({picture(png).shape for png in frames(one)}) == 1


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([*DRAWN, "Mine"]),
    st.integers(0, 7).flatmap(
        lambda size: st.lists(
            st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * size), min_size=2, max_size=4
        )
    ),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_segment_is_drawn_and_told(environment, rows, action):
    one = segment(environment, rows, [action] * (len(rows) - 1))
    assert len(frames(one)) == len(rows)
    assert "\n" not in describe(one)
