"""What a replica costs and brings: memory, time, goodput, and the right budget."""

from craftopt.serving.advice import Advice, advise
from craftopt.serving.candidates import Candidate
from craftopt.serving.catalogue import (
    find_gpu,
    find_model,
    known_gpus,
    known_models,
    read_facts,
)
from craftopt.serving.deployment import Deployment, Exchange, TrafficPrice, Workload
from craftopt.serving.facts import Attention, Gpu, Model
from craftopt.serving.goodput import Engine, Service, Simulated, engine_of, service_of, simulate
from craftopt.serving.memory import Memory, memory_for_copies, memory_of
from craftopt.serving.sensitivity import Sensitivity
from craftopt.serving.sweep import Budget
from craftopt.serving.timing import (
    Measured,
    Phase,
    Profile,
    StepTime,
    calibrate,
    profile_of,
    step_time,
)

__all__ = [
    "Advice",
    "Attention",
    "Budget",
    "Candidate",
    "Deployment",
    "Engine",
    "Exchange",
    "Gpu",
    "Measured",
    "Memory",
    "Model",
    "Phase",
    "Profile",
    "Sensitivity",
    "Service",
    "Simulated",
    "StepTime",
    "TrafficPrice",
    "Workload",
    "advise",
    "calibrate",
    "engine_of",
    "find_gpu",
    "find_model",
    "known_gpus",
    "known_models",
    "memory_for_copies",
    "memory_of",
    "profile_of",
    "read_facts",
    "service_of",
    "simulate",
    "step_time",
]
