"""The solvers behind the models: CP-SAT, and CBC, HiGHS and SCIP for the same program as a MILP.

A formulation is written once, against `Model`. `CpModel` hands it to CP-SAT, in whole numbers;
`MilpModel` states it in PuLP, which CBC solves and which is written to MPS and LP files, or passes
it on to HiGHS and SCIP through OR-Tools' MathOpt. Every solver runs one thread, so that the same
model gives the same answer.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from typing import Any, Literal, Self

# OR-Tools before PuLP: PuLP may load highspy, whose HiGHS clashes with the one in OR-Tools.
from ortools.math_opt.python import mathopt  # isort: skip
from ortools.sat.python import cp_model  # isort: skip
import pulp  # isort: skip

from craftopt.errors import InputError
from craftopt.loads import FloatArray
from craftopt_formulations._shares import Shares, real_shares, whole_shares

RunStatus = Literal["optimal", "feasible", "infeasible", "not found"]

SOLVERS = ("cp-sat", "cbc", "highs", "scip")

_MATHOPT = {"highs": mathopt.SolverType.HIGHS, "scip": mathopt.SolverType.GSCIP}
_SECONDS = 3600.0


@dataclass(frozen=True)
class Run:
    """What a solver says of a model.

    Parameters
    ----------
    status : {"optimal", "feasible", "infeasible", "not found"}
    objective, bound : float or None
        In the unit of the model's objective. ``bound`` holds for every solution, whatever the
        status; None where the solver tells none.
    solver : str
        Name and version.
    seconds : float
    work : float
        Deterministic seconds, of CP-SAT alone.
    """

    status: RunStatus
    objective: float | None
    bound: float | None
    solver: str
    seconds: float
    work: float = 0.0

    @classmethod
    def of(cls, run: Run, unit: float, **found: Any) -> Self:
        """Take a run, with objective and bound in a unit, and what it found."""
        objective, bound = (
            None if value is None else value / unit for value in (run.objective, run.bound)
        )
        return cls(run.status, objective, bound, run.solver, run.seconds, run.work, **found)


class Model(ABC):
    """A program with flags and numbers, linear constraints that have names, and an objective."""

    solver: str

    @abstractmethod
    def flag(self, name: str) -> Any:
        """Add a variable that is 0 or 1."""

    @abstractmethod
    def number(self, name: str, low: float, high: float) -> Any:
        """Add a variable for a load or a gain."""

    @abstractmethod
    def count(self, name: str, low: int, high: int) -> Any:
        """Add a variable for a whole number."""

    @abstractmethod
    def add(self, name: str, constraint: Any) -> None:
        """Add a constraint: a comparison of expressions."""

    def add_each(self, family: str, constraints: Mapping[Any, Any]) -> None:
        """Add a family of constraints by their indices: (0, 3) of ``load`` is named load_0_3."""
        for index, constraint in constraints.items():
            indices = index if isinstance(index, tuple) else (index,)
            self.add("_".join(map(str, (family, *indices))), constraint)

    @abstractmethod
    def total(self, terms: Iterable[Any]) -> Any:
        """Sum expressions."""

    @abstractmethod
    def minimise(self, expression: Any) -> None:
        """Set the objective."""

    @abstractmethod
    def shares(self, tokens: FloatArray, most_copies: int) -> Shares:
        """Divide tokens [windows, experts] by every number of copies."""

    @abstractmethod
    def hint(self, variable: Any, value: float) -> None:
        """Suggest a value to start from; solvers without a warm start ignore it."""

    @abstractmethod
    def solve(self, *, work: float | None = None, seconds: float | None = None) -> Run:
        """Solve, up to a limit: deterministic seconds for CP-SAT, search nodes for the others."""

    @abstractmethod
    def value(self, variable: Any) -> float:
        """Read a variable or an expression off the solution."""


def new_model(solver: str, name: str) -> Model:
    """Make an empty model for a solver.

    Raises
    ------
    InputError
        A solver that is none of `SOLVERS`.
    """
    if solver not in SOLVERS:
        raise InputError(f"solver={solver!r} is unknown; pass one of {', '.join(SOLVERS)}")
    return CpModel(name) if solver == "cp-sat" else MilpModel(name, solver)


def new_cp_solver() -> cp_model.CpSolver:
    """Make a CP-SAT that gives the same, right answer every time: all of CP-SAT starts here."""
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.catch_sigint_signal = False  # Ctrl-C ends the run, not one solve of it
    solver.parameters.random_seed = 0
    # Version 9.15 adds coefficients up in 32 bits in a step of presolve that this leaves out,
    # and then cuts optima off (google/or-tools, issue 5293).
    solver.parameters.presolve_inclusion_work_limit = 0
    return solver


class CpModel(Model):
    """A model in CP-SAT: whole numbers only, loads rounded down where they must be.

    Rounding down makes every plan look as good as it is or better: what is proven impossible is
    impossible, and no plan is cut off.
    """

    solver = "cp-sat"

    def __init__(self, name: str) -> None:
        self.model = cp_model.CpModel()
        self.model.name = name
        self._solved: Any = None

    def flag(self, name: str) -> Any:
        """Add a Boolean variable."""
        return self.model.new_bool_var(name)

    def number(self, name: str, low: float, high: float) -> Any:
        """Add an integer variable."""
        return self.model.new_int_var(math.floor(low), math.ceil(high), name)

    def count(self, name: str, low: int, high: int) -> Any:
        """Add an integer variable."""
        return self.model.new_int_var(low, high, name)

    def add(self, name: str, constraint: Any) -> None:
        """Add a linear constraint."""
        self.model.add(constraint).with_name(name)

    def implies(self, flags: list[Any], name: str, constraint: Any) -> None:
        """Add a linear constraint that counts where all flags are 1."""
        self.model.add(constraint).with_name(name).only_enforce_if(flags)

    def total(self, terms: Iterable[Any]) -> Any:
        """Sum expressions."""
        return cp_model.LinearExpr.sum(list(terms))

    def minimise(self, expression: Any) -> None:
        """Set the objective."""
        self.model.minimize(expression)

    def shares(self, tokens: FloatArray, most_copies: int) -> Shares:
        """Divide in whole numbers."""
        return whole_shares(tokens, most_copies)

    def hint(self, variable: Any, value: float) -> None:
        """Suggest a value."""
        self.model.add_hint(variable, round(value))

    def clear_hints(self) -> None:
        """Forget all hints."""
        self.model.clear_hints()  # type: ignore[no-untyped-call]

    def solve(self, *, work: float | None = None, seconds: float | None = None) -> Run:
        """Solve with one worker and a deterministic limit."""
        solver = new_cp_solver()
        # Relaxations are what proves bounds here; the default leaves part of them out.
        solver.parameters.linearization_level = 2
        solver.parameters.max_time_in_seconds = _SECONDS if seconds is None else seconds
        if work is not None:
            solver.parameters.max_deterministic_time = work
        start = time.perf_counter()
        code = solver.solve(self.model)
        elapsed = time.perf_counter() - start
        status: RunStatus = {
            cp_model.OPTIMAL: "optimal",
            cp_model.FEASIBLE: "feasible",
            cp_model.INFEASIBLE: "infeasible",
            cp_model.UNKNOWN: "not found",
        }[code]  # type: ignore[assignment]
        self._solved = solver
        found = status in ("optimal", "feasible")
        bound = solver.best_objective_bound
        # Stopped before it knows anything, CP-SAT says 0, which bounds nothing.
        bounded = self.model.has_objective() and (found or (status == "not found" and bound != 0))
        return Run(
            status,
            solver.objective_value if found else None,
            bound if bounded else None,
            f"CP-SAT {version('ortools')}",
            elapsed,
            float(solver.response_proto.deterministic_time),
        )

    def value(self, variable: Any) -> float:
        """Read the solution."""
        return float(self._solved.value(variable))


class MilpModel(Model):
    """A model in PuLP: CBC solves it as it is, HiGHS and SCIP through MathOpt."""

    def __init__(self, name: str, solver: str) -> None:
        self.solver = solver
        self.model = pulp.LpProblem(name, pulp.LpMinimize)
        self.model.setObjective(pulp.LpAffineExpression())

    def flag(self, name: str) -> Any:
        """Add a binary variable."""
        return self.model.add_variable(name, cat=pulp.LpBinary)

    def number(self, name: str, low: float, high: float) -> Any:
        """Add a continuous variable."""
        return self.model.add_variable(name, low, high)

    def count(self, name: str, low: int, high: int) -> Any:
        """Add an integer variable."""
        return self.model.add_variable(name, low, high, cat=pulp.LpInteger)

    def add(self, name: str, constraint: Any) -> None:
        """Add a linear constraint."""
        self.model.addConstraint(constraint, name)

    def total(self, terms: Iterable[Any]) -> Any:
        """Sum expressions."""
        return pulp.lpSum(terms)

    def minimise(self, expression: Any) -> None:
        """Set the objective."""
        self.model.setObjective(pulp.LpAffineExpression(expression))

    def shares(self, tokens: FloatArray, most_copies: int) -> Shares:
        """Divide in floating point."""
        return real_shares(tokens, most_copies)

    def hint(self, variable: Any, value: float) -> None:
        """Do nothing: a warm start is left to CP-SAT."""

    def solve(self, *, work: float | None = None, seconds: float | None = None) -> Run:
        """Solve with one thread, to a gap of 0, up to a number of search nodes."""
        limit = _SECONDS if seconds is None else seconds
        nodes = None if work is None else round(work)
        start = time.perf_counter()
        if self.solver == "cbc":
            status, bound = self._solve_cbc(nodes, limit)
            name = f"CBC (PuLP {version('pulp')})"
        else:
            status, bound = self._solve_mathopt(nodes, limit)
            name = f"{self.solver.upper()} (OR-Tools {version('ortools')})"
        elapsed = time.perf_counter() - start
        found = status in ("optimal", "feasible")
        return Run(status, self._objective() if found else None, bound, name, elapsed)

    def _objective(self) -> float:
        return float(self.model.objective.value() or 0.0)  # None where it holds no variable

    def _solve_cbc(self, nodes: int | None, seconds: float) -> tuple[RunStatus, float | None]:
        limits = {} if nodes is None else {"maxNodes": nodes}
        command = pulp.PULP_CBC_CMD(msg=False, threads=1, gapRel=0, timeLimit=seconds, **limits)
        self.model.solve(command)
        status: RunStatus = {
            pulp.LpSolutionOptimal: "optimal",
            pulp.LpSolutionIntegerFeasible: "feasible",
            pulp.LpSolutionInfeasible: "infeasible",
        }.get(self.model.sol_status, "not found")  # type: ignore[assignment]
        # CBC's bound does not come through PuLP, but an optimum is its own.
        return status, self._objective() if status == "optimal" else None

    def _solve_mathopt(self, nodes: int | None, seconds: float) -> tuple[RunStatus, float | None]:
        parameters = mathopt.SolveParameters(
            threads=1 if self.solver == "scip" else None,  # HiGHS takes it as an option of its own
            relative_gap_tolerance=0.0,
            absolute_gap_tolerance=0.0,
            time_limit=timedelta(seconds=seconds),
            node_limit=nodes,
        )
        if self.solver == "highs":
            parameters.highs.string_options["parallel"] = "off"
        model, variables = _to_mathopt(self.model)
        result = mathopt.solve(model, _MATHOPT[self.solver], params=parameters)
        reason = result.termination.reason
        if result.has_primal_feasible_solution():
            values = result.variable_values()
            for variable, twin in variables:
                variable.varValue = values[twin]
        status: RunStatus = {
            mathopt.TerminationReason.OPTIMAL: "optimal",
            mathopt.TerminationReason.FEASIBLE: "feasible",
            mathopt.TerminationReason.INFEASIBLE: "infeasible",
        }.get(reason, "not found")  # type: ignore[assignment]
        if status == "infeasible":
            return status, None
        bound = float(result.termination.objective_bounds.dual_bound)
        return status, bound if math.isfinite(bound) else None

    def value(self, variable: Any) -> float:
        """Read the solution."""
        return float(pulp.value(variable))


def _to_mathopt(problem: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """State a PuLP problem in MathOpt."""
    model = mathopt.Model(name=problem.name)
    twins = {
        variable: model.add_variable(
            lb=-math.inf if variable.lowBound is None else variable.lowBound,
            ub=math.inf if variable.upBound is None else variable.upBound,
            is_integer=variable.cat == pulp.LpInteger,
            name=variable.name,
        )
        for variable in problem.variables()
    }
    for constraint in problem.constraints():
        side = -constraint.constant
        row = model.add_linear_constraint(
            lb=side if constraint.sense >= 0 else -math.inf,
            ub=side if constraint.sense <= 0 else math.inf,
            name=constraint.name,
        )
        for variable, factor in constraint.items():
            row.set_coefficient(twins[variable], factor)
    for variable, factor in problem.objective.items():
        model.objective.set_linear_coefficient(twins[variable], factor)
    model.objective.offset = problem.objective.constant
    return model, list(twins.items())
