"""Each shortcut of the decoder against its plain twin, in value and gradient."""

import pytest
import torch

from minimon.batch import make_batch
from minimon.hf.families import config_from_dict
from minimon.generate import generate
from minimon.lora import add_lora, adapter_tensors, enable_lora, lora_layers, merge_lora
from minimon.loss import vocab_token_loss
from minimon.model import Decoder, RMSNorm

QWEN3 = dict(model_type="qwen3", vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=256, tie_word_embeddings=True)
LLAMA = dict(model_type="llama", vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             max_position_embeddings=256)
WINDOWED = dict(QWEN3, use_sliding_window=True, sliding_window=6, max_window_layers=1)
PHI3 = dict(LLAMA, model_type="phi3")
GRANITE = dict(LLAMA, model_type="granite", embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=4.0, attention_multiplier=0.2)
FAMILIES = {"qwen3": QWEN3, "llama": LLAMA, "windowed": WINDOWED, "phi3": PHI3, "granite": GRANITE}


def tiny(config, seed=0, lora=True):
    torch.manual_seed(seed)
    model = Decoder(config_from_dict(config)).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=0.15)
        elif not name.endswith("norm.weight") or isinstance(model.get_submodule(name.rsplit(".", 1)[0]), RMSNorm):
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
    return torch.cat([model(torch.tensor([row]))[:, -1] for row in ids])              # (B, C)


def loss_and_gradients(model, hidden):
    loss = vocab_token_loss(hidden, model.lm_head.weight, torch.arange(len(hidden)), scale=1 / model.config.logits_scaling)
    parameters = adapter_tensors(model)
    return loss.item(), dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()))))


WAYS = {
    "prefix, then rows": lambda model, batch: model(batch.suffix, model.prefix(batch.prefix) if batch.prefix.shape[1] else None,
                                                    at=batch.lengths - 1),
    "packed": lambda model, batch: model.packed(batch.prefix, batch.suffix, batch.lengths - 1),
}
ways = pytest.mark.parametrize("answers", WAYS.values(), ids=WAYS)


def same(a, b, tolerance=2e-5):
    assert (a - b).abs().max() <= tolerance * max(b.abs().max().item(), 1e-8)


@ways
@pytest.mark.parametrize("prefix", (9, 1, 0))
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prefix_and_answer_position_equal_whole_rows_in_value_and_gradient(family, prefix, answers):
    model, ids = tiny(FAMILIES[family]), rows(prefix)
    batch = make_batch(ids, [0] * len(ids), prefix)
    fast = answers(model, batch)
    plain = plain_answers(model, ids)
    same(fast, plain)
    (loss, gradients), (expected_loss, expected) = loss_and_gradients(model, fast), loss_and_gradients(model, plain)
    assert abs(loss - expected_loss) < 1e-5 and len(gradients) == len(expected) > 0
    for name in expected:
        assert expected[name].abs().max() > 0, name
        same(gradients[name], expected[name], 1e-4)


@ways
def test_gradients_flow_through_the_shared_prefix(answers):
    model, ids = tiny(QWEN3), rows()
    batch = make_batch(ids, [0] * len(ids))
    with torch.no_grad():
        cut = model.prefix(batch.prefix)
    _, whole = loss_and_gradients(model, answers(model, batch))
    _, without = loss_and_gradients(model, model(batch.suffix, cut, at=batch.lengths - 1))
    assert any((whole[name] - without[name]).abs().max() > 1e-3 * whole[name].abs().max() for name in whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_block_at_one_position_equals_the_last_block_everywhere(family):
    model, ids = tiny(FAMILIES[family]), rows(prefix=0, lengths=(7, 3, 10))
    batch = make_batch(ids, [0] * 3, 0)
    everywhere = model(batch.suffix)[torch.arange(3), batch.lengths - 1]
    one = model(batch.suffix, at=batch.lengths - 1)
    same(one, everywhere)
    (_, gradients), (_, expected) = loss_and_gradients(model, one), loss_and_gradients(model, everywhere)
    for name in expected:
        same(gradients[name], expected[name], 1e-4)


def test_packed_every_block_is_run_once_and_the_last_at_one_position_a_row():
    model, ids, seen = tiny(QWEN3), rows(), []
    batch = make_batch(ids, [0] * len(ids), 9)
    for block in model.model.layers:
        block.mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape[:2]))
    model.packed(batch.prefix, batch.suffix, batch.lengths - 1)
    assert seen == [(1, 9 + 4 * 12), (1, 9 + 4 * 12), (1, 4)]


def test_the_last_block_works_at_one_position_alone():
    model, seen = tiny(QWEN3), []
    for block in model.model.layers:
        block.mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    model(torch.ones(2, 7, dtype=torch.long), at=torch.tensor([3, 6]))
    assert seen == [7, 7, 1]


def test_padding_does_not_reach_the_answer():
    model, ids = tiny(QWEN3), rows()
    batch = make_batch(ids, [0] * len(ids))
    pads = torch.arange(batch.suffix.shape[1]) >= batch.lengths[:, None]
    other = torch.where(pads, 55, batch.suffix)
    assert pads.any() and torch.equal(model(batch.suffix, at=batch.lengths - 1), model(other, at=batch.lengths - 1))


@ways
def test_activation_checkpointing_changes_nothing(answers):
    model, ids = tiny(QWEN3), rows()
    batch = make_batch(ids, [0] * len(ids))

    def run():
        return loss_and_gradients(model, answers(model, batch))

    loss, gradients = run()
    model.gradient_checkpointing = True
    again, recomputed = run()
    assert loss == again and all(torch.equal(gradients[name], recomputed[name]) for name in gradients)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_and_evaluation_goes_without():
    model, called = tiny(dict(QWEN3, num_hidden_layers=2)), []
    batches = [make_batch(ids, [0] * len(ids)) for ids in (rows(), rows(5, (3, 20)))]
    expected = [loss_and_gradients(model, WAYS["packed"](model, batch)) for batch in batches]
    model.compile_blocks(backend="aot_eager")
    compiled = model.compiled
    model.compiled = lambda *arguments: called.append(1) or compiled(*arguments)
    for batch, (loss, gradients) in zip(batches, expected):
        again, others = loss_and_gradients(model, WAYS["packed"](model, batch))
        assert again == pytest.approx(loss, abs=1e-6)
        for name in gradients:
            same(others[name], gradients[name], 1e-5)
    assert len(called) == 2 * 2
    with torch.no_grad():
        WAYS["prefix, then rows"](model, batches[0])
    assert len(called) == 2 * 2


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
def test_a_cache_with_room_is_written_in_place_and_gives_the_same():
    model, tokens = tiny(QWEN3), torch.tensor(rows(prefix=9, lengths=(5, 5)))
    _, cache = model.run(tokens[:, :9], keep=True)
    roomy = cache.with_room(5)
    places = [k.data_ptr() for k in roomy.keys]
    for t in range(9, 14):
        plain, cache = model.run(tokens[:, t:t + 1], cache, keep=True)
        fast, roomy = model.run(tokens[:, t:t + 1], roomy, keep=True)
        assert torch.equal(fast, plain)
    assert [k.data_ptr() for k in roomy.keys] == places and roomy.keys[0].shape == cache.keys[0].shape


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
    draws = [generate(model, ids, max_new_tokens=8, stop_ids=set(), temperature=1.0, generator=torch.Generator().manual_seed(s))
             for s in (1, 1, 2)]
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
    assert torch.equal(model(tokens)[:, :6], model(changed)[:, :6]) and not torch.equal(model(tokens)[:, 6:], model(changed)[:, 6:])
