r"""Turns of a conversation -> one readable text, by one rule, whatever wrote them.

    [user]
    What is in the list?

    [assistant]
    I look it up.
    call read_file({"path": "list.txt"})

    [tool read_file]
    milk, eggs

A blank line between turns. A turn is headed by its role, a tool's result also by the tool's name; then its
text, then its calls, one a line, with their arguments as JSON. Sessions (a list of lists) are parted by
[session 2]. Pictures and the like become (image); reasoning is left out unless asked for. A line of a message
that would read as a header, a call or an error is indented by a space, so that no tool result can pose as
another turn.

Turns are read in the shapes of OpenAI's chat (tool_calls, function_call), of Inspect logs, and of R-Judge
(thought, action).
"""

import json
import re
from typing import NamedTuple

from minimon.files import one_line
from minimon.formats.records import lookup

ROLES = {
    "human": "user",
    "agent": "assistant",
    "ai": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "environment": "tool",
    "function": "tool",
    "observation": "tool",
}
LINE_BREAK = re.compile(
    "\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]"
)  # that JSON or a terminal may not see as one
POSE = re.compile(r"^(?=\[|call |error: )", re.M)


class Call(NamedTuple):
    id: object
    tool: str
    arguments: str  # on one line


def text_of(
    record: dict, field: str, where: str, max_chars: int | None = None, reasoning: bool = False
) -> str:
    """A field of a record as text, turns as a transcript. Of more than max_chars the middle is cut."""
    value = lookup(record, field, where)
    if isinstance(value, list):
        try:
            value = transcript(value, f"{where}, {field}", reasoning)
        except RecursionError:
            raise ValueError(f"{where}, {field}: expected turns, got lists nested too deeply") from None
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected text in field {field!r}, got {type(value).__name__}")
    return without_middle(value, max_chars)


def without_middle(text: str, max_chars: int | None) -> str:
    if max_chars is None or len(text) <= max_chars:
        return text
    head = max_chars // 2
    tail = text[head - max_chars :]
    if POSE.match(tail):  # the cut lies where no line began
        tail = f" {tail}"
    return f"{text[:head]}\n[... {len(text) - max_chars} characters left out ...]\n{tail}"


def transcript(turns: list, where: str, reasoning: bool = False) -> str:
    """[{role, content ...}], or a list of such lists -> text. ValueError names `where` and the turn."""
    if turns and all(isinstance(session, list) for session in turns):
        texts = []
        for number, session in enumerate(turns, 1):
            texts += [f"[session {number}]"] if number > 1 else []
            texts.append(transcript(session, f"{where}, session {number}", reasoning))
        return "\n\n".join(texts)
    parts, tools = [], {}  # tools: id of a call -> its tool
    for number, turn in enumerate(turns, 1):
        at = f"{where}, turn {number}"
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise ValueError(f"{at}: expected an object with a role and content, got {brief(turn)}")
        calls = calls_of(turn, at)
        tools.update({call.id: call.tool for call in calls if isinstance(call.id, str)})
        parts.append("\n".join([header(turn, tools), *body(turn, calls, at, reasoning)]))
    return "\n\n".join(parts)


def header(turn: dict, tools: dict) -> str:
    role = turn["role"].lower()
    role = one_line(ROLES.get(role, role))
    call = turn.get("tool_call_id")
    tool = (tools.get(call) if isinstance(call, str) else None) or turn.get("name") or turn.get("function")
    return f"[{role} {one_line(tool)}]" if role == "tool" and tool else f"[{role}]"


def body(turn: dict, calls: list[Call], at: str, reasoning: bool) -> list[str]:
    fields = ["reasoning_content"] if reasoning else []
    texts = [content(turn.get(field), at, reasoning) for field in [*fields, "content", "thought"]]
    lines = [text for text in texts if text]
    lines += [f"call {call.tool}({call.arguments})" for call in calls]
    if turn.get("action"):
        lines.append("call " + guarded(turn["action"], at).strip())
    error = turn.get("error")
    if isinstance(error, dict):
        error = error.get("message", error)
    return [*lines, f"error: {one_line(error)}"] if turn.get("error") else lines


def content(value, at: str, reasoning: bool) -> str:
    """A message's text: a string, or a list of parts."""
    if value is None or isinstance(value, str):
        return guarded(value or "", at).strip("\n")
    if not isinstance(value, list):
        raise ValueError(f"{at}: expected content to be text or a list of parts, got {type(value).__name__}")
    texts = [part_text(part, at, reasoning) for part in value]
    return "\n".join(text for text in texts if text)


def part_text(part, at: str, reasoning: bool) -> str:
    if isinstance(part, str):
        return content(part, at, reasoning)
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError(
            f"{at}: expected a part of content to be text or an object with a type, got {brief(part)}"
        )
    kind = part["type"]
    if kind in ("text", "input_text", "output_text", "refusal"):
        return content(part.get("text", part.get("refusal")), at, reasoning)
    if kind in ("reasoning", "thinking"):
        thought = part.get("reasoning") or part.get("thinking") or part.get("summary")
        return content(thought, at, reasoning) if reasoning else ""
    if kind == "tool_use":  # a tool that the model's provider ran
        arguments = arguments_text(part.get("arguments", part.get("input")))
        call = f"call {one_line(part.get('name'))}({arguments})"
        return f"{call}\n{content(str(part['result']), at, reasoning)}" if part.get("result") else call
    return f"({one_line(kind)})"


def calls_of(turn: dict, at: str) -> list[Call]:
    calls = turn.get("tool_calls") or []
    if not calls and turn.get("function_call"):
        calls = [{"function": turn["function_call"]}]
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"{at}: expected tool_calls to be a list of objects, got {brief(calls)}")
    return [read_call(call, at) for call in calls]


def read_call(call: dict, at: str) -> Call:
    """OpenAI nests name and arguments under `function`; in Inspect logs `function` is the name."""
    function = call.get("function")
    if not isinstance(function, dict):
        function = {"name": function, "arguments": call.get("arguments")}
    if not isinstance(function.get("name"), str):
        raise ValueError(f"{at}: expected a tool call to name its function, got {brief(call)}")
    return Call(call.get("id"), one_line(function["name"]), arguments_text(function.get("arguments")))


def arguments_text(arguments) -> str:
    """On one line: JSON where it is JSON, else the text, its line breaks escaped."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return LINE_BREAK.sub("\n", arguments).replace("\n", "\\n")
    if arguments in (None, {}):
        return ""
    return LINE_BREAK.sub(escaped, json.dumps(arguments, ensure_ascii=False))


def escaped(line_break: re.Match) -> str:
    """As JSON writes it; of these json.dumps leaves U+0085, U+2028 and U+2029 as they are."""
    return "".join(f"\\u{ord(char):04x}" for char in line_break[0])


def guarded(text, at: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{at}: expected text, got {type(text).__name__}")
    return POSE.sub(" ", LINE_BREAK.sub("\n", text))


def brief(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
