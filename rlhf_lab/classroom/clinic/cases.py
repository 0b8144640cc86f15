"""What a patient is made of, and what patients may have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from rlhf_lab.classroom.clinic.parts import Parts


@dataclass(frozen=True)
class Case:
    """A patient.

    Attributes:
        suspect: key of `SUSPECTS`.
        part: what the repair replaces. faults: parts as they are; all of them go with the repair.
        setting: parts that stay as they are.
        cure: a healthy part.
        oracle: what a repair is graded by. means: what passing it says.
        hint: what usually causes a wrong repair; mistakes: cause -> a wrong repair.
        sign: where the fault shows in the dashboard.
    """

    suspect: str
    part: str
    faults: Mapping[str, Callable]
    cure: Callable
    oracle: Callable[[Parts | None], Tensor]
    means: str
    hint: str
    mistakes: Mapping[str, Callable]
    sign: str
    setting: Mapping[str, Callable] = field(default_factory=dict)

    def parts(self, repair: Callable | None = None) -> Parts:
        """Sick without a repair, and with it whatever the repair makes of it."""
        return Parts(**self.setting, **({self.part: repair} if repair else self.faults))


SUSPECTS = {
    "sign": "the loss has the wrong sign",
    "mask": "the mask is read off the tokens; pad and end are one id",
    "score twice": "the score is written at every token",
    "score early": "the score is written one token too early",
    "capped": "a song that hit the limit bootstraps from a value",
    "next value": "the TD error lacks the value of the next state",
    "cut is end": "a row that was cut counts as one that ended",
    "neighbours": "GAE runs across the end of a row into the next one",
    "live advantage": "advantages carry a gradient into the values",
    "temperature": "songs are sampled at 0.6 and scored at 1",
    "top-k": "songs are sampled from the two best tokens, scored with all",
    "ratio 1": "the ratio is taken to the policy itself",
    "entropy": "the entropy bonus has the wrong sign",
    "k1 in loss": "the leash is k1 in the loss",
    "log-ratio": "the log-ratio of the leash is the wrong way round",
    "group mean": "the mean of the group includes the song itself",
    "micro-batch": "the loss is averaged per micro-batch",
}
