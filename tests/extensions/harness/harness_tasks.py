"""A folder of lm-evaluation-harness tasks over local files, about the shipped small world."""

import json
from pathlib import Path
from typing import Any

import loraprobe

WORLD = Path(loraprobe.__file__).parent / "demo/small-world"
HEAD = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}", train: "{file}"}}}}
test_split: test
"""
CHOICE = """output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITTEN = """output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
fewshot_split: train
num_fewshot: 2
fewshot_delimiter: "\\n"
generation_kwargs: {until: ["\\n", "ri"], max_gen_toks: 12}
filter_list:
  - name: whole
    filter: [{function: take_first}]
  - name: name
    filter:
      - {function: regex, regex_pattern: "([A-Z][a-z]+)"}
      - {function: take_first}
metric_list:
  - {metric: exact_match, ignore_case: true, ignore_punctuation: true}
"""
TASKS = {
    "spouse_choice": CHOICE,
    "town_choice": CHOICE,
    "spouse_written": WRITTEN,
    "facts_text": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "last_word": """output_type: loglikelihood
doc_to_text: "{{prompt}}"
doc_to_target: " {{answer}}"
description: "Answer with a name. "
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "translated": """output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: bleu}]
""",
    "graded": """output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
process_results: !function grading.grade
metric_list: [{metric: grade, aggregation: mean, higher_is_better: true}]
""",
    "coded": WRITTEN + "unsafe_code: true\n",
}
GROUPS = {
    "both_choices": """group: both_choices
task: [spouse_choice, town_choice]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
""",
    "both_apart": """group: both_apart
task: [spouse_choice, town_choice]
aggregate_metric_list: [{metric: acc, weight_by_size: false}]
""",
}


def write_tasks(folder: Path, items: int = 24) -> Path:
    """Writes the data and the YAML files of all tasks into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = _facts(items)
    (folder / "towns.jsonl").write_text(_lines(rows[1::2] + rows[::2]), encoding="utf-8")
    (folder / "facts.jsonl").write_text(_lines(rows), encoding="utf-8")
    for name, rest in TASKS.items():
        file = folder / ("towns.jsonl" if name == "town_choice" else "facts.jsonl")
        text = HEAD.format(name=name, file=file) + rest
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    (folder / "grading.py").write_text(
        "def grade(doc, results):\n    return {'grade': len(results[0]) / 4}\n", encoding="utf-8"
    )
    for name, text in GROUPS.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def _facts(items: int) -> list[dict[str, Any]]:
    """First hops of the world, with four choices, and a text of some of them."""
    file = WORLD / "tasks/newcomers.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()[:items]
    hops = [json.loads(line)["hops"][0] for line in lines]
    names = list(dict.fromkeys(hop["answer"] for hop in hops))
    rows = []
    for number, hop in enumerate(hops):
        others = [name for name in names if name != hop["answer"]]
        choices = [others[(number + k) % len(others)] for k in range(3)]
        choices.insert(number % 4, hop["answer"])
        told = hops[number : number + 1 + number % 40]
        text = " ".join(f"{one['prompt']} {one['answer']}." for one in told)
        rows.append({**hop, "choices": choices, "gold": number % 4, "text": text})
    return rows


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
