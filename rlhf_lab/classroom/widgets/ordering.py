"""In which order questions are asked, and in which order their replies stand on the screen. Chapter 08."""

import random
from collections import Counter
from itertools import combinations

from rlhf_lab.feedback.questions import Question

FEW_WORDS = 3  # replies that differ by fewer words are near-identical: to judge them first would tire for little


def words_apart(one: str, other: str) -> int:
    """How many words of the one are not in the other, at most in either direction; their order does not count.

    Example:
        >>> words_apart("The zoo is in Mill Street.", "The zoo is in Church Street.")
        1
    """
    mine, theirs = Counter(one.split()), Counter(other.split())
    return max((mine - theirs).total(), (theirs - mine).total())


def near_identical(question: Question) -> bool:
    """Whether no two of the replies differ by more than a few words, so that a judgement says little.

    Example:
        >>> from rlhf_lab.feedback.questions import Rank
        >>> near_identical(Rank("Where is the zoo?", ("In Mill Street.", "In Church Street.")))
        True
    """
    pairs = list(combinations(question.replies, 2))
    return bool(pairs) and all(words_apart(one, other) < FEW_WORDS for one, other in pairs)


def asking_order(questions: list[Question]) -> list[int]:
    """Indices of the questions as they are asked: those with near-identical replies last, otherwise as given."""
    return sorted(range(len(questions)), key=lambda i: near_identical(questions[i]))


def screen_order(question: Question, name: str, seed: int) -> tuple[int, ...]:
    """A shuffled order of what a question shows, the same for one seed and one question in every process."""
    return tuple(random.Random(f"{seed}/{name}").sample(range(question.places), question.places))


def letter(position: int) -> str:
    """What the reply at a position of the screen is called: A, B, C and so on, after Z by its number.

    >>> letter(1), letter(26)
    ('B', '27')
    """
    return chr(65 + position) if position < 26 else str(position + 1)
