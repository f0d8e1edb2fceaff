"""Each shortcut of the decoder against its plain twin, in value and gradient."""

import pytest
import torch

from minimon.batch import common_prefix, pack
from minimon.generate import generate
from minimon.hf.families import config_from_dict
from minimon.lora import adapter_tensors, add_lora, enable_lora, lora_layers, merge_lora
from minimon.loss import vocab_token_loss
from minimon.model import Block, Decoder, RMSNorm

QWEN3 = dict(
    model_type="qwen3",
    vocab_size=97,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    tie_word_embeddings=True,
)
LLAMA = dict(
    model_type="llama",
    vocab_size=97,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=256,
)
WINDOWED = dict(QWEN3, use_sliding_window=True, sliding_window=6, max_window_layers=1)
PHI3 = dict(LLAMA, model_type="phi3")
GRANITE = dict(
    LLAMA,
    model_type="granite",
    embedding_multiplier=3.0,
    residual_multiplier=0.5,
    logits_scaling=4.0,
    attention_multiplier=0.2,
)
FAMILIES = {"qwen3": QWEN3, "llama": LLAMA, "windowed": WINDOWED, "phi3": PHI3, "granite": GRANITE}


def tiny(config, seed=0, lora=True):
    torch.manual_seed(seed)
    model = Decoder(config_from_dict(config)).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=0.15)
        elif not name.endswith("norm.weight") or isinstance(
            model.get_submodule(name.rsplit(".", 1)[0]), RMSNorm
        ):
            parameter.uniform_(0.5, 1.5)
    if lora:
        add_lora(model, 4, 8)
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora_B.weight, std=0.1)
    return model


def rows(prefix=9, lengths=(5, 12, 1, 8), seed=1):
    g = torch.Generator().manual_seed(seed)
    shared = torch.randint(1, 97, (prefix,), generator=g).tolist()
    return [shared + torch.randint(1, 97, (n,), generator=g).tolist() for n in lengths]


def plain_answers(model, ids):
    """The specification: each row alone, every position through every block, the last one kept."""
    return torch.cat([model(torch.tensor([row]))[:, -1] for row in ids])  # (B, C)


def loss_and_gradients(model, hidden):
    loss = vocab_token_loss(
        hidden, model.lm_head.weight, torch.arange(len(hidden)), scale=1 / model.config.logits_scaling
    )
    parameters = adapter_tensors(model)
    return loss.item(), dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()))))


def in_one_pass(model, ids):
    """The prefix stands in the row; all rows are one group."""
    batch = pack([ids], switch=model.config.rope["full_attention"].switch)
    return in_order(model.last_hidden(batch.tokens, batch.spans), batch)


def after_a_cache(model, ids):
    """The prefix is run first and kept."""
    P = common_prefix(ids)
    cache = model.prefix(torch.tensor(ids[0][:P])) if P else None
    batch = pack([ids], cached=P)
    return in_order(model.last_hidden(batch.tokens, batch.spans, cache), batch)


def padded(model, ids):
    """The other plain form: whole rows, right-padded to one (B, T), which no row sees under a causal mask."""
    tokens = torch.full((len(ids), max(map(len, ids))), 7)
    for row, text in zip(tokens, ids):
        row[: len(text)] = torch.tensor(text)
    return model(tokens)[torch.arange(len(ids)), torch.tensor([len(text) - 1 for text in ids])]


def in_order(hidden, batch):
    """(B, C) in the order of the texts that the pass was made of."""
    return hidden[torch.tensor(batch.order).argsort()]


WAYS = {"in one pass": in_one_pass, "after a cache": after_a_cache, "padded": padded}
ways = pytest.mark.parametrize("answers", WAYS.values(), ids=WAYS)


def same(a, b, tolerance=2e-5):
    assert (a - b).abs().max() <= tolerance * max(b.abs().max().item(), 1e-8)


@ways
@pytest.mark.parametrize("prefix", (9, 1, 0))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_ragged_pass_equals_whole_rows_in_value_and_gradient(family, prefix, answers):
    model, ids = tiny(FAMILIES[family]), rows(prefix)
    fast, plain = answers(model, ids), plain_answers(model, ids)
    same(fast, plain)
    (loss, gradients), (expected_loss, expected) = (
        loss_and_gradients(model, fast),
        loss_and_gradients(model, plain),
    )
    assert abs(loss - expected_loss) < 1e-5 and len(gradients) == len(expected) > 0
    for name in expected:
        assert expected[name].abs().max() > 0, name
        same(gradients[name], expected[name], 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_of_different_prompts_go_through_in_one_pass_and_do_not_see_each_other(family):
    model = tiny(FAMILIES[family])
    groups = [rows(9, (5, 12, 1, 8)), rows(4, (3, 3, 3), seed=2), rows(0, (6,), seed=3)]
    batch = pack(groups)
    assert [span.is_prefix for span in batch.spans].count(True) == 2
    assert len(batch.tokens) == 9 + 26 + 4 + 9 + 6  # each prefix once, no pads
    fast, plain = (
        in_order(model.last_hidden(batch.tokens, batch.spans), batch),
        plain_answers(model, sum(groups, [])),
    )
    same(fast, plain)
    (_, gradients), (_, expected) = loss_and_gradients(model, fast), loss_and_gradients(model, plain)
    for name in expected:
        same(gradients[name], expected[name], 1e-4)


@pytest.mark.parametrize("way", ("in one pass", "after a cache"))
def test_gradients_flow_through_the_shared_prefix(way):
    model, ids = tiny(QWEN3), rows()
    batch = pack([ids], cached=9)
    with torch.no_grad():
        cut = model.prefix(torch.tensor(ids[0][:9]))
    _, whole = loss_and_gradients(model, WAYS[way](model, ids))
    _, without = loss_and_gradients(model, in_order(model.last_hidden(batch.tokens, batch.spans, cut), batch))
    assert any((whole[name] - without[name]).abs().max() > 1e-3 * whole[name].abs().max() for name in whole)


SWITCHES = {
    "longrope": dict(
        LLAMA,
        model_type="phi3",
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_scaling={"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [3.0] * 6},
    ),
    "dynamic": dict(LLAMA, max_position_embeddings=16, rope_scaling={"rope_type": "dynamic", "factor": 4.0}),
}


@pytest.mark.parametrize("kind", SWITCHES)
def test_rows_on_both_sides_of_a_rope_switch_rotate_by_their_own_length(kind):
    model, ids = tiny(SWITCHES[kind]), rows(prefix=5, lengths=(4, 20, 7, 11, 12))
    batch = pack([ids], switch=16)
    fast, plain = in_order(model.last_hidden(batch.tokens, batch.spans), batch), plain_answers(model, ids)
    same(fast, plain)
    (_, gradients), (_, expected) = loss_and_gradients(model, fast), loss_and_gradients(model, plain)
    for name in expected:
        same(gradients[name], expected[name], 1e-4)
    together = pack([ids])  # without the switch a long row would follow a short prefix: another number
    others = in_order(model.last_hidden(together.tokens, together.spans), together)
    assert (others - plain).abs().max() > 1e-3 * plain.abs().max()


@pytest.mark.parametrize("kind", SWITCHES)
def test_what_is_decoded_rotates_by_the_length_of_its_own_text(kind):
    model, ids = tiny(SWITCHES[kind], lora=False), rows(prefix=5, lengths=(2, 20, 4, 11))
    together = generate(model, ids, max_new_tokens=6, stop_ids=set())
    assert together == [generate(model, [row], max_new_tokens=6, stop_ids=set())[0] for row in ids]


def test_every_block_sees_each_token_once_and_the_last_only_the_answers():
    model, ids, seen = tiny(QWEN3), rows(), []
    for block in model.model.layers:
        block.mlp.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    in_one_pass(model, ids)
    assert seen == [9 + 26, 9 + 26, 4]


def test_texts_of_equal_length_are_attended_together():
    batch = pack([rows(4, (3, 5, 3, 3))])
    assert [(span.texts, span.tokens) for span in batch.spans] == [
        (1, 4),
        (3, 3),
        (1, 5),
    ] and batch.order == [0, 2, 3, 1]


@ways
def test_activation_checkpointing_changes_nothing(answers):
    model, ids = tiny(QWEN3), rows()
    loss, gradients = loss_and_gradients(model, answers(model, ids))
    model.gradient_checkpointing = True
    again, recomputed = loss_and_gradients(model, answers(model, ids))
    assert loss == again and all(torch.equal(gradients[name], recomputed[name]) for name in gradients)


@pytest.mark.slow
def test_compiled_halves_of_a_block_give_the_same_without_another_graph_for_each_length(monkeypatch):
    model, graphs = tiny(dict(QWEN3, num_hidden_layers=2)), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    texts = [rows(), rows(5, (3, 20)), rows(7, (4, 9, 2)), rows(3, (8, 8, 1, 30)), rows(11, (2, 3, 4, 5, 6))]
    expected = [loss_and_gradients(model, in_one_pass(model, ids)) for ids in texts]
    halves = [torch.compile(half, backend=backend, dynamic=True) for half in (Block.before, Block.after)]
    monkeypatch.setattr("minimon.model.compiled_halves", lambda: halves)
    model.compiled = True
    for ids, (loss, gradients) in zip(texts, expected):
        again, others = loss_and_gradients(model, in_one_pass(model, ids))
        assert again == pytest.approx(loss, abs=1e-6)
        for name in gradients:
            same(others[name], gradients[name], 1e-5)
    assert 0 < len(graphs) <= 8
    before = len(graphs)
    with torch.no_grad():
        in_one_pass(model, rows(2, (13, 17)))
    assert len(graphs) == before  # evaluation goes without


def test_frozen_weights_get_no_gradient():
    model = tiny(QWEN3)
    model(torch.ones(2, 5, dtype=torch.long)).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained and all("lora_" in name for name in trained)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_equals_decoding_without_a_cache(family):
    model, ids = tiny(FAMILIES[family], lora=False), rows(prefix=4, lengths=(3, 9, 1, 6))
    stop = {5, 6, 7}

    def uncached(row):
        written = []
        while len(written) < 12:
            token = int(model.logits(model(torch.tensor([row + written]))[:, -1]).argmax())
            if token in stop:
                break
            written.append(token)
        return written

    answers = generate(model, ids, max_new_tokens=12, stop_ids=stop)
    assert [answer.ids for answer in answers] == [uncached(row) for row in ids]
    assert [answer.ended for answer in answers] == [len(answer.ids) < 12 for answer in answers]


@torch.inference_mode()
def test_the_cache_is_written_in_place():
    model, ids = tiny(QWEN3), rows(prefix=9, lengths=(5, 5))
    batch = pack([ids])
    _, cache = model.prefill(batch.tokens, batch.spans, 3)
    places = [k.data_ptr() for k in cache.keys]
    assert cache.keys[0].shape[2] == 14 + 3
    for position in (14, 15, 16):
        model.decode(torch.tensor([3, 4]), torch.full((2,), position), cache, [17, 17])
    assert [k.data_ptr() for k in cache.keys] == places and (cache.keys[0][:, :, 14:] != 0).all()


def test_rows_that_end_leave_the_batch_and_the_others_go_on():
    model, ids = tiny(QWEN3, lora=False), rows(prefix=4, lengths=(3, 9, 1, 6))
    free = generate(model, ids, max_new_tokens=20, stop_ids=set())
    stop = {free[0].ids[2], free[1].ids[4], free[2].ids[1]}
    for answer, whole in zip(generate(model, ids, max_new_tokens=20, stop_ids=stop), free):
        cut = next((i for i, token in enumerate(whole.ids) if token in stop), 20)
        assert answer.ids == whole.ids[:cut] and answer.ended == (cut < 20)
    assert not all(answer.ended for answer in free)


def test_sampling_is_a_function_of_its_generator():
    model, ids = tiny(QWEN3, lora=False), rows()
    draws = [
        generate(
            model,
            ids,
            max_new_tokens=8,
            stop_ids=set(),
            temperature=1.0,
            generator=torch.Generator().manual_seed(s),
        )
        for s in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_lora_equals_unmerged(family):
    model = tiny(FAMILIES[family])
    tokens = torch.tensor(rows(prefix=0, lengths=(9, 9)))
    with torch.no_grad():
        unmerged, base = model(tokens), (enable_lora(model, False), model(tokens))[1]
        enable_lora(model, True)
        merged = merge_lora(model)(tokens)
    assert not lora_layers(model)
    same(merged, unmerged)
    assert (merged - base).abs().max() > 1e-2 * base.abs().max()


def test_a_new_adapter_changes_nothing():
    model, tokens = tiny(QWEN3, lora=False), torch.tensor(rows(prefix=0, lengths=(9, 9)))
    before = model(tokens)
    add_lora(model)
    assert torch.equal(model(tokens), before)


def test_a_target_that_matches_nothing_is_refused_and_the_names_are_shown():
    with pytest.raises(ValueError, match="'qproj' matches no linear module; there are down_proj, .*q_proj"):
        add_lora(tiny(QWEN3, lora=False), target_modules=["k_proj", "qproj"])


def test_the_future_is_not_seen():
    model, tokens = tiny(QWEN3), torch.tensor(rows(prefix=0, lengths=(9, 9)))
    changed = tokens.clone()
    changed[:, 6:] = 3
    assert torch.equal(model(tokens)[:, :6], model(changed)[:, :6]) and not torch.equal(
        model(tokens)[:, 6:], model(changed)[:, 6:]
    )
