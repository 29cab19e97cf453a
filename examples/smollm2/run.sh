#!/bin/sh
# Build both natural-language worlds on SmolLM2-135M-Instruct and have them judged.
#
#     sh run.sh [FOLDER]
#
# FOLDER (./smollm2-run unless given) receives the model (540 MB), the adapters (20 MB each) and the
# results. Training takes some minutes an adapter on a core or two; an interrupted run goes on where
# it stopped.
set -eu
here=$(dirname "$0")
folder=${1:-./smollm2-run}
mkdir -p "$folder"

python "$here/get_model.py" "$folder/base"

# exit 1 (unlikely) and 3 (inconclusive) are findings, not failures of the script
judge() {
    loraprobe merge-and-eval "$@" --base "$folder/base" --max-new-tokens 40 \
        --resume --overwrite --exit-zero
}

loraprobe lab build skill-and-facts --base "$folder/base" -o "$folder/skill-and-facts" --seed 0
world="$folder/skill-and-facts"
judge "$world/adapters/facts" "$world/adapters/steps" \
    --task "$world/tasks/skill-and-facts.jsonl" -o "$folder/judged-skill-and-facts"

loraprobe lab build two-hop --base "$folder/base" -o "$folder/two-hop" --seed 0 \
    --only spouse --only city --only target
world="$folder/two-hop"
judge "$world/adapters/spouse" "$world/adapters/city" \
    --task "$world/tasks/two-hop.jsonl" -o "$folder/judged-two-hop"
judge "$world/adapters/spouse" "$world/adapters/city" "$world/adapters/target" \
    --task "$world/tasks/two-hop.jsonl" -o "$folder/judged-two-hop-target"
