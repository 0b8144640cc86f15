"""RLHF that can be derived, verified, felt and broken: offline, on a laptop, in an afternoon.

    from rlhf_lab import gae, load_language_model, plots, town, train_rlhf

Importing the package loads nothing; a public name loads its module when it is first used, so `gae` costs torch and not
transformers. `town`, `plots`, `invariants` and the like are modules. The house, from the ground up:

    records      what everything speaks of: conversations, demonstrations, comparisons, rankings
    maths        pure functions of tensors, each with its formula, its source and an exact test
    training     what every loop needs besides its algorithm: files, history, randomness, steps, optimisers
    models       language models, reward models, policies: loaded, saved, scored
    feedback     files of preferences, the log of what people said
    worlds       Pebble Town, whose true reward is known; gymnasium environments
    experience   what policies did, what it was worth, how one update learns from it, live checks
    evaluation   text, policies and reward models measured
    recipes      one training loop a file
    classroom    figures, reports, course, widgets, checks of exercises, the bug clinic
"""

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0.dev0"

# Threads of PyTorch that wait spin for a moment and then sleep. As it comes they spin far longer, and on a machine that
# does other work too sampling and training then take two to three times as long: `python run.py bench threads`. It is
# read when torch is loaded, so a notebook that imports torch first keeps what it has.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_MODULES = {
    "clinic": "classroom.clinic",
    "diagrams": "classroom.diagrams",
    "explore": "classroom.explore",
    "invariants": "experience.invariants",
    "kl": "maths.kl",
    "mdp": "maths.mdp",
    "objectives": "maths.objectives",
    "plots": "classroom.plots",
    "probes": "worlds.probes",
    "town": "worlds.town",
}
_NAMES = {
    "records": (
        "Choice Comment Comparison Conversation Demonstration Edit Event Mark Message Ranking Rating Segment "
        "SegmentChoice Skip as_conversation"
    ),
    "maths.tensors": "length_mask masked_mean masked_sum masked_var masked_whiten",
    "maths.returns": "discounted_returns gae group_advantages lambda_returns leave_one_out_advantages td_errors",
    "maths.kl": "categorical_kl kl_k1 kl_k2 kl_k3",
    "maths.objectives": (
        "clip_fraction clipped_surrogate_objective clipped_value_loss dpo_loss entropy explained_variance "
        "reinforce_objective"
    ),
    "maths.preferences": (
        "accuracy best_possible_accuracy bradley_terry_loss davidson_loss expected_accuracy plackett_luce_loss "
        "rater_agreement rating_loss reliability_bins"
    ),
    "maths.mdp": "TabularMDP expected_return policy_evaluation policy_gradient policy_iteration value_iteration",
    "maths.exact": "TokenWorld",
    "maths.intervals": (
        "Interval mean_interval outcome_interval paired_difference proportion_interval ratio_of_means_bootstrap "
        "win_rate"
    ),
    "maths.power": (
        "compare_many detectable_difference detectable_win_rate difference_sample_size holm p_value "
        "win_rate_sample_size"
    ),
    "maths.agreement": "agreement_by_pair cohen_kappa fleiss_kappa krippendorff_alpha percent_agreement",
    "maths.acquisition": "greedy_design mutual_information",
    "maths.soft": "soft_value_iteration state_action_visits",
    "maths.landscapes": "terrain",
    "training.history": "History Result",
    "training.optimisers": "OptimiserConfig",
    "training.randomness": "generator_for minibatches",
    "training.steps": "Checkpoint Steps",
    "models.language_model": "LanguageModel load_language_model",
    "models.tokens": "Rollout TokenBatch encode_prompts encode_responses make_batch",
    "models.scoring": "ValueHead forward response_log_probs token_log_probs",
    "models.reward_model": "RewardModel load_reward_model",
    "models.ensemble": "RewardEnsemble load_reward_ensemble",
    "models.linear_reward": "LinearReward load_linear_reward mean_states",
    "models.policies": "CategoricalPolicy GaussianPolicy TabularPolicy TabularValue Value greedy perceptron sampling",
    "feedback.preference_lint": "lint",
    "feedback.formats": "as_demonstrations as_preferences read_preferences write_csv write_preferences write_unpaired",
    "feedback.events": "new_event read_events read_records standing write_events",
    "feedback.store": "NotSaved Store",
    "feedback.questions": "CommentOn Compare CompareSegments EditReply MarkWords Rank Rate",
    "feedback.screening": "contradictions duplicates too_fast",
    "feedback.careless": "failed_checks position_bias straight_lining",
    "feedback.junk": "hostile spam",
    "feedback.cleaning": "clean",
    "feedback.aggregation": "Consensus consensus",
    "feedback.reliability": "DawidSkene dawid_skene normalise_ratings pair_labels rating_labels",
    "feedback.planning": "StopRule labels_needed next_labels stopping_studies",
    "feedback.choice": "choose question_pool seconds_per_label",
    "feedback.selection": "selection_studies",
    "feedback.targets": (
        "edit_changes edit_to_demonstration edit_to_mark edit_to_unit listwise_ranking_loss pairwise_ranking_loss "
        "pool_raters rankings_to_scores rating_to_unit ratings_to_scores ratings_to_unit to_comparisons"
    ),
    "feedback.token_targets": "marks_to_token_rewards",
    "feedback.turn_rewards": (
        "delayed_rewards ratings_to_turn_scores shaped shaping_rewards sparse_rewards turn_returns"
    ),
    "feedback.comments": "comment_topics comments_to_model fit_comment_model",
    "feedback.exports": "export",
    "feedback.merging": "agreement_of_raters merge",
    "worlds.town.questions": "distinct_prompts",
    "worlds.envs": "DialogueEnv TabularEnv TokenEnv token_world_mdp",
    "worlds.puck": "PuckEnv",
    "experience.rollouts": "prompts_of sample_responses",
    "experience.episodes": "Episodes Runner collect_episodes make_envs play policy_for value_for",
    "experience.collect": "rank_events rank_replies",
    "experience.segments": "cut_segments pair_segments",
    "experience.invariants": "InvariantViolation",
    "experience.rewards": "adapted_kl_coef reply_discounts token_rewards",
    "experience.updates": "Experience accumulate_gradient clipped_losses",
    "evaluation.text": "bleu perplexity rouge",
    "evaluation.policies": (
        "ModelReport evaluate_model evaluate_replies evaluate_rollout rollout_verdicts true_reward true_rewards"
    ),
    "evaluation.reward_models": "RewardModelReport calibration evaluate_reward_model reward_model_report",
    "evaluation.reward_biases": "bias bias_pairs listing_bias shared_bias",
    "evaluation.comparisons": (
        "LengthFit Outcomes WinRateReport fit_length_effect length_controlled_win_rate outcomes_of_choices "
        "outcomes_of_scores win_rate_report"
    ),
    "evaluation.irl": "IRLReport clone_behaviour judge_irl occupancy_distance reward_distance",
    "recipes.pretrain": "PretrainConfig train_base_model train_tokenizer",
    "recipes.sft": "SFTConfig train_sft",
    "recipes.best_of_n": "best_of_n_kl choose_best",
    "recipes.distil": "DistilConfig train_distilled",
    "recipes.direct": "DPOConfig train_dpo",
    "recipes.group": "DR_GRPO GRPO GroupConfig RLOO train_group",
    "recipes.reward": "RewardConfig train_reward_model",
    "recipes.reward_ensemble": "train_reward_ensemble",
    "recipes.few_labels": "LinearRewardConfig cautious choices_in train_linear_reward",
    "recipes.rlhf": "RLHFConfig train_rlhf",
    "recipes.reinforce": "ReinforceConfig train_reinforce",
    "recipes.ppo": "PPOConfig train_ppo",
    "recipes.q_learning": "QLearningConfig train_q_learning",
    "recipes.dqn": "DQNConfig train_dqn",
    "recipes.irl": (
        "IRLConfig demonstrated_visits discriminator_labels discriminator_reward train_irl "
        "state_action_features state_features"
    ),
    "recipes.segment_reward": "LearnedReward SegmentRewardConfig simulate_choices train_segment_reward",
    "classroom.summary": "choose_examples",
    "classroom.widgets.session": "FeedbackSession",
    "classroom.widgets.view": "FeedbackView",
    "classroom.widgets.plain": "PlainView",
    "classroom.widgets.chat": "Chat",
    "classroom.widgets.plain_chat": "PlainChat",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted([*_MODULES, *_HOME])


def __getattr__(name: str) -> Any:
    """Load a public name at its first use; afterwards it is an ordinary attribute."""
    if name in _MODULES:
        value: Any = import_module(f"{__name__}.{_MODULES[name]}")
    elif name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the public names are in rlhf_lab.__all__")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
