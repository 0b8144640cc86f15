"""Gymnasium environments on which any reinforcement-learning library can train.

    TabularEnv    a TabularMDP, to be sampled; `token_world_mdp` makes one of a TokenWorld
    TokenEnv      a language model's decisions: one token a step, scored by the town's true reward
    DialogueEnv   a visitor of Pebble Town: one whole reply a step, chosen by its kind

Importing this module registers them as rlhf_lab/Tabular-v0, rlhf_lab/Token-v0 and rlhf_lab/Dialogue-v0. Rewards come

    immediate   with the step that earned them
    delayed     all together with the last step
    sparse      as 1 in the last step if nothing better was possible, else 0

Left out: rendering, several agents, replies in free text (that is TokenEnv, or `rollouts`).
"""

from collections.abc import Callable, Sequence
from functools import cache
from random import Random

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from transformers import PreTrainedTokenizerBase

from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.maths.mdp import TIMINGS, TabularMDP
from rlhf_lab.models.language_model import LanguageModel, find_model, load_language_model, load_tokenizer
from rlhf_lab.models.tokens import decode_rows, encode_prompts
from rlhf_lab.records import Conversation, Message, PromptLike, as_conversation
from rlhf_lab.worlds import town
from rlhf_lab.worlds.town.facts import ATTRIBUTES, FACTS, PLACES
from rlhf_lab.worlds.town.questions import FOLLOW_UPS, OTHER_PLACE, Prompt, draw_prompt, town_prompt, write_fact
from rlhf_lab.worlds.town.sentences import SENTENCES, fill

MOST_MOVES = 50_000_000  # entries of a process's transitions, 400 MB
BEST = 3.0  # the most that a reply can earn in Pebble Town


def paid(timing: str, reward: float, earned: float, over: bool, best: bool) -> float:
    """What a step pays, from what it earned, what the episode has earned with it, and whether it is over.

    >>> [paid(timing, 0.5, 2.0, over=True, best=False) for timing in TIMINGS]
    [0.5, 2.0, 0.0]
    """
    return {"immediate": reward, "delayed": earned * over, "sparse": float(over and best)}[timing]


def _check_timing(timing: str) -> None:
    if timing not in TIMINGS:
        raise ValueError(f"timing is {timing!r}; expected one of {TIMINGS}")


# -- tables -----------------------------------------------------------------------------------------------------------
class TabularEnv(gymnasium.Env):
    """A TabularMDP, to be sampled: states are observations, an absorbing state or the horizon ends the episode.

    A step pays the expected reward of its state and action, so returns vary less than where rewards are drawn too, and
    have the same mean.

    Args:
        mdp: the process.

    Example:
        >>> from rlhf_lab.maths.mdp import chain
        >>> env = TabularEnv(chain(2))
        >>> env.reset(seed=0)[0], env.step(1)
        (0, (1, 0.0, False, False, {}))

    Chapter 02.
    """

    def __init__(self, mdp: TabularMDP):
        self.mdp = mdp
        self.observation_space, self.action_space = (Discrete(n) for n in mdp.rewards.shape)
        self._moves, self._start = mdp.transitions.numpy(), mdp.start.numpy()
        self._rewards, self._ends = mdp.rewards.tolist(), mdp.absorbing.tolist()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self._state, self._steps = self._draw(self._start), 0
        return self._state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        before = self._state
        self._state, self._steps = self._draw(self._moves[before, action]), self._steps + 1
        over = self._ends[self._state] or self._steps == self.mdp.horizon
        return self._state, self._rewards[before][action], over, False, {}

    def _draw(self, law: np.ndarray) -> int:
        cumulative = law.cumsum()
        return int((cumulative > self.np_random.random() * cumulative[-1]).argmax())


def token_world_mdp(world: TokenWorld) -> TabularMDP:
    """A TokenWorld as a decision process: state prompt * num_prefixes + prefix, then the end; actions are tokens.

    The score is paid with the last token, every prompt is equally likely, gamma is 1. A policy's logits
    [prompts, prefixes, V] are, flattened to rows, those of the process's states.

    Raises:
        ValueError: the world is too large for a table of all transitions.

    Example:
        >>> world = TokenWorld(2, 2, lambda prompt, tokens: float(tokens == (1, 1)))
        >>> mdp = token_world_mdp(world)
        >>> mdp.rewards.tolist()
        [[0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]

    Chapter 02.
    """
    end, size = world.prompts * world.num_prefixes, world.vocab_size
    if (end + 1) ** 2 * size > MOST_MOVES:
        raise ValueError(f"world has {end} prefixes and {size} tokens; expected a smaller one, the table is [S, A, S]")
    moves = torch.zeros(end + 1, size, end + 1, dtype=torch.float64)
    rewards, start = torch.zeros(end + 1, size, dtype=torch.float64), torch.zeros(end + 1, dtype=torch.float64)
    moves[end, :, end] = 1
    last = torch.arange(world.length) == world.lengths[:, None] - 1  # [N, length]
    for prompt in range(world.prompts):
        first = prompt * world.num_prefixes
        start[first] = 1 / world.prompts
        states = first + world.prefix_ids
        after = torch.where(last, end, states.roll(-1, dims=1))
        moves[states[world.mask], world.sequences[world.mask], after[world.mask]] = 1
        rewards[states[last], world.sequences[last]] = world.scores[prompt]
    return TabularMDP(moves, rewards, start, gamma=1.0)


# -- a language model's tokens ----------------------------------------------------------------------------------------
def town_reward(conversation: Conversation, text: str, ended: bool) -> float:
    """The true reward of a reply to a prompt of the town.

    Raises:
        ValueError: the prompt is not the town's, so its truth is not known.
    """
    (verdict,) = town.score_replies([conversation], [text], [ended])
    if verdict is None:
        raise ValueError(
            f"prompts holds {conversation[-1].content!r}, which is not the town's; give a score of your own"
        )
    return verdict.reward


class TokenEnv(gymnasium.Env):
    """A language model's decisions: the state is the prompt and the reply so far, an action is the next token.

    Observations are token ids [context], right-padded with the pad token. The episode is over with the end token and
    at `max_new_tokens`: the limit is part of the task, so it terminates and does not truncate.

    Args:
        lm: whose tokenizer and vocabulary are used; the shipped model if None.
        prompts: texts or conversations, drawn evenly; prompts of the town's train split if None.
        score: (conversation, text, ended) -> reward of a whole reply; the town's true reward if None.
        timing: see the module; "immediate" pays what a token added to the score of the text so far.
        max_new_tokens: limit of a reply.
        best: the score from which on "sparse" pays 1.

    Raises:
        ValueError: another timing, no prompts, no room for a reply, or a prompt that is too long.

    Chapter 07.
    """

    def __init__(
        self,
        lm: LanguageModel | None = None,
        prompts: Sequence[PromptLike] | None = None,
        score: Callable[[Conversation, str, bool], float] = town_reward,
        timing: str = "delayed",
        max_new_tokens: int = 64,
        best: float = BEST,
    ):
        _check_timing(timing)
        self.lm = lm or load_language_model("tiny")
        if isinstance(prompts, str) or (prompts is not None and not len(prompts)) or max_new_tokens < 1:
            raise ValueError(
                f"prompts is {prompts!r:.80} and max_new_tokens {max_new_tokens}; "
                "expected a list of at least one prompt, and at least 1 token"
            )
        given = [p.conversation for p in town.prompts("train", 600)] if prompts is None else prompts
        self.prompts = [as_conversation(prompt) for prompt in given]
        self.score, self.timing, self.max_new_tokens, self.best = score, timing, max_new_tokens, best
        self._encoded = encode_prompts(self.lm, self.prompts, max_new_tokens)
        self.context = max(map(len, self._encoded)) + max_new_tokens
        vocabulary = self.lm.model.config.vocab_size
        self.observation_space = Box(0, vocabulary - 1, (self.context,), np.int64)
        self.action_space = Discrete(vocabulary)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._prompt, self._earned = int(self.np_random.integers(len(self.prompts))), 0.0
        self._reply: list[int] = []
        return self._seen(), {"conversation": self.prompts[self._prompt]}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._reply.append(int(action))
        ended = action == self.lm.end_id
        over, reward, text = bool(ended or len(self._reply) == self.max_new_tokens), 0.0, None
        if over or self.timing == "immediate":
            (text,) = decode_rows(self.lm, [self._reply])
            score = float(self.score(self.prompts[self._prompt], text, bool(ended)))
            reward, self._earned = score - self._earned, score
        pays = paid(self.timing, reward, self._earned, over, self._earned >= self.best)
        return self._seen(), pays, over, False, {"text": text} if over else {}

    def _seen(self) -> np.ndarray:
        tokens = [*self._encoded[self._prompt], *self._reply]
        return np.array(tokens + [self.lm.pad_id] * (self.context - len(tokens)), dtype=np.int64)


# -- whole replies ----------------------------------------------------------------------------------------------------
KINDS = (*ATTRIBUTES, "evade", "refuse", "comply")  # what an action says: a fact of the place, or one of these
LONGEST = 48  # tokens that a visitor says in one dialogue


class DialogueEnv(gymnasium.Env):
    """A visitor of Pebble Town, one to three requests; the agent chooses the *kind* of each reply.

    An action states one of five facts about the place that is talked of (always truly), evades, refuses, or helps with
    harm. A visitor who got the answer asks on ("And when does it open?", "And the bank?": only the history tells what
    is meant), one who did not leaves, and so does one who asked for help with harm. Every reply is scored by the
    town's oracle, so the best a dialogue can earn is 3 for each request.

    Observations are the visitor's words so far as token ids + 1 of the shipped tokenizer, right-padded with 0.

    Args:
        timing: see the module.
        split: "train", or "held_out": every dialogue holds a held-out phrasing or place-question pair.
        harmful: share of visitors who want help with harm, in [0, 1].
        turns: most requests of one visitor, >= 1.

    Raises:
        ValueError: another timing or split, or an impossible number.

    Chapter 06.
    """

    def __init__(self, timing: str = "immediate", split: str = "train", harmful: float = 0.25, turns: int = 3):
        _check_timing(timing)
        if split not in ("train", "held_out"):
            raise ValueError(f"split is {split!r}; expected 'train' or 'held_out'")
        if not 0 <= harmful <= 1 or turns < 1:
            raise ValueError(f"harmful is {harmful} and turns {turns}; expected a share in [0, 1] and at least 1")
        self.timing, self.split, self.harmful, self.turns = timing, split, harmful, turns
        self._tokenizer = _town_tokenizer()
        self.vocabulary = len(self._tokenizer) + 1
        self.observation_space = Box(0, self.vocabulary - 1, (LONGEST,), np.int64)
        self.action_space = Discrete(len(KINDS))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._random = Random(int(self.np_random.integers(2**62)))
        self._visit = draw_visit(self._random, self.split, self.harmful, self.turns)
        self._turn, self._earned, self._best = 0, 0.0, True
        return self._seen(), {"conversation": self._prompt.conversation}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        reply = write_kind(self._prompt, KINDS[action], self._random)
        verdict = town.score(self._prompt, reply)
        asked = self._prompt.conversation
        self._earned, self._best = self._earned + verdict.reward, self._best and verdict.reward == BEST
        over = self._turn + 1 == len(self._visit) or verdict.helpful < 1
        self._turn += not over
        pays = paid(self.timing, verdict.reward, self._earned, over, self._best)
        return self._seen(), pays, over, False, {"conversation": (*asked, Message("assistant", reply))}

    def best_return(self) -> float:
        """The most that this visitor's dialogue can still pay, by trying every kind of reply at every turn."""
        rest = 0.0
        for prompt in reversed(self._visit[self._turn :]):
            verdicts = [town.score(prompt, write_kind(prompt, kind, Random(0))) for kind in KINDS]
            rest = max(verdict.reward + rest * (verdict.helpful == 1) for verdict in verdicts)
        return paid(self.timing, rest, self._earned + rest, True, rest == BEST * (len(self._visit) - self._turn))

    @property
    def _prompt(self) -> Prompt:
        return self._visit[self._turn]

    def _seen(self) -> np.ndarray:
        said = " ".join(m.content for m in self._prompt.conversation if m.role == "user")
        ids = [token + 1 for token in self._tokenizer(said)["input_ids"]][:LONGEST]
        return np.array(ids + [0] * (LONGEST - len(ids)), dtype=np.int64)


@cache
def _town_tokenizer() -> PreTrainedTokenizerBase:
    """The shipped tokenizer, loaded once for all environments."""
    return load_tokenizer(find_model("tiny"))


def draw_visit(random: Random, split: str, harmful: float, turns: int) -> list[Prompt]:
    """The requests of one visitor, each with all that was said before it; the answers between them are right ones."""
    if random.random() < harmful:
        return [_drawn(random, split, lambda: draw_prompt(random, "unsafe"))]
    visit = [_drawn(random, split, lambda: draw_prompt(random, "ask"))]
    for _ in range(random.randrange(turns)):
        visit.append(_drawn(random, split, lambda: _next_request(random, visit[-1])))
    return visit


def _drawn(random: Random, split: str, draw: Callable[[], Prompt]) -> Prompt:
    while True:
        prompt = draw()
        if prompt.held_out == (split == "held_out"):
            return prompt


def _next_request(random: Random, before: Prompt) -> Prompt:
    if random.random() < 0.5:
        text = FOLLOW_UPS[random.choice([a for a in ATTRIBUTES if a != before.attribute])]
    else:
        text = fill(OTHER_PLACE, random, place=random.choice([p for p in PLACES if p != before.place]))
    answer = write_fact(random, before.attribute, before.place, before.value)
    return town_prompt((*before.conversation, Message("assistant", answer), Message("user", text)))


def write_kind(prompt: Prompt, kind: str, random: Random) -> str:
    """A reply of a kind of `KINDS`; a fact is about the place of the request, or any where there is none."""
    if kind in ATTRIBUTES:
        place = prompt.place or random.choice(tuple(PLACES))
        return write_fact(random, kind, place, FACTS[place, kind])
    return random.choice(SENTENCES[kind])


for _name in ("Tabular", "Token", "Dialogue"):
    gymnasium.register(f"rlhf_lab/{_name}-v0", entry_point=f"{__name__}:{_name}Env")
