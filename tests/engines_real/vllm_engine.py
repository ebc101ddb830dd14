"""Run vLLM's engine on a tiny model of random weights; print tokens and what moved as JSON.

vllm_engine.py MODEL off|sync|async
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
import vllm_on_cpu
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from vllm import LLM, SamplingParams

REDUNDANT, MOST_ROUNDS = 8, 200


def write_model(folder: str) -> None:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=16,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)


def main(model: str, mode: str) -> None:
    vllm_on_cpu.allow()
    eplb = {}
    if mode != "off":
        eplb = {
            "enable_eplb": True,
            "eplb_config": {
                "num_redundant_experts": REDUNDANT,
                "window_size": 8,
                "step_interval": 12,
                "use_async": mode == "async",
                "communicator": "torch_gloo",
            },
        }
    llm = LLM(
        model,
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=True,
        tensor_parallel_size=2,
        enable_expert_parallel=True,
        distributed_executor_backend="mp",
        worker_cls="vllm_on_cpu.Worker",
        max_model_len=128,
        max_num_seqs=4,
        kv_cache_memory_bytes=2**24,
        enable_prefix_caching=False,
        **eplb,
    )
    rng = np.random.default_rng(0)
    prompts = [{"prompt_token_ids": rng.integers(128, size=n).tolist()} for n in (5, 9, 17, 30)]
    how = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, detokenize=False)
    rounds, ranks = [], []
    # In the background, a plan may come when the first rounds are over.
    while len(rounds) < (2 if mode == "off" else MOST_ROUNDS):
        done = llm.generate(prompts, how, use_tqdm=False)
        rounds.append([list(one.outputs[0].token_ids) for one in done])
        if eplb and ranks and ranks[0]["moved"]:
            break
        ranks = llm.collective_rpc("report") if eplb else []
    ranks = llm.collective_rpc("report") if eplb else []
    print(json.dumps({"rounds": rounds, "ranks": ranks}))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        write_model(sys.argv[1])
    else:
        main(*sys.argv[1:])
