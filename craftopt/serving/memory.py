"""What a GPU's memory holds, and how much of it is left for the KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from craftopt.errors import InputError
from craftopt.plan import Plan
from craftopt.serving.deployment import Deployment
from craftopt.serving.facts import bytes_of


@dataclass(frozen=True)
class Memory:
    """Account for the fullest GPU's memory, the one that limits the cache of all; in bytes.

    Parameters
    ----------
    total : float
        What the GPU has.
    reserve : float
        Activations, graphs, buffers, communication.
    attention, shared, dense, embeddings : float
        Weights of attention, of shared experts, of dense layers and routers, of embedding and
        output head.
    experts, replicas : float
        Copies of routed experts that a plan without replicas hosts, and those beyond.
    kv_bytes_per_token : float
        What one token of context takes on one GPU of its attention group.

    Examples
    --------
    >>> from craftopt.serving import Deployment, find_gpu, find_model, memory_for_copies
    >>> spread = Deployment(find_model("deepseek-r1"), find_gpu("h200"), gpus=64, nodes=8,
    ...                     expert_dtype="bf16")
    >>> none, eplb = (memory_for_copies(spread, 58 * slots) for slots in (4, 5))
    >>> round((eplb.replicas - none.replicas) / 2**30, 2)
    4.76
    """

    total: float
    reserve: float
    attention: float
    shared: float
    dense: float
    embeddings: float
    experts: float
    replicas: float
    kv_bytes_per_token: float

    @property
    def used(self) -> float:
        """All that is taken before the cache."""
        return (
            self.reserve
            + self.attention
            + self.shared
            + self.dense
            + self.embeddings
            + self.experts
            + self.replicas
        )

    @property
    def kv(self) -> float:
        """What is left for the cache; below 0 where the weights do not fit."""
        return self.total - self.used

    @property
    def kv_tokens(self) -> int:
        """Tokens of context that an attention group can hold."""
        return max(0, int(self.kv / self.kv_bytes_per_token))

    def concurrency(self, context: int) -> int:
        """Count the sequences of that many tokens that an attention group can hold."""
        return self.kv_tokens // context


def memory_of(deployment: Deployment, plan: Plan) -> Memory:
    """Account for the GPU that hosts the most copies of a plan.

    Raises
    ------
    InputError
        A plan for another model or another number of GPUs.
    """
    check_shape(deployment, plan.layers, plan.experts)
    if plan.gpus != deployment.gpus:
        raise InputError(f"the plan is for {plan.gpus} GPUs, the deployment has {deployment.gpus}")
    return memory_for_copies(deployment, int(plan.slots.sum(axis=0).max()))


def memory_for_copies(deployment: Deployment, copies: int) -> Memory:
    """Account for a GPU that hosts a number of copies of experts, over all layers."""
    model = deployment.model
    per_weight = bytes_of(deployment.weight_kind)
    group = deployment.attention_gpus
    kv = model.kv_bytes(deployment.kv_dtype)
    if model.attention.kind == "gqa":
        kv /= min(group, model.attention.kv_heads)
    least = -(-model.moe_layers * model.experts // deployment.gpus)
    return Memory(
        total=deployment.gpu.memory,
        reserve=deployment.reserve + deployment.reserve_per_gpu * deployment.gpus,
        attention=model.attention_weights(group) * per_weight,
        shared=model.shared_expert_parameters * per_weight,
        dense=(model.dense_parameters + model.router_parameters) * per_weight,
        # Every GPU holds the whole embedding; the output head is split.
        embeddings=model.embedding_parameters / 2 * (1 + 1 / group) * bytes_of("bf16"),
        experts=min(copies, least) * deployment.expert_bytes,
        replicas=max(0, copies - least) * deployment.expert_bytes,
        kv_bytes_per_token=kv,
    )


def check_shape(deployment: Deployment, layers: int, experts: int) -> None:
    """Refuse layers and experts that are not the model's."""
    model = deployment.model
    if (layers, experts) != (model.moe_layers, model.experts):
        raise InputError(
            f"{model.name} has {model.moe_layers} MoE layers of {model.experts} experts, and "
            f"here are {layers} of {experts}; pass loads of all its layers, or another model"
        )
