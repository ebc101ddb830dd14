"""A pytest plugin: vLLM's own tests call craftopt's policy in place of vLLM's."""

from vllm.distributed.eplb.policy.default import DefaultEplbPolicy

from craftopt.engines.vllm import CraftoptEplbPolicy

DefaultEplbPolicy.rebalance_experts = CraftoptEplbPolicy.rebalance_experts
