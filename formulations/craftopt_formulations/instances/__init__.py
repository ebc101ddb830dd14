"""Small and middle problems with the best plan known and a proven bound, to test planners on.

Each instance is one JSON file here. Tokens are whole numbers, values and bounds exact fractions.
``tools/generate_instances.py`` draws the problems again, byte for byte, and repeats the proofs;
``docs/instances.md`` lists them.
"""

from craftopt_formulations.instances.instance import (
    Found,
    Instance,
    Proof,
    list_instances,
    load_instance,
)

__all__ = ["Found", "Instance", "Proof", "list_instances", "load_instance"]
