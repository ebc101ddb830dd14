"""Requests per second and their waiting times: in closed form, and by simulation.

The engine works in rounds: it prefills the prompts that wait and for which there is cache, then
decodes one token of every running sequence. With n sequences running everywhere, D(n) seconds to
decode a step, p seconds of the whole engine per prompt, and s = output tokens - 1 steps per
request, a round that keeps n steady takes ``D(n) + p n/s`` seconds, which is the time between a
request's tokens, and finishes n/s requests. So::

    rate(n) = n / (s D(n) + p n)

which grows with n: the most requests per second are those at the largest n that the cache holds,
or that the limit on the time between tokens allows. Below that rate a request waits for the end of
a round, for the prompts of its round, for its own, and for a place in the cache.

Both the closed form and the simulation know nothing of an engine but `Engine`. Both spread
prompts evenly over the attention groups.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from craftopt.errors import InputError, number, whole
from craftopt.loads import FloatArray, read_only
from craftopt.serving.deployment import Deployment, Workload
from craftopt.serving.memory import Memory
from craftopt.serving.timing import Profile, StepTime, step_time

# A rate this close to its limit, relative, is found.
_CLOSE = 1e-4
# Numbers of running sequences that are told apart; of more, one in so many is computed.
MOST_STATES = 2**14


@dataclass(frozen=True, eq=False)
class Engine:
    """Describe an engine that works in rounds.

    Parameters
    ----------
    sequences : float64 [points]
        Numbers of running sequences in rising order; the last is what the cache holds.
    decode_seconds : float64 [points]
        Seconds to decode one token of each of them; linearly interpolated between the points.
    prompt_seconds : float
        Seconds of the whole engine per prompt, many being prefilled side by side.
    own_seconds : float
        Seconds that one prompt takes beyond these, because one group does it on its own.
    decode_steps : int
        Tokens of a request after its first.

    Examples
    --------
    >>> from craftopt.serving import Engine
    >>> engine = Engine([1, 100], [0.02, 0.04], prompt_seconds=0.001, own_seconds=0.1,
    ...                 decode_steps=100)
    >>> round(engine.rate(100), 3), round(engine.tpot(100), 3)
    (24.39, 0.041)
    """

    sequences: FloatArray
    decode_seconds: FloatArray
    prompt_seconds: float
    own_seconds: float
    decode_steps: int

    def __post_init__(self) -> None:
        for name in ("sequences", "decode_seconds"):
            values = read_only(np.array(getattr(self, name), dtype=np.float64))
            if values.ndim != 1 or not values.size or not (np.diff(values) >= 0).all():
                raise InputError(f"{name} must be numbers in rising order")
            if name == "sequences" and not (np.diff(values) > 0).all():
                raise InputError("sequences repeat a number; pass each once")
            object.__setattr__(self, name, values)
        if self.sequences.shape != self.decode_seconds.shape or self.decode_seconds[0] <= 0:
            raise InputError("decode_seconds must be above 0, one per number of sequences")
        if self.sequences[0] < 1:
            raise InputError(f"sequences begin at {self.sequences[0]:g}; pass at least 1")
        if (np.diff(self.decode_seconds / self.sequences) > 1e-9).any():
            raise InputError("decode_seconds grow faster than sequences; a batch cannot cost more")
        number("prompt_seconds", self.prompt_seconds, least=0)
        number("own_seconds", self.own_seconds, least=0)
        whole("decode_steps", self.decode_steps, 1)

    @property
    def limit(self) -> float:
        """Sequences that the cache holds."""
        return float(self.sequences[-1])

    def decode(self, running: float) -> float:
        """Compute the seconds of a decoding step."""
        return float(np.interp(running, self.sequences, self.decode_seconds))

    def tpot(self, running: float) -> float:
        """Compute the seconds between two tokens of a sequence, with ``running`` sequences."""
        return self.decode(running) + self.prompt_seconds * running / self.decode_steps

    def rate(self, running: float) -> float:
        """Compute the requests per second that keep ``running`` sequences going."""
        return running / (self.decode_steps * self.tpot(running))

    @cached_property
    def _knots(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Knots of the linear interpolation: sequences, decoding seconds and rates."""
        sequences = np.concatenate([[0.0], self.sequences])
        seconds = np.concatenate([self.decode_seconds[:1], self.decode_seconds])
        rates = sequences / (self.decode_steps * seconds + self.prompt_seconds * sequences)
        return sequences, seconds, rates

    def running(self, rate: float) -> float:
        """Compute how many sequences run at a rate; the limit where it is beyond that."""
        sequences, seconds, rates = self._knots
        if rate >= rates[-1]:
            return self.limit
        high = int(np.searchsorted(rates, rate, side="right"))
        # Between two knots a step takes a + b n seconds.
        b = (seconds[high] - seconds[high - 1]) / (sequences[high] - sequences[high - 1])
        a = seconds[high] - b * sequences[high]
        per_sequence = 1.0 - rate * (self.decode_steps * b + self.prompt_seconds)
        return float(rate * self.decode_steps * a / per_sequence)

    def ttft(self, rate: float) -> float:
        """Estimate the mean seconds to the first token at a rate; inf where the queue only grows.

        Half a round, the prompts of the round, the rest of the own prompt, and the wait for a
        place: that of a birth-death process with these rates, halved because outputs of equal
        length queue half as much as exponential ones.
        """
        rate = number("rate", rate, above=0)
        most = self.rate(self.limit)
        if rate >= most:
            return float("inf")
        round_seconds = self.tpot(self.running(rate))
        together = rate * round_seconds + 1.0
        ahead = round_seconds / 2 + together * self.prompt_seconds + self.own_seconds
        return ahead + 0.5 * self._busy(rate) / (most - rate)

    @cached_property
    def _states(self) -> tuple[FloatArray, FloatArray, int]:
        """Numbers of sequences, sums of the logarithms of the rates up to them, and their step."""
        most = int(self.limit)
        step = max(1, -(-most // MOST_STATES))
        counts = np.arange(most % step, most + 1, step, dtype=np.float64)
        middle = counts[1:] - (step - 1) / 2
        decode = np.interp(middle, self.sequences, self.decode_seconds)
        rates = middle / (self.decode_steps * decode + self.prompt_seconds * middle)
        return counts, np.concatenate([[0.0], step * np.cumsum(np.log(rates))]), step

    def _busy(self, rate: float) -> float:
        """Compute the probability that the cache is full when a request arrives."""
        counts, sums, step = self._states
        logs = counts * np.log(rate) - sums
        odds = np.exp(logs - logs.max())  # of so many running sequences
        full = odds[-1] / (1 - rate / self.rate(float(int(self.limit))))
        # The states before the last, of which every step-th is known: the trapezoidal rule.
        others = step * odds[:-1].sum() + (step - 1) / 2 * odds[-1]
        return float(full / (others + full))

    def goodput(self, ttft: float | None = None, tpot: float | None = None) -> tuple[float, str]:
        """Compute the most requests per second within the limits, and what sets them.

        Returns
        -------
        float
            Requests per second; 0 where even one request at a time breaks a limit.
        str
            ``"memory"``, ``"tpot"`` or ``"ttft"``.
        """
        running, bound = self.limit, "memory"
        if tpot is not None and self.tpot(running) > tpot:
            if self.tpot(0.0) >= tpot:
                return 0.0, "tpot"
            sequences, seconds, _ = self._knots
            between = seconds + self.prompt_seconds * sequences / self.decode_steps
            running, bound = float(np.interp(tpot, between, sequences)), "tpot"
        rate = self.rate(running)
        if ttft is None or self.ttft(rate) <= ttft:
            return rate, bound
        low, high = rate * _CLOSE, rate
        if self.ttft(low) > ttft:
            return 0.0, "ttft"
        while high - low > _CLOSE * rate:
            middle = (low + high) / 2
            low, high = (middle, high) if self.ttft(middle) <= ttft else (low, middle)
        # Where a full cache alone makes requests wait, it is memory that sets the rate.
        return low, "memory" if self._busy(low) > 0.5 else "ttft"


@dataclass(frozen=True)
class Simulated:
    """Mean waiting times of requests in a simulation, in seconds."""

    ttft: float
    tpot: float
    requests_per_second: float


def simulate(engine: Engine, rate: float, requests: int = 20_000, seed: int = 0) -> Simulated:
    """Simulate rounds with Poisson arrivals, request by request.

    The first third of the requests is not counted, as the engine starts empty; the rate is that of
    the second third, as it ends empty.

    Examples
    --------
    >>> from craftopt.serving import Engine, simulate
    >>> engine = Engine([1, 100], [0.02, 0.04], prompt_seconds=0.001, own_seconds=0.1,
    ...                 decode_steps=100)
    >>> seen = simulate(engine, rate=20.0)
    >>> bool(abs(seen.tpot / engine.tpot(engine.running(20.0)) - 1) < 0.05)
    True
    """
    rate, requests = number("rate", rate, above=0), whole("requests", requests, 10)
    generator = np.random.default_rng(seed)
    arrivals = np.cumsum(generator.exponential(1 / rate, size=requests))
    first = np.zeros(requests)
    last = np.zeros(requests)
    decode = np.interp(
        np.arange(int(engine.limit) + 1), engine.sequences, engine.decode_seconds
    ).tolist()
    # Sequences that run, oldest first, as (round of the last token, requests admitted together).
    batches: deque[tuple[int, int, int]] = deque()
    places, running, coming, rounds, now = int(engine.limit), 0, 0, 0, 0.0
    times = arrivals.tolist()
    while coming < requests or batches:
        if not running and coming < requests and times[coming] > now:
            now = times[coming]
        admitted = coming
        while coming < requests and running < places and times[coming] <= now:
            coming += 1
            running += 1
        if coming > admitted:
            now += (coming - admitted) * engine.prompt_seconds
            first[admitted:coming] = now
            batches.append((rounds + engine.decode_steps, admitted, coming))
        now += decode[running]
        rounds += 1
        if batches and batches[0][0] == rounds:
            _, begin, end = batches.popleft()
            last[begin:end] = now
            running -= end - begin
    counted = slice(requests // 3, requests)
    steady = last[requests // 3 : 2 * requests // 3]
    return Simulated(
        ttft=float((first - arrivals)[counted].mean()) + engine.own_seconds,
        tpot=float((last - first)[counted].mean()) / engine.decode_steps,
        requests_per_second=(steady.size - 1) / float(steady[-1] - steady[0]),
    )


@dataclass(frozen=True)
class Service:
    """Say what a deployment gives under a plan, at its best rate within the limits.

    Parameters
    ----------
    requests_per_second : float
        Goodput of the whole deployment.
    tokens_per_second : float
        Tokens that it generates.
    bound : str
        What sets it: ``"memory"`` (the cache is full), ``"tpot"`` or ``"ttft"``.
    sequences : float
        Sequences that run in an attention group at that rate.
    concurrency : int
        Sequences that its cache holds.
    ttft, tpot : float
        Seconds to the first token and between tokens. At the rate that memory sets, the time to
        the first token grows without limit: it is given at 95 % of that rate.
    decode, prefill : StepTime
        One step with ``sequences`` sequences, and one of ``prefill_tokens`` prompt tokens.
    """

    requests_per_second: float
    tokens_per_second: float
    bound: str
    sequences: float
    concurrency: int
    ttft: float
    tpot: float
    decode: StepTime
    prefill: StepTime


# Part of the best rate at which the time to the first token is given.
_NEAR = 0.95


def engine_of(
    deployment: Deployment, profile: Profile, memory: Memory, workload: Workload
) -> Engine:
    """Describe a deployment under a plan as an engine.

    Raises
    ------
    InputError
        Memory that cannot hold one sequence.
    """
    most = memory.concurrency(workload.context)
    if most < 1:
        raise InputError(
            f"the cache holds {memory.kv_tokens} tokens, less than one sequence of "
            f"{workload.context}; use more GPUs, fewer replicas or shorter requests"
        )
    points = np.unique(np.minimum(np.geomspace(1, most, max(2, 2 * most.bit_length())), most))
    seconds = [
        step_time(deployment, profile, "decode", float(n), workload.mean_context).total
        for n in points
    ]
    prefill = step_time(
        deployment, profile, "prefill", chunk_of(deployment, workload), workload.input_tokens / 2
    )
    return engine_from(deployment, workload, points, np.array(seconds), prefill.total)


def engine_from(
    deployment: Deployment,
    workload: Workload,
    points: FloatArray,
    decode_seconds: FloatArray,
    prefill_seconds: float,
) -> Engine:
    """Describe a deployment as an engine by the seconds of its steps.

    Parameters
    ----------
    points : float64 [points]
        Sequences of an attention group, in rising order.
    decode_seconds : float64 [points]
    prefill_seconds : float
        A step of `chunk_of` prompt tokens.
    """
    prompt = prefill_seconds * workload.input_tokens / chunk_of(deployment, workload)
    if deployment.prefill_elsewhere:
        prompt = 0.0
    return Engine(
        sequences=points * deployment.groups,
        decode_seconds=np.maximum.accumulate(decode_seconds),
        prompt_seconds=prompt / deployment.groups,
        own_seconds=prompt * (1 - 1 / deployment.groups),
        decode_steps=workload.output_tokens - 1,
    )


def chunk_of(deployment: Deployment, workload: Workload) -> int:
    """Return the prompt tokens that an attention group takes in one step."""
    return min(deployment.prefill_tokens, workload.input_tokens)


def service_of(
    deployment: Deployment, profile: Profile, memory: Memory, workload: Workload
) -> Service:
    """Compute the goodput of a deployment under a plan, and how long its requests wait.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.serving import (Deployment, Workload, find_gpu, find_model, memory_of,
    ...                               profile_of, service_of)
    >>> loads = co.load_example("deepseek-r1")
    >>> spread = Deployment(find_model("deepseek-r1"), find_gpu("h200"), gpus=64, nodes=8)
    >>> plan = co.solve(co.Problem(loads, gpus=64), "placement").plan
    >>> served = service_of(spread, profile_of(plan, loads), memory_of(spread, plan), Workload())
    >>> served.bound, served.requests_per_second > 1
    ('memory', True)
    """
    engine = engine_of(deployment, profile, memory, workload)
    rate, bound = engine.goodput(workload.ttft, workload.tpot)
    running = engine.running(rate) if rate > 0 else float(deployment.groups)
    near = _NEAR * rate if bound == "memory" else rate
    chunk = chunk_of(deployment, workload)
    sequences = running / deployment.groups
    return Service(
        requests_per_second=rate,
        tokens_per_second=rate * workload.output_tokens,
        bound=bound,
        sequences=sequences,
        concurrency=memory.concurrency(workload.context),
        ttft=engine.ttft(near) if rate > 0 else float("inf"),
        tpot=engine.tpot(running),
        decode=step_time(
            deployment, profile, "decode", max(sequences, 1e-9), workload.mean_context
        ),
        prefill=step_time(deployment, profile, "prefill", chunk, workload.input_tokens / 2),
    )
