"""The text-conditional model as a whole: its first stage's numbers and its state-dict keys are the lineage's."""

from __future__ import annotations

import torch

from tests import parity


def test_first_stage():
    entry = parity.entry("ldm_text.first_stage")
    model, (inputs, _) = parity.build(entry, strict=False), parity.io(entry)
    with torch.no_grad():
        encoded = model.get_first_stage_encoding(model.encode_first_stage(inputs["image"]))
    parity.check("z_enc", encoded, entry)
    parity.check("dec", model.decode_first_stage(inputs["z"]), entry)
    parity.check("dec_nq", model.decode_first_stage(inputs["z"], force_not_quantize=True), entry)


def test_keys():
    lines = (parity.FOLDER / "keys" / "ldm_text.txt").read_text().splitlines()
    wanted = {line.split("\t")[0]: line.split("\t")[2] for line in lines}
    state = parity.build(parity.entry("ldm_text.first_stage"), strict=False).state_dict()
    assert {key: str(tuple(value.shape)) for key, value in state.items()} == wanted
