"""Small random models of many families: a plain decoder works in every stage, any other kind is refused at once."""

import types

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
)

from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.models.language_model import ModelError, wrap_model
from rlhf_lab.models.reward_model import RewardModel, load_reward_model
from rlhf_lab.models.scoring import ValueHead, forward, response_log_probs
from rlhf_lab.models.tokens import encode_prompts, encode_responses, make_batch
from rlhf_lab.recipes.rlhf import RLHFConfig, new_critic
from rlhf_lab.recipes.sft import SFTConfig, train_sft
from rlhf_lab.records import Demonstration, as_conversation

torch.set_num_threads(1)
PROMPTS = ["Hi", "When does the library close, and where is the museum?", "Go away!"] * 6
REPLIES = ["At six.", "You are very kind, thank you!", "", "Away"]
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 128,
}  # fmt: skip
WINDOW = {"sliding_window": 8}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
STATE = {"state_size": 8, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
# What it is called here: its type, and what its config needs beyond SIZES.
DECODERS = {
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "opt, projected": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 16}),
    "bloom": ("bloom", {}),
    "mpt": ("mpt", {"max_seq_len": 128}),
    "falcon": ("falcon", {}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "falcon, grouped": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 8, "num_heads": 4}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "codegen": ("codegen", {"rotary_dim": 4}),
    "ctrl": ("ctrl", {"dff": 64, "tie_word_embeddings": False}),
    "biogpt": ("biogpt", {}),
    "xglm": ("xglm", {"ffn_dim": 64, "tie_word_embeddings": False}),
    "persimmon": ("persimmon", {}),
    "llama": ("llama", {}),
    "mistral": ("mistral", WINDOW),
    "mixtral": ("mixtral", EXPERTS),
    "qwen2": ("qwen2", {}),
    "qwen2_moe": ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "gemma": ("gemma", {"head_dim": 8}),
    "gemma2": ("gemma2", {"head_dim": 8} | WINDOW),
    "gemma3_text": ("gemma3_text", {"head_dim": 8} | WINDOW),
    "phi": ("phi", {}),
    "phi3": ("phi3", WINDOW),
    "stablelm": ("stablelm", {}),
    "starcoder2": ("starcoder2", {}),
    "cohere": ("cohere", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmoe": ("olmoe", EXPERTS),
    "granite": ("granite", {"logits_scaling": 8.0}),
    "smollm3": ("smollm3", {}),
    "glm": ("glm", {"head_dim": 8}),
    "deepseek_v3": ("deepseek_v3", EXPERTS | LATENT),
}
# Every other type of the tested transformers version of which a small model can be made from SIZES alone, and that is
# accepted: for these the one claim is tested that the house makes of all, that what is sampled is what is scored.
ALSO_ACCEPTED = """
    apertus arcee aria_text beam bitnet cohere2 cohere2_moe diffllama doge ernie4_5 exaone4 flex_olmo flint fuyu
    gemma4_unified_text glm4 gpt-sw3 gpt_neox_japanese gpt_oss granite_swa granitemoe granitemoe_swa granitemoeshared
    hrm_text hyperclovax internlm3 iquestcoder jais2 jetmoe minimax_m3_vl_text ministral3 moshi nanochat nemotron olmo3
    phimoe seed_oss vaultgemma
"""
OTHERS = {
    "openai-gpt": ("no key-value cache", {}),
    "mamba": ("recurrent or hybrid", STATE),
    "mamba2": ("recurrent or hybrid", STATE | {"num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "rwkv": ("recurrent or hybrid", {"attention_hidden_size": 32, "context_length": 128}),
    "recurrent_gemma": ("recurrent or hybrid", {"lru_width": 32}),
    "qwen3_next": ("recurrent or hybrid", EXPERTS | {"shared_expert_intermediate_size": 32, "head_dim": 8}),
    "jamba": ("recurrent or hybrid", EXPERTS | STATE | {"mamba_dt_rank": 4, "use_mamba_kernels": False}),
    "bamba": ("recurrent or hybrid", STATE),
    "falcon_h1": ("recurrent or hybrid", STATE | {"mamba_d_ssm": 64, "head_dim": 8}),
    "zamba": (
        "recurrent or hybrid",
        STATE | {"num_hidden_layers": 4, "layer_types": ["linear_attention", "hybrid"] * 2, "mamba_dt_rank": 4},
    ),
    "zamba2": ("recurrent or hybrid", STATE | {"layer_types": ["linear_attention", "hybrid"]}),
    "lfm2": ("hybrid or sparse: .*LinearAttentionLayer", {"layer_types": ["conv", "full_attention"]}),
    "deepseek_v32": ("hybrid or sparse", EXPERTS | LATENT | {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 4}),
    "bert": ("reads later tokens", {}),
    "mbart": (
        "reward model",
        {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
    ),
    "modernbert-decoder": ("reward model", {"head_dim": 8, "bos_token_id": 0}),
}


def new_model(kind, sizes, tokenizer):
    """Random weights with enough spread that the law is far from uniform, and context matters."""
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(kind, **(SIZES | ids | {"pad_token_id": tokenizer.pad_token_id} | sizes))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.15)
    return model


def wrapped(kind, sizes, tokenizer):
    return wrap_model(new_model(kind, sizes, tokenizer), tokenizer)


def faults(*stages):
    """What the stages find wrong; one that raises is wrong as well, and none hides the next."""
    found = []
    for stage in stages:
        try:
            found += [f"{stage.__name__}: {fault}" for fault, wrong in stage().items() if wrong]
        except Exception as error:
            found.append(f"{stage.__name__}: {type(error).__name__}: {error}")
    return found


def end_early(model, end_id):
    """Make the end token likelier, so that rows end at different steps."""
    inner = model.forward

    def likelier(self, *args, **options):
        output = inner(*args, **options)
        output.logits[..., end_id] += 3.0
        return output

    model.forward = types.MethodType(likelier, model)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_a_plain_decoder_works_in_every_stage(name, tiny_gpt2, tmp_path, monkeypatch):
    lm = wrapped(*DECODERS[name], tiny_gpt2.tokenizer)
    model = lm.model

    def imitation():
        result = train_sft(lm, [Demonstration(as_conversation("Hi"), "Yes.")], SFTConfig(steps=1))
        moved = [bool((a != b).any()) for a, b in zip(model.parameters(), result.model.model.parameters(), strict=True)]
        return {"few weights have a gradient": sum(moved) < 0.8 * len(moved)}

    def reward_model():
        rm = RewardModel.from_language_model(lm, torch.Generator().manual_seed(0))
        rm.save(tmp_path / "reward")
        rows = encode_prompts(lm, PROMPTS[:4]), encode_responses(lm, REPLIES)
        batch = make_batch(*rows, rm.pad_id)
        scores = rm.score_batch(batch)
        monkeypatch.setattr(AutoModelForSequenceClassification._model_mapping, "_extra_content", {})  # a new process
        loaded = load_reward_model(tmp_path / "reward").score_batch(batch)
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", dtype=torch.float32).eval()
        tokens = [torch.tensor([prompt + reply]) for prompt, reply in zip(*rows, strict=True)]
        expected = torch.cat([theirs(row).logits[0] for row in tokens]).detach()
        return {
            "all scores are equal": scores.std() < 1e-3,
            "loaded, the scores differ": (loaded - scores).abs().max() > 1e-5,
            "the scores in transformers differ": (expected - scores).abs().max() > 1e-4,
        }

    def sampling():
        head = ValueHead(model.get_output_embeddings().weight.shape[1])
        torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
        end_early(model, lm.end_id)
        options = {"max_new_tokens": 16, "value_head": head, "generator": torch.Generator().manual_seed(0)}
        rollout = sample_responses(lm, PROMPTS, **options)
        mask = rollout.batch.mask
        values = head(forward(lm, rollout.batch).hidden)[:, :-1].detach()
        cool = sample_responses(
            lm, PROMPTS[:4], max_new_tokens=8, temperature=0.7, generator=torch.Generator().manual_seed(1)
        )
        cool_error = (response_log_probs(lm, cool.batch, 0.7) - cool.log_probs).abs().max()
        return {
            "rows do not end at different steps": len(set(rollout.batch.response_lengths.tolist())) < 3,
            "sampled is not scored": (response_log_probs(lm, rollout.batch) - rollout.log_probs).abs().max() > 1e-4,
            "sampled is not scored at temperature 0.7": cool_error > 1e-4,
            "sampled values are not scored ones": (values - rollout.values[:, :-1])[mask].abs().max() > 1e-4,
        }

    assert faults(imitation, reward_model, sampling) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALSO_ACCEPTED.split())
def test_what_a_further_decoder_samples_is_what_it_scores(kind, tiny_gpt2):
    lm = wrapped(kind, {}, tiny_gpt2.tokenizer)
    for temperature in (1.0, 0.7):
        options = {"max_new_tokens": 10, "temperature": temperature, "generator": torch.Generator().manual_seed(0)}
        rollout = sample_responses(lm, PROMPTS[:6], **options)
        assert rollout.log_probs.std() > 0.02  # tokens are not all as likely; Cohere scales its logits down
        scored = response_log_probs(lm, rollout.batch, temperature)
        torch.testing.assert_close(scored, rollout.log_probs, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_is_refused_at_once(kind, tiny_gpt2):
    reason, sizes = OTHERS[kind]
    model = new_model(kind, sizes, tiny_gpt2.tokenizer)
    with pytest.raises(ModelError, match=f"^a model of type {kind} .*{reason}.*; use a decoder .* such as GPT-2"):
        wrap_model(model, tiny_gpt2.tokenizer)


# ---- kinds that no list of families knows --------------------------------------------------------------------


class Recurrent(GPT2LMHeadModel):
    _is_stateful = True


class ShiftedByPadding(GPT2LMHeadModel):
    def forward(self, input_ids=None, position_ids=None, **options):
        return super().forward(input_ids, **options)


class DeafToItsCache(GPT2LMHeadModel):
    def forward(self, input_ids=None, past_key_values=None, attention_mask=None, **options):
        return super().forward(input_ids, **options)


class WithoutItsHead(GPT2LMHeadModel):
    def forward(self, *args, logits_to_keep=0, **options):
        output = self.transformer(*args, **options)
        output.logits = output.last_hidden_state @ self.lm_head.weight.T
        return output


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Recurrent, "recurrent or hybrid"),
        (ShiftedByPadding, "other log-probs with padding"),
        (DeafToItsCache, "other log-probs with padding"),
        (WithoutItsHead, "its head does not make the logits"),
        (GPT2Model, "no head that makes logits"),
    ],
)
def test_an_unknown_kind_is_refused(kind, reason, tiny_gpt2):
    model = kind(tiny_gpt2.model.config)
    model.load_state_dict((tiny_gpt2.model if kind is not GPT2Model else tiny_gpt2.model.transformer).state_dict())
    with pytest.raises(ModelError, match=f"a model of type gpt2 .*{reason}.*; use a decoder"):
        wrap_model(model, tiny_gpt2.tokenizer)


class WithoutOptions(GPT2LMHeadModel):
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None,
                inputs_embeds=None, use_cache=None):  # fmt: skip
        memory = {"past_key_values": past_key_values, "use_cache": use_cache}
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        return super().forward(**tokens, **memory, inputs_embeds=inputs_embeds)


def test_a_forward_that_takes_no_options(tiny_gpt2):
    model = WithoutOptions(tiny_gpt2.model.config)
    model.load_state_dict(tiny_gpt2.model.state_dict())

    def sampling():
        lm = wrap_model(model, tiny_gpt2.tokenizer)
        rollout = sample_responses(lm, PROMPTS, max_new_tokens=4, generator=torch.Generator().manual_seed(0))
        expected = response_log_probs(tiny_gpt2, rollout.batch)
        return {"sampled is not scored": (expected - rollout.log_probs).abs().max() > 1e-4}

    assert faults(sampling) == []


def test_fresh_weights_hide_nothing(tiny_gpt2):
    """Where context hardly matters yet: weights as small as at the start of training."""
    sizes = SIZES | {"vocab_size": 400, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for kind, reason in (("bert", "reads later tokens"), ("roformer", "reads later tokens"), ("gemma3_text", None)):
            config = AutoConfig.for_model(kind, **sizes, head_dim=8, embedding_size=32)
            model = AutoModelForCausalLM.from_config(config)
            if reason is None:
                assert wrap_model(model, tiny_gpt2.tokenizer).model is model
                config.use_bidirectional_attention, reason = True, "reads later tokens"
                model = AutoModelForCausalLM.from_config(config)
            with pytest.raises(ModelError, match=reason):
                wrap_model(model, tiny_gpt2.tokenizer)


def test_looking_at_a_model_changes_nothing(tiny_gpt2):
    lm = tiny_gpt2.copy()
    before, state = {name: weight.clone() for name, weight in lm.model.state_dict().items()}, torch.get_rng_state()
    wrap_model(lm.model.train(), lm.tokenizer)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weight, before[name]) for name, weight in lm.model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in lm.model.modules())
    assert not lm.model.training
    assert all(weight.grad is None for weight in lm.model.parameters())


def test_a_model_with_little_room_and_few_words(tiny_gpt2):
    config = GPT2Config(vocab_size=len(tiny_gpt2.tokenizer), n_positions=6, n_embd=8, n_layer=1, n_head=1)
    assert wrap_model(GPT2LMHeadModel(config), tiny_gpt2.tokenizer).max_length == 6


def test_a_value_head_is_as_wide_as_the_states(tiny_gpt2):
    lm = wrapped(*DECODERS["opt, projected"], tiny_gpt2.tokenizer)
    critic = new_critic(lm, lambda rollout: None, None, RLHFConfig(value="policy_head"))
    assert critic.in_features == 16
    assert critic(forward(lm, make_batch([[5]], [[6, 7]], lm.pad_id)).hidden).shape == (1, 3)
