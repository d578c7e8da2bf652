#!/usr/bin/env bash
# Every CPU figure of docs/performance.md, about three quarters of an hour on two idle cores.
# Threads that sleep between operators: spinning ones stall wherever cores are shared.
# DATA: a directory with hellaswag_val.jsonl; TOKENIZER: a tokenizer's directory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_WAIT_POLICY=PASSIVE
export WUNENG_REPORT=0  # the pages in docs/ are made from the records
bench() { wuneng bench --device cpu --threads 2 --quiet "$@"; }

bench --seq-len 8k --out benchmarks/cpu-small
bench --model benchmarks/cpu.yaml --what prefill,decode --seq-len 512,1k,2k \
  --against mha,replace,rwkv7,llama --seconds 40 --out benchmarks/cpu-inference
# Needs llama-cpp-python and gguf: pip install 'wuneng[llama-cpp]'. One thread.
bench --threads 1 --model benchmarks/cpu.yaml --what prefill,decode --seq-len 512,1k \
  --against mha,llama,rwkv7,llama.cpp,llama.cpp-rwkv7 --seconds 60 --out benchmarks/cpu-llama-cpp
bench --threads 1 --model benchmarks/cpu-768.yaml --what prefill,decode --seq-len 512,1k \
  --against mha,llama,rwkv7,llama.cpp,llama.cpp-rwkv7 --seconds 60 \
  --out benchmarks/cpu-llama-cpp-768
bench --model benchmarks/cpu.yaml --what train --seq-len 512,2k --against mha,replace,rwkv7 \
  --seconds 40 --out benchmarks/cpu-train
bench --model benchmarks/cpu.yaml --what train --seq-len 512,1k --batch 4 \
  --against mha,replace,rwkv7 --seconds 30 --out benchmarks/cpu-train-batch4
bench --model benchmarks/cpu.yaml --what train --seq-len 4k,8k --against mha,replace,rwkv7 \
  --seconds 40 --out benchmarks/cpu-train-long
bench --model benchmarks/cpu.yaml --what parts --seq-len 512,2k --against mha,replace \
  --out benchmarks/cpu-parts
bench --model benchmarks/cpu.yaml --what parts --seq-len 512,2k --against mha,replace --threads 1 \
  --out benchmarks/cpu-parts-one-thread
bench --what ops --batch 4 --heads 12 --seq-len 1k,2k --seconds 60 --out benchmarks/cpu-ops
bench --what ops --batch 4 --heads 12 --seq-len 1k --threads 1 --seconds 40 \
  --out benchmarks/cpu-ops-one-thread
python -m benchmarks.wkv7_cpu --seconds 5
python -m benchmarks.vocabulary --out benchmarks/vocabulary.json
OMP_NUM_THREADS=1 python -m benchmarks.head_loss --out benchmarks/head_loss.json
OMP_NUM_THREADS=1 python -m benchmarks.training_step --out benchmarks/training_step.json
OMP_NUM_THREADS=1 python -m benchmarks.training_step --what prefill --rounds 30 --out benchmarks/prefill.json
python -m benchmarks.kept_for_backward --out benchmarks/kept_for_backward.json
OMP_NUM_THREADS=1 python -m benchmarks.flat_optimizer --rounds 40 \
  --out benchmarks/flat_optimizer.json
OMP_NUM_THREADS=1 python -m benchmarks.decoded_token --out benchmarks/decoded_token.json
OMP_NUM_THREADS=1 python -m benchmarks.decoded_token --rounds 30 \
  --arms text,mha-shift,no-middle,interleaved,rwkv7 --out benchmarks/decoded_arms.json
OMP_NUM_THREADS=1 python -m benchmarks.decoded_token --rounds 30 \
  --arms text,kda,gated-delta,mha-conv --out benchmarks/decoded_kinds.json
TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 OMP_NUM_THREADS=1 python -m benchmarks.decoded_token \
  --width 256 --compiled --rounds 60 --out benchmarks/decoded_compiled.json
bench --compare benchmarks/cpu-inference --out benchmarks/cpu-repeated
python -m benchmarks.startup --out benchmarks/startup.json
if [[ -n "${DATA:-}" ]]; then
  OMP_NUM_THREADS=1 python -m benchmarks.eval_overhead --data-dir "$DATA" \
    --tokenizer "$TOKENIZER" --rounds 2 --out benchmarks/eval_overhead.json
  mmlu=mmlu_anatomy,mmlu_high_school_psychology,mmlu_elementary_mathematics,mmlu_professional_law
  OMP_NUM_THREADS=1 python -m benchmarks.eval_overhead --data-dir "$DATA" \
    --tokenizer "$TOKENIZER" --tasks "$mmlu" --shots 5 --items 50 --positions 8192 --rounds 2 \
    --skip "end to end" --out benchmarks/eval_overhead_mmlu.json
fi
python -m benchmarks.figures
