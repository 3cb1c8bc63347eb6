#!/usr/bin/env bash
# What is worth knowing on a machine with a GPU, in parts of less than four minutes that need no data and no weights.
#
#   bash benchmarks/gpu.sh              all parts; each prints one table and writes it to results/gpu/
#   bash benchmarks/gpu.sh step bf16    some of them
#   LIST=1 bash benchmarks/gpu.sh       the names of the parts
#
# A part that takes longer than LIMIT seconds (240) is ended, and the next one starts.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
DEVICE=${DEVICE:-cuda}
LIMIT=${LIMIT:-240}
OUT=${OUT:-results/gpu}
PARTS=(step opacus sizes precision compile sampling benchmark)

case "${LIST:-}" in ?*) printf '%s\n' "${PARTS[@]}"; exit 0 ;; esac

part() {  # the command of a part
    case "$1" in
        step) "$PYTHON" benchmarks/performance.py --device "$DEVICE" --sections step operations --batch 256 2048 \
            --rounds 7 --output "$OUT/step.md" ;;
        opacus) "$PYTHON" benchmarks/private_step.py --device "$DEVICE" --sizes mnist --batch 256 --selection attention lora \
            --copies --rounds 5 --output "$OUT/opacus.md" ;;
        sizes | precision | compile) "$PYTHON" benchmarks/gpu_variants.py "$1" --device "$DEVICE" --output "$OUT/$1.md" ;;
        sampling) "$PYTHON" benchmarks/gpu_variants.py sampling --device "$DEVICE" --output "$OUT/sampling.md" ;;
        benchmark) "$PYTHON" scripts/benchmark.py configs/benchmark/mnist.yaml --epsilon 10 --quick ;;
        *) echo "error: part $1 is unknown; parts: ${PARTS[*]}" >&2; return 2 ;;
    esac
}

command -v "$PYTHON" > /dev/null || { echo "error: $PYTHON is not there; type make venv, or PYTHON=..." >&2; exit 2; }
if [ "$DEVICE" != cpu ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: torch sees no GPU here; DEVICE=cpu tries the parts without one" >&2
    exit 2
fi
mkdir -p "$OUT"
failed=0
[ $# -gt 0 ] || set -- "${PARTS[@]}"
for name in "$@"; do
    case " ${PARTS[*]} " in *" $name "*) ;; *) part "$name"; exit 2 ;; esac
    echo "== $name"
    export -f part
    export PYTHON DEVICE OUT
    if ! timeout "$LIMIT" bash -c 'PARTS=(); part "$1"' _ "$name"; then
        echo "part $name failed or took more than $LIMIT seconds"
        failed=1
    fi
done
exit "$failed"
