"""The bug clinic of chapter 06: one tiny PPO, a drawer of faults to put into it, and an exact oracle for each repair.

    run = run_case("A", seed=0)            train with the fault of patient A; run.history, run.samples, run.fired
    visit("ABCD")                          curves and songs of four patients
    show_code("ABCD"), show_alarms("A")    what to hunt in, and what the live checks said, behind a click
    diagnose({"A": "pad is end"})          score a guess; sign and faulty lines behind a click
    grade("A", repair)                     compare a repair with the exact answer; an AssertionError says what is wrong
    outcome("A")                           what the fault costs, over five seeds

The world is a `TokenWorld` of two prompts and 364 songs each, so the policy is a table and every expectation a sum. One
iteration of PPO is made of `Parts`: small functions with healthy defaults. A case replaces one or two of them.
Then comes `TutorialPPO`, a dialogue agent with six faults, and the six repairs. What the chapter uses stands here; each
module imports only those before it: songs, parts, oracles, faults, cases, experience_cases, update_cases,
scoring_cases, runs, ward, charts, grading, agent, agent_checks, exercises.
"""

from rlhf_lab.classroom.clinic.agent import (
    DIALOGUE,
    REPAIRS,
    TutorialPPO,
    best_kind,
    repaired,
    share_of_optimum,
    train_agent,
    with_repairs,
)
from rlhf_lab.classroom.clinic.agent_checks import grade_method
from rlhf_lab.classroom.clinic.charts import Folded, diagnose, show_alarms, show_code, show_small, visit
from rlhf_lab.classroom.clinic.exercises import check_clip_is_alive, check_whiten
from rlhf_lab.classroom.clinic.faults import only_the_top_two
from rlhf_lab.classroom.clinic.grading import grade
from rlhf_lab.classroom.clinic.oracles import cosine, exact_values, probe_logits, token_gradient, used_gradient
from rlhf_lab.classroom.clinic.parts import CLIP, ENTROPY_COEF, KL_COEF, LAM, Parts, prepare
from rlhf_lab.classroom.clinic.runs import train
from rlhf_lab.classroom.clinic.songs import LENGTH, PROMPTS, every_reply, reference_logits, score, song, world
from rlhf_lab.classroom.clinic.ward import (
    CASES,
    SEEDS,
    best_objective,
    healthy,
    outcome,
    run_case,
    suspects,
)

__all__ = [
    "CASES",
    "CLIP",
    "DIALOGUE",
    "ENTROPY_COEF",
    "KL_COEF",
    "LAM",
    "LENGTH",
    "PROMPTS",
    "REPAIRS",
    "SEEDS",
    "Folded",
    "Parts",
    "TutorialPPO",
    "best_kind",
    "best_objective",
    "check_clip_is_alive",
    "check_whiten",
    "cosine",
    "diagnose",
    "every_reply",
    "exact_values",
    "grade",
    "grade_method",
    "healthy",
    "only_the_top_two",
    "outcome",
    "prepare",
    "probe_logits",
    "reference_logits",
    "repaired",
    "run_case",
    "score",
    "share_of_optimum",
    "show_alarms",
    "show_code",
    "show_small",
    "song",
    "suspects",
    "token_gradient",
    "train",
    "train_agent",
    "used_gradient",
    "visit",
    "with_repairs",
    "world",
]
