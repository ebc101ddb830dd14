"""Drop-in planners: one module per serving engine's interface.

None of them imports its engine, nor PyTorch, before it is called. Every rank of an engine plans
for itself, so each call is deterministic and does a bounded amount of work, whatever the machine.
"""
