"""The shipped base here and in transformers: the same ids, the same logits."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from minimon.checkpoint import load_model
from minimon.tokenizer import load_tokenizer

HERE = Path(__file__).resolve().parent
BASE = HERE.parent / "data/base"
specification = importlib.util.spec_from_file_location("make_base", HERE / "golden/make_base.py")
make_base = importlib.util.module_from_spec(specification)
specification.loader.exec_module(make_base)


def here():
    ids = load_tokenizer(BASE).chat(make_base.MESSAGES)
    model = load_model(BASE)
    with torch.inference_mode():
        return ids, model.logits(model(torch.tensor([ids])))[0]


def test_ids_and_logits_equal_those_that_transformers_gave():
    golden = json.loads((HERE / "golden/base.json").read_text())
    ids, logits = here()
    assert ids == golden["ids"]
    for position, expected in zip(golden["positions"], golden["logits"]):
        assert (logits[position, :: golden["every"]] - torch.tensor(expected)).abs().max() < 1e-4 * golden[
            "std"
        ]


@pytest.mark.peers
def test_ids_and_logits_equal_those_of_transformers():
    pytest.importorskip("transformers", reason="needs the peers extra")
    ids, logits = here()
    peer_ids, peer = make_base.peer_logits()
    assert ids == peer_ids and (logits - peer).abs().max() < 1e-4 * peer.std()


def test_the_base_decodes_with_a_stop_and_answers_yes_or_no():
    from minimon.generate import generate

    tokenizer, model = load_tokenizer(BASE), load_model(BASE)
    (answer,) = generate(
        model, [tokenizer.chat(make_base.MESSAGES)], max_new_tokens=8, stop_ids=tokenizer.stop_ids
    )
    assert answer.ended and tokenizer.decode(answer.ids) in ("Yes", "No")
