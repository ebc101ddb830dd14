"""Tables for a terminal, and plots."""
