#!/bin/bash
# What this project costs and gains on an NVIDIA GPU, as one Markdown file: overhead, rewards, a step, memory, and 200
# steps on GSM8K. Runs unattended, wants nothing from the network.
#
#   benchmarks/gpu.sh SMOLLM2 DATA [--dry-run]
#
# SMOLLM2 is a folder with SmolLM2-135M-Instruct, DATA one with gsm8k/train.jsonl and gsm8k/test.jsonl. A part that
# fails or takes too long says so in the file and the next one runs; exit status 1 then, 2 where something is missing.
# Environment: PYTHON (.venv/bin/python), OUT (runs/gpu: gpu.md, and a log of each part), PARTS ("grading memory" runs
# those two), DEVICE=cpu to walk through it without a GPU, with two steps of training.
set -u
[ $# -ge 2 ] || { echo "usage: benchmarks/gpu.sh SMOLLM2 DATA [--dry-run]" >&2; exit 2; }
MODEL=$(realpath -m "$1") DATA=$(realpath -m "$2") DRY_RUN=${3:-}
OUT=$(realpath -m "${OUT:-runs/gpu}") DEVICE=${DEVICE:-cuda} PARTS=${PARTS:-all}
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-.venv/bin/python}
NAMES="overhead grading rewards async_rewards step_time step generation memory train accuracy"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 GRPO_MATH_TEST_DATA=$DATA
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*}    # one process, one GPU

has() { "$PYTHON" -c "import sys, importlib.util as u; sys.exit(u.find_spec('$1') is None)" 2> /dev/null; }

MISSING=()
for file in "$MODEL/config.json" "$DATA/gsm8k/train.jsonl" "$DATA/gsm8k/test.jsonl"; do
    [ -f "$file" ] || MISSING+=("$file")
done
for name in grpo_math trl torch; do has $name || MISSING+=("$name in PYTHON=$PYTHON"); done
if [ "$DEVICE" = cuda ] && [ ${#MISSING[@]} = 0 ] && [ -z "$DRY_RUN" ]; then
    command -v nvidia-smi > /dev/null || MISSING+=(nvidia-smi)
    "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || MISSING+=("a GPU that torch sees")
fi
for name in $PARTS; do
    case " all $NAMES " in *" $name "*) ;; *) MISSING+=("a part called $name (of: $NAMES)") ;; esac
done
if [ ${#MISSING[@]} != 0 ]; then
    printf -v listed '%s, ' "${MISSING[@]}"
    echo "error: missing: ${listed%, }" >&2
    exit 2
fi

RECIPE=(--config recipes/gsm8k_smollm2_135m.yaml --model_name_or_path "$MODEL" --dataset.path "$DATA/gsm8k")
if [ "$DEVICE" = cuda ]; then
    RECIPE+=(--use_cpu false --bf16 true --dataloader_pin_memory true --max_completion_length 128 --save_steps 100
        --per_device_train_batch_size 32 --gradient_accumulation_steps 4 --eval.max_samples null --eval.batch_size 256)
    STEPS=200 DTYPE=bfloat16
else
    RECIPE+=(--eval.max_samples 2)
    STEPS=2 DTYPE=float32
fi
has vllm && RECIPE+=(--use_vllm true)

hardware() {
    if [ "$DEVICE" = cuda ]; then
        nvidia-smi -i "$CUDA_VISIBLE_DEVICES" --format=csv,noheader \
            --query-gpu=name,memory.total,driver_version,power.limit
    else
        echo "no GPU was used"
    fi
    echo "$(nproc) cores, $(free -g | awk '/^Mem/ {print $2}') GiB"
}

versions() {
    "$PYTHON" - << 'END'
from importlib.metadata import PackageNotFoundError, version
for name in ("grpo-math", "torch", "trl", "transformers", "accelerate", "peft", "vllm", "datasets", "math-verify"):
    try:
        print(f"{name} {version(name)}")
    except PackageNotFoundError:
        print(f"no {name}")
END
}

FAILED=0 SUMMARY="" FIGURES=""

report() {
    printf '# On a GPU\n\n| | |\n|---|---|\n| hardware | %s |\n| versions | %s |\n| revision | %s |\n' \
        "$HARDWARE" "$VERSIONS" "$(git describe --always --dirty 2> /dev/null)"
    printf '\n| part | result | seconds | command |\n|---|---|---|---|\n%s%s' "$SUMMARY" "$FIGURES"
}

# part NAME SECONDS COMMAND...: run it, keep its log, and put its tables (or the end of what it says) into the file
part() {
    local name=$1 limit=$2 status started=$SECONDS result=ok log=$OUT/$1.log tables
    shift 2
    case " $PARTS " in *" all "* | *" $name "*) ;; *) return ;; esac
    if [ -n "$DRY_RUN" ]; then echo "timeout $limit $*"; return; fi
    echo "$(date +%T) $name"
    timeout --kill-after=30 "$limit" "$@" > "$log" 2>&1 < /dev/null
    status=$?
    if [ $status = 124 ] || [ $status = 137 ]; then
        result="took over $limit s"
    elif [ $status != 0 ]; then
        result="failed, exit status $status: $(tail -n 1 "$log" | tr '|' '/')"
    fi
    [ "$result" = ok ] || { FAILED=1; echo "  $result"; }
    tables=$(awk '/^\|/ {print; inside = 1; next} inside {print ""; inside = 0}' "$log")
    [ -n "$tables" ] || tables=$(printf '```\n%s\n```' "$(tail -n 15 "$log")")
    SUMMARY+="| $name | $result | $((SECONDS - started)) | \`$*\` |"$'\n'
    FIGURES+=$'\n'"## $name"$'\n\n'"$tables"$'\n'
    report > "$OUT/gpu.md"
}

if [ -z "$DRY_RUN" ]; then
    mkdir -p "$OUT" || exit 2
    HARDWARE=$(hardware | paste -sd ';' | sed 's/;/; /g') VERSIONS=$(versions | paste -sd ',' | sed 's/,/, /g')
fi
part overhead 1800 "$PYTHON" benchmarks/overhead.py --model "$MODEL"
part grading 900 "$PYTHON" benchmarks/grading.py
part rewards 300 "$PYTHON" benchmarks/rewards.py
part async_rewards 1200 "$PYTHON" benchmarks/async_rewards.py
part step_time 1800 "$PYTHON" benchmarks/step_time.py "$MODEL"
part step 900 "$PYTHON" benchmarks/step.py "${RECIPE[@]}" --max_steps 8 --eval.before_after false
if has vllm; then
    part generation 1200 "$PYTHON" benchmarks/generation.py "$MODEL" --dtype $DTYPE --completions 8 64 256
fi
part memory 1800 "$PYTHON" benchmarks/memory.py --model "$MODEL"
RUN=$OUT/train-$(date +%m%d-%H%M%S)
part train 7200 "$PYTHON" -m grpo_math train "${RECIPE[@]}" --max_steps $STEPS --output_dir "$RUN"
part accuracy 60 "$PYTHON" -m grpo_math runs "$OUT"
[ -n "$DRY_RUN" ] || echo "$OUT/gpu.md"
exit $FAILED
