#!/usr/bin/env bash
# Everything that docs/kernels.md and docs/performance.md await from a GPU, by one command. Needs
# torch, triton, transformers, rich, matplotlib and pytest; no installation of wuneng itself.
# Goes on after a failure, so that one bad kernel does not hide the others, and exits with 1 then.
# Models are measured twice: as they run unasked, and with every Triton kernel turned on
# (WUNENG_BACKEND=triton). A kernel that passes goes into JUDGED of wuneng/ops/backend.py.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=.
failed=0
step() {
  printf '\n+ %s\n' "$*"
  "$@" || { failed=1; printf 'failed: %s\n' "$*" >&2; }
}
bench() { step python -m wuneng.bench "$@"; }

step python -m pytest -q -m gpu tests/ops
step python -m benchmarks.repeated_tokens --out benchmarks/gpu-repeated-tokens.json
bench ops --device cuda --dtype bf16 --batch 8 --seq-len 4k --heads 32 --against mha,fla,mamba \
  --out benchmarks/gpu-ops
bench ops --device cuda --dtype bf16 --batch 1 --seq-len 4k,32k --heads 4 --out benchmarks/gpu-few-heads
for backend in "" triton; do
  export WUNENG_BACKEND="$backend"
  place="benchmarks/gpu${backend:+-$backend}"
  bench train --device cuda --preset 400m --batch 8 --seq-len 1k,4k --against mha,rwkv7,fla \
    --out "$place-train"
  bench decode --device cuda --preset 400m --batch 1,64 --seq-len 1k,8k,32k \
    --against mha,rwkv7,llama --out "$place-decode"
  bench prefill --device cuda --preset 400m --seq-len 8k,32k,128k --against mha,rwkv7,llama \
    --out "$place-prefill"
done
exit "$failed"
