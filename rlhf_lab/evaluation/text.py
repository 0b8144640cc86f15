"""Text measured against text: perplexity, BLEU, ROUGE."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rlhf_lab.maths.intervals import Interval, Ratio, mean_interval, ratio_of_means_bootstrap
from rlhf_lab.maths.tensors import length_mask, masked_sum
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.scoring import response_log_probs
from rlhf_lab.models.tokens import encode_prompts, encode_responses, make_batch, readable
from rlhf_lab.records import PromptLike
from rlhf_lab.training.configs import require, whole_number


@torch.no_grad()
def document_nll(lm: LanguageModel, texts: Sequence[str], micro_batch: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of each document and the number of tokens it is over.

        nll[i] = -sum over t >= 2 of log p(token t | tokens before t),    tokens[i] = length - 1

    Args:
        texts: N documents, tokenised as the tokenizer does by default; what exceeds the context is cut off.
        micro_batch: documents in one pass, of similar length, padded on the right under a mask.

    Returns:
        nll [N] in nats and tokens [N].

    Raises:
        ValueError: no documents, or one that is no text or has fewer than two tokens.
    """
    _check_texts("texts", texts)
    whole_number("micro_batch", micro_batch, least=1)
    rows = [lm.tokenizer(text)["input_ids"][: lm.max_length] for text in readable(texts)]
    short = [i for i, row in enumerate(rows) if len(row) < 2]
    if short or not rows:
        got = f"texts[{short[0]}] = {texts[short[0]]!r}" if short else "none"
        raise ValueError(f"texts must be documents of at least 2 tokens, got {got}")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    nll = np.zeros(len(rows))
    for start in range(0, len(rows), micro_batch):
        part = order[start : start + micro_batch]
        nll[part] = _batch_nll(lm, [rows[i] for i in part]).cpu().numpy()
    return nll, np.array([len(row) - 1 for row in rows])


def reply_nll(
    lm: LanguageModel, prompts: Sequence[PromptLike], replies: Sequence[str], max_new_tokens: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of each reply to its prompt, its end included, and the number of tokens it is over.

        nll[i] = -sum over tokens of reply i of log p(token | prompt i, reply so far)

    Args:
        prompts: [N] texts or conversations.
        replies: [N] texts; cut as in training, and then without an end.
        max_new_tokens: where they are cut.

    Returns:
        nll [N] in nats and tokens [N], for `ratio_of_means_bootstrap`, as `document_nll` gives them.

    Raises:
        ValueError: no replies, not as many prompts, what is no text, or a prompt longer than the context allows.

    Example:
        >>> from rlhf_lab.models.language_model import load_language_model
        >>> lm = load_language_model("tiny")
        >>> nll, tokens = reply_nll(lm, ["Where is the zoo?"] * 2, ["It is closed.", "Zoo the."])
        >>> bool(nll[0] / tokens[0] < nll[1] / tokens[1])
        True

    Chapter 07.
    """
    _check_texts("replies", replies)
    require(len(prompts) == len(replies) > 0, "prompts", f"{len(prompts)} for {len(replies)} replies", "one a reply")
    batch = make_batch(
        encode_prompts(lm, prompts, max_new_tokens), encode_responses(lm, replies, max_new_tokens), lm.pad_id, lm.device
    )
    log_probs = response_log_probs(lm, batch)
    return -masked_sum(log_probs.double(), batch.mask, dim=1).cpu().numpy(), batch.response_lengths.cpu().numpy()


def _batch_nll(lm: LanguageModel, rows: Sequence[list[int]]) -> Tensor:
    """Sums [b] over the real tokens but the first of each row."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [lm.pad_id] * (width - len(row)) for row in rows], device=lm.device)  # [b, T]
    mask = length_mask(torch.tensor([len(row) for row in rows], device=lm.device), width)
    with lm.autocast():
        logits = lm.model(ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
    losses = cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")  # [b, T - 1]
    return masked_sum(losses.double(), mask[:, 1:], dim=1)


def perplexity(lm: LanguageModel, texts: Sequence[str], micro_batch: int = 16) -> Interval:
    """exp(mean nats per token) over documents: all their tokens but the first, each token with equal weight.

    The interval is from resampling documents, since the tokens of one document are not independent.
    Perplexities of models with different tokenizers cannot be compared: their tokens are different things.

    Example:
        >>> from rlhf_lab.models.language_model import load_language_model
        >>> lm = load_language_model("tiny")
        >>> perplexity(lm, ["The library closes at six."]).mean < perplexity(lm, ["Six at the closes."]).mean
        True

    Source: Jurafsky and Martin, Speech and Language Processing, chapter on n-gram models. Chapter 07.
    """
    return document_perplexity(*document_nll(lm, texts, micro_batch))


def document_perplexity(nats: Sequence[float] | np.ndarray, tokens: Sequence[int] | np.ndarray) -> Ratio:
    """What `perplexity` says, from likelihoods [N] that are known already, and the tokens [N] that they are over."""
    return exponential(ratio_of_means_bootstrap(np.asarray(nats), np.asarray(tokens), resamples=1000))


def exponential(nats: Interval) -> Ratio:
    """exp of an interval of nats per token: a perplexity, or a ratio of two."""
    mean, low, high = (math.exp(x) if x < 700 else math.inf for x in (nats.mean, nats.low, nats.high))
    return Ratio(mean, low, high, nats.count)


def bleu(replies: Sequence[str], references: Sequence[str], tokenize: str = "zh") -> float:
    """Corpus BLEU in [0, 100], one reference a reply, through sacrebleu.

    Args:
        tokenize: sacrebleu's tokenizer; "zh" parts Chinese into characters and the rest into words, "13a" is
            for European languages. A score says nothing without it.

    Example:
        >>> round(bleu(["博物馆十点开门。"], ["博物馆十点开门。"]))
        100

    Source: Papineni et al. 2002; Post 2018, A Call for Clarity in Reporting BLEU Scores. Chapter 07.
    """
    from sacrebleu import corpus_bleu  # costs a second that only this needs

    _check_pairs(replies, references)
    return corpus_bleu(list(replies), [list(references)], tokenize=tokenize).score


def rouge(replies: Sequence[str], references: Sequence[str]) -> dict[str, Interval]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L in [0, 1] with intervals, through rouge-score.

    Its tokenizer keeps a-z and 0-9 only, so a reference in another script would score 0 whatever the reply:
    that is refused. No stemming.

    Example:
        >>> round(rouge(["Mia met a fox."], ["Mia met a cat."])["rouge1"].mean, 2)
        0.75

    Source: Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries. Chapter 07.
    """
    from rouge_score.rouge_scorer import RougeScorer  # costs a second that only this needs

    _check_pairs(replies, references)
    foreign = [text for text in references if not any(c.isascii() and c.isalnum() for c in text)]
    if foreign:
        raise ValueError(f"references must hold words in a-z or 0-9, got {foreign[0]!r}; use bleu for other scripts")
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds)
    scores = [scorer.score(reference, reply) for reply, reference in zip(replies, references, strict=True)]
    return {kind: mean_interval([score[kind].fmeasure for score in scores]) for kind in kinds}


def _check_pairs(replies: Sequence[str], references: Sequence[str]) -> None:
    if isinstance(replies, str) or isinstance(references, str) or len(replies) != len(references) or not len(replies):
        raise ValueError("replies and references must be two non-empty lists of the same length, one text a row")
    _check_texts("replies", replies)
    _check_texts("references", references)


def _check_texts(name: str, texts: Sequence[str]) -> None:
    """Refuse one text, whose characters would be taken for texts, and what is no text."""
    require(not isinstance(texts, str), name, texts, "a list of texts, not one text")
    for i, text in enumerate(texts):
        require(isinstance(text, str), f"{name}[{i}]", text, "a text")
