#!/usr/bin/env bash
# Two adapters, from a verdict to a server whose answers are checked.
#
#     bash end_to_end.sh BASE NAME=ADAPTER NAME=ADAPTER TASK TASK OUT [OPTION...]
#
# 1. merge-and-eval measures both adapters, their merges and the router by-text on your two tasks, and
#    writes the router with its adapters to OUT/routed.
# 2. vLLM serves the base and these adapters, and loraprobe proxy stands in front of it.
# 3. merge-and-eval asks the same questions through the front, and compare.py compares the answers.
# 4. verify tells whether each name is what it should be, also while requests of all names come at once.
#
# It needs vLLM (VLLM=PATH names the program, RANK=N the largest rank of your adapters, 16 by default),
# and pip install 'loraprobe[proxy]'. OPTION goes to both runs of merge-and-eval, such as --limit 48.
# PORT and FRONT are where the server and the front listen (8000 and 8080). All that is printed stands in
# OUT as well, and the servers end with the script. Its exit code is 0 where everything is right.
set -euo pipefail
if [ $# -lt 6 ]; then
    sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
base=$1 one=$2 two=$3 first=$4 second=$5 out=$6
shift 6
here=$(cd "$(dirname "$0")" && pwd)
server=http://127.0.0.1:${PORT:-8000} front=http://127.0.0.1:${FRONT:-8080}
mkdir -p "$out"
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
tasks=(--base "$base" --task "$first" --task "$second")

step() { printf '\n$ %s\n' "$*"; } # the command that follows, with short names
fail() { echo "$*" >&2; exit 1; }

ready() { # URL SECONDS PROCESS WHAT: waits until a server answers
    for _ in $(seq "$2"); do
        kill -0 "$3" 2>/dev/null || fail "$4 ended; look at $out/vllm.log."
        curl -sf "$1/health" >/dev/null && return
        sleep 1
    done
    fail "$4 does not answer at $1 after $2 s."
}

step loraprobe merge-and-eval ONE TWO --task FIRST --task SECOND --serve vllm -o routed "$@"
loraprobe merge-and-eval "$one" "$two" "${tasks[@]}" --serve vllm -o "$out/routed" --overwrite \
    --save-samples "$out/here.jsonl" --exit-zero "$@" | tee "$out/verdict.txt"
[ -e "$out/routed/router.json" ] || fail "The verdict advises another system than by-text; serve that."

# One place more than there are adapters (--max-loras): vLLM before 0.33 on a CPU gives requests of the
# base what stands in the last place, where it reads them together with requests of an adapter.
adapters=()
for given in "$one" "$two"; do adapters+=("${given%%=*}=$out/routed/experts/${given%%=*}"); done
step vllm serve BASE --enable-lora --max-loras 3 --lora-modules "${adapters[@]/"$out/"/}"
"${VLLM:-vllm}" serve "$base" --served-model-name base --enable-lora --max-loras 3 \
    --lora-modules "${adapters[@]}" --max-lora-rank "${RANK:-16}" --dtype float32 \
    --max-model-len "${LENGTH:-512}" --host 127.0.0.1 --port "${server##*:}" --enforce-eager \
    >"$out/vllm.log" 2>&1 &
ready "$server" 900 $! "vLLM"

step loraprobe proxy routed --server "$server" --port "${front##*:}"
loraprobe proxy "$out/routed" --server "$server" --port "${front##*:}" &
ready "$front" 60 $! "The front"

step loraprobe merge-and-eval ONE TWO --task FIRST --task SECOND --engine "$front" --system by-text "$@"
loraprobe merge-and-eval "$one" "$two" "${tasks[@]}" --system by-text --exit-zero "$@" \
    --engine "$front" --save-samples "$out/served.jsonl" | tee "$out/served.txt"

step python compare.py here.jsonl served.jsonl --ask "$front"
python "$here/compare.py" "$out/here.jsonl" "$out/served.jsonl" --ask "$front" \
    | tee "$out/compared.txt"

named=$(IFS=,; echo "${adapters[*]}"),base
step loraprobe verify --served "$front" --adapters "${named//"$out/"/}" --base BASE --load 8 --seconds 60
loraprobe verify --served "$front" --adapters "$named" --base "$base" --load 8 --seconds 60 \
    | tee "$out/load.txt" # it ends with 1 where the server is wrong, which ends the script so
