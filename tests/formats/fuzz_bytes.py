"""Let atheris look for bytes that break a reader: ``python fuzz_bytes.py SECONDS SEED``.

Needs ``pip install atheris``, which follows what readers execute: inputs that reach new code are
kept and changed further, beginning with the samples of the tests. Prints every crash with its
input, again where a shorter one is found; the last line says how many inputs there were.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import atheris
import numpy as np

# Modules without kernels, which numba compiles from their bytecode.
MODULES = ("formats", "documents", "recordings", "loads", "traces", "plan", "coactivation",
           "verification")  # fmt: skip
with atheris.instrument_imports(include=[f"craftopt.{name}" for name in MODULES]):
    import damage_files

    import craftopt as co
    import craftopt.formats.reading
    import craftopt.verification.document

SAMPLES = Path(__file__).parents[1] / "data"
LONGEST = 2**14  # of an input, in bytes
READERS = (*damage_files.READERS, co.read_coactivation, co.Certificate.load)

shortest: dict[str, int] = {}  # input that raises at a place, in bytes


def samples() -> list[bytes]:
    """List the samples of the tests that are short enough, and one sound file of every format."""
    found = [file.read_bytes() for file in sorted(SAMPLES.rglob("*")) if file.is_file()]
    damage_files.flip = lambda data, rng: data
    for make in damage_files.FORMATS.values():
        found += make(np.random.default_rng(0)).values()
    loads = co.Loads([[[8, 4, 2, 2]], [[7, 5, 3, 1]]])
    problem = co.Problem(loads, gpus=2, replicas=2)
    plan = co.solve(problem, "nominal").plan
    found += [text.encode() for text in (plan.to_json(), co.certify(problem, plan).to_json())]
    return [content for content in found if len(content) <= LONGEST]


def read(content: bytes) -> None:
    """Read an input as everything; a result or one clear error is right."""
    path = work / "input"
    path.write_bytes(content)
    damage_files.SEEN.clear()
    for reader in READERS:
        try:
            try:
                reader(path)
            except co.CraftoptError as error:
                damage_files.check(error, path)
            assert not damage_files.SEEN, damage_files.SEEN
        except Exception as error:
            place = repr(traceback.extract_tb(error.__traceback__)[-1])
            if len(content) < shortest.get(place, LONGEST + 1):
                shortest[place] = len(content)
                print(f"crash: {content!r}\n{traceback.format_exc()[-1500:]}", flush=True)


warnings.simplefilter("ignore")
with tempfile.TemporaryDirectory() as folder:
    work, corpus = Path(folder), Path(folder) / "corpus"
    corpus.mkdir()
    for number, content in enumerate(samples()):
        (corpus / str(number)).write_bytes(content)
    damage_files.watch()
    seconds, seed = sys.argv[1:]
    limits = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={LONGEST}", "-timeout=20",
              "-rss_limit_mb=2048", "-verbosity=0", "-print_final_stats=1"]  # fmt: skip
    atheris.Setup(["fuzz_bytes", *limits, str(corpus)], read)
    atheris.Fuzz()  # ends the process
