"""Plans are the same on every processor: own logarithms, and whole plans with features off."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftopt.portable import exp, exp_array, log, power


@given(st.floats(1e-300, 1e300))
def test_logarithms_are_right_to_a_few_units_in_the_last_place(value):
    assert log(value) == pytest.approx(math.log(value), rel=1e-15, abs=1e-16)


@given(st.floats(-700, 700))
def test_exponentials_are_right_to_a_few_units_in_the_last_place(value):
    assert exp(value) == pytest.approx(math.exp(value), rel=1e-15)
    assert exp_array(np.array([value]))[0] == exp(value)


def test_the_ends_of_the_range():
    assert exp(-math.inf) == exp_array(np.array([-math.inf]))[0] == 0.0
    assert log(1.0) == 0.0
    assert power(9.0, 0.0) == 1.0


def test_the_same_bits_as_everywhere():
    values = [log(1 + k / 97) for k in range(200)] + [exp(-k / 13) for k in range(200)]
    assert hashlib.sha256(np.array(values).tobytes()).hexdigest()[:16] == "cede5cf0694f4acd"


# What differs between processors: the system's mathematical library, the instructions for which
# numba compiles, and those that numpy picks.
FEATURES = {
    "all": {},
    "no FMA in libm": {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX2_Usable,-FMA_Usable"},
    "any x86-64 in numba": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+sse2"},
    "no AVX2 in numpy": {"NPY_DISABLE_CPU_FEATURES": "AVX2,FMA3,X86_V3,X86_V4,AVX512_ICL"},
}
PLANS = """
import hashlib, sys, warnings
import numpy as np
import craftopt as co
warnings.simplefilter("ignore")
tokens = np.random.default_rng(0).gamma(0.3, size=(40, 2, 64)) * 1000
loads, rules = co.Loads(tokens), dict(gpus=8, nodes=2, slots="even", replicas=16)
trace = co.load_example_trace("gpt-oss-20b")
problems = {
    "fast": (co.Problem(loads, **rules), 20_000),
    "time": (co.Problem(loads, objective="time", **rules), 20_000),
    "nearest": (co.Problem(loads, dispatch="nearest-even", **rules), 5_000),
    "decode": (co.Problem(loads, objective="activated", **rules), 2_000),
    "traffic": (
        co.Problem(
            trace.batches(1024), traffic=0.3, coactivation=trace.coactivation(), **rules
        ),
        2_000,
    ),
}
plans = [
    co.solve(problem, "fast", seed=1, workers=1, work_limit=steps).plan
    for problem, steps in problems.values()
]
old = co.solve(co.Problem(loads, gpus=8, slots="uniform", replicas=16), "eplb").plan
problem = co.Problem(loads, gpus=8, slots="uniform", replicas=16)
plans.append(co.rebalance(problem, old, max_moves=4, seed=2, workers=1).plan)
plans += [co.solve(problem, m, seed=1, workers=1).plan for m in ("eplb", "nominal")]
plans.append(co.solve(problem.replace(slots="even"), "craft").plan)
small = co.Problem(co.Loads(tokens[:3, :1, :6]), gpus=3, slots="even", replicas=2)
plans.append(co.solve(small, "exact", seed=1, workers=1).plan)
plans.append(co.solve(co.Problem(loads, slots="free", gpus=8, replicas=11), "fast", workers=1,
             work_limit=5_000).plan)
sys.stdout.write(hashlib.sha256(b"".join(p.copies.tobytes() for p in plans)).hexdigest())
"""


@pytest.mark.slow
def test_plans_are_the_same_whatever_the_processor_can_do(tmp_path):
    found = {}
    for name, features in FEATURES.items():
        environment = os.environ | features | {"NUMBA_CACHE_DIR": str(tmp_path / name)}
        found[name] = subprocess.run(
            [sys.executable, "-c", PLANS], env=environment, check=True, capture_output=True
        ).stdout
    assert len(set(found.values())) == 1, found


FUSED = r"""
import re, sys, warnings
import llvmlite.binding as llvm
from numba.core.dispatcher import Dispatcher
import craftopt as co
warnings.simplefilter("ignore")
loads = co.Loads([[[60, 56, 12, 12, 2, 1, 1, 1]], [[1, 5, 9, 30, 2, 8, 1, 1]]])
co.solve(co.Problem(loads, gpus=4, replicas=4), "fast", workers=1, work_limit=100).bound
kernels = {one for name, module in list(sys.modules.items()) if name.startswith("craftopt")
           for one in vars(module).values() if isinstance(one, Dispatcher)}
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
arm = llvm.Target.from_triple("aarch64-linux-gnu").create_target_machine(cpu="generic", opt=3)
seen = 0
for kernel in kernels:
    for code in kernel.inspect_llvm().values():
        assert not re.search(r"= f(add|sub|mul|div) (fast|contract|reassoc)|llvm[.]fmuladd", code)
        code = re.sub(r'target (triple|datalayout) = .*', '', code)
        code = re.sub(r'"target-(cpu|features)"="[^"]*"', '', code)
        code = re.sub(r"(tail )?call i8 @llvm[.]x86[.]atomic.*", "add i8 0, 0", code)  # no figures
        made = arm.emit_assembly(llvm.parse_assembly(code))
        assert not re.search(r"\bfn?m(add|sub|la|ls)\b", made), kernel
        seen += len(re.findall(r"\bfmul\b", made))
assert seen > 100, seen
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="it crosses from x86-64")
def test_no_product_and_sum_become_one_instruction_on_arm(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", FUSED], env=environment, check=True)
