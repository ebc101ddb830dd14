"""The one validator of plans in the tests, in plain Python from the rules of `craftopt.Problem`.

It shares no code with the package, and must agree with `craftopt.rules.violations`.
"""

from __future__ import annotations

import craftopt as co


def broken_rules(plan: co.Plan, problem: co.Problem) -> set[str]:
    """Name the rules that a plan breaks, by plain loops over its copies."""
    copies = plan.copies.tolist()
    broken = set()
    replicas = moves = 0
    totals = [0] * problem.gpus
    sizes = set()
    for layer, experts in enumerate(copies):
        slots = [0] * problem.gpus
        for expert, row in enumerate(experts):
            assert sum(row) >= 1, "a plan without an expert can not even be made"
            replicas += sum(row) - 1
            if max(row) > 1:
                broken.add("duplicates")
            if problem.max_copies is not None and sum(row) > problem.max_copies:
                broken.add("max copies")
            for gpu, number in enumerate(row):
                slots[gpu] += number
                if problem.previous is not None:
                    moves += max(0, number - int(problem.previous_copies[layer, expert, gpu]))
        totals = [total + slot for total, slot in zip(totals, slots, strict=True)]
        sizes.update(slots)
        if problem.slots == "even" and max(slots) - min(slots) > 1:
            broken.add("even slots")
        if problem.expert_groups is not None and not groups_kept(problem, experts, slots):
            broken.add("expert groups")
    if replicas > problem.replicas:
        broken.add("budget")
    if problem.slots == "uniform" and len(sizes) > 1:
        broken.add("uniform slots")
    if max(totals) - min(totals) > 1:
        broken.add("equal totals")
    if problem.max_moves is not None and moves > problem.max_moves:
        broken.add("max moves")
    return broken


def groups_kept(problem: co.Problem, experts: list[list[int]], slots: list[int]) -> bool:
    assert problem.expert_groups is not None
    width = problem.gpus // problem.nodes
    nodes_of_group: dict[int, set[int]] = {}
    for group, row in zip(problem.expert_groups.tolist(), experts, strict=True):
        hosts = {gpu // width for gpu, number in enumerate(row) if number}
        nodes_of_group.setdefault(group, set()).update(hosts)
    if any(len(nodes) > 1 for nodes in nodes_of_group.values()):
        return False
    homes = [next(iter(nodes)) for nodes in nodes_of_group.values()]
    shares = {homes.count(node) for node in range(problem.nodes)}
    filled = {sum(slots[node * width : (node + 1) * width]) for node in range(problem.nodes)}
    return len(shares) == 1 and len(filled) == 1


def rules_named(texts: tuple[str, ...]) -> set[str]:
    """Return the rules that the package's texts begin with."""
    return {text.split(":")[0] for text in texts}
