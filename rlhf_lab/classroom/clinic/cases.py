"""What a patient is made of, and what patients may have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rlhf_lab.classroom.clinic.parts import Parts


@dataclass(frozen=True)
class Case:
    """A patient.

    Attributes:
        suspect: key of `SUSPECTS`.
        part: what the repair replaces. faults: parts as they are; all of them go with the repair.
        setting: parts that stay as they are: what the code declares.
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
    setting: Mapping[str, Any] = field(default_factory=dict)

    def parts(self, repair: Callable | None = None) -> Parts:
        """Sick without a repair, and with it whatever the repair makes of it."""
        replaced: dict[str, Any] = {self.part: repair} if repair else dict(self.faults)
        return Parts(**self.setting, **replaced)


SUSPECTS = {  # no word here is the name of a live check
    "uphill": "the step goes down where it should go up",
    "pad is end": "the end token is taken for padding; the two have one id",
    "paid per token": "every token of a song is paid what the song is worth",
    "paid early": "a song is paid one token before its last",
    "capped": "a song that hit the limit bootstraps from a value",
    "next value": "the TD error lacks the value of the next state",
    "cut is end": "a row that was cut counts as one that ended",
    "neighbours": "GAE runs across the end of a row into the next one",
    "live value": "the policy's objective moves the values",
    "temperature": "songs are sampled at 0.6 and judged likely at 1",
    "top-k": "songs are sampled from the two best tokens only",
    "self-comparison": "new probabilities are divided by themselves",
    "entropy": "the entropy term has the wrong sign",
    "KL in the loss": "k1 stands in what is differentiated, and nowhere else",
    "minus the KL": "the KL is measured the wrong way round",
    "group mean": "the mean of the group includes the song itself",
    "micro-batch": "each micro-batch is averaged by itself",
    "off by one": "each token is judged by what was known one token earlier",
    "stale": "the policy is compared with the one of the iteration before",
    "follower": "what the KL is measured from follows the policy",
    "two wrongs": "songs are sampled hotter, from the three best tokens only",
    "shuffled": "songs are judged in another order than they are trained",
    "dropout": "dropout is on in the model that the KL is measured from",
}
