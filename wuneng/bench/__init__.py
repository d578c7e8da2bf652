"""Benchmarks: speed, memory and scale of WuNeng beside plain attention and pure RWKV-7.

session        the story: lengths in turn, groups of cases, one record
request        what is asked for
groups         what that makes: groups of cases, in order
architectures  the models that are compared, from a recipe, a model directory or a preset
operators      cases: WKV-7's backends, SDPA, cross-head fusion, other projects' kernels
models         cases: prefill, decode, training step
engine         a group of cases: gate, warm up, time interleaved, measure memory
gate           correctness first: nothing that is wrong gets a speed
timing         clocks, repetitions, medians and spread
stopping       what is kept when somebody stops it
memory         peaks, what is available, what did not fit
machine        the machine's own bandwidth and matmul rate
roofline       bytes and FLOPs that the work needs at least
exponents      how time and memory grow with length
parts          where a training step spends its time
record         bench.json and bench.csv; their schema is in schema
compare        regressions beyond noise
tables         what a terminal shows
pictures       SVG and PNG

``python -m wuneng.bench`` needs torch, transformers, rich and matplotlib; only the training step
needs the packages that recipes and training need.
"""

from wuneng.bench.request import BenchRequest, make_request

__all__ = ["BenchRequest", "make_request"]
