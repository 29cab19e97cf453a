#!/usr/bin/env bash
# Two adapters, from a verdict to a server whose answers are checked.
#
#     bash end_to_end.sh BASE NAME=ADAPTER NAME=ADAPTER TASK TASK OUT [OPTION...]
#
# It needs vLLM (VLLM=PATH names the program), and pip install 'loraprobe[proxy]'. OPTION goes to the
# runs of merge-and-eval, such as --limit 60. All that is printed stands in OUT, and the servers end
# with the script.
set -euo pipefail
base=$1 one=$2 two=$3 first=$4 second=$5 out=$6
shift 6
here=$(cd "$(dirname "$0")" && pwd)
port=${PORT:-8000} front=${FRONT:-8080}
mkdir -p "$out"
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
say() { printf '\n$ %s\n' "$*"; }
tasks=(--base "$base" --task "$first" --task "$second")

ready() { # URL SECONDS
    for _ in $(seq "$2"); do curl -sf "$1" >/dev/null && return; sleep 1; done
    echo "$1 does not answer" >&2
    exit 1
}

say loraprobe merge-and-eval ONE TWO --task FIRST --task SECOND --serve vllm -o routed "$@"
loraprobe merge-and-eval "$one" "$two" "${tasks[@]}" --serve vllm -o "$out/routed" --overwrite \
    --save-samples "$out/here.jsonl" --exit-zero "$@" | tee "$out/verdict.txt"
test -e "$out/routed/router.json" # else another system is advised

adapters=()
for given in "$one" "$two"; do adapters+=("${given%%=*}=$out/routed/experts/${given%%=*}"); done
say vllm serve BASE --enable-lora --lora-modules "${adapters[@]##*/}"
"${VLLM:-vllm}" serve "$base" --served-model-name base --enable-lora --lora-modules "${adapters[@]}" \
    --max-loras 2 --max-lora-rank "${RANK:-16}" --dtype float32 --max-model-len "${LENGTH:-512}" \
    --host 127.0.0.1 --port "$port" --enforce-eager >"$out/vllm.log" 2>&1 &
ready "http://127.0.0.1:$port/health" 900

say loraprobe proxy routed --server "http://127.0.0.1:$port" --port "$front"
loraprobe proxy "$out/routed" --server "http://127.0.0.1:$port" --port "$front" &
ready "http://127.0.0.1:$front/health" 60

say loraprobe merge-and-eval ONE TWO ... --engine "http://127.0.0.1:$front" --system by-text
loraprobe merge-and-eval "$one" "$two" "${tasks[@]}" --system by-text --exit-zero "$@" \
    --engine "http://127.0.0.1:$front" --save-samples "$out/served.jsonl" | tee "$out/served.txt"

say python compare.py here.jsonl served.jsonl --ask "http://127.0.0.1:$front"
python "$here/compare.py" "$out/here.jsonl" "$out/served.jsonl" --ask "http://127.0.0.1:$front" \
    | tee "$out/compared.txt"

named="${one%%=*}=$out/routed/experts/${one%%=*},${two%%=*}=$out/routed/experts/${two%%=*},base"
say loraprobe verify --served "http://127.0.0.1:$front" --adapters ONE,TWO,base --load 8 --seconds 20
loraprobe verify --served "http://127.0.0.1:$front" --adapters "$named" --load 8 --seconds 20 \
    --base "$base" | tee "$out/load.txt" # its exit code is that of the script
