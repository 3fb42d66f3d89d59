#!/bin/bash
# What this project gains and costs on an NVIDIA GPU, as one Markdown file. SmolLM2-135M on GSM8K, evaluated on all
# 1,319 test questions: unchanged, after SFT, after GRPO, after GRPO with random rewards; and the benchmarks of
# docs/performance.md. Unattended and without network.
#
#   benchmarks/gpu.sh SMOLLM2 DATA [--dry-run]
#
# SMOLLM2 is a folder with SmolLM2-135M-Instruct, DATA one with gsm8k/train.jsonl and gsm8k/test.jsonl.
# Exit status: 0 done; 1 a part failed, the next call tries it again; 2 something is missing; 3 call again (LIMIT).
# Environment:
#   PYTHON=.venv/bin/python   any Python with the project's requirements; the code is this checkout's
#   OUT=runs/gpu              gpu.md, a log of each part, the runs; use one folder per machine
#   LIMIT=540                 return within so many seconds (default: at the end). A part goes on in a session of its
#                             own; the next call waits for it, or resumes it if it was killed. No part is repeated
#   PARTS="sft grpo"          only these parts
#   DEVICE=cpu                walk through it without a GPU: 2 steps, 8 questions
set -u
[ $# -ge 2 ] || { echo "usage: benchmarks/gpu.sh SMOLLM2 DATA [--dry-run]" >&2; exit 2; }
MODEL=$(realpath -m "$1") DATA=$(realpath -m "$2") DRY_RUN=${3:-}
OUT=$(realpath -m "${OUT:-runs/gpu}") DEVICE=${DEVICE:-cuda} PARTS=${PARTS:-all} LIMIT=${LIMIT:-1000000000}
PYTHON=${PYTHON:-$(dirname "$0")/../.venv/bin/python}
PYTHON=$(command -v "$PYTHON" || echo "$PYTHON")
[[ $PYTHON == /* ]] || PYTHON=$PWD/$PYTHON
cd "$(dirname "$0")/.." || exit 2
NAMES="before before_fallback sft grpo compare step generation memory overhead step_time async_rewards rewards grading"
NAMES+=" control compare_control"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export GRPO_MATH_TEST_DATA=$DATA PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH}
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*}    # one process, one GPU

# What is missing, all of it at once
MISSING=()
for file in "$MODEL/config.json" "$DATA/gsm8k/train.jsonl" "$DATA/gsm8k/test.jsonl"; do
    [ -f "$file" ] || MISSING+=("$file")
done
[[ $LIMIT =~ ^[0-9]+$ && $LIMIT -gt 10 ]] || MISSING+=("a LIMIT of more than 10 seconds")
for tool in flock setsid timeout; do command -v $tool > /dev/null || MISSING+=("$tool"); done
if ! "$PYTHON" -c "" 2> /dev/null; then
    MISSING+=("a Python at PYTHON=$PYTHON")
else
    mapfile -t -O ${#MISSING[@]} MISSING < <("$PYTHON" scripts/missing.py)
    if [ "$DEVICE" = cuda ] && [ -z "$DRY_RUN" ]; then
        command -v nvidia-smi > /dev/null || MISSING+=(nvidia-smi)
        "$PYTHON" -c "import importlib.util as u, sys; u.find_spec('torch') or sys.exit()
import torch; sys.exit(not torch.cuda.is_available())" || MISSING+=("a GPU that torch sees")
    fi
fi
for name in $PARTS; do
    case " all $NAMES " in *" $name "*) ;; *) MISSING+=("a part called $name (of: $NAMES)") ;; esac
done
if [ ${#MISSING[@]} != 0 ]; then
    printf -v listed '%s, ' "${MISSING[@]}"
    echo "error: missing: ${listed%, }" >&2
    exit 2
fi

hardware() {
    if [ "$DEVICE" = cuda ]; then
        nvidia-smi -i "$CUDA_VISIBLE_DEVICES" --format=csv,noheader \
            --query-gpu=name,memory.total,driver_version,power.limit
    else
        echo "no GPU was used"
    fi
    echo "$(env -u OMP_NUM_THREADS nproc) cores, $(awk '/^MemTotal/ {print int($2 / 2^20 + 0.5)}' /proc/meminfo) GiB"
}

versions() {
    "$PYTHON" - << 'END'
from importlib.metadata import PackageNotFoundError, version
for name in ("torch", "trl", "transformers", "accelerate", "peft", "vllm", "datasets", "math-verify"):
    try:
        print(f"{name} {version(name)}")
    except PackageNotFoundError:
        print(f"no {name}")
END
}

page() {
    local name seconds
    printf '# On a GPU\n\n%s\n\n| part | result | seconds | command |\n|---|---|---|---|\n' "$(cat "$OUT/machine")"
    for name in $NAMES; do
        [ -n "${COMMANDS[$name]:-}" ] || continue
        seconds=$(cut -d ' ' -f 2 "$STATE/$name.status" 2> /dev/null)
        echo "| $name | $(result "$name") | $seconds | \`${COMMANDS[$name]//$PYTHON/python}\` |"
    done
    for name in $NAMES; do
        [ -f "$STATE/$name.status" ] || continue
        printf '\n## %s\n\n' "$name"
        awk '/^\|/ {if (/^\|---/ && tables++) print ""; if (row) print row; row = $0}
            END {if (!row) exit 1; print row}' "$OUT/$name.log" ||
            { echo '```'; tail -n 30 "$OUT/$name.log"; echo '```'; }
    done
}

last() { tr '\r' '\n' < "$OUT/$1.log" | grep . | tail -n 1 | cut -c 1-200; }

# result NAME: one cell of the table
result() {
    local code=none seconds starts=0
    read -r code seconds 2> /dev/null < "$STATE/$1.status"
    [ ! -f "$STATE/$1.starts" ] || starts=$(wc -l < "$STATE/$1.starts")
    case $code in
        0) printf 'ok' ;;
        124) printf 'took over %s s' "$seconds" ;;
        none) if [ -n "${REFUSED[$1]:-}" ]; then printf 'not run: %s' "${REFUSED[$1]}"
            elif running "$1"; then printf 'running'; else printf 'not run'; fi ;;
        *) printf 'failed, exit status %s: %s' "$code" "$(last "$1" | tr '|' '/')" ;;
    esac
    [ -z "${NOTES[$1]:-}" ] || printf ', %s' "${NOTES[$1]}"
    [ "$starts" -lt 2 ] || printf ', started %s times' "$starts"
}

# A part's processes hold its lock, even if those that started them are gone; its status file is written at its end.
running() { [ -f "$STATE/$1.lock" ] && ! flock -n "$STATE/$1.lock" true; }

# start NAME SECONDS RESULT COMMAND...: in a session of its own. If a signal ends the command it has no status, and is
# started again, three times at most. So has one that is told to stop and saves a checkpoint: RESULT is not there then.
start() {
    echo >> "$STATE/$1.starts"
    echo "$(date +%T) $1"
    {
        flock -n 9 || return
        # shellcheck disable=SC2016
        setsid bash -c 'state=$1 limit=$2 result=$3
            timeout --kill-after=30 "$limit" "${@:4}"; code=$?
            [ $code != 0 ] || [ -z "$result" ] || [ -e "$result" ] || code=143
            [ $code -le 128 ] || [ $SECONDS -lt "$limit" ] || code=124
            [ $code -le 128 ] || [ "$(wc -l < "$state.starts")" -ge 3 ] || exit
            echo "$code $SECONDS" > "$state.new" && mv "$state.new" "$state.status"' \
            _ "$STATE/$1" "$2" "$3" "${@:4}" > "$OUT/$1.log" 2>&1 < /dev/null 8>&- &
        echo $! > "$STATE/$1.pid"
    } 9> "$STATE/$1.lock"
}

ok() { [[ "$(cat "$STATE/$1.status" 2> /dev/null)" == "0 "* ]]; }

# part NAME SECONDS COMMAND...: run it, unless it is finished or cannot run here; RESULT is a file that it then has
part() {
    local name=$1
    COMMANDS[$name]="${*:3}"
    case " $PARTS " in *" all "* | *" $name "*) ;; *) return ;; esac
    if [ -n "$DRY_RUN" ]; then echo "timeout ${*:2}"; return; fi
    if [ -n "${REFUSED[$name]:-}" ]; then return; fi
    if [ "${COMMANDS[$name]}" != "$(cat "$STATE/$name.command" 2> /dev/null)" ] && ! running "$name"; then
        rm -f "$STATE/$name".*
        echo "${COMMANDS[$name]}" > "$STATE/$name.command"
    fi
    if [ -f "$STATE/$name.status" ]; then ok "$name" || FAILED=1; return; fi
    while [ ! -f "$STATE/$name.status" ]; do
        running "$name" || [ -f "$STATE/$name.status" ] || start "$name" "$2" "${RESULT:-}" "${@:3}"
        if [ $SECONDS -ge $((LIMIT - 10)) ]; then
            page > "$OUT/gpu.md"
            echo "$(date +%T) $name is not finished: call this again. Its log ends: $(last "$name")"
            exit 3
        fi
        sleep 1
    done
    ok "$name" || FAILED=1
    echo "$(date +%T) $name: $(result "$name")"
    page > "$OUT/gpu.md"
}

declare -A COMMANDS=() NOTES=() REFUSED=()
STATE=$OUT/state FAILED=0
if [ -z "$DRY_RUN" ]; then
    mkdir -p "$STATE" || exit 2
    exec 8> "$STATE/lock"    # not passed on to a part, see start()
    flock -n 8 || { echo "error: another call is at work in OUT=$OUT" >&2; exit 2; }
    machine=$(printf '| | |\n|---|---|\n| hardware | %s |\n| versions | %s |\n| revision | %s |' \
        "$(hardware | paste -sd ';' | sed 's/;/; /g')" "$(versions | paste -sd ',' | sed 's/,/, /g')" \
        "$(git describe --always --dirty 2> /dev/null || cat REVISION)")
    if [ -f "$OUT/machine" ] && [ "$machine" != "$(cat "$OUT/machine")" ]; then
        echo "error: OUT=$OUT was begun elsewhere or at another revision (see gpu.md there): give another OUT" >&2
        exit 2
    fi
    echo "$machine" > "$OUT/machine"
    if [ -f "$STATE/failed" ]; then    # all parts had their turn: those that failed have another one
        for name in $NAMES; do ok "$name" || rm -f "$STATE/$name.status" "$STATE/$name.starts"; done
        rm "$STATE/failed"
    fi
    trap 'echo "$name goes on in its session; to stop it: pkill -s $(cat "$STATE/$name.pid")"; exit 130' INT TERM
fi

DATASET=(--dataset.path "$DATA/gsm8k") ON_CPU=(--use_cpu true --bf16 false --dataloader_pin_memory false)
SFT=(--config recipes/smollm2_gsm8k_sft.yaml "${DATASET[@]}" --model_name_or_path "$MODEL")
GRPO=(--config recipes/smollm2_gsm8k.yaml "${DATASET[@]}")
RUN=("$PYTHON" -m grpo_math) RESUME=(--resume_from_checkpoint auto)
OVERHEAD=(--model "$MODEL") STEP=(--max_steps 10) STEP_TIME=() GRADING=()
if [ "$DEVICE" != cuda ]; then
    WITHOUT="without vLLM: DEVICE=$DEVICE" REFUSED[memory]="needs a GPU"
    SHORT=("${ON_CPU[@]}" --max_steps 2 --save_steps 1 --eval.max_samples 8 --eval.batch_size 8)
    SFT+=("${SHORT[@]}" --save_strategy steps --per_device_train_batch_size 2 --eval.max_completion_length 16)
    GRPO+=("${SHORT[@]}" --prompts_per_step 2 --num_generations 4 --per_device_train_batch_size 4
        --max_completion_length 16)
    OVERHEAD=(--runs 1 --steps 3) STEP=(--max_steps 3) STEP_TIME=(--steps 1 --prompts 1 --tokens 16)
    GRADING=(--errors-only)
elif ! "$PYTHON" -c "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"; then
    WITHOUT="without vLLM: not installed"
fi
if [ -n "${WITHOUT:-}" ]; then
    GRPO+=(--use_vllm false) REFUSED[generation]=$WITHOUT
    for name in before before_fallback grpo control step step_time; do NOTES[$name]=$WITHOUT; done
fi
if [ ! -d "$DATA/math500" ]; then
    unset GRPO_MATH_TEST_DATA
    NOTES[grading]="without real golds: no math500 in DATA"
fi

# SmolLM2 strictly by its boxes, and by the last number where there is no box
part before 1200 "${RUN[@]}" evaluate "${GRPO[@]}" --model "$MODEL" --out "$OUT/before"
part before_fallback 1200 "${RUN[@]}" evaluate "${GRPO[@]}" --model "$MODEL" --out "$OUT/before_fallback" \
    --prompt_template.answer_style fallback
RESULT=$OUT/sft/results.json part sft 3600 "${RUN[@]}" sft "${SFT[@]}" --output_dir "$OUT/sft" "${RESUME[@]}"
TRAIN=("${RUN[@]}" train "${GRPO[@]}" --model_name_or_path "$OUT/sft" "${RESUME[@]}")
ok sft || REFUSED[grpo]="sft is not finished"
RESULT=$OUT/grpo/results.json part grpo 7200 "${TRAIN[@]}" --output_dir "$OUT/grpo"
ok grpo && ok before && ok before_fallback || REFUSED[compare]="a part before it is not finished"
part compare 300 "${RUN[@]}" compare "$OUT/grpo/completions/eval-000000.parquet" "$OUT/before" "$OUT/before_fallback" \
    "$OUT/grpo" --show 0
part step 900 "$PYTHON" benchmarks/step.py "${GRPO[@]}" --model_name_or_path "$MODEL" --eval.before_after false \
    "${STEP[@]}"
part generation 1200 "$PYTHON" benchmarks/generation.py "$MODEL" --dtype bfloat16 --completions 8 64 256
part memory 1800 "$PYTHON" benchmarks/memory.py --model "$MODEL"
part overhead 1800 "$PYTHON" benchmarks/overhead.py "${OVERHEAD[@]}"
part step_time 1800 "$PYTHON" benchmarks/step_time.py "$MODEL" "${STEP_TIME[@]}"
part async_rewards 1200 "$PYTHON" benchmarks/async_rewards.py
part rewards 300 "$PYTHON" benchmarks/rewards.py
part grading 900 "$PYTHON" benchmarks/grading.py "${GRADING[@]}"
ok sft || REFUSED[control]="sft is not finished"
RESULT=$OUT/control/results.json part control 7200 "${TRAIN[@]}" --output_dir "$OUT/control" \
    --rewards.correctness false --rewards.random.chance 0.5
ok grpo && ok control || REFUSED[compare_control]="a part before it is not finished"
part compare_control 300 "${RUN[@]}" compare "$OUT/control" "$OUT/grpo" --show 0
[ -z "$DRY_RUN" ] || exit 0
page > "$OUT/gpu.md"
[ $FAILED = 0 ] || touch "$STATE/failed"
echo "$OUT/gpu.md"
exit $FAILED
