"""The options that say what traffic costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

import craftopt as co
from craftopt.cli.groups import grouped
from craftopt.cli.shared import PAIRS, TRACE, Reader
from craftopt.errors import InputError

MODEL = typer.Option(help="Model, such as deepseek-r1.")
GPU = typer.Option(
    "--gpu",
    "--cluster",
    help="Accelerator with its links, such as h200, h100-400g, a100-efa or nvl72.",
)
SETTINGS = typer.Option(
    "--set",
    metavar="NAME=VALUE",
    help="Any constant of the model, such as kv_dtype=fp8 or compute_efficiency=0.4; repeatable.",
)
FACTS = typer.Option(help="TOML file of models and accelerators of your own.")


@dataclass(frozen=True)
class Pricing:
    """What traffic is known from, and what it costs, as the options say."""

    trace: str | None
    coactivation: str | None
    traffic: str | None
    max_slowdown: float | None
    model: str | None
    gpu: str | None
    settings: list[str] | None
    facts: Path | None

    def problem(self, problem: co.Problem, reader: Reader, dispatch: str = "even") -> co.Problem:
        """Add traffic and dispatch to a problem.

        Raises
        ------
        InputError
            Options that do not go together.
        """
        self._check()
        loads = problem.loads
        tokens, pairs = reader.tokens(self.trace, self.coactivation, loads.layer_ids, loads.experts)
        return problem.variant(
            dispatch=dispatch,
            coactivation=pairs if tokens is None else tokens,
            traffic=self._price(problem),
            max_slowdown=self.max_slowdown,
        )

    def _check(self) -> None:
        asked = [
            name
            for name, value in (("traffic", self.traffic), ("max-slowdown", self.max_slowdown))
            if value is not None
        ]
        if len(asked) == 2:
            raise InputError("--traffic and --max-slowdown are both given; pass one of them")
        if asked and self.trace is None and self.coactivation is None:
            raise InputError(
                f"--{asked[0]} needs to know which experts tokens choose together: pass "
                "--coactivation (pair counts) or --trace (tokens)"
            )
        facts = {"model": self.model, "gpu": self.gpu, "set": self.settings, "facts": self.facts}
        given = [name for name, value in facts.items() if value]
        if self.traffic != "auto" and given:
            raise InputError(f"--{given[0]} is for --traffic auto; pass that, or leave it out")
        if self.traffic == "auto" and (self.model is None or self.gpu is None):
            raise InputError(
                "--traffic auto takes the price from the facts of --model and --gpu; pass both, "
                "such as --model deepseek-r1 --gpu h100-400g, or a number"
            )

    def _price(self, problem: co.Problem) -> Any:
        if self.traffic is None:
            return None
        if self.traffic != "auto":
            try:
                price = float(self.traffic)
            except ValueError:
                price = math.nan
            if not 0 <= price < math.inf:
                raise InputError(
                    f"--traffic {self.traffic!r}; pass what a node that a token visits costs in "
                    "mean GPU loads, such as 0.7, or auto"
                )
            return price
        from craftopt.serving import Deployment, find_gpu, find_model, read_facts  # noqa: PLC0415

        models, devices = read_facts(self.facts) if self.facts is not None else ({}, {})
        spread = Deployment(
            find_model(self.model or "", models),
            find_gpu(self.gpu or "", devices),
            problem.gpus,
            problem.nodes,
        )
        return spread.replace(**read_constants(self.settings))


_OPTIONS = {
    "trace": (str | None, TRACE),
    "coactivation": (str | None, PAIRS),
    "traffic": (
        str | None,
        typer.Option(
            metavar="MU|auto",
            help="Plan for balance and traffic together: what a node that a token visits costs, in "
            "mean GPU loads, or auto: from --model and --gpu.",
        ),
    ),
    "max_slowdown": (
        float | None,
        typer.Option(
            metavar="SHARE",
            help="In place of --traffic: least traffic with at most this share more time than "
            "balance alone, such as 0.02.",
        ),
    ),
    "model": (str | None, MODEL),
    "gpu": (str | None, GPU),
    "settings": (list[str] | None, SETTINGS),
    "facts": (Path | None, FACTS),
}

# Gives a command the options that say what traffic costs, and it a `Pricing` made of them.
pricing = grouped("pricing", _OPTIONS, Pricing)


def read_constants(settings: list[str] | None) -> dict[str, Any]:
    """Read every NAME=VALUE."""
    return dict(_constant(text) for text in settings or [])


def _constant(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE: a number or a truth value where it is one, else a word."""
    name, equals, value = text.partition("=")
    name, value = name.strip().replace("-", "_"), value.strip()
    if not (equals and name and value):
        raise InputError(f"--set {text!r}; pass NAME=VALUE, such as kv_dtype=fp8")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value
