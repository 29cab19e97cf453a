"""Python programs with peft alone, for what no command does: to switch and to chain adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loraprobe.records import ChainHop, Command, adapter_name

# It writes and reads an answer as the evaluation does: greedily, and of the text the first line
# that is not blank, without punctuation at its end.
ASK = """\
def ask(prompt):
    ids = {encode}, return_tensors='pt').to(model.device)
    out = model.generate(**ids, max_new_tokens={tokens}, do_sample=False, repetition_penalty=1.0)[0]
    text = tokenizer.decode(out[ids['input_ids'].shape[1]:], skip_special_tokens=True)
    line = text.strip().split('\\n')[0]
    return line.rstrip(' .!?,;') or line"""
ENCODE = "tokenizer(prompt"
ENCODE_TURN = (
    "tokenizer.apply_chat_template([{'role': 'user', 'content': prompt}], "
    "add_generation_prompt=True, return_dict=True"
)


def ask_chain(references: Sequence[str], hops: Sequence[ChainHop], tokens: int) -> Command:
    """The program that asks the hops of one question, each answer with at most so many tokens."""
    lines = [ASK.format(encode=ENCODE_TURN if hops[0].chat else ENCODE, tokens=tokens)]
    only_base = all(hop.adapter == "base" for hop in hops)
    for hop in hops:
        earlier = [k for k in range(1, hop.hop) if f"{{{k}}}" in hop.prompt]
        filled = "".join(f".replace('{{{k}}}', answer{k})" for k in earlier)
        ask = f"answer{hop.hop} = ask({hop.prompt!r}{filled})"
        if hop.adapter != "base":
            lines += [f"model.set_adapter({_name_in_peft(hop.adapter)})", ask]
        else:
            lines += [ask] if only_base else ["with model.disable_adapter():", f"    {ask}"]
    needs = "# base, tokenizer: the loaded base model and its tokenizer"
    return _program(needs, references, [hop.adapter for hop in hops], lines)


def switch_by_task(references: Sequence[str], by_task: Mapping[str, str]) -> Command:
    """The program that loads the best adapter of each task, and puts each to use."""
    lines = []
    for task, system in by_task.items():
        use = f"model.set_adapter({_name_in_peft(system)})"
        off = "with model.disable_adapter(): ..."
        lines.append(f"{off if system == 'base' else use}  # for {task!a}")
    return _program("# base: the loaded base model", references, [*by_task.values()], lines)


def _program(
    needs: str, references: Sequence[str], systems: Sequence[str], lines: Sequence[str]
) -> Command:
    """A program that loads the adapters among some systems and then runs lines.

    needs: a comment that says what has to be there already.
    """
    names = [name for name in dict.fromkeys(systems) if name != "base"]
    loads = ["from peft import PeftModel" if names else "model = base"]
    for at, name in enumerate(names):
        call = "model.load_adapter(" if at else "model = PeftModel.from_pretrained(base, "
        loads.append(f"{call}{{{at}}}, adapter_name={_name_in_peft(name)})")
    code = "\n".join(lines)
    if names:  # the text is formatted with their places
        code = code.replace("{", "{{").replace("}", "}}")
    place = {adapter_name(reference): reference for reference in references}
    places = tuple(place.get(name, name) for name in names)
    return Command("python", places, text="\n".join([needs, *loads, code]))


def _name_in_peft(adapter: str) -> str:
    """The name under which a program loads an adapter, in quotes; peft takes no dot."""
    return repr(adapter.replace(".", "_"))
