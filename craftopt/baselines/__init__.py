"""What others do, reproduced faithfully: trivial, EPLB."""
