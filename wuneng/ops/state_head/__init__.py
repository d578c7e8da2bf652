"""State heads: everything between their projections and their readout.

Reading order: ``recurrence_inputs`` (what the recurrence is fed: removal key, replacement key and
rate), ``from_projections`` (raw projections into the recurrence), ``step`` and ``triton_step`` (one
token), ``native`` (C), ``interface`` (the whole).
"""
