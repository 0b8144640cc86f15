"""Data flow of REINFORCE, actor-critic, PPO, DQN, RLHF and a transformer: the boxes and arrows of `diagrams.data_flow`.

Each function draws one algorithm on a board; `FLOWS` holds them with the height of the drawing and its alternative
text. Samples run from left to right, gradients run back.
"""

from collections.abc import Callable
from typing import Any

from matplotlib.patches import Rectangle

from rlhf_lab.classroom.drawing import FAINT, SMALL, Board


def draw_reinforce(board: Board) -> None:
    board.box("policy", 85, 70, (130, 48), "policy\n\u03c0(a | s)", "policy")
    board.box("episodes", 255, 70, (130, 48), "episodes\ns, a, r")
    board.box("returns", 432, 70, (140, 48), "returns to go\nG = r + \u03b3 r' + \u2026")
    board.box("objective", 638, 70, (190, 48), "objective\nmean of G log \u03c0(a | s)")
    for left, right in (("policy", "episodes"), ("episodes", "returns"), ("returns", "objective")):
        board.join(left, right)
    board.gradient(board.spot("objective", 0, -1), board.spot("policy", 0, -1), y=20, colour="policy")
    board.write(361, 33, "one step up the gradient, then new episodes", fontsize=SMALL)


def draw_actor_critic(board: Board) -> None:
    board.box("policy", 85, 74, (130, 48), "policy\n\u03c0(a | s)", "policy")
    board.box("episodes", 245, 74, (120, 48), "episodes\ns, a, r")
    board.box("advantages", 432, 74, (180, 48), "advantages A\nr + \u03b3 V(s') \u2212 V(s), or GAE")
    board.box("objective", 644, 74, (180, 48), "policy objective\nmean of A log \u03c0(a | s)")
    board.box("value", 390, 164, (144, 48), "value network\nV(s)", "value")
    board.box("loss", 644, 164, (180, 48), "value loss\nmean of (V(s) \u2212 target)\u00b2")
    for left, right in (("policy", "episodes"), ("episodes", "advantages"), ("advantages", "objective")):
        board.join(left, right)
    board.arrow(board.spot("episodes", 0, 1), board.spot("value", -1), y=164)
    board.arrow((390, 140), (390, 98))
    board.arrow((492, 98), (492, 152), (554, 152))
    board.arrow(board.spot("value", 1, 0.5), board.spot("loss", -1, 0.5))
    board.write(500, 122, "target: A + V(s)", ha="left", fontsize=SMALL)
    board.gradient(board.spot("objective", 0, -1), board.spot("policy", 0, -1), y=22, colour="policy")
    board.gradient(board.spot("loss", 0, 1), board.spot("value", 0, 1), y=208, colour="value")


def draw_ppo(board: Board) -> None:
    frame(board, 500, 12, 240, 190)
    board.write(620, 28, "several epochs of minibatches", fontsize=SMALL)
    board.box("policy", 75, 80, (116, 48), "policy\n\u03c0(a | s)", "policy")
    board.box("episodes", 228, 80, (126, 64), "episodes\ns, a, r,\nold log-probs")
    board.box("gae", 398, 80, (132, 64), "GAE\nadvantages A,\nreturns R")
    clipped = "clipped objective\nmin(ratio A, clip(ratio) A)\nratio = \u03c0 new / \u03c0 old"
    board.box("objective", 620, 80, (214, 66), clipped)
    board.box("loss", 620, 166, (214, 48), "value loss\nmean of (V(s) \u2212 R)\u00b2")
    board.box("value", 228, 166, (144, 48), "value network\nV(s)", "value")
    for left, right in (("policy", "episodes"), ("episodes", "gae"), ("gae", "objective")):
        board.join(left, right)
    board.arrow(board.spot("episodes", 0, 1), board.spot("value", 0, -1))
    board.arrow(board.spot("value", 1), board.spot("gae", -0.4, 1), y=166)
    board.arrow(board.spot("gae", 0.4, 1), (424.4, 166), board.spot("loss", -1))
    board.write(432, 154, "R", ha="left", fontsize=SMALL)
    board.gradient(board.spot("loss", 0, 1), board.spot("value", 0, 1), y=216, colour="value")
    around = [(733, 80), (733, 236), (75, 236)]
    board.gradient(board.spot("objective", 1), *around, board.spot("policy", 0, 1), colour="policy")


def frame(board: Board, left: float, top: float, width: float, height: float) -> None:
    """A grey field behind what is repeated."""
    look: dict[str, Any] = {"facecolor": "#F5F5F5", "edgecolor": FAINT, "linewidth": 1.0, "zorder": 0}
    board.ax.add_patch(Rectangle((left, top), width, height, **look))


def draw_dqn(board: Board) -> None:
    board.box("q", 88, 84, (146, 48), "Q network\nQ(s, a)", "value")
    board.box("steps", 272, 84, (138, 66), "transitions\ns, a, r, s', by\n\u03b5-greedy actions")
    board.box("memory", 450, 84, (144, 48), "replay memory\nrandom minibatch")
    board.box("loss", 654, 84, (166, 48), "Huber loss\nof Q(s, a) \u2212 y")
    board.box("target", 88, 190, (146, 48), "target network\nan older Q", "reference")
    board.box("y", 450, 190, (226, 48), "target y\nr + \u03b3 max Q_target(s', a')")
    board.join("q", "steps")
    board.join("steps", "memory")
    board.join("memory", "loss")
    board.join("target", "y")
    board.arrow(board.spot("memory", 0, 1), board.spot("y", 0, -1))
    board.arrow(board.spot("y", 1), board.spot("loss", 0, 1), y=190)
    board.arrow(board.spot("q", 0, 1), board.spot("target", 0, -1), colour=FAINT)
    board.write(99, 137, "copied now and then", ha="left", fontsize=SMALL)
    board.gradient(board.spot("loss", 0, -1), board.spot("q", 0, -1), y=26, colour="value")


def draw_rlhf(board: Board) -> None:
    board.box("prompts", 55, 110, (86, 34), "prompts")
    board.box("policy", 176, 110, (104, 48), "policy\nsamples", "policy")
    board.box("replies", 306, 110, (104, 64), "replies\nlog-probs,\nmask")
    board.box("reward", 444, 36, (136, 48), "reward model\none score", "reward")
    board.box("reference", 444, 110, (136, 48), "reference\nlog-probs", "reference")
    board.box("value", 444, 194, (136, 48), "value model\nV per token", "value")
    rewards = "rewards per token\nKL penalty at every token,\nscore at the last one"
    board.box("rewards", 644, 72, (192, 66), rewards)
    board.box("gae", 644, 194, (192, 48), "GAE\nadvantages A, returns R")
    board.box("loss", 444, 290, (150, 48), "value loss\nclipped (V \u2212 R)\u00b2")
    board.box("objective", 644, 290, (192, 48), "clipped objective\nmin(ratio A, clip(ratio) A)")
    for left, right in (("prompts", "policy"), ("policy", "replies"), ("replies", "reference"), ("value", "gae")):
        board.join(left, right)
    board.arrow(board.spot("replies", 0.4, -1), board.spot("reward", -1), y=36)
    board.arrow(board.spot("replies", 0.4, 1), board.spot("value", -1), y=194)
    board.join("reward", "rewards", x=530)
    board.join("reference", "rewards", x=530)
    board.arrow(board.spot("rewards", 0, 1), board.spot("gae", 0, -1))
    board.arrow(board.spot("gae", 0, 1), board.spot("objective", 0, -1))
    board.arrow(board.spot("gae", -0.6, 1), board.spot("loss", 0.5, -1), y=242)
    board.gradient((414, 266), (414, 218), colour="value")
    board.gradient(board.spot("objective", 0, 1), board.spot("policy", 0, 1), y=334, colour="policy")
    frame(board, 262, 258, 484, 64)
    board.write(314, 290, "epochs of\nminibatches", fontsize=SMALL)


def draw_transformer(board: Board) -> None:
    frame(board, 262, 16, 352, 132)
    board.write(438, 30, "a block; GPT-2 has several, one after the other", fontsize=SMALL)
    board.box("ids", 60, 70, (96, 48), "tokens\n[B, T]")
    board.box("places", 60, 164, (96, 48), "positions\n[B, T]")
    board.box("embed", 186, 70, (112, 64), "embedding\ntoken row +\nposition row", "policy")
    board.box("attention", 350, 80, (150, 64), "norm, attention\nlooks at its own and\nearlier positions", "policy")
    board.box("mlp", 530, 80, (128, 64), "norm, MLP\neach position\nby itself", "policy")
    board.box("head", 684, 70, (112, 64), "norm, head\nthe token\ntable again", "policy")
    board.box("logits", 684, 174, (104, 48), "logits\n[B, T, V]")
    board.join("ids", "embed")
    board.arrow(board.spot("places", 1), board.spot("embed", 0, 1), y=164)
    for left, right in (("embed", "attention"), ("attention", "mlp"), ("mlp", "head")):
        board.arrow((board.spot(left, 1)[0], 80), (board.spot(right, -1)[0], 80))
    board.arrow(board.spot("head", 0, 1), board.spot("logits", 0, -1))
    board.write(438, 132, "what each part makes is added to its input", fontsize=SMALL)
    board.write(438, 176, "logits of column t: the law of the token in column t + 1", fontsize=SMALL)


FLOWS: dict[str, tuple[float, Callable[[Board], None], str]] = {
    "reinforce": (
        132,
        draw_reinforce,
        "REINFORCE: the policy makes episodes, episodes give returns to go, returns weigh the log-probs in the "
        "objective, and its gradient changes the policy.",
    ),
    "actor-critic": (
        246,
        draw_actor_critic,
        "Actor-critic: the value network turns the rewards of episodes into advantages, which weigh the log-probs of "
        "the policy; a value loss trains the value network towards advantage plus value.",
    ),
    "ppo": (
        276,
        draw_ppo,
        "PPO: episodes with their old log-probs and the values give advantages and returns by GAE; several epochs of "
        "minibatches follow the clipped objective for the policy and the value loss for the value network.",
    ),
    "dqn": (
        254,
        draw_dqn,
        "DQN: the Q network acts and fills a replay memory; random transitions from it and an older copy of the "
        "network, the target network, give the target; the Huber loss trains the Q network.",
    ),
    "transformer": (
        228,
        draw_transformer,
        "A causal transformer: tokens and positions are looked up and added; several blocks follow, in each of which "
        "attention looks at its own and earlier positions and an MLP works on each position, both added to their "
        "input; a last norm and the token table once more give the logits of the next token at every position.",
    ),
    "rlhf": (
        366,
        draw_rlhf,
        "RLHF with PPO: the policy samples replies to prompts; the score of the reward model and the KL penalty "
        "against the reference make rewards per token; GAE with the value model makes advantages and returns; "
        "clipped updates change policy and value model.",
    ),
}
