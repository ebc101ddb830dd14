"""Problems refuse what no plan can keep, and say what could be kept."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import problems, quiet

import craftopt as co

LOADS = co.Loads(np.arange(24.0).reshape(2, 2, 6))  # 2 windows, 2 layers, 6 experts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpus": 0}, "gpus=0 is below 1"),
        ({"gpus": -4}, "gpus=-4 is below 1"),
        ({"gpus": 2.0}, "gpus=2.0 is not a whole number"),
        ({"gpus": True}, "gpus=True is not a whole number"),
        ({"gpus": "4"}, "gpus='4' is not a whole number"),
        ({"nodes": 0}, "nodes=0 is below 1"),
        ({"gpus": 60, "nodes": 8}, r"gpus=60 .*nodes=8; pass nodes=1 or gpus=56 or 64"),
        ({"gpus": 3, "nodes": 4}, r"gpus=3 .*nodes=4; pass nodes=1 or gpus=4"),
        ({"replicas": -1}, "replicas=-1 is below 0"),
        ({"replicas": 1.5}, "replicas=1.5 is not a whole number"),
        ({"replicas_per_layer": -1}, "replicas_per_layer=-1 is below 0"),
        ({"replicas": 2, "replicas_per_layer": 1}, "both given"),
        ({"slots": "UNEVEN"}, "uniform, even, free"),
        ({"objective": "speed"}, "time, balancedness"),
        ({"max_copies": 0}, "max_copies=0 is below 1"),
        ({"max_moves": 1}, "max_moves=1 needs the previous plan"),
        ({"expert_groups": 0}, "expert_groups=0 is below 1"),
        ({"expert_groups": True}, "expert_groups"),
        ({"expert_groups": [0, 1]}, r"expert_groups has shape \(2,\)"),
        ({"expert_groups": [0.0] * 6}, "type float64"),
        ({"expert_groups": [[0, 1, 2, 3, 4, 5]]}, r"shape \(1, 6\)"),
        ({"expert_groups": [[0], 1, 2, 3, 4, 5]}, "expert_groups"),
        ({"previous": np.ones((2, 6, 4))}, "previous"),
    ],
)
def test_refuses_values_outside_their_limits(arguments, message):
    with pytest.raises(co.InputError, match=message):
        co.Problem(LOADS, **{"gpus": 4, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expert_groups": 4}, "expert_groups=4 does not divide experts=6"),
        ({"expert_groups": 12}, "expert_groups=12 does not divide experts=6"),
        ({"expert_groups": [0, 0, 0, 1, 1, 2]}, "groups of 1 to 3 experts"),
        ({"expert_groups": 3, "nodes": 2}, "3 groups, which nodes=2 do not divide"),
        ({"expert_groups": [0, 0, 5, 5, 9, 9], "nodes": 2}, "3 groups, which nodes=2"),
        ({"gpus": 5, "slots": "uniform"}, "pass replicas=8"),
        ({"gpus": 9, "slots": "uniform", "max_copies": 1, "replicas": 99}, "raise max_copies"),
    ],
)
def test_refuses_rules_that_no_plan_keeps(arguments, message):
    with pytest.raises(co.InfeasibleError, match=message):
        co.Problem(LOADS, **{"gpus": 4, **arguments})


def test_refuses_loads_that_are_an_array():
    with pytest.raises(co.InputError, match=r"pass craftopt.Loads\(tokens\)"):
        co.Problem(LOADS.tokens, 4)


def test_refuses_a_previous_plan_of_another_shape():
    for shape in ((1, 6, 4), (2, 5, 4), (2, 6, 3)):
        previous = co.Plan(np.ones(shape, int))
        with pytest.raises(co.InputError, match=re.escape(f"previous plan has shape {shape}")):
            co.Problem(LOADS, 4, previous=previous, max_moves=3)
    problem = co.Problem(LOADS, 4, previous=co.Plan(np.ones((2, 6, 4), int)), max_moves=0)
    assert problem.max_moves == 0


# --- the uniform rule -----------------------------------------------------------------------


@given(
    layers=st.integers(1, 4),
    experts=st.integers(1, 20),
    gpus=st.integers(1, 20),
)
def test_uniform_names_the_smallest_budget_that_works(layers, experts, gpus):
    loads = co.Loads(np.ones((layers, experts)))
    assume(experts % gpus)
    with pytest.raises(co.InfeasibleError) as caught:
        co.Problem(loads, gpus, slots="uniform")
    named = int(re.search(r"pass replicas=(\d+)", str(caught.value))[1])
    per_layer = int(re.search(r"\((\d+) per layer\)", str(caught.value))[1])
    assert named == per_layer * layers

    problem = co.Problem(loads, gpus, slots="uniform", replicas=named)
    assert problem.uniform_slots * gpus == experts + per_layer
    assert co.solve(problem, "trivial").violations == ()
    assert co.Problem(loads, gpus, slots="uniform", replicas_per_layer=per_layer).replicas == named
    with pytest.raises(co.InfeasibleError, match=f"pass replicas={named} "):
        co.Problem(loads, gpus, slots="uniform", replicas=named - 1)


@given(
    layers=st.integers(1, 3),
    experts=st.integers(1, 9),
    gpus=st.integers(1, 9),
    replicas=st.integers(0, 60),
)
def test_uniform_buys_whole_slots_and_reports_the_rest(layers, experts, gpus, replicas):
    forced = (-experts % gpus) * layers
    replicas += forced
    loads = co.Loads(np.ones((layers, experts)))
    problem = quiet(lambda: co.Problem(loads, gpus, slots="uniform", replicas=replicas))
    slots = max(
        slots
        for slots in range(1, experts + 1)
        if 0 <= slots * gpus - experts <= replicas // layers
    )
    assert problem.uniform_slots == slots
    assert problem.layer_replicas_limit == slots * gpus - experts
    assert problem.unused_replicas == replicas - layers * (slots * gpus - experts)


def test_uniform_warns_of_a_budget_that_buys_no_slot_and_names_the_least():
    arguments = {"gpus": 3, "slots": "uniform"}
    with pytest.warns(co.CraftoptWarning, match="starts at replicas=6"):
        problem = co.Problem(LOADS, replicas=5, **arguments)
    assert problem.unused_replicas == 5
    assert co.Problem(LOADS, replicas=6, **arguments).unused_replicas == 0
    assert co.Problem(LOADS, replicas=0, **arguments).unused_replicas == 0


def test_warning_points_at_the_line_that_made_the_problem():
    with pytest.warns(co.CraftoptWarning) as caught:
        co.Problem(LOADS, 3, slots="uniform", replicas=5)
    assert caught[0].filename == __file__


def test_warning_does_not_promise_what_max_copies_forbids():
    with pytest.warns(co.CraftoptWarning) as caught:
        co.Problem(LOADS, 3, slots="uniform", replicas=50, max_copies=1)
    assert "starts at" not in str(caught[0].message)


# --- what is held ---------------------------------------------------------------------------


def test_replicas_per_layer_is_the_total_over_the_layers():
    assert co.Problem(LOADS, 4, replicas_per_layer=3).replicas == 6
    assert co.Problem(LOADS, 4).replicas == 0


def test_numpy_integers_are_numbers():
    problem = co.Problem(LOADS, np.int64(4), nodes=np.int32(2), replicas=np.uint8(3))
    assert (problem.gpus, problem.nodes, problem.replicas) == (4, 2, 3)
    assert type(problem.gpus) is int


@pytest.mark.parametrize(
    ("groups", "ids"),
    [
        (3, [0, 0, 1, 1, 2, 2]),
        (1, [0] * 6),
        (6, [0, 1, 2, 3, 4, 5]),
        ([7, 7, -2, 30, -2, 30], [1, 1, 0, 2, 0, 2]),
        (None, None),
    ],
)
def test_groups_are_numbered_from_zero(groups, ids):
    held = co.Problem(LOADS, 4, expert_groups=groups).expert_groups
    assert held is None if ids is None else held.tolist() == ids


def test_groups_are_copied_and_read_only():
    groups = np.array([0, 0, 0, 1, 1, 1])
    problem = co.Problem(LOADS, 4, expert_groups=groups)
    groups[:] = 1
    assert problem.expert_groups.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        problem.expert_groups[0] = 1
    with pytest.raises(AttributeError):
        problem.gpus = 5


@given(problems())
def test_limits_are_what_the_rules_leave(problem):
    experts, layers = problem.loads.experts, problem.loads.layers
    reach = problem.gpus if problem.expert_groups is None else problem.gpus // problem.nodes
    assert problem.copies_limit == min(reach, problem.max_copies or reach)
    limit = problem.layer_replicas_limit
    assert 0 <= limit <= min(problem.replicas, experts * (problem.copies_limit - 1))
    assert limit % problem.replica_step == 0
    used = problem.replicas - problem.unused_replicas
    assert 0 <= used <= layers * limit
    assert used % problem.replica_step == 0
    if problem.slots != "uniform" and used < layers * limit:
        assert problem.unused_replicas < problem.replica_step


# --- replace --------------------------------------------------------------------------------


@given(problems())
def test_replace_with_nothing_is_the_same_problem(problem):
    again = quiet(problem.replace)
    assert again is not problem
    assert repr(again) == repr(problem)
    assert again.max_copies == problem.max_copies
    assert again.loads is problem.loads
    if problem.expert_groups is not None:
        assert again.expert_groups.tolist() == problem.expert_groups.tolist()


def test_replace_changes_what_is_named_and_checks_anew():
    problem = co.Problem(LOADS, 4, nodes=2, replicas=3, expert_groups=2, max_copies=2)
    assert problem.replace(replicas=9).replicas == 9
    assert problem.replace(replicas_per_layer=2).replicas == 4
    assert problem.replace(expert_groups=None).expert_groups is None
    assert problem.replace(gpus=8).gpus == 8
    assert problem.replicas == 3
    with pytest.raises(co.InputError, match="nodes"):
        problem.replace(gpus=5)
    with pytest.raises(co.InputError, match="both given"):
        problem.replace(replicas=1, replicas_per_layer=1)
    with pytest.raises(co.InfeasibleError):
        problem.replace(gpus=10, slots="uniform")
    with pytest.raises(TypeError):
        problem.replace(gpu=4)


def test_replace_takes_other_loads():
    problem = co.Problem(LOADS, 3, replicas=6, slots="uniform")
    assert problem.replace(loads=LOADS.total()).loads.windows == 1
