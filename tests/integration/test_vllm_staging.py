"""The twin that full weights are loaded into, beside vLLM's model."""

import gc
import weakref

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.vllm


def test_a_twin_is_tied_as_the_model_is_and_leaves_nothing_behind() -> None:
    from vllm.model_executor.model_loader.reload import layerwise

    from tuneloop.generation.vllm.staging import Twin, discard, twin_of

    model = nn.ModuleDict({"embed": nn.Embedding(8, 4), "head": nn.Linear(4, 8, bias=False)})
    model["again"] = model["embed"]
    model["head"].weight = model["embed"].weight
    model["head"].weight.weight_loader = model["head"].forward
    layerwise.record_metadata_for_reloading(model)
    notes = len(layerwise.LAYERWISE_INFO)
    twins: dict[int, Twin] = {}
    twin = twin_of(model, twins, {})
    assert twin["head"].weight is twin["embed"].weight
    assert twin["again"] is twin["embed"]
    assert twin["head"].weight is not model["head"].weight
    assert torch.equal(twin["head"].weight, model["head"].weight)

    weights = weakref.ref(twin["head"].weight)
    # As a reload does; a loader bound to the layer closes a circle through vLLM's notes.
    layerwise.initialize_layerwise_reload(twin)
    assert model["head"].weight.shape == (8, 4)
    assert not model["head"].weight.is_meta
    gc.disable()
    try:
        discard(twins)
        del twin
        assert weights() is None
    finally:
        gc.enable()
    assert len(layerwise.LAYERWISE_INFO) == notes
