#!/usr/bin/env bash
# Everything that docs/kernels.md and docs/performance.md await from a GPU, by one command, in order
# of importance: proofs, launches, operators, models. Needs torch, triton, transformers, rich,
# matplotlib and pytest (and pydantic for training steps; pytest-xdist makes the proofs quick); no
# installation of wuneng itself.
#
#   bash benchmarks/gpu.sh [--minutes 8] [--from STEP] [DIRECTORY]    default: benchmarks/
#
# It ends when its minutes are over and names the steps that were left: --from goes on with them. An
# H200 took 13 minutes for what it measured then, most of it compiling, other projects' kernels above
# all. Each step has a limit of its own too. Goes on after a failure, so that one bad kernel does not
# hide the others, and exits with 1 then. What a stopped step has written stays.
# A kernel that passes goes into JUDGED of wuneng/ops/backend.py; the launches that are fastest, into
# the table of wuneng/ops/wkv7/triton_launch.py.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}"
# Not the interpreter, in the workers of pytest-xdist too.
export TRITON_INTERPRET=0

steps=(proofs launches ops train-captured decode train ops-triton train-torch few-heads prefill
  head-loss repeated-tokens)
refuse() {
  printf 'gpu.sh: %s\n' "$1" >&2
  exit 2
}
minutes=8 from=${steps[0]} place=benchmarks
while [ $# -gt 0 ]; do
  case "$1" in
    --minutes | --from)
      [ $# -ge 2 ] || refuse "$1 needs a value"
      if [ "$1" = --minutes ]; then minutes="$2"; else from="$2"; fi
      shift
      ;;
    -*) refuse "no such option: $1 (there are --minutes and --from)" ;;
    *) place="$1" ;;
  esac
  shift
done
[[ "$minutes" =~ ^[0-9]{1,4}$ ]] || refuse "--minutes is a whole number, not $minutes"
minutes=$((10#$minutes))
known=0
for name in "${steps[@]}"; do
  if [ "$name" = "$from" ]; then known=1; fi
done
[ "$known" = 1 ] || refuse "no step $from; the steps are ${steps[*]}"
mkdir -p "$place"
end=$((SECONDS + 60 * minutes))
begun=0 failed=0
left=()

# Whether a step's turn has come and there is time for it; told apart from a failure at the end.
due() {
  if [ "$1" = "$from" ]; then begun=1; fi
  [ "$begun" = 1 ] || return 1
  [ "$((end - SECONDS))" -ge 15 ] && return 0
  left+=("$1")
  return 1
}

# step NAME LIMIT COMMAND: at most LIMIT seconds, and no more than there are. A step that is stopped
# writes what it has, once the call that it is in returns: it is killed half a minute later.
step() {
  local name="$1" limit="$2" start=$SECONDS code
  shift 2
  due "$name" || return 0
  local rest=$((end - SECONDS))
  printf '\n+ %s\n' "$*"
  timeout -k 30 "$((limit < rest ? limit : rest))" "$@"
  code=$?
  if [[ $code = 124 || $code = 137 ]] && [ "$rest" -lt "$limit" ] && [ "$SECONDS" -ge "$end" ]; then
    left+=("$name")
  elif [ "$code" -ne 0 ]; then
    failed=1
    printf 'failed (%s): %s\n' "$code" "$*" >&2
  fi
  printf '  %s s\n' "$((SECONDS - start))"
}
gpu=(--device cuda --dtype bf16 --seconds 4)

warming=
if [[ "$from" = proofs || "$from" = launches ]] && [ "$minutes" -gt 3 ]; then
  # Other projects' kernels take minutes to compile: their compilers run beside the proofs.
  timeout 180 python3 -m wuneng.bench ops --batch 8 --seq-len 2k,4k --heads 32 --device cuda \
    --dtype bf16 --against mha,fla,mamba,wind --seconds 1 > /dev/null 2>&1 &
  warming=$!
fi
workers=()
python3 -c "import xdist" 2> /dev/null && workers=(-n "$(($(nproc) < 12 ? $(nproc) : 12))")
step proofs 200 env OMP_NUM_THREADS=1 python3 -m pytest -q --tb=short -p no:cacheprovider \
  ${workers[@]+"${workers[@]}"} -m gpu tests/ops tests/train/test_captured_gpu.py
[ -z "$warming" ] || wait "$warming"  # what is timed has the GPU for itself
step launches 120 python3 -m benchmarks.launches --out "$place/gpu-launches.json"
# Two lengths each: one alone is measured at its eighth, quarter and half too.
step ops 200 python3 -m wuneng.bench ops --batch 8 --seq-len 2k,4k --heads 32 \
  --against mha,fla,mamba,wind "${gpu[@]}" --out "$place/gpu-ops"
# The way to train on one GPU: layers compiled, passes in CUDA graphs.
step train-captured 150 python3 -m wuneng.bench train --preset 400m --batch 8 --seq-len 512,1k \
  --against mha --training compile,cuda_graph "${gpu[@]}" --out "$place/gpu-train-captured"
step decode 90 python3 -m wuneng.bench decode --preset 400m --batch 1,64 --seq-len 1k,8k \
  --against mha,llama "${gpu[@]}" --out "$place/gpu-decode"
# Neither compiled nor captured.
step train 90 python3 -m wuneng.bench train --preset 400m --batch 8 --seq-len 512,1k \
  --against mha "${gpu[@]}" --out "$place/gpu-train"
# Without TileLang, where that is installed: flash-linear-attention's Triton kernels. Where it is not,
# the operators above are those.
triton=(env FLA_TILELANG=0 python3 -m wuneng.bench ops --batch 8 --seq-len 2k,4k --heads 32
  --against mha,fla "${gpu[@]}" --out "$place/gpu-ops-triton")
python3 -c "import tilelang" 2> /dev/null || triton=(echo "TileLang is not installed")
step ops-triton 200 "${triton[@]}"
# Without a Triton kernel of ours.
step train-torch 90 env WUNENG_BACKEND=chunked python3 -m wuneng.bench train --preset 400m --batch 8 \
  --seq-len 512,1k --against mha "${gpu[@]}" --out "$place/gpu-train-torch"
step few-heads 120 python3 -m wuneng.bench ops --batch 1 --seq-len 4k,16k --heads 4 --against none \
  "${gpu[@]}" --out "$place/gpu-few-heads"
step prefill 120 python3 -m wuneng.bench prefill --preset 400m --batch 1 --seq-len 8k,32k \
  --against mha "${gpu[@]}" --out "$place/gpu-prefill"
step head-loss 120 python3 -m benchmarks.head_loss --out "$place/gpu-head-loss.json"
step repeated-tokens 120 python3 -m benchmarks.repeated_tokens --out "$place/gpu-repeated-tokens.json"

if [ ${#left[@]} -gt 0 ]; then
  printf '\nleft after %s minutes: %s. They are measured by: bash benchmarks/gpu.sh --from %s %q\n' \
    "$minutes" "${left[*]}" "${left[0]}" "$place"
fi
exit "$failed"
