"""Explorables: their numbers against definitions, what a notebook stores of them, and that the still shows the same."""

import itertools
import json
from math import comb, exp, log

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from explorable_names import NAMES
from hypothesis import given, settings, strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import multinomial

from rlhf_lab.classroom import explore, plots
from rlhf_lab.classroom.explorables import control, evaluation, feedback, laws, next_token
from rlhf_lab.classroom.explorables.draggable import Axis, Dial, Explorable, Line, Panel, Plan, Scene, draw, still
from rlhf_lab.experience.invariants.sampled_law import Alternative
from rlhf_lab.feedback.aggregation import consensus
from rlhf_lab.maths.agreement import cohen_kappa, percent_agreement
from rlhf_lab.maths.intervals import win_rate
from rlhf_lab.maths.power import detectable_win_rate
from rlhf_lab.maths.preferences import bradley_terry_loss
from rlhf_lab.models.language_model import load_language_model
from rlhf_lab.models.tokens import encode_prompts
from rlhf_lab.records import Comparison


def plan_of(name):
    return getattr(explore, name)().plan


def test_every_explorable_has_a_still_and_nothing_else_is_public():
    functions = {name for name, thing in vars(explore).items() if getattr(thing, "__module__", "") == explore.__name__}
    assert functions == {*NAMES, *(f"{name}_still" for name in NAMES)}


# ---- the numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_clip_has_no_slope_where_the_advantage_has_been_followed_beyond_the_band(advantage):
    ratios = torch.tensor([0.3, 0.69, 0.71, 1.0, 1.29, 1.31, 1.9], dtype=torch.float64)
    value, slope = control.clip_curve(ratios, advantage, 0.3)
    clipped = ratios > 1.3 if advantage > 0 else ratios < 0.7
    torch.testing.assert_close(slope, torch.where(clipped, 0.0, advantage).double())
    torch.testing.assert_close(value, advantage * torch.where(clipped, 1 + 0.3 * advantage, ratios))


@pytest.mark.parametrize("epsilon", [0.05, 0.2, 0.6])
def test_the_flat_piece_of_the_clip_begins_at_the_edge_of_the_band(epsilon):
    for panel, edge in zip(control.clip_scene(epsilon, 1.0).panels, (1 + epsilon, 1 - epsilon), strict=True):
        flat = next(mark for mark in panel.marks if isinstance(mark, Line) and mark.colour == plots.COLOURS["reward"])
        assert edge in (flat.x[0], flat.x[-1])
        assert len({round(y, 12) for y in flat.y}) == 1 < len(flat.y)


def test_a_reward_at_the_end_reaches_back_by_powers_of_lambda():
    for lam in (0.0, 0.5, 0.95, 1.0):
        expected = [lam**ahead for ahead in reversed(range(control.REPLY))]
        assert control.reward_reach(lam) == pytest.approx(expected, abs=1e-12)


def test_gae_errors_are_those_of_gradients_taken_one_reply_at_a_time():
    world, logits = control._gae_world()
    lam, critic_error = 0.7, 0.4
    logits = logits.clone().requires_grad_(True)
    law, token_log_probs = world.law(logits)[0], world.token_log_probs(logits)[0]
    pattern = (3.0 * torch.arange(world.num_prefixes, dtype=torch.float64)).sin() * 2**0.5
    critic = world.values(law[None].detach())[0] + critic_error * pattern
    gradients = []
    for number, score in enumerate(world.scores[0]):
        values = [*critic[world.prefix_ids[number]], torch.tensor(0.0)]
        deltas = [after - now for now, after in itertools.pairwise(values)]
        deltas[-1] = score - values[-2]
        advantages = torch.stack([sum(lam**k * d for k, d in enumerate(deltas[t:])) for t in range(6)])
        (gradient,) = torch.autograd.grad(token_log_probs[number] @ advantages, logits, retain_graph=True)
        gradients.append(gradient.flatten())
    (truth,) = torch.autograd.grad(law @ world.scores[0], logits, retain_graph=True)
    law, truth, gradients = law.detach(), truth.flatten(), torch.stack(gradients)
    mean = law @ gradients
    bias = 100 * (mean - truth).norm() / truth.norm()
    noise = 100 * (law @ (gradients - mean).square().sum(1) / control.BATCH).sqrt() / truth.norm()
    found = {name: row[control.LAMBDAS.index(lam)] for name, row in control.gae_errors(critic_error).items()}
    assert found["bias"] == pytest.approx(bias.item(), rel=1e-9)
    assert found["noise"] == pytest.approx(noise.item(), rel=1e-9)
    assert found["error"] == pytest.approx((bias**2 + noise**2).sqrt().item(), rel=1e-9)


def test_gae_has_no_bias_at_lambda_one_and_none_with_an_exact_critic():
    assert max(control.gae_errors(0.0)["bias"]) < 1e-6
    assert control.gae_errors(0.5)["bias"][-1] < 1e-6 < 100 < control.gae_errors(0.5)["bias"][0]


@given(gamma=st.sampled_from(plan_of("discount").dials[0].values))
@settings(deadline=None)
def test_the_corridor_is_worth_the_better_of_two_walks(gamma):
    values, right = control.corridor(gamma)
    for room, value in enumerate(values):
        near, far = control.NEAR * gamma**room, control.FAR * gamma ** (control.ROOMS - 1 - room)
        assert value == pytest.approx(max(near, far), abs=1e-12)
        assert right[room] == (far > near) or near == pytest.approx(far, abs=1e-9)


@pytest.mark.parametrize("beta", [0.05, 0.3, 5.0])
def test_the_leash_meets_the_axis_at_beta_log_z_and_touches_the_frontier(beta):
    world, ref_law = laws._leash_world()
    beta_log_z = beta * log(sum(p * exp(r / beta) for p, r in zip(ref_law[0], world.scores[0], strict=True)))
    frontier = laws.leash_scene(beta).panels[1]
    tangent = next(mark for mark in frontier.marks if isinstance(mark, Line) and mark.dash)
    assert (tangent.x[0], tangent.y[0]) == (0.0, pytest.approx(beta_log_z, abs=1e-12))
    kls, rewards = laws._frontier(laws._leash_world)
    above = [tangent.y[0] + beta * kl - reward for kl, reward in zip(kls, rewards, strict=True)]
    assert -1e-12 < min(above) < 2e-4


def test_sampled_logits_are_those_of_a_cut_and_tempered_law():
    logits = torch.tensor([[0.3, 2.0, -1.0, 1.0]], dtype=torch.float64)
    law = laws.sampled_logits(logits, 0.5, 2).softmax(-1)
    powers = logits.exp() ** 2 * torch.tensor([0.0, 1.0, 0.0, 1.0])
    torch.testing.assert_close(law, powers / powers.sum())


@given(temperature=st.sampled_from(laws.TEMPERATURES), top_k=st.integers(1, laws.VOCABULARY))
@settings(deadline=None, max_examples=20)
def test_the_used_gradient_is_the_mean_score_function_over_what_is_sampled(temperature, top_k):
    world, logits = laws._sampling_world()
    logits = logits.clone().requires_grad_(True)
    sampled = world.law(laws.sampled_logits(logits.detach(), temperature, top_k))
    log_law = world.token_log_probs(logits).sum(-1)
    (truth,) = torch.autograd.grad((log_law.exp() * world.scores).sum(), logits, retain_graph=True)
    for name, law in (("used", sampled), ("repaired", torch.where(sampled > 0, log_law.detach().exp(), 0))):
        (gradient,) = torch.autograd.grad((law * world.scores * log_law).sum(), logits, retain_graph=True)
        cosine = torch.cosine_similarity(gradient.flatten(), truth.flatten(), dim=0).item()
        found = laws.gradient_cosines(top_k)[name][laws.TEMPERATURES.index(temperature)]
        assert found == pytest.approx(cosine, abs=1e-9)
    if top_k == laws.VOCABULARY:  # nothing is cut, so the weights give the true gradient
        assert found == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("levels", [2, 5, 27])
def test_best_of_two_is_the_better_of_all_pairs(levels):
    world, ref_law = laws._best_world(levels)
    rewards, ref = world.scores[0].tolist(), ref_law[0].tolist()
    numbers = range(len(rewards))
    law = [0.0] * len(rewards)
    for i, j in itertools.product(numbers, repeat=2):
        for winner in (i, j):
            share = 0.5 if rewards[i] == rewards[j] else float(rewards[winner] == max(rewards[i], rewards[j]))
            law[winner] += ref[i] * ref[j] * share
    reward, kl = laws.best_of_n_reward_and_kl(2, levels)
    assert reward == pytest.approx(sum(p * r for p, r in zip(law, rewards, strict=True)), abs=1e-12)
    assert kl == pytest.approx(sum(p * log(p / q) for p, q in zip(law, ref, strict=True)), abs=1e-12)


@pytest.mark.parametrize("levels", laws.BEST_OF_N.dials[1].values)
def test_best_of_n_stays_under_the_formula_and_under_the_optimum(levels):
    world, _ = laws._best_world(levels)
    assert len(world.scores.unique()) == levels
    for n in (2, 4, 16, 128):
        reward, kl = laws.best_of_n_reward_and_kl(n, levels)
        assert 0 < kl <= log(n) - (n - 1) / n
        assert reward - 1e-9 < laws.reward_at_kl(kl, levels) <= 1


def test_reward_at_kl_is_that_of_the_optimum_with_this_kl():
    world, ref_law = laws._best_world(27)
    optimum = world.optimum(ref_law, 0.2)
    kl, reward = world.kl(optimum, ref_law).item(), world.expected_reward(optimum).item()
    assert laws.reward_at_kl(kl, 27) == pytest.approx(reward, abs=1e-9)


def points_of(scene):
    return [mark for panel in scene.panels for mark in panel.marks if mark.kind == "points"]


@pytest.mark.parametrize(("good", "attention"), [(0.5, 0.5), (0.9, 0.5), (0.9, 0.9), (0.2, 0.3), (0.3, 0.0)])
def test_agreement_is_that_of_the_labels_of_two_raters(good, attention):
    """The law by its 8 cases (good or not, who looks); then labels in these shares, measured by `maths.agreement`."""
    pairs = list(itertools.product((True, False), repeat=2))
    law = dict.fromkeys(pairs, 0.0)
    for truth, *looks in itertools.product((True, False), repeat=3):
        weight = good if truth else 1 - good
        for looking in looks:
            weight *= attention if looking else 1 - attention
        for said in pairs:
            chances = [
                float(label == truth) if looking else good if label else 1 - good
                for label, looking in zip(said, looks, strict=True)
            ]
            law[said] += weight * chances[0] * chances[1]
    observed, _ = feedback.two_raters(good, attention)
    assert observed == pytest.approx(list(law.values()), abs=1e-12)
    counts = [round(10_000 * share) for share in law.values()]
    assert counts == pytest.approx([10_000 * share for share in observed])
    first, second = ([said[i] for said, n in zip(pairs, counts, strict=True) for _ in range(n)] for i in (0, 1))
    agreed, by_chance, kappa = (mark.y[0] for mark in points_of(feedback.agreement_scene(good, attention)))
    assert agreed == pytest.approx(percent_agreement(first, second))
    assert by_chance == pytest.approx(good**2 + (1 - good) ** 2)
    assert kappa == pytest.approx(cohen_kappa(first, second), abs=1e-9)
    assert kappa == pytest.approx(attention**2)


def difference_by_quadrature(wins, losses):
    """Density of the difference of two scores with N(0, 1) priors, and the posterior mean and 95 % interval."""
    likelihood = lambda d: expit(d) ** wins * expit(-d) ** losses * exp(-d * d / 4)  # noqa: E731
    total = quad(likelihood, -12, 12)[0]
    below = lambda end: quad(likelihood, -12, end)[0] / total  # noqa: E731
    ends = [brentq(lambda d, level=level: below(d) - level, -10, 10) for level in (0.025, 0.975)]
    return lambda d: likelihood(d) / total, quad(lambda d: d * likelihood(d), -12, 12)[0] / total, *ends


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 1), (15, 5), (20, 0)])
def test_the_difference_after_some_labels_is_that_of_quadrature_and_of_the_consensus(wins, losses):
    density, *expected = difference_by_quadrature(wins, losses)
    _, *found = feedback.difference_after(wins, losses)
    assert found == pytest.approx(expected, abs=2e-3)
    judged = [Comparison("Hi", "a", "b")] * wins + [Comparison("Hi", "b", "a")] * losses
    if judged:
        bar = consensus(judged).contrast("a", "b")
        assert found == pytest.approx([bar.mean, bar.low, bar.high], abs=5e-3)
    line = [mark for mark in feedback.next_labels_scene(wins, losses).panels[0].marks if isinstance(mark, Line)][1]
    assert line.y == pytest.approx([density(x) for x in line.x], abs=1e-3)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 1), (0, 4)])
def test_the_width_ahead_is_the_mean_over_everything_that_three_labels_may_say(wins, losses):
    density, *_ = difference_by_quadrature(wins, losses)
    expected, widths = 0.0, []
    for more in range(4):
        chance = quad(lambda d, k=more: comb(3, k) * expit(d) ** k * expit(-d) ** (3 - k) * density(d), -12, 12)[0]
        _, _, low, high = difference_by_quadrature(wins + more, losses + 3 - more)
        expected += chance * (high - low)
        widths.append(high - low)
    found = feedback.widths_ahead(wins, losses)
    assert found[3] == pytest.approx((expected, min(widths), max(widths)), abs=4e-3)
    [ten] = points_of(feedback.next_labels_scene(wins, losses))
    assert (ten.x, ten.y) == ([10], [found[10][0]])


@given(counts=st.tuples(*[st.sampled_from(feedback.COUNTS)] * 3))
@settings(deadline=None, max_examples=40)
def test_scores_of_the_circle_are_the_optimum_of_the_bradley_terry_loss(counts):
    """The loss of the library on as many answers as were given has gradient 0 there, and it is convex."""
    scores = torch.tensor(feedback.circle_scores(*counts), dtype=torch.float64, requires_grad=True)
    first, second = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    asked = torch.tensor(counts, dtype=torch.float64)
    said = bradley_terry_loss(scores[first], scores[second]) * 0.8 * asked
    opposite = bradley_terry_loss(scores[second], scores[first]) * 0.2 * asked
    (gradient,) = torch.autograd.grad((said + opposite).sum(), scores)
    assert gradient.abs().max() < 1e-9
    assert abs(scores.sum()) < 1e-9


@pytest.mark.parametrize(
    ("counts", "order"),
    [((7, 7, 7), "A = B = C"), ((10, 10, 3), "A > B > C"), ((3, 10, 10), "B > C > A"), ((3, 4, 6), "B = C > A")],
)
def test_who_is_best_of_the_circle_is_decided_by_what_was_asked(counts, order):
    scene = feedback.circle_scene(*counts)
    assert [mark.text for mark in scene.panels[0].marks if mark.kind == "text"] == [order]
    assert scene.says.startswith(f"By score {order}. ")


def test_the_circle_as_a_chain_has_the_closed_form():
    """Asked nearly never, the third pair leaves two differences of log(0.8 / 0.2), and the scene shows both laws."""
    *_, people, model = (mark for mark in feedback.circle_scene(20, 20, 1).panels[1].marks if mark.kind == "bars")
    assert people.y == [0.8] * 3
    a, b, c = feedback.circle_scores(20_000, 20_000, 1)
    assert (a - b, b - c) == pytest.approx((log(4), log(4)), abs=1e-3)
    assert model.y == pytest.approx([expit(d) for d in around(feedback.circle_scores(20, 20, 1))])


def around(scores):
    a, b, c = scores
    return [a - b, b - c, c - a]


@given(temperature=st.sampled_from(next_token.TEMPERATURES), top_p=st.sampled_from(next_token.SHARES))
@settings(deadline=None, max_examples=30)
def test_the_next_token_is_drawn_from_the_law_of_the_invariants(temperature, top_p):
    logits = torch.tensor([next_token.LOGITS], dtype=torch.float64)
    nothing_seen = torch.zeros(1, len(next_token.LOGITS), dtype=torch.bool)
    expected = Alternative(temperature=temperature, top_p=top_p).log_law(logits, nothing_seen, None)[0].exp()
    law = next_token.tempered_and_cut(logits[0], temperature, top_p)
    torch.testing.assert_close(law, expected)
    scene = next_token.next_token_scene(temperature, top_p)
    _, cruel, kind = (mark.y for mark in scene.panels[0].marks if mark.kind == "bars")
    assert [*cruel, *kind] == pytest.approx(expected.tolist(), abs=1e-9)
    assert points_of(scene)[0].y == [pytest.approx(sum(kind))]
    kl = sum(p * log(p / q) for p, q in zip(expected.tolist(), logits.softmax(1)[0].tolist(), strict=True) if p > 0)
    assert f"{abs(kl):.3f} nats" in scene.says


def test_the_next_token_has_the_logits_of_the_shipped_model():
    lm = load_language_model("tiny")
    before = encode_prompts(lm, [next_token.QUESTION])[0] + lm.tokenizer(next_token.SO_FAR)["input_ids"]
    with torch.no_grad():
        likeliest = lm.model(torch.tensor([before])).logits[0, -1].topk(len(next_token.TOKENS))
    assert tuple(lm.tokenizer.batch_decode(likeliest.indices[:, None])) == next_token.TOKENS
    assert (likeliest.values - likeliest.values[0]).tolist() == pytest.approx(next_token.LOGITS, abs=2e-3)


@pytest.mark.parametrize(
    ("count", "ties", "decided"), [(10, 0.0, 0.5), (40, 0.2, 0.6), (100, 0.5, 0.7), (20, 0.8, 0.9)]
)
def test_power_adds_up_all_counts_with_the_intervals_of_the_library(count, ties, decided):
    law = np.array([(1 - ties) * decided, ties, (1 - ties) * (1 - decided)])
    expected = {"above 0.5": 0.0, "below 0.5": 0.0, "INCONCLUSIVE": 0.0}
    for tied in range(count + 1):
        for wins in range(count - tied + 1):
            counts = (wins, tied, count - wins - tied)
            expected[win_rate(*counts).verdict] += multinomial.pmf(counts, count, law)
    assert evaluation.found_by(count, ties, decided) == pytest.approx(
        (expected["above 0.5"], expected["below 0.5"]), abs=1e-9
    )


@pytest.mark.parametrize(("count", "ties"), [(50, 0.0), (100, 0.2), (400, 0.5)])
def test_the_ring_is_near_what_the_formula_detects(count, ties):
    """The formula is by the normal law; exact counts jump, by one comparison or so."""
    least = evaluation.needed_share(count, ties)
    assert ties / 2 + (1 - ties) * least == pytest.approx(detectable_win_rate(count, ties), abs=1 / count)
    assert evaluation.found_by(count, ties, least)[0] == pytest.approx(0.8, abs=1e-6)


def test_without_a_difference_power_is_the_false_alarm():
    scene = evaluation.power_scene(100, 0.5, 0.2)
    above, below = evaluation.found_by(100, 0.2, 0.5)
    assert above == pytest.approx(below, abs=1e-12)
    assert 0.04 < above + below < 0.06
    assert f"one half in {100 * (above + below):.1f} %" in scene.says


# ---- scenes --------------------------------------------------------------------------------------------------


def settings_of(plan):
    """The corners, and every value of each dial with the others at their start."""
    corners = itertools.product(*[(dial.values[0], dial.values[-1]) for dial in plan.dials])
    yield from (dict(zip(plan.start(), corner, strict=True)) for corner in corners)
    for dial in plan.dials:
        yield from (plan.start() | {dial.name: value} for value in dial.values)


def inside(axis, values):
    slack = 1e-6 * (axis.high - axis.low)
    return all(axis.low - slack <= value <= axis.high + slack for value in values)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_gives_finite_numbers_in_sight(name):
    plan = plan_of(name)
    for setting in settings_of(plan):
        scene = plan.scene(**setting)
        json.dumps(scene.data(), allow_nan=False)  # what a browser can read
        for panel in scene.panels:
            assert inside(panel.x, panel.x.ticks)
            assert inside(panel.y, panel.y.ticks)
            assert len(panel.x.tick_names()) == len(panel.x.ticks)
            for mark in panel.marks:
                if mark.kind in ("points", "bars"):
                    assert inside(panel.x, mark.x), (setting, mark)
                    assert inside(panel.y, mark.y), (setting, mark)
                if mark.kind == "text":
                    assert inside(panel.x, [mark.x]), (setting, mark)
                    assert inside(panel.y, [mark.y]), (setting, mark)


@pytest.mark.parametrize("name", NAMES)
def test_each_dial_stands_in_the_sentence_and_moves_the_picture(name):
    plan = plan_of(name)
    for dial in plan.dials:
        assert f"{{{dial.name}}}" in plan.sentence
        scenes = [plan.scene(**plan.start() | {dial.name: value}).data() for value in dial.values]
        assert all(one != other for one, other in itertools.pairwise(scenes)), dial.name


# ---- the widget ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_stores_one_line_that_is_the_same_in_every_run(name):
    bundles = [getattr(explore, name)()._repr_mimebundle_()[0] for _ in range(2)]
    texts = {bundle["text/plain"] for bundle in bundles}
    [text] = texts
    assert text.startswith("explorable: ")
    assert text.endswith("or see the figure below")
    assert len(text) <= 100
    assert set(bundles[0]) == {"text/plain", "application/vnd.jupyter.widget-view+json"}


def test_positions_redraw_at_once():
    figure = explore.clip()
    drawn = []
    figure.observe(lambda change: drawn.append(change["new"]["positions"]), "scene")
    wanted = figure.positions | {"epsilon": 0}
    figure.positions = wanted
    assert drawn == [wanted]
    assert figure.setting == {"epsilon": 0.05, "ratio": 1.3}
    assert figure.scene == control.clip_scene(0.05, 1.3).data() | {"positions": wanted}


def test_what_a_browser_sends_is_held_within_the_dial():
    figure = explore.best_of_n()
    figure.positions = {"n": 10_000, "levels": -3}
    assert figure.setting == {"n": 128, "levels": 2}
    assert figure.scene["positions"] == {"n": 10_000, "levels": -3}  # the browser knows by them that it was answered
    figure.positions = {}
    assert figure.setting == {"n": 1, "levels": 2}


def test_two_explorables_do_not_share_their_dials():
    one, other = explore.leash(), explore.leash()
    one.set(beta=5.0)
    assert other.setting == {"beta": 0.3}


def test_set_refuses_what_the_dial_does_not_hold():
    with pytest.raises(ValueError, match=r"beta is 0\.21, which its dial does not hold; the nearest value is 0\.2"):
        explore.leash().set(beta=0.21)
    with pytest.raises(ValueError, match=r"no dial 'gamma' here; expected one of \['beta'\]"):
        explore.leash().set(gamma=0.5)


def test_dial_refuses_a_foreign_start_and_a_disorder():
    with pytest.raises(ValueError, match="start of the dial 'n' is 4"):
        Dial("n", "n", [1, 2], 4)
    with pytest.raises(ValueError, match="'n' must ascend"):
        Dial("n", "n", [2, 1], 1)


# ---- the still figure ----------------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch):
    """What `still` shows: [(alt, figure)]."""
    found = []
    monkeypatch.setattr(plots, "show", lambda alt, figure: found.append((alt, figure)))
    yield found
    plt.close("all")


@pytest.mark.parametrize("name", NAMES)
def test_still_draws_the_scenes_of_three_settings(name, shown):
    plan = plan_of(name)
    getattr(explore, f"{name}_still")()
    [(alt, figure)] = shown
    assert alt == plan.alt
    assert len(alt) > 80
    assert len(plan.stills) == 3
    scenes = [plan.scene(**plan.start() | setting) for setting in plan.stills]
    panels = [panel for scene in scenes for panel in scene.panels]
    assert len(figure.axes) == len(panels) == 6
    for ax, panel in zip(figure.axes, panels, strict=True):
        lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]
        assert lines == [(list(m.x), list(m.y)) for m in panel.marks if m.kind in ("line", "points")]
        heights = [patch.get_height() for bars in ax.containers for patch in bars]
        assert heights == [y for m in panel.marks if m.kind == "bars" for y in m.y]
        assert [text.get_text() for text in ax.texts] == [m.text for m in panel.marks if m.kind == "text"]
        assert (ax.get_xlim(), ax.get_ylim()) == ((panel.x.low, panel.x.high), (panel.y.low, panel.y.high))


def test_alt_texts_say_what_the_scenes_say():
    assert "0.31 of the reward" in control.gae_lambda_scene(0.95, 0.3).says
    assert "lowest is 61 %, at λ = 0.75" in control.gae_lambda_scene(0.95, 0.3).says
    assert [sum(not goes for goes in control.corridor(gamma)[1]) for gamma in (0.5, 0.8, 0.95)] == [4, 2, 0]
    assert "KL 1.984 nats" in laws.best_of_n_scene(64, 3).says
    assert "says 3.175" in laws.best_of_n_scene(64, 3).says
    world, ref_law = laws._leash_world()
    assert world.optimum(ref_law, 0.1)[0, -3:].sum() > 0.9


def test_still_needs_settings():
    with pytest.raises(ValueError, match="'nothing' has no stills"):
        still(Plan("nothing", "", [], lambda: Scene([], "")))


def test_draw_names_the_ticks():
    _, ax = plt.subplots()
    draw(ax, Panel("", Axis("x", 0, 1, [0, 1], ["no", "yes"]), Axis("y", -1, 0, [-1, 0]), []))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["no", "yes"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["−1", "0"]
    plt.close("all")


def test_a_plan_of_ones_own():
    squares = Plan("squares", "x = {x}", [Dial("x", "x", [1, 2], 1, "d")], lambda x: Scene([], f"{x * x}"))
    figure = Explorable(squares)
    figure.set(x=2)
    assert figure.scene == {"panels": [], "says": "4", "positions": {"x": 1}}
