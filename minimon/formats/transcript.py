"""Turns of a conversation -> one readable text, by one rule, whatever wrote them.

    [user]
    What is in the list?

    [assistant]
    I look it up.
    call read_file({"path": "list.txt"})

    [tool read_file]
    milk, eggs

A blank line between turns. A turn is headed by its role, a tool's result also by the tool's name; then its text, then its calls, one a
line, with their arguments as JSON. Sessions (a list of lists) are parted by [session 2]. Pictures and the like become (image); reasoning
is left out unless asked for. A line of a message that would read as a header, a call or an error is indented by a space, so that no tool
result can pose as another turn.

Turns are read in the shapes of OpenAI's chat (tool_calls, function_call), of Inspect logs, and of R-Judge (thought and action).
"""

import json
import re

from minimon.formats.records import lookup

ROLES = {"human": "user", "agent": "assistant", "ai": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
         "environment": "tool", "function": "tool", "observation": "tool"}
FIELD = re.compile(r"\{([^{}]+)\}")
BREAKS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
POSES = re.compile(r"^(?=\[|call |error: )", re.M)


def text_of(record: dict, text: str, where: str, max_chars: int | None = None, reasoning: bool = False) -> str:
    """The field `text` of a record, or a template with fields in braces; turns as a transcript.

    Of more than max_chars the middle is cut."""
    def shown(name):
        value = lookup(record, name, where)
        if isinstance(value, list):
            try:
                return transcript(value, f"{where}, {name}", reasoning)
            except RecursionError:
                raise ValueError(f"{where}, {name}: expected turns, got lists that are nested too deeply") from None
        if not isinstance(value, str):
            raise ValueError(f"{where}: expected text in field {name!r}, got {type(value).__name__}")
        return value

    whole = FIELD.sub(lambda match: shown(match[1]), text) if "{" in text else shown(text)
    cut = len(whole) - max_chars if max_chars else 0
    if cut <= 0:
        return whole
    return f"{whole[:max_chars // 2]}\n[... {cut} characters left out ...]\n{whole[-(max_chars - max_chars // 2):]}"


def fields_of(text: str) -> list[str]:
    return FIELD.findall(text) if "{" in text else [text]


def transcript(turns: list, where: str, reasoning: bool = False) -> str:
    """[{role, content ...}], or a list of such lists -> text. Raises ValueError naming `where` and the turn."""
    if turns and all(isinstance(session, list) for session in turns):
        parts = [transcript(session, f"{where}, session {number}", reasoning) for number, session in enumerate(turns, 1)]
        return "\n\n".join(part if number == 1 else f"[session {number}]\n\n{part}" for number, part in enumerate(parts, 1))
    names, parts = {}, []                      # names: id of a call -> its tool
    for number, turn in enumerate(turns, 1):
        at = f"{where}, turn {number}"
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise ValueError(f"{at}: expected an object with a role and content, got {brief(turn)}")
        calls = calls_of(turn, at)
        names |= {identity: name for identity, name, _ in calls if isinstance(identity, str)}
        texts = [content(turn.get("content"), at, reasoning), content(turn.get("thought"), at, reasoning)]
        if reasoning:
            texts.insert(0, content(turn.get("reasoning_content"), at, reasoning))
        lines = [text for text in texts if text] + [f"call {name}({arguments})" for _, name, arguments in calls]
        if turn.get("action"):
            lines.append("call " + guarded(turn["action"], at).strip())
        if turn.get("error"):
            error = turn["error"]
            lines.append("error: " + one_line(error.get("message", error) if isinstance(error, dict) else error))
        parts.append("\n".join([header(turn, names), *lines]))
    return "\n\n".join(parts)


def header(turn: dict, names: dict) -> str:
    role = one_line(ROLES.get(turn["role"].lower(), turn["role"].lower()))
    tool = names.get(turn.get("tool_call_id")) if isinstance(turn.get("tool_call_id"), str) else None
    tool = tool or turn.get("name") or turn.get("function")
    return f"[{role} {one_line(tool)}]" if role == "tool" and tool else f"[{role}]"


def content(value, at: str, reasoning: bool) -> str:
    """A message's text: a string, or a list of parts."""
    if value is None or isinstance(value, str):
        return guarded(value or "", at).strip("\n")
    if not isinstance(value, list):
        raise ValueError(f"{at}: expected content to be text or a list of parts, got {type(value).__name__}")
    return "\n".join(text for part in value if (text := part_text(part, at, reasoning)))


def part_text(part, at: str, reasoning: bool) -> str:
    if isinstance(part, str):
        return content(part, at, reasoning)
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError(f"{at}: expected a part of content to be text or an object with a type, got {brief(part)}")
    kind = part["type"]
    if kind in ("text", "input_text", "output_text", "refusal"):
        return content(part.get("text", part.get("refusal")), at, reasoning)
    if kind in ("reasoning", "thinking"):
        return content(part.get("reasoning") or part.get("thinking") or part.get("summary"), at, reasoning) if reasoning else ""
    if kind == "tool_use":                     # a tool that the model's provider ran
        result = f"\n{content(str(part['result']), at, reasoning)}" if part.get("result") else ""
        return f"call {one_line(part.get('name'))}({arguments_text(part.get('arguments', part.get('input')))}){result}"
    return f"({one_line(kind)})"


def calls_of(turn: dict, at: str) -> list[tuple]:
    """[(id, tool, arguments as text)]."""
    calls = turn.get("tool_calls") or ([{"function": turn["function_call"]}] if turn.get("function_call") else [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"{at}: expected tool_calls to be a list of objects, got {brief(calls)}")
    found = []
    for call in calls:
        function = call.get("function")
        inner = function if isinstance(function, dict) else {"name": function, "arguments": call.get("arguments")}
        if not isinstance(inner.get("name"), str):
            raise ValueError(f"{at}: expected a tool call to name its function, got {brief(call)}")
        found.append((call.get("id"), one_line(inner["name"]), arguments_text(inner.get("arguments"))))
    return found


def arguments_text(arguments) -> str:
    """On one line: JSON where it is JSON, else the text with its line breaks escaped."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return BREAKS.sub("\n", arguments).replace("\n", "\\n")
    return "" if arguments in (None, {}) else json.dumps(arguments, ensure_ascii=False)


def guarded(text, at: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{at}: expected text, got {type(text).__name__}")
    return POSES.sub(" ", BREAKS.sub("\n", text))


def one_line(value) -> str:
    return " ".join(str(value).split())


def brief(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
