"""Tests of reading adapters from and writing them to PEFT models."""

from pathlib import Path

import peft
import pytest
import torch
from safetensors import safe_open
from transformers import BertConfig, BertForSequenceClassification

from fedsvd.errors import ModelError
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Adapter, Part, as_plain_lora
from fedsvd.lora.frozen_weights import frozen_weights, has_merged_base
from fedsvd.lora.initialization import initialize_factors


def make_model(
    rank: int = 4,
    lora_layers: str = "all",
    core: bool = False,
    rslora: bool = False,
    task: str = "sequence_classification",
    dtype: torch.dtype = torch.float32,
) -> peft.PeftModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=3
    )
    return peft_model.attach(
        BertForSequenceClassification(config).to(dtype=dtype),
        rank=rank,
        lora_alpha=8,
        target_modules=["query", "value"],
        lora_layers=lora_layers,
        head_modules=["classifier"],
        core=core,
        rslora=rslora,
        task=task,
    )


def test_read_returns_sites_head_and_scales_by_name() -> None:
    adapter = peft_model.read(make_model())

    assert len(adapter.A) == 4
    assert next(iter(adapter.A)) == "bert.encoder.layer.0.attention.self.query"
    assert {tuple(a.shape) for a in adapter.A.values()} == {(4, 16)}
    assert {tuple(b.shape) for b in adapter.B.values()} == {(16, 4)}
    assert set(adapter.head) == {"classifier.weight", "classifier.bias"}
    assert set(adapter.scale.values()) == {2.0}


def test_write_changes_the_predictions() -> None:
    model = make_model().eval()
    tokens = torch.arange(6).reshape(1, 6)
    before = model(input_ids=tokens).logits
    adapter = initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="orthonormal", seed=1)

    peft_model.write(model, adapter)

    assert not torch.allclose(model(input_ids=tokens).logits, before)
    written = peft_model.read(model)
    assert all(torch.equal(written.A[name], adapter.A[name]) for name in adapter.A)


def test_site_adds_scale_times_b_a() -> None:
    model = make_model().eval()
    peft_model.write(model, initialize_factors(peft_model.read(model), init_a="kaiming", init_b="kaiming", seed=1))
    adapter = peft_model.read(model)
    name = next(iter(adapter.A))
    layer = model.get_submodule("base_model.model." + name)
    x = torch.randn(5, 16)

    expected = layer.base_layer(x) + adapter.scale[name] * x @ adapter.A[name].mT @ adapter.B[name].mT

    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("parts", "count"), [({"B"}, 4), ({"A", "B"}, 8), ({"B", "head"}, 6)])
def test_set_trainable_enables_only_the_given_parts(parts: set[Part], count: int) -> None:
    model = make_model()

    trained = peft_model.set_trainable(model, parts)

    assert len(trained) == count
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained}


def test_unmatched_targets_raise_with_the_available_layers() -> None:
    model = BertForSequenceClassification(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    )
    with pytest.raises(ModelError, match="classifier, dense, key, query, value"):
        peft_model.attach(model, rank=2, lora_alpha=4, target_modules=["q_proj"])


def test_lora_layers_adapts_only_the_top_layers() -> None:
    assert list(peft_model.read(make_model(lora_layers="top_1")).A) == [
        "bert.encoder.layer.1.attention.self.query",
        "bert.encoder.layer.1.attention.self.value",
    ]
    assert peft_model.read(make_model(lora_layers="top_2")).A.keys() == peft_model.read(make_model()).A.keys()


def test_too_many_lora_layers_raise() -> None:
    with pytest.raises(ModelError, match="top_1 to top_2"):
        make_model(lora_layers="top_3")


def test_rank_above_layer_dimension_raises() -> None:
    assert make_model(rank=16).peft_config["default"].r == 16
    with pytest.raises(ModelError, match="allowed: 1 to 16"):
        make_model(rank=17)


@pytest.mark.parametrize("part", ["A", "head"])
def test_writing_an_adapter_of_another_shape_raises(part: Part) -> None:
    model = make_model()
    adapter = peft_model.read(model)
    wrong_shape = adapter.with_parts({part: {name: t[..., :2] for name, t in adapter.part(part).items()}})
    incomplete = adapter.with_parts({part: dict(list(adapter.part(part).items())[1:])})

    for invalid in (wrong_shape, incomplete):
        with pytest.raises(ModelError):
            peft_model.write(model, invalid)


def test_saved_adapters_load_with_peft_alone_and_predict_the_same(tmp_path: Path) -> None:
    model = make_model()
    adapter: Adapter = initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="kaiming", seed=3)
    adapter = adapter.with_parts({"head": {name: torch.randn_like(t) for name, t in adapter.head.items()}})
    tokens = torch.arange(12).reshape(2, 6)

    folder = tmp_path / "new" / "adapter"
    peft_model.save_pretrained(model, adapter, folder)
    torch.manual_seed(0)
    base = BertForSequenceClassification(model.get_base_model().config)
    loaded = peft.PeftModel.from_pretrained(base, str(folder))
    assert "classifier" in loaded.peft_config["default"].modules_to_save

    torch.testing.assert_close(loaded.eval()(input_ids=tokens).logits, model.eval()(input_ids=tokens).logits)


def random_base(adapter: Adapter, rank: int) -> Adapter:
    generator = torch.Generator().manual_seed(5)
    left = {n: torch.randn(B.shape[0], rank, generator=generator) / 8 for n, B in adapter.B.items()}
    right = {n: torch.randn(rank, A.shape[1], generator=generator) / 8 for n, A in adapter.A.items()}
    return adapter.with_parts({"base_left": left, "base_right": right})


def test_core_is_applied_between_the_factors() -> None:
    model = make_model(core=True).eval()
    adapter = initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="orthonormal", seed=1)
    name = next(iter(adapter.A))
    layer = model.get_submodule("base_model.model." + name)
    x = torch.randn(5, 16)
    assert all(not core.any() and core.shape == (4, 4) for core in adapter.core.values())

    peft_model.write(model, adapter.with_parts({"core": {n: torch.randn(4, 4) for n in adapter.core}}))

    written = peft_model.read(model)
    update = written.scale[name] * written.B[name] @ written.core[name] @ written.A[name]
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ update.mT)
    assert len(peft_model.set_trainable(model, {"core"})) == 4


def test_writing_a_base_is_idempotent_and_reversible() -> None:
    model = make_model()
    weights = {name: weight.clone() for name, weight in frozen_weights(model).items()}
    adapter = random_base(peft_model.read(model), 3)
    name = next(iter(weights))
    layer = model.get_submodule("base_model.model." + name)

    assert not has_merged_base([layer])
    for _ in range(2):
        peft_model.write(model, adapter)
        assert has_merged_base([layer])
        merged = weights[name] + adapter.scale[name] * adapter.base_left[name] @ adapter.base_right[name]
        torch.testing.assert_close(layer.base_layer.weight, merged)
        assert torch.equal(frozen_weights(model)[name], weights[name])
    peft_model.write(model, peft_model.read(model))

    assert torch.equal(layer.base_layer.weight, weights[name])
    assert not has_merged_base([layer])


@pytest.mark.parametrize(("core", "rslora", "scale"), [(False, False, 2.0), (True, False, 2.0), (False, True, 4.0)])
def test_core_and_base_are_saved_as_plain_lora_of_higher_rank(
    tmp_path: Path, core: bool, rslora: bool, scale: float
) -> None:
    model = make_model(core=core, rslora=rslora)
    assert set(peft_model.read(model).scale.values()) == {scale}
    adapter = initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="kaiming", seed=3)
    adapter = random_base(adapter.with_parts({"core": {n: torch.randn(4, 4) for n in adapter.core}}), 3)
    tokens = torch.arange(12).reshape(2, 6)

    plain = as_plain_lora(adapter)
    assert plain.core == plain.base_left == plain.base_right == {}
    peft_model.save_pretrained(model, adapter, tmp_path / "adapter")
    expected = model.eval()(input_ids=tokens).logits
    torch.manual_seed(0)
    base = BertForSequenceClassification(model.get_base_model().config)
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))

    assert loaded.peft_config["default"].r == 7  # type: ignore[attr-defined]
    torch.testing.assert_close(loaded.eval()(input_ids=tokens).logits, expected)


def test_a_saved_adapter_is_marked_as_one_of_torch(tmp_path: Path) -> None:
    model = make_model()
    peft_model.save_pretrained(model, peft_model.read(model), tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("task", "expected"),
    [("regression", "SEQ_CLS"), ("sequence_classification", "SEQ_CLS"), ("token_classification", "TOKEN_CLS")],
)
def test_peft_knows_the_task(task: str, expected: str) -> None:
    assert make_model(task=task).peft_config["default"].task_type == expected


def test_a_head_on_a_bfloat16_model_is_float32() -> None:
    model = make_model(dtype=torch.bfloat16).eval()
    adapter = peft_model.read(model)
    assert {tensor.dtype for tensor in adapter.head.values()} == {torch.float32}
    logits = model(input_ids=torch.arange(6).reshape(1, 6)).logits
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_an_adapter_moves_with_all_its_parts() -> None:
    adapter = peft_model.read(make_model(core=True)).to(torch.device("meta"))
    parts: tuple[Part, ...] = ("A", "B", "core", "head")
    assert {tensor.device.type for part in parts for tensor in adapter.part(part).values()} == {"meta"}
    assert all(adapter.part(part) for part in parts)
