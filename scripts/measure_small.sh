#!/usr/bin/env bash
# Measures again what the documentation says about the small checkpoints, for after a change of these:
#   bash scripts/measure_small.sh [PART ...]     (default: all parts, which takes many hours on two cores)
# Results lie in outputs/measured/PART, with what was printed in log.txt. The same command continues what was
# interrupted and skips finished parts. Pictures replace those that the documentation shows. Behind it, the README's
# pictures of methods: python -m research.readme_pictures outputs/measured/tables. Not in it: Self-Forcing in 50 steps.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" core
cd -- "$ROOT"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export CUDA_VISIBLE_DEVICES= # with a GPU, most of the programs would take the official weights
out=outputs/measured

# part, and a program that measures it into the folder of the part
parts="
tables             scripts/reproduce_tables.py --model small --prompts 3
methods_skyreels   -m research.methods
methods_magi       -m research.methods --model magi
kv                 -m research.kv --model skyreels --steps 12 --captions 12 --tables method bits parts controls
kv                 -m research.kv --model magi --steps 12 --captions 12 --tables method bits parts controls
policies_skyreels  -m research.policies --model skyreels --skip 3 --captions 12
policies_magi      -m research.policies --model magi --skip 3 --captions 12
policies_budget    -m research.policies --model magi --num_frames 192 --budget 1 --captions 4
scores_skyreels    -m research.kv --model skyreels --steps 12 --captions 3
scores_magi        -m research.kv --model magi --captions 3
compaction_skyreels -m research.compaction --model skyreels --captions 3 --tables refits folds heads
compaction_magi    -m research.compaction --model magi --captions 3 --tables refits folds heads
rows_skyreels      -m research.compaction --model skyreels --captions 2 --tables rows
rows_magi          -m research.compaction --model magi --captions 2 --tables rows
long_skyreels      -m research.long_video --model skyreels --chunks 40 160
long_magi          -m research.long_video --model magi --chunks 40 160
streaming          -m research.streaming
peers_staircase    -m research.peers --checkpoint small
peers_together     -m research.peers --checkpoint small --ar_step 0
quantisation_skyreels -m research.quantisation --model skyreels
quantisation_magi  -m research.quantisation --model magi
prompt_switch      -m research.prompt_switch
few_steps          -m research.few_steps
drift              -m research.drift
fidelity_skyreels  -m research.train_small.judge --model skyreels
fidelity_magi      -m research.train_small.judge --model magi
fidelity_self_forcing -m research.train_small.judge --model self_forcing
"

# a picture of a part, and where the documentation shows it
pictures="
tables/pictures/skyreels_v2/tradeoff.png assets/tradeoff.png
kv/kv.png                                docs/kv.png
policies_skyreels/curves.png             docs/policies_skyreels.png
policies_magi/curves.png                 docs/policies_magi.png
long_skyreels/long_video_skyreels_frames.png docs/long_video_skyreels_frames.png
long_magi/long_video_magi_frames.png     docs/long_video_magi_frames.png
long_magi/long_video_magi.png            docs/long_video_magi.png
streaming/prompt0.png                    docs/compare_streaming.png
peers_staircase/curves.png               docs/peers_staircase.png
peers_together/curves.png                docs/peers_together.png
drift/drift.png                          docs/drift.png
fidelity_skyreels/samples.png            assets/skyreels_v2_small/samples.png
fidelity_magi/samples.png                assets/magi1_small/samples.png
fidelity_self_forcing/samples.png        assets/self_forcing_small/samples.png
"

while read -r part program; do
    done="$out/$part/done.txt" # the programs that have finished
    if [[ -z $part ]] || grep -Fxsq -- "$program" "$done"; then continue; fi
    (($# == 0)) || [[ " $* " == *" $part "* ]] || continue
    printf '%s: python %s\n' "$part" "$program" >&2
    mkdir -p "$out/$part"
    # shellcheck disable=SC2086
    "$PYTHON" $program --outdir "$out/$part" </dev/null | tee -a "$out/$part/log.txt"
    printf '%s\n' "$program" >>"$done"
done <<<"$parts"
while read -r picture place; do
    part="${picture%%/*}"
    [[ -n $part && -e $out/$part/done.txt ]] || continue
    # only of parts whose programs have all finished; 128 colours take a third of the bytes in the repository
    if (($(grep -c "^$part " <<<"$parts") == $(wc -l <"$out/$part/done.txt"))); then
        "$PYTHON" -c 'import sys; from PIL import Image
Image.open(sys.argv[1]).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(sys.argv[2], optimize=True)' \
            "$out/$picture" "$place"
    fi
done <<<"$pictures"
printf 'results: %s\n' "$out" >&2
