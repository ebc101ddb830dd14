"""Whether to leave a deployment, move experts, copy some, or record more traffic first."""

from craftopt.diagnosis.measuring import Cost, Persistence
from craftopt.diagnosis.rules import Gain, decide
from craftopt.diagnosis.verdict import Diagnosis, diagnose

__all__ = ["Cost", "Diagnosis", "Gain", "Persistence", "decide", "diagnose"]
