"""What cannot be loaded says which file and why, in one line; what can be is sized sanely."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from libs.engine.checkpoint import Checkpoint
from libs.engine.loading import EngineOptions, load_engine
from libs.engine.model_config import ModelLoadError, VariantNotSupported, read_model_config
from libs.engine.tensor_rows import TensorRow, layer_rows

Spoil = Callable[[Path], object]


def change_config(**changes: object) -> Spoil:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return spoil


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def store_integers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int32)
    save_file(tensors, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def keep_only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def split_into_two(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file_name, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file_name)
    weight_map = {name: file_name for file_name, part in halves.items() for name in part}
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)


def lose_a_shard(folder: Path) -> None:
    split_into_two(folder)
    (folder / "b.safetensors").unlink()


def point_outside(folder: Path) -> None:
    split_into_two(folder)
    index = json.dumps({"weight_map": {"x": "../a.safetensors"}})
    (folder / "model.safetensors.index.json").write_text(index)


def lose_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(llama_folder, tmp_path / "model")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not readable"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
        (change_config(model_type="mamba"), "model_type 'mamba' is not supported"),
        (change_config(model_type="mamba"), "supported are: gpt_neox, llama, mistral, opt, qwen2"),
        (change_config(hidden_act="xielu"), "hidden_act 'xielu' is not supported"),
        (change_config(num_hidden_layers="many"), "num_hidden_layers is 'many'"),
        (change_config(hidden_size=None), "hidden_size is None"),
        (change_config(num_key_value_heads=3), "do not divide evenly"),
        (change_config(quantization_config={"bits": 4}), "quantized weights are not supported"),
        (change_config(rope_parameters={"rope_type": "yarn"}), "rope type 'yarn' is not support"),
        (change_config(vocab_size=400), "embed_tokens.weight has shape (384, 64), config.json"),
        (truncate, "model.safetensors: truncated or not safetensors"),
        (keep_only_bin, "pytorch_model.bin cannot be loaded: only safetensors can"),
        (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor"),
        (drop_tensor, "tensor model.layers.1.mlp.down_proj.weight is in none of the files"),
        (store_integers, "tensor model.norm.weight is torch.int32, not a plain float"),
        (lose_a_shard, "b.safetensors: no such file, though the index names it"),
        (point_outside, "names files outside the folder"),
        (lose_tokenizer, "no readable tokenizer"),
    ],
)
def test_a_spoiled_folder_is_refused_with_file_and_reason(
    folder: Path, spoil: Spoil, words: str
) -> None:
    spoil(folder)
    with pytest.raises(ModelLoadError) as raised:
        load_engine(str(folder), options=EngineOptions())
    assert words in str(raised.value)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("/no/such/folder", "no such folder"),
        ("./neither/here", "no such folder"),
        (__file__, "not a folder"),
    ],
)
def test_what_is_no_folder_is_refused(model: str, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        load_engine(model, options=EngineOptions())


@pytest.mark.parametrize("device", ["quantum", "meta"])
def test_an_unknown_device_is_refused(llama_folder: Path, device: str) -> None:
    with pytest.raises(ModelLoadError, match=f"device '{device}'"):
        load_engine(str(llama_folder), options=EngineOptions(device=device))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is not"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn' is not supported"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is not supported"),
        (
            {"model_type": "opt", "ffn_dim": 128, "word_embed_proj_dim": 32},
            "word_embed_proj_dim is not supported, save as hidden_size",
        ),
        (
            {"model_type": "opt", "ffn_dim": 128, "do_layer_norm_before": False},
            "do_layer_norm_before is not supported, save as True",
        ),
    ],
)
def test_what_the_compact_decoder_does_not_know_is_told_apart(
    folder: Path, changes: dict[str, object], words: str
) -> None:
    change_config(**changes)(folder)
    with pytest.raises(VariantNotSupported, match=words):
        read_model_config(folder)


def test_a_window_of_mistral_is_read_with_its_default(folder: Path) -> None:
    change_config(model_type="mistral")(folder)
    assert read_model_config(folder).window_tokens == 4096
    change_config(sliding_window=None)(folder)
    assert read_model_config(folder).window_tokens is None
    change_config(sliding_window=7)(folder)
    assert read_model_config(folder).shape.windows == {7}


def test_a_sharded_checkpoint_is_read_like_a_single_file(llama_folder: Path, folder: Path) -> None:
    split_into_two(folder)
    rows = layer_rows(read_model_config(folder), layer=0).qkv.weights
    with Checkpoint(llama_folder) as single, Checkpoint(folder) as split:
        for row in rows:
            whole = single.read(row, start=0, stop=row.units, dtype=torch.float32)
            again = split.read(row, start=0, stop=row.units, dtype=torch.float32)
            assert torch.equal(whole, again)


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_along_the_shard_axis_make_up_the_tensor(llama_folder: Path, axis: int) -> None:
    layer = layer_rows(read_model_config(llama_folder), layer=2)
    row: TensorRow = (layer.up if axis == 0 else layer.down).weights[0]
    assert row.unit_axis == axis
    stored = load_file(llama_folder / "model.safetensors")[row.name]
    with Checkpoint(llama_folder) as checkpoint:
        halves = [
            checkpoint.read(row, start=start, stop=start + 64, dtype=torch.float32)
            for start in (0, 64)
        ]
    assert torch.equal(torch.cat(halves), stored if axis == 0 else stored.t())


def test_end_of_sequence_ids_come_from_the_generation_config_first(folder: Path) -> None:
    change_config(eos_token_id=[1, 2])(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert read_model_config(folder).eos_token_ids == {5}
    (folder / "generation_config.json").write_text("{}")
    assert read_model_config(folder).eos_token_ids == {1, 2}
    (folder / "generation_config.json").unlink()
    assert read_model_config(folder).eos_token_ids == {1, 2}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5000.0},
        {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}},
    ],
)
def test_both_spellings_of_the_rotation_are_read(folder: Path, rope: dict[str, object]) -> None:
    change_config(**({"rope_parameters": None} | rope))(folder)
    config = read_model_config(folder)
    assert config.rope_theta == 5000.0
    assert (config.rope_scaling is None) == (len(rope) == 1 and "rope_parameters" not in rope)


@pytest.mark.parametrize(
    ("stored", "asked", "used"),
    [
        ("float32", "auto", torch.float32),
        ("bfloat16", "auto", torch.bfloat16),
        ("float16", "auto", torch.bfloat16),
        ("bfloat16", "float32", torch.float32),
    ],
)
def test_the_type_is_what_is_stored_unless_asked_for(
    folder: Path, stored: str, asked: str, used: torch.dtype
) -> None:
    change_config(dtype=stored)(folder)
    engine = load_engine(str(folder), options=EngineOptions(dtype=asked))  # type: ignore[arg-type]
    assert engine.dtype == used


def test_the_pool_is_no_larger_than_can_be_used_and_the_context_fits_it(
    llama_folder: Path,
) -> None:
    wide = load_engine(str(llama_folder), options=EngineOptions(sequences_max=3))
    assert wide.scheduler_options.blocks_total == 3 * 512 // 16
    assert wide.scheduler_options.context_tokens_max == 512
    narrow = load_engine(str(llama_folder), options=EngineOptions(blocks_total=4))
    assert narrow.scheduler_options.context_tokens_max == 64
    # 3 layers, keys and values of 2 heads of 16 floats, 16 tokens a block.
    block_bytes = 3 * 2 * 2 * 16 * 4 * 16
    tight = load_engine(str(llama_folder), options=EngineOptions(kv_bytes_max=5 * block_bytes))
    assert tight.scheduler_options.blocks_total == 5
    with pytest.raises(ModelLoadError, match="cannot hold a sequence"):
        load_engine(str(llama_folder), options=EngineOptions(kv_bytes_max=100))
