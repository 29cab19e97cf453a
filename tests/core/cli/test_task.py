"""`task sample`: the questions of a file as a model reads them."""

import json

import making


def test_a_sample_is_what_the_scorer_reads(tmp_path):
    from words import word_tokenizer

    making.tiny_llama().save_pretrained(tmp_path / "base")
    template = "{% for m in messages %}<s> user {{ m.content }} </s>{% endfor %} bo"
    word_tokenizer(chat_template=template).save_pretrained(tmp_path / "base")
    file = tmp_path / "t.jsonl"
    file.write_text('{"prompt": "who is ada ?", "answer": "cy"}\n', encoding="utf-8")
    rest = (file, "--json")

    def sampled(*options):
        shown = making.call("task", "sample", *rest, *options)
        assert shown.exit_code == 0, shown.stderr
        (row,) = json.loads(shown.stdout)["previews"]
        return row["prompt"], row["tokens"], row["answers"]

    base = ("--base", tmp_path / "base")
    assert sampled() == ("who is ada ?", None, ["cy"])
    assert sampled(*base) == ("<s> user who is ada ? </s> bo", 8, ["cy"])
    assert sampled(*base, "--chat-template", "off") == ("who is ada ?", 5, ["cy"])
    for wrong in (("--chat-template", "on"), ("--base", "auto")):
        refused = making.call("task", "sample", *rest, *wrong)
        assert refused.exit_code == 2 and "--base" in refused.stderr


def test_a_sample_is_shown_in_lines_of_a_terminal(tmp_path):
    file = tmp_path / "t.jsonl"
    question = {"prompt": "In which city does Ada live?", "answer": ["Ulm", "Ulm on the Danube"]}
    file.write_text(json.dumps({**question, "cot_prompt": "Think.", "choices": ["Ulm", "Rome"]}))
    shown = making.call("task", "sample", file, env={"COLUMNS": "80"})
    assert shown.exit_code == 0 and question["prompt"] in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
