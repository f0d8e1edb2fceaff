"""A checkpoint's chat template and the tokens that it writes by name: where they lie, how it is rendered."""

import json
from functools import partial

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minimon.files import one_line, read_optional, read_text


def find_template(directory):
    """The default chat template and where it is, from the places transformers looks in, in that order."""
    folder = directory / "additional_chat_templates"  # where it is, what config files say does not count
    for path in (directory / "chat_template.jinja", folder / "default.jinja"):
        if path.is_file():
            return read_text(path), path
    if any(folder.glob("*.jinja")):
        raise ValueError(
            f"{folder}: expected a default chat template there or in chat_template.jinja, found none"
        )
    for path in (directory / "tokenizer_config.json", directory / "chat_template.json"):
        template = read_optional(path).get("chat_template")
        if isinstance(template, list):  # of {"name", "template"}
            named = [entry for entry in template if isinstance(entry, dict)]
            template = {entry.get("name"): entry.get("template") for entry in named}
        if isinstance(template, dict):
            template = template.get("default")
        if isinstance(template, str):
            return template, path
    raise ValueError(
        f"{directory}: expected a default chat template in chat_template.jinja, tokenizer_config.json or "
        "chat_template.json, found none; use an instruction-tuned checkpoint"
    )


def special_tokens(directory):
    """eos_token and the like: what a template may write by name."""
    config = read_optional(directory / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # a checkpoint of the older kind
        config = {**config, **read_optional(directory / "special_tokens_map.json")}
    tokens = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str) and text:
            tokens[key] = text
    return tokens


def eos_ids(directory):
    """Ids that end generation, from generation_config.json, else from config.json."""
    for path in (directory / "generation_config.json", directory / "config.json"):
        ids = read_optional(path).get("eos_token_id")
        ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if not all(type(i) is int for i in ids):
            raise ValueError(f"{path}: eos_token_id: expected an integer or a list of them, got {ids!r}")
        if ids:
            return set(ids)
    return set()


class GenerationTag(Extension):
    """{% generation %} ... {% endgeneration %}: the body, as it is."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source, path, date):
    """In the environment that transformers gives a template."""

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals.update(raise_exception=raise_exception, strftime_now=date.strftime)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"{path}: line {error.lineno}: expected a chat template, got an error: {one_line(error)}"
        ) from error
