"""Makes the shipped base: a tokenizer and a small decoder in Qwen3's architecture, pretrained on text from data/world.py.

    python data/pretrain.py                          # data/base from nothing; interrupted, the same command goes on
    python data/pretrain.py --steps 200 --out /tmp/b # a quick look

The base sees transcripts of all domains, summaries, thinking-then-answer examples and few no-thinking classification examples.
Document i is a function of (seed, i), so a resumed run sees what an uninterrupted one would have seen.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
from world import LATE, SEED, STAGES, WORDS, Documents, World, render  # noqa: E402

from minimon.hf.families import config_from_dict  # noqa: E402
from minimon.model import Decoder  # noqa: E402

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 3072,
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SPECIAL = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]  # special, as in Qwen3
MARKS = ["<think>", "</think>"]  # added but not special, as in Qwen3
TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
WINDOW = 1024  # documents sorted by length together
START = SPECIAL.index("<|im_start|>")  # its id
PROMPT_SHARE = 0.2  # of the tokens that the assistant did not write: learned as well


def make_tokenizer(documents, seed):
    """Byte-level BPE over a sample of the documents, every domain and behaviour in it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=SPECIAL + MARKS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = (documents.document(random.Random(f"tokenizer-{seed}-{i}"), STAGES[2][0]) for i in range(20_000))
    labels = ["\n".join(word for pair in WORDS for word in pair)] * 1000  # each of the answer words one token
    tokenizer.train_from_iterator(
        chain(("\n".join(filter(None, parts)) for parts in sample), labels), trainer
    )
    text = json.loads(tokenizer.to_str())
    for token in text["added_tokens"]:
        token["special"] = token["content"] in SPECIAL
    return Tokenizer.from_str(json.dumps(text))


def write_tokenizer(tokenizer, out):
    tokenizer.save(str(out / "tokenizer.json"))
    added = {
        str(t): {
            "content": a.content,
            "special": a.special,
            "normalized": False,
            "lstrip": False,
            "rstrip": False,
            "single_word": False,
        }
        for t, a in tokenizer.get_added_tokens_decoder().items()
    }
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "added_tokens_decoder": added,
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "bos_token": None,
                "model_max_length": CONFIG["max_position_embeddings"],
                "clean_up_tokenization_spaces": False,
            },
            indent=1,
        )
    )
    (out / "chat_template.jinja").write_text(TEMPLATE)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=1))
    (out / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [1, 0], "pad_token_id": 0}, indent=1)
    )


def batches(tokenizer, documents, seed, window, batch_tokens):
    """Window number `window` of the document stream -> [(ids, learned, answer)], each (B, T), lengths alike within a batch."""
    parts = [
        render(*documents.document(random.Random(f"pretrain-{seed}-{i}"), i))
        for i in range(window * WINDOW, (window + 1) * WINDOW)
    ]
    prompts = tokenizer.encode_batch([prompt for prompt, _ in parts], add_special_tokens=False)
    responses = tokenizer.encode_batch([response for _, response in parts], add_special_tokens=False)
    rows = sorted(
        ((a.ids, b.ids) for a, b in zip(prompts, responses)), key=lambda row: len(row[0]) + len(row[1])
    )
    groups, start = [], 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows) and (stop + 1 - start) * sum(map(len, rows[stop])) <= batch_tokens:
            stop += 1
        groups.append(rows[start:stop])
        start = stop
    random.Random(f"order-{seed}-{window}").shuffle(groups)
    generator = torch.Generator().manual_seed(window)
    for group in groups:
        T = max(sum(map(len, row)) for row in group)
        ids, answer = (
            torch.zeros(len(group), T, dtype=torch.long),
            torch.zeros(len(group), T, dtype=torch.bool),
        )
        lengths = torch.tensor([sum(map(len, row)) for row in group])
        some = torch.rand(ids.shape, generator=generator) < PROMPT_SHARE
        for i, (prompt, response) in enumerate(group):
            ids[i, : lengths[i]] = torch.tensor(prompt + response)
            answer[i, len(prompt) : lengths[i]] = True
            if window * WINDOW >= LATE:  # an empty thought is the template's, not to be learned
                some[i, len(prompt) - prompt[::-1].index(START) :] = False
        yield ids, (answer | some) & (torch.arange(T) < lengths[:, None]), answer


def optimizers(model, lr):
    """Muon (Jordan et al., 2024) on the blocks' matrices, AdamW on the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    rest = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers" in name)]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def schedule(step, steps):
    """Warm-up over 100 steps, constant, then linear to zero over the last 40%."""
    return min((step + 1) / 101, 1.0, (steps - step) / (0.4 * steps))


def save_state(path, model, opts, progress):
    """Weights and optimizer state in one safetensors file, replaced by one rename."""
    tensors = {
        f"model.{name}": value for name, value in model.state_dict().items() if name != "lm_head.weight"
    }
    for i, opt in enumerate(opts):
        for j, state in opt.state_dict()["state"].items():
            tensors |= {f"opt.{i}.{j}.{key}": value for key, value in state.items()}
    save_file(
        {key: value.contiguous() for key, value in tensors.items()},
        f"{path}.tmp",
        {"progress": json.dumps(progress)},
    )
    os.replace(f"{path}.tmp", path)


def load_state(path, model, opts):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
    tensors = load_file(path)
    weights = {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
    model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    for i, opt in enumerate(opts):
        state = {}
        for name, value in tensors.items():
            if name.startswith(f"opt.{i}."):
                _, _, j, key = name.split(".", 3)
                state.setdefault(int(j), {})[key] = value
        opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return progress


def init_weights(model):
    for name, p in model.named_parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.02 if "embed" in name else p.shape[1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                p.data.div_(math.sqrt(2 * len(model.model.layers)))


def write_model(model, out):
    tensors = {
        name: value.to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, str(out / "model.safetensors.tmp"), {"format": "pt"})
    os.replace(out / "model.safetensors.tmp", out / "model.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "base")
    parser.add_argument("--steps", type=int, default=4400, help="optimizer steps in all")
    parser.add_argument("--batch-tokens", type=int, default=6144, help="tokens of a step, padding included")
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    documents = Documents(World(args.seed))
    if not (args.out / "tokenizer.json").exists():
        write_tokenizer(make_tokenizer(documents, args.seed), args.out)
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))

    torch.manual_seed(args.seed)
    model = Decoder(config_from_dict(CONFIG))
    init_weights(model)
    model.to(args.device)
    opts = optimizers(model, args.lr)
    state = args.out / "pretrain_state.safetensors"  # not committed
    progress = {"step": 0, "window": 0, "batch": 0, "tokens": 0}
    if state.exists():
        progress = load_state(state, model, opts)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters; from step {progress['step']} of {args.steps}",
        flush=True,
    )

    bar, mean, started = tqdm(total=args.steps, initial=progress["step"], mininterval=10), None, time.time()
    while progress["step"] < args.steps:
        for number, (ids, learned, answer) in enumerate(
            batches(tokenizer, documents, args.seed, progress["window"], args.batch_tokens)
        ):
            if number < progress["batch"]:
                continue
            count, (ids, learned, answer) = (
                int((answer | (ids != 0)).sum()),
                (part.to(args.device) for part in (ids, learned, answer)),
            )
            factor = schedule(progress["step"], args.steps)
            for opt in opts:
                opt.param_groups[0]["lr"] = args.lr * factor
            logits = model.logits(model(ids[:, :-1])[learned[:, 1:]]).float()  # (learned, V)
            losses = F.cross_entropy(logits, ids[:, 1:][learned[:, 1:]], reduction="none")
            losses.mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in opts:
                opt.step()
                opt.zero_grad()
            value = losses.detach()[answer[:, 1:][learned[:, 1:]]].mean().item()
            mean = value if mean is None else 0.98 * mean + 0.02 * value
            progress = {
                "step": progress["step"] + 1,
                "window": progress["window"],
                "batch": number + 1,
                "tokens": progress["tokens"] + count,
            }
            bar.update()
            if progress["step"] % 50 == 0:
                print(
                    json.dumps(
                        {**progress, "answer_loss": round(mean, 4), "seconds": round(time.time() - started)}
                    ),
                    flush=True,
                )
            if progress["step"] % args.save_every == 0 or progress["step"] == args.steps:
                save_state(state, model, opts, progress)
                write_model(model, args.out)
            if progress["step"] == args.steps:
                break
        progress |= {"window": progress["window"] + 1, "batch": 0}
    bar.close()


if __name__ == "__main__":
    main()
