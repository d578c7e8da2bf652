#!/usr/bin/env bash
# Everything that docs/kernels.md and docs/performance.md await from a GPU, by one command, in order
# of importance: proofs, launches, operators, models. An H200 took 13 minutes, most of it compiling
# (other projects' kernels above all); each step has a limit. Needs torch,
# triton, transformers, rich, matplotlib and pytest (and pydantic for training steps; pytest-xdist
# makes the proofs quick); no installation of wuneng itself.
#
#   bash benchmarks/gpu.sh [DIRECTORY]       records go there; default benchmarks/
#
# Goes on after a failure, so that one bad kernel does not hide the others, and exits with 1 then. A
# step that outlives its time is stopped and told; what it and the others have written stays.
# A kernel that passes goes into JUDGED of wuneng/ops/backend.py; the launches that are fastest, into
# the table of wuneng/ops/wkv7/triton_launch.py.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}"
# Not the interpreter, in the workers of pytest-xdist too.
export TRITON_INTERPRET=0
place="${1:-benchmarks}"
mkdir -p "$place"
failed=0
limit=60
step() {
  printf '\n+ %s\n' "$*"
  local begun=$SECONDS
  timeout "$limit" "$@"
  local code=$?
  if [ "$code" -ne 0 ]; then
    failed=1
    printf 'failed (%s): %s\n' "$code" "$*" >&2
  fi
  printf '  %s s\n' "$((SECONDS - begun))"
}
bench() { step python3 -m wuneng.bench "$@" --device cuda --dtype bf16 --seconds 4; }

# Other projects' kernels take minutes to compile: their compilers run beside the proofs.
timeout 180 python3 -m wuneng.bench ops --batch 8 --seq-len 2k,4k --heads 32 --device cuda \
  --dtype bf16 --against mha,fla,mamba,wind --seconds 1 > /dev/null 2>&1 &
warming=$!
workers=()
python3 -c "import xdist" 2>/dev/null && workers=(-n "$(($(nproc) < 12 ? $(nproc) : 12))")
limit=200
OMP_NUM_THREADS=1 step python3 -m pytest -q --tb=short -p no:cacheprovider "${workers[@]}" \
  -m gpu tests/ops tests/train/test_captured_gpu.py
limit=120
step python3 -m benchmarks.launches --out "$place/gpu-launches.json"
wait "$warming"
# Two lengths each: one alone is measured at its eighth, quarter and half too.
limit=200
bench ops --batch 8 --seq-len 2k,4k --heads 32 --against mha,fla,mamba,wind --out "$place/gpu-ops"
# Without TileLang, where that is installed: flash-linear-attention's Triton kernels.
python3 -c "import tilelang" 2>/dev/null && FLA_TILELANG=0 bench ops --batch 8 --seq-len 2k,4k --heads 32 \
  --against mha,fla --out "$place/gpu-ops-triton"
limit=90
bench train --preset 400m --batch 8 --seq-len 512,1k --against mha --out "$place/gpu-train"
# The way to train on one GPU: layers compiled, passes in CUDA graphs. Other than --out and this,
# the same command.
limit=150
bench train --preset 400m --batch 8 --seq-len 512,1k --against mha \
  --training compile,cuda_graph --out "$place/gpu-train-captured"
limit=90
bench decode --preset 400m --batch 1,64 --seq-len 1k,8k --against mha,llama --out "$place/gpu-decode"
# The same without a Triton kernel of ours.
export WUNENG_BACKEND=chunked
bench train --preset 400m --batch 8 --seq-len 512,1k --against mha --out "$place/gpu-train-torch"
unset WUNENG_BACKEND
limit=120
bench ops --batch 1 --seq-len 4k,16k --heads 4 --against none --out "$place/gpu-few-heads"
bench prefill --preset 400m --batch 1 --seq-len 8k,32k --against mha --out "$place/gpu-prefill"
step python3 -m benchmarks.head_loss --out "$place/gpu-head-loss.json"
step python3 -m benchmarks.repeated_tokens --out "$place/gpu-repeated-tokens.json"
exit "$failed"
