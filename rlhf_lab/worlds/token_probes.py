"""Probes of a language model's training by rewards: replies of at most three tokens, whose best law is known.

Each probe has a tiny model that is trained in a second or two, prompts, a score, and perhaps a leash. Replies are so
short that the law of all of them is enumerated (`TokenWorld`): what is checked is exact, nothing is sampled.

    report = check_probes(train, TOKEN)               # train(probe, seed) -> next_token(prompt, prefix)

With a leash the law must become that of the reference times exp(score / kl_coef), up to its sum.

Source: for that law Ziebart et al. 2008, Maximum entropy inverse reinforcement learning, and Rafailov et al. 2023,
Direct preference optimization, equation 4. The idea of a probe is Andy Jones's, see `probes`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.scoring import forward
from rlhf_lab.models.tokens import Rollout, encode_prompts, make_batch
from rlhf_lab.worlds.probe_checks import Check, patterns_of

WORDS = ("<|pad|>", "<|end|>", "a", "b", "c", "d")
PAD, END = 0, 1
Tokens = tuple[int, ...]
NextToken = Callable[[str, Tokens], Sequence[float] | Tensor]  # prompt, prefix -> probabilities of the next token [V]


def word_model(seed: int, spread: float = 0.15) -> LanguageModel:
    """A random GPT-2 of one layer over `WORDS`; a larger `spread` of its weights makes its law less even."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=WORDS[PAD], eos_token=WORDS[END])
    fast.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=16, n_embd=32, n_layer=1, n_head=2, initializer_range=spread,
        bos_token_id=None, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    return LanguageModel(model.eval(), fast, END, PAD)


@dataclass(frozen=True)
class TokenProbe:
    """A task for a policy of tokens. `train(probe, seed)` starts from `probe.start()`, asks `probe.prompts`, is paid
    `probe.score` for a whole reply less `probe.kl_coef` times its KL to `probe.reference()`, at temperature 1 and with
    nothing else (no entropy bonus, no price of a missing end), and returns

        next_token(prompt, prefix) -> probabilities of the next token [6]

    for a prompt (a text) and the tokens of the reply so far. `from_language_model` makes it of a LanguageModel.
    With the library's own recipe, where `settings` are its remaining choices:

        config = RLHFConfig(iterations=probe.iterations, prompts_per_iteration=probe.replies, temperature=1.0,
                            learning_rate=probe.learning_rate, kl_coef=probe.kl_coef, missing_end_penalty=0.0,
                            max_new_tokens=probe.max_tokens, seed=seed, **settings)
        reference = probe.reference() if probe.displaced else None
        result = train_rlhf(probe.start(), probe.prompts, probe.reward, config, reference=reference)
        return from_language_model(result.model)

    Attributes:
        name: in the table. isolates: what must be right for it.
        prompts: texts of words a to d, one token each.
        score: (number of the prompt, tokens of the reply, the end among them) -> reward.
        judged: (probe, law [prompts, N] of the trained policy) -> checks.
        kl_coef: reward per nat of KL.
        displaced: whether the start is not the reference.
        max_tokens: of a reply; at this length it is over without an end.
        iterations: of `replies` replies each; learning_rate: Adam's. Enough for PPO with two epochs on each batch.

    Chapter 10.
    """

    name: str
    isolates: str
    prompts: tuple[str, ...]
    score: Callable[[int, Tokens], float]
    judged: Callable[["TokenProbe", Tensor], list[Check]]
    kl_coef: float = 0.0
    displaced: bool = False
    max_tokens: int = 2
    iterations: int = 30
    replies: int = 64
    learning_rate: float = 0.01

    def reference(self) -> LanguageModel:
        """The model at the other end of the leash, new at every call."""
        return word_model(seed=0)

    def start(self) -> LanguageModel:
        """The model that is to be trained, new at every call."""
        return word_model(seed=2) if self.displaced else self.reference()

    def reward(self, rollout: Rollout) -> Tensor:
        """Scores [B] of a Rollout, as `train_rlhf` wants them."""
        number = {prompt: i for i, prompt in enumerate(self.prompts)}
        asked = [number[conversation[-1].content] for conversation in rollout.conversations]
        batch = rollout.batch
        rows = [tuple(ids[keep].tolist()) for ids, keep in zip(batch.response_ids, batch.mask, strict=True)]
        return torch.tensor([float(self.score(*pair)) for pair in zip(asked, rows, strict=True)])

    @cached_property
    def world(self) -> TokenWorld:
        """All replies to all prompts, with their scores."""
        return TokenWorld(len(WORDS), self.max_tokens, self.score, prompts=len(self.prompts), eos=END)

    def law(self, next_token: NextToken) -> Tensor:
        """[prompts, N] probability of every reply, by asking for each prompt and prefix."""
        world = self.world
        logits = torch.zeros(world.prompts, world.num_prefixes, len(WORDS), dtype=torch.float64)
        prefixes = {world.tokens(n)[:t] for n in range(world.num_sequences) for t in range(int(world.lengths[n]))}
        for number, prompt in enumerate(self.prompts):
            for prefix in prefixes:
                law = torch.as_tensor(next_token(prompt, prefix), dtype=torch.float64)
                logits[number, world.prefix_id(prefix)] = law.clamp(min=1e-30).log()
        return world.law(logits)

    @cached_property
    def laws(self) -> tuple[Tensor, Tensor]:
        """[prompts, N] of the reference, and of the start."""
        return self.law(from_language_model(self.reference())), self.law(from_language_model(self.start()))

    def judge(self, agent: NextToken) -> list[Check]:
        """The checks of a trained policy."""
        return self.judged(self, self.law(agent))


def from_language_model(lm: LanguageModel) -> NextToken:
    """The probabilities of a model's next token, for a prompt alone in its batch: without any padding.

    Example:
        >>> law = from_language_model(TOKEN[0].start())("a", (WORDS.index("b"),))
        >>> len(law), float(law.sum())
        (6, 1.0)

    Chapter 10.
    """

    @torch.no_grad()
    def next_token(prompt: str, prefix: Tokens) -> Tensor:
        (row,) = encode_prompts(lm, [prompt])
        batch = make_batch([row], [[*prefix, lm.end_id]], lm.pad_id, lm.device)
        return forward(lm, batch).logits[0, -1].softmax(-1)

    return next_token


# -- what is judged ---------------------------------------------------------------------------------------------------
def _mean_length(probe: TokenProbe, law: Tensor) -> list[Check]:
    length = float((law * probe.world.lengths).sum(1).mean())
    return [Check("mean length", length, probe.max_tokens - 0.4, unlearned=1.5)]


def _ended(probe: TokenProbe, law: Tensor) -> list[Check]:
    return [Check("P(end)", float(law[:, probe.world.ended].sum(1).mean()), 0.9, unlearned=0.1)]


def _paid(probe: TokenProbe, law: Tensor) -> list[Check]:
    worst, mean = (float(x) for x in (probe.world.expected_reward(law).min(), probe.world.expected_reward(law).mean()))
    return [Check("P(right | prompt), mean", mean, 0.8, unlearned=0.1), Check("the worst prompt", worst, 0.5)]


def _way_back(probe: TokenProbe, law: Tensor) -> list[Check]:
    reference, start = probe.laws
    there, still = (float((x - reference).abs().sum(1).mean()) for x in (start, law))
    return [Check("share of the way to the reference", 1 - still / there, 0.75, unlearned=-0.1)]


def _law(probe: TokenProbe, law: Tensor) -> list[Check]:
    best = probe.world.optimum(probe.laws[0], probe.kl_coef)
    apart = float((law - best).abs().sum(1).mean() / 2)
    earned, expected = (float(probe.world.expected_reward(x).mean()) for x in (law, best))
    return [
        Check("distance from ref exp(r / beta)", apart, -torch.inf, 0.12),
        Check("expected reward", earned, expected - 0.1, expected + 0.1),
    ]


# -- the probes -------------------------------------------------------------------------------------------------------
def _word(text: str) -> int:
    return WORDS.index(text)


ECHO = ("a", "b c", "c a b d", "d b a c b a d")  # the first word is wanted
SCORES = torch.tensor([[0.0, -0.6, 0.4, 1.0, -0.4, 0.2], [0.0, 0.5, -1.0, 0.3, 0.8, -0.5]])  # by word, first and second


def _sum_of_words(prompt: int, tokens: Tokens) -> float:
    """A score in which each token counts, and a pair of equal ones more."""
    return sum(float(SCORES[t, token]) for t, token in enumerate(tokens)) + (len(set(tokens)) < len(tokens))


TOKEN = (
    TokenProbe(
        "length", "tokens before the last are paid for what comes after them",
        ("a",), lambda prompt, tokens: len(tokens) / 3, _mean_length, max_tokens=3,
    ),
    TokenProbe(
        "end", "the token that ends a reply belongs to it: it is trained, and paid",
        ("a",), lambda prompt, tokens: float(tokens[-1] == END), _ended, max_tokens=3,
    ),
    TokenProbe(
        "prompt", "the policy reads the prompt, and rewards stay with their rows",
        ("a", "b"), lambda prompt, tokens: float(tokens[0] == _word("ba"[prompt])), _paid, max_tokens=1,
    ),
    TokenProbe(
        "echo", "left padding changes nothing: mask and positions",
        ECHO, lambda prompt, tokens: float(tokens[0] == _word(ECHO[prompt][0])), _paid, max_tokens=1,
    ),
    TokenProbe(
        "way back", "the leash pulls, and towards the reference",
        ("a",), lambda prompt, tokens: 0.0, _way_back, kl_coef=1.0, displaced=True,
    ),
    TokenProbe(
        "law", "score and leash are weighed as they should, token by token",
        ("a",), _sum_of_words, _law, kl_coef=0.7,
    ),
)  # fmt: skip


# Measured by `python run.py bench probes`, where the shares are; the probes in the order above.
TOKEN_PATTERNS = patterns_of(
    [probe.name for probe in TOKEN],
    """
the mask leaves out the end token          .  ~  ..  ..  ~    +-
the score is paid at the first token       .  .  ..  ..  .    +-
the score is paid at every token           .  .  ..  ..  .    .+|..
a token gets its own reward alone          -  .  ..  ..  .    +-
positions count the padding                .  .  ..  ~-  .    ..
padding is read                            .  .  ..  ~-  .    ..
the prompt is not read                     .  .  ~-  ~-  ~    +-
log-probs are those of the position after  .  .  ..  ..  ~    +-
sampled at temperature 2, scored at 1      .  .  ..  ..  .    +-|.-
the sign of the leash                      .  .  ..  ..  -    ++
the leash is tied to the start             .  .  ..  ..  ~    ..
there is no leash                          .  .  ..  ..  ~    ++
k1 in the loss in place of the leash       .  .  ..  ..  -|~  ++
k3 in the loss in place of the leash       .  .  ..  ..  .    .-
the scores are whitened                    .  .  ..  ..  .    ++
the sign of an entropy bonus               .  .  ..  ..  ~    ++
the sign of the loss                       -  -  --  --  -    +-
""",
)
