"""Balance and traffic planned together, on sequences that the plans have not seen.

    python benchmarks/traffic_study.py TRACE --gpus 16 --nodes 4 --price 0.73 [--replicas 16]

TRACE is a token trace with domains and sequences. Every split halves the sequences of each domain
at random; windows are batches of ``--batch`` sequences of one domain. Plans are made on one half
and scored on the other, in J = relative time + price * critical nodes per token. Prints a Markdown
table: EPLB, ``fast`` for balance alone, and ``fast`` with the price, from pair counts and from the
tokens themselves; then how much J is below that of ``fast`` alone, per split and in the worst cell
(a layer in a split).

With ``--foreign``, every domain is served by plans made on all the others: relative time, critical
nodes and J.

    python benchmarks/traffic_study.py LOADS --gpus 64 --nodes 8 --nearest --replicas 8 64

With ``--nearest``, of loads: relative time of odd windows' plans on the even windows. (a) planned
for even dispatch and served so, (b) the same plans served nearest-even, (c) planned for
nearest-even and served so.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np

import craftopt as co


def halves(trace: co.Trace, batch: int, seed: int) -> list[tuple[co.Trace, co.Loads]]:
    """Halve the sequences of every domain at random, and cut each half into windows."""
    generator = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[], []]
    for sequences in by_domain(trace):
        shuffled = generator.permutation(sequences)
        middle = shuffled.size // 2
        parts[0].append(shuffled[:middle])
        parts[1].append(shuffled[middle:])
    return [cut(trace, part, batch) for part in parts]


def by_domain(trace: co.Trace) -> list[np.ndarray]:
    """List the sequences of every domain, by numbers of their own."""
    numbers = numbered(trace)
    return [np.unique(numbers[trace.domain == part]) for part in range(len(trace.domain_names))]


def numbered(trace: co.Trace) -> np.ndarray:
    """Number the sequences of all domains, [tokens]."""
    return trace.domain * (int(trace.sequence.max()) + 1) + trace.sequence


def cut(trace: co.Trace, domains: list[np.ndarray], batch: int) -> tuple[co.Trace, co.Loads]:
    """Cut sequences, given by domain, into windows of ``batch`` sequences."""
    windows = [part[at : at + batch] for part in domains for at in range(0, part.size, batch)]
    numbers = numbered(trace)
    tokens = [np.flatnonzero(np.isin(numbers, sequences)) for sequences in windows]
    window = np.repeat(np.arange(len(windows)), [found.size for found in tokens])
    # Windows are the domains of the part, so that the trace knows them by name.
    part = co.Trace(trace.topk_ids[np.concatenate(tokens)], trace.experts, trace.layer_ids, window)
    counts = np.stack(
        [
            [np.bincount(layer.ravel(), minlength=trace.experts) for layer in ids]
            for ids in (trace.topk_ids[found].transpose(1, 0, 2) for found in tokens)
        ]
    )
    return part, co.Loads(counts, trace.layer_ids, part.domain_names)


def spread(trace: co.Trace, layers: int) -> co.Trace:
    """Keep some layers, evenly spread."""
    kept = np.unique(np.linspace(0, trace.layers - 1, layers).round().astype(int))
    return co.Trace(
        trace.topk_ids[:, kept],
        trace.experts,
        None,
        trace.domain,
        trace.domain_names,
        trace.sequence,
    )


def figures(plan: co.Plan, loads: co.Loads, trace: co.Trace, price: float) -> np.ndarray:
    """Return relative time, nodes and critical nodes per token, and J; each by layer, then all."""
    scored = co.evaluate(plan, loads, trace=trace)
    weight = scored.traffic.tokens
    rows = []
    for part in [[layer] for layer in range(plan.layers)] + [list(range(plan.layers))]:
        slow = scored.max_load[:, part].sum() / scored.mean_load[:, part].sum()
        nodes, busiest = (
            (figure[:, part] * weight[:, part]).sum() / weight[:, part].sum()
            for figure in (scored.traffic.nodes, scored.traffic.busiest_node)
        )
        rows.append((slow, nodes, busiest, slow + price * busiest))
    return np.array(rows)


def study(arguments: argparse.Namespace) -> None:
    """Plan for balance and traffic, and print the table."""
    trace = spread(co.read_trace(arguments.file), arguments.layers)
    found: dict[str, list[np.ndarray]] = {}
    seconds: dict[str, float] = {}
    for seed in range(arguments.seed, arguments.seed + arguments.splits):
        (seen, loads), (unseen, served) = halves(trace, arguments.batch, seed)
        (replicas,) = arguments.replicas
        problem = co.Problem(
            loads,
            gpus=arguments.gpus,
            nodes=arguments.nodes,
            replicas_per_layer=replicas,
            slots="uniform",
        )
        price = arguments.price
        pairs = problem.replace(coactivation=seen.coactivation(), traffic=price)
        runs = {
            "EPLB": (problem, "eplb"),
            "fast": (problem, "fast"),
            "fast, pair counts": (pairs, "fast"),
            "fast, trace": (pairs.replace(coactivation=seen), "fast"),
        }
        for name, (task, method) in runs.items():
            co.solve(task, method, work_limit=1, workers=1)  # load what is compiled
            started = time.process_time()
            plan = co.solve(task, method, workers=1).plan
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - started
            found.setdefault(name, []).append(
                np.stack([figures(plan, loads, seen, price), figures(plan, served, unseen, price)])
            )
    print(
        f"\n{arguments.file}: {trace.layers} layers, {arguments.gpus} GPUs on "
        f"{arguments.nodes} nodes, {replicas} replicas per layer, price {price}\n"
    )
    columns = ["plan", "J planned", "time", "nodes", "critical", "J unseen", "v fast"]
    columns += ["by split", "worst cell", "v EPLB", "CPU s"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    table = {name: np.stack(cells) for name, cells in found.items()}  # [splits, 2, layers + 1, 4]
    for name, cells in table.items():
        planned, unseen_mean = cells[:, 0, -1].mean(axis=0), cells[:, 1, -1].mean(axis=0)
        change = cells[:, 1, :, 3] / table["fast"][:, 1, :, 3] - 1
        eplb = unseen_mean[3] / table["EPLB"][:, 1, -1, 3].mean() - 1
        splits = " ".join(f"{100 * value:.1f}" for value in change[:, -1])
        mean = unseen_mean[3] / table["fast"][:, 1, -1, 3].mean() - 1
        print(
            f"| {name} | {planned[3]:.3f} | {unseen_mean[0]:.3f} | {unseen_mean[1]:.3f} | "
            f"{unseen_mean[2]:.3f} | {unseen_mean[3]:.3f} | {100 * mean:.1f} % | {splits} | "
            f"{100 * change[:, :-1].max():.1f} | {100 * eplb:.1f} % | {seconds[name]:.1f} |",
            flush=True,
        )


def foreign(arguments: argparse.Namespace) -> None:
    """Plan on all domains but one, serve that one, and print the table."""
    trace = spread(co.read_trace(arguments.file), arguments.layers)
    domains, price = by_domain(trace), arguments.price
    methods = {"EPLB": "eplb", "fast": "fast", "fast, pair counts": "fast", "fast, trace": "fast"}
    print("| served domain | " + " | ".join(methods) + " | J v fast |")
    print("|---" * (len(methods) + 2) + "|")
    for served, name in enumerate(trace.domain_names):
        rest = [sequences for place, sequences in enumerate(domains) if place != served]
        seen, loads = cut(trace, rest, arguments.batch)
        unseen, foreign_loads = cut(trace, [domains[served]], arguments.batch)
        problem = co.Problem(
            loads,
            gpus=arguments.gpus,
            nodes=arguments.nodes,
            replicas_per_layer=arguments.replicas[0],
            slots="uniform",
        )
        found = {}
        for plan_name, method in methods.items():
            task = problem
            if "," in plan_name:
                source = seen if plan_name.endswith("trace") else seen.coactivation()
                task = problem.replace(coactivation=source, traffic=price)
            plan = co.solve(task, method, workers=1).plan
            found[plan_name] = figures(plan, foreign_loads, unseen, price)[-1]
        cells = [f"{slow:.3f} / {crit:.3f} / {j:.3f}" for slow, _, crit, j in found.values()]
        change = found["fast, trace"][3] / found["fast"][3] - 1
        print(f"| {name} | {' | '.join(cells)} | {100 * change:+.1f} % |", flush=True)


def nearest(arguments: argparse.Namespace) -> None:
    """Plan for the nearest copies, and print relative times."""
    loads = co.read_loads(arguments.file)
    kept = np.unique(np.linspace(0, loads.layers - 1, arguments.layers).round().astype(int))
    loads = co.Loads(loads.tokens[:, kept], loads.layer_ids[kept], loads.window_names)
    seen, served = co.holdout(loads, "odd-even")
    print("| replicas, windows | even (a) | nearest-even (b) | planned for it (c) | regained |")
    print("|---|---|---|---|---|")
    for replicas in arguments.replicas:
        problem = co.Problem(
            seen,
            gpus=arguments.gpus,
            nodes=arguments.nodes,
            replicas_per_layer=replicas,
            slots="even" if arguments.even_slots else "uniform",
        )
        plan = co.solve(problem, workers=1).plan
        for_it = co.solve(problem.replace(dispatch="nearest-even"), workers=1).plan
        for name, windows in (("planned", seen), ("unseen", served)):
            a = co.evaluate(plan, windows).relative_time
            b = co.evaluate(plan, windows, "nearest-even").relative_time
            c = co.evaluate(for_it, windows, "nearest-even").relative_time
            share = f"{(b - c) / (b - a):.2f}" if b > a else "-"
            print(f"| {replicas}, {name} | {a:.4f} | {b:.4f} | {c:.4f} | {share} |", flush=True)


def main() -> None:
    """Read arguments and run a study."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("file")
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--replicas", type=int, nargs="+", default=[0], help="per layer")
    parser.add_argument("--price", type=float, help="of a node visited, in mean GPU loads")
    parser.add_argument("--layers", type=int, default=6, help="evenly spread")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the first split")
    parser.add_argument("--batch", type=int, default=8, help="sequences per window")
    parser.add_argument("--nearest", action="store_true")
    parser.add_argument("--foreign", action="store_true")
    parser.add_argument("--even-slots", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", co.CraftoptWarning)
    run = nearest if arguments.nearest else foreign if arguments.foreign else study
    run(arguments)


if __name__ == "__main__":
    main()
