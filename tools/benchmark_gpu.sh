#!/usr/bin/env bash
# Measure the GPU figures of BENCHMARKS.md, the most valuable first, within LIMIT seconds.
#   OUT=DIR LIMIT=580 DATA=DIR OFFICIAL=DIR REFERENCE=FILE RECIPE=FILE tools/benchmark_gpu.sh
# DATA: NEU-DET in COCO format; without it, the last part is left out. OFFICIAL, REFERENCE: a clone of DEIMv2 and the
# script that times it; without them, only this code is timed. RECIPE: the parity recipe.py, for equal inputs.
set -u
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH=.
out=${OUT:-outputs/benchmark_gpu}; device=${DEVICE:-cuda}; size=${SIZE:-1024}; steps=${STEPS:-20}; limit=${LIMIT:-580}
recipe=${RECIPE:+--recipe $RECIPE}
mkdir -p "$out"
started=$(date +%s)

log() { tee -a "$out/log.txt"; }
left() { echo $((limit - $(date +%s) + started)); }
say() { echo "== [$((limit - $(left))) s] $*" | log; }
step() { say "step $*"; timeout 80 python3 tools/benchmark.py step --device "$device" --variant m --size "$size" \
    --steps "$steps" --warmup 10 $recipe "$@" 2>&1 | tail -n 4 | log; }
train() { timeout "$(left)" python3 tools/train.py --overwrite "$@" 2>&1 | tail -n 40 | log; }

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null | log
python3 -c "import sys, torch; print(sys.version.split()[0], torch.__version__)" | log

precisions="bf16 fp16"; [ "$device" = cpu ] && precisions=off
[ -d "$out/data" ] || python3 tools/make_synthetic.py --root "$out/data" --train-images 60 --val-images 6 --test-images 4 | log
for amp in $precisions; do
    say "30 steps of deimv2_1024, $amp"
    train -c configs/deimv2_1024.yml --set "data.root=$out/data" "output_dir=$out/train_$amp" epochs=2 \
        "image_size=$size" "runtime.amp=$amp" "runtime.device=$device" schedule.warmup_steps=4 schedule.flat_epochs=1 \
        evaluation.bootstrap_resamples=0 evaluation.every_epochs=2
    tail -n 2 "$out/train_$amp/metrics.jsonl" | cut -c -400 | log
done

amp=${precisions%% *}
for batch in 4 16; do
    if [ -n "${OFFICIAL:-}" ]; then
        say "official step, batch $batch"
        timeout 120 python3 "$REFERENCE" --repo "$OFFICIAL" --device "$device" --variant m --size "$size" \
            --batch "$batch" --steps "$steps" --amp "$amp" 2>&1 | tail -n 3 | log
    fi
    step --batch "$batch" --amp "$amp"
done

step --amp "$amp" --profile "$out/profile.txt"
head -n 30 "$out/profile.txt" | log
for mode in default reduce-overhead; do
    [ "$(left)" -gt 60 ] || break
    step --amp "$amp" --compile "$mode"
done

if [ -n "${DATA:-}" ] && [ "$(left)" -gt 60 ]; then
    # As many epochs as 80 % of the time left allows: 79 steps of 16 images and 1.5 s of validation each.
    line=$(python3 tools/benchmark.py step --device "$device" --variant s --size 320 --batch 16 --boxes 3 --steps 10 \
        --amp "$amp" | tail -n 1)
    epochs=$(python3 -c "import json, sys
step_s = json.loads(sys.argv[1])['step_ms'] / 1000
print(max(1, min(60, int(0.8 * ($(left) - 25) / (79 * step_s + 1.5)))))" "$line")
    printf '_base_: %s/configs/neu_det.yml\nmodel: s\n' "$PWD" >"$out/neu_det_s.yml"
    say "NEU-DET, S at 320 px, $epochs epochs"
    train -c "$out/neu_det_s.yml" --set "data.root=$DATA" "output_dir=$out/neu_det" "epochs=$epochs" image_size=320 \
        data.batch_size=16 data.eval_batch_size=16 data.num_workers=8 recipe.lr=5e-4 recipe.backbone_lr=5e-4 \
        evaluation.every_epochs=5 "runtime.device=$device" "runtime.amp=$amp"
fi
say done
