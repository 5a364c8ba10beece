"""Every kind of PEFT adapter, made and evaluated by PEFT itself, gives the same logits in mlx-lm after conversion.

`make parity` runs this file against adapters that live PEFT has just made: AFS_MLX_PEFT_GOLDEN names their folder.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_adapters, load_model
from safetensors.numpy import load_file, save_file

from afs_mlx.core.errors import AfsError, RefusedError
from afs_mlx.engine.adapters.format import AdapterConfig, check_adapter_folder
from afs_mlx.engine.adapters.lineage import fit_notice
from afs_mlx.engine.adapters.peft import convert_peft
from afs_mlx.engine.adapters.verifying import Verification, demand, verify
from afs_mlx.engine.bases.location import BaseFolder
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2

HERE = Path(__file__).parents[1] / "golden" / "peft"
GOLDEN = Path(os.environ.get("AFS_MLX_PEFT_GOLDEN", HERE))
ADAPTERS = json.loads((GOLDEN / "meta.json").read_text())["adapters"]
TOLERANCE = 1e-4
# In a tied base mlx-lm takes the embeddings for the output, too; PEFT changes them for the input alone.
REFUSED = ("saved-tied-embeddings", "lora-tied-embeddings")
FULL = (
    *("lora-bias", "bias-all", "bias-lora-only", "saved-head", "saved-embeddings-norm", "saved-linear"),
    *("lora-embeddings", "token-rows", "token-rows-tied"),
)
CARRIED = sorted(set(ADAPTERS) - set(REFUSED))


def golden_folder(name: str) -> Path:
    return GOLDEN / name if ADAPTERS[name]["base"] == "tiny-qwen2" else GOLDEN / "micro" / name


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The micro models, from the module that PyTorch's side builds them with, and tiny-qwen2."""
    sys.path.insert(0, str(HERE))
    try:
        import bases as micro
    finally:
        sys.path.remove(str(HERE))
    root = tmp_path_factory.mktemp("bases")
    for name in micro.BASES:
        micro.build(root / name, name)
    build_tiny_qwen2(root / "tiny-qwen2", seed=0)
    return {name: root / name for name in ("tiny-qwen2", *micro.BASES)}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "logits.npz") as arrays:
        return dict(arrays)


def logits(base: Path, adapter: Path | None, golden: dict[str, np.ndarray]) -> np.ndarray:
    """What mlx-lm alone makes of the golden's tokens."""
    model, config = load_model(base)
    if adapter is not None:
        load_adapters(model, str(adapter))
    model.eval()
    tokens = golden["tokens"] % config["vocab_size"]
    return np.array(model(mx.array(tokens)[None])[0].astype(mx.float32))


@pytest.fixture
def quantised(bases: dict[str, Path], tmp_path: Path) -> Callable[[int], Path]:
    """micro-qwen2 as mlx-lm quantises it."""

    def make(bits: int) -> Path:
        from mlx_lm.utils import quantize_model, save_model

        folder = tmp_path / f"q{bits}"
        shutil.copytree(bases["micro-qwen2"], folder)
        (folder / "model.safetensors").unlink()
        model, config = load_model(bases["micro-qwen2"])
        model, config = quantize_model(
            model, config, 32, bits, quant_predicate=lambda path, _: "embed" not in path and "down_proj" not in path
        )
        save_model(folder, model)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.mark.parametrize("name", ["tiny-qwen2", "micro-qwen2", "micro-qwen3", "micro-llama", "micro-mistral"])
def test_bases_are_the_same_in_both_worlds(name: str, bases: dict[str, Path], golden: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(logits(bases[name], None, golden), golden[f"base:{name}"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CARRIED)
def test_converted_adapter_gives_the_logits_of_peft(
    name: str, bases: dict[str, Path], golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    base = ADAPTERS[name]["base"]
    report = convert_peft(golden_folder(name), bases[base], tmp_path / "out")
    check_adapter_folder(tmp_path / "out", bases[base])
    kind = "full" if name in FULL else "dora" if ADAPTERS[name].get("use_dora") else "lora"
    assert report.kind == AdapterConfig.read(tmp_path / "out", full=True).fine_tune_type == kind
    assert np.abs(golden[name] - golden[f"base:{base}"]).max() > 0.1
    np.testing.assert_allclose(logits(bases[base], tmp_path / "out", golden), golden[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_tied_base_cannot_hold_is_refused(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        AfsError, match=r"embed_tokens\.weight: tied in this base, so that mlx-lm would take it for the"
    ):
        convert_peft(golden_folder(name), bases["micro-qwen3"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_whole_weights_need_the_unquantised_base(
    bases: dict[str, Path], quantised: Callable[[int], Path], tmp_path: Path
) -> None:
    with pytest.raises(AfsError, match=r"lm_head\.weight: quantised in this base") as caught:
        convert_peft(golden_folder("saved-head"), quantised(4), tmp_path / "out")
    assert "(7 problems)" in str(caught.value)  # the head, and q and v of three blocks, which would be merged
    convert_peft(golden_folder("saved-head"), bases["micro-qwen2"], tmp_path / "full")
    with pytest.raises(AfsError, match="this adapter holds whole weights"):
        AdapterConfig.read(tmp_path / "full")
    with pytest.raises(AfsError, match=r"lm_head\.weight: mlx-lm has no such parameter in this base, whose output"):
        check_adapter_folder(tmp_path / "full", bases["micro-qwen3"])
    assert "another variant" in fit_notice(
        BaseFolder("full-test", bases["micro-qwen2"], demo=True), with_lineage(tmp_path / "full", "full-test")
    )


def with_lineage(folder: Path, lineage: str) -> Path:
    config = json.loads((folder / "adapter_config.json").read_text())
    config["afs"]["base"] |= {"lineage": lineage, "sha256": "0"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("bits", [4, 8])
def test_dora_on_a_quantised_base_is_base_plus_update(
    bits: int, quantised: Callable[[int], Path], tmp_path: Path
) -> None:
    base = quantised(bits)
    convert_peft(golden_folder("dora"), base, tmp_path / "out")
    check_adapter_folder(tmp_path / "out", base)
    found = verify(golden_folder("dora"), base, tmp_path / "out")
    assert found.largest_difference < TOLERANCE
    assert found.largest_logit > 1


def test_dora_on_six_bits_is_refused_where_mlx_lm_counts_wrong(
    quantised: Callable[[int], Path], tmp_path: Path
) -> None:
    base = quantised(6)
    with pytest.raises(AfsError, match="q_proj: mlx-lm has no DoRA on 6-bit weights"):
        convert_peft(golden_folder("dora"), base, tmp_path / "out")
    convert_peft(golden_folder("all-linear"), base, tmp_path / "lora")
    assert verify(golden_folder("all-linear"), base, tmp_path / "lora").agrees


def test_patterns_are_padded_and_folded(bases: dict[str, Path], tmp_path: Path) -> None:
    report = convert_peft(golden_folder("patterns"), bases["micro-qwen2"], tmp_path / "out")
    source = load_file(golden_folder("patterns") / "adapter_model.safetensors")
    tensors = load_file(tmp_path / "out" / "adapters.safetensors")
    assert (report.rank, report.scale, report.folded) == (5, 5 / 3, 21)
    assert AdapterConfig.read(tmp_path / "out").alpha == pytest.approx(25 / 3)
    path = "model.layers.1.mlp.down_proj"  # rank 1, alpha 5
    a, b = tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"]
    assert not a[:, 1:].any()
    assert not b[1:].any()
    np.testing.assert_array_equal(a[:, :1], source[f"base_model.model.{path}.lora_A.weight"].T)
    np.testing.assert_allclose(b[:1], 3 * source[f"base_model.model.{path}.lora_B.weight"].T, rtol=1e-6)


def test_verification_notices_a_wrong_adapter(bases: dict[str, Path], tmp_path: Path) -> None:
    base, out = bases["micro-llama"], tmp_path / "out"
    convert_peft(golden_folder("llama-seven-bf16"), base, out)
    sound = verify(golden_folder("llama-seven-bf16"), base, out)
    assert sound.agrees
    assert sound.largest_difference < TOLERANCE
    demand(sound, out)
    tensors = load_file(out / "adapters.safetensors")
    tensors["model.layers.1.mlp.up_proj.lora_b"] *= 1.01
    save_file(tensors, out / "adapters.safetensors")
    wrong = verify(golden_folder("llama-seven-bf16"), base, out)
    assert wrong.largest_difference > 10 * sound.largest_difference
    with pytest.raises(RefusedError, match="does not agree with float32 base"):
        demand(wrong, out)


def test_not_a_number_never_agrees() -> None:
    assert not Verification("x", 1, float("nan"), 1.0, 1.0).agrees


def test_peft_that_fails_leaves_the_plain_reference(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This environment has no torch, which the reference program says; its answer is used where it has one."""
    monkeypatch.setenv("AFS_MLX_PEFT_PYTHON", sys.executable)
    convert_peft(golden_folder("several-names"), bases["micro-llama"], tmp_path / "out")
    found = verify(golden_folder("several-names"), bases["micro-llama"], tmp_path / "out")
    assert found.agrees
    assert found.reference == "float32 base + ΔW"
    assert found.notice.startswith("PEFT failed: ModuleNotFoundError")
    convert_peft(golden_folder("pickle"), bases["micro-llama"], tmp_path / "pickle")
    assert verify(golden_folder("pickle"), bases["micro-llama"], tmp_path / "pickle").notice == (
        "PEFT is not given adapter_model.bin"
    )


@pytest.mark.skipif("AFS_MLX_PARITY_PYTHON" not in os.environ, reason="make parity: needs torch and PEFT")
@pytest.mark.parametrize("name", ["seven-r8-rslora", "dora-patterns", "saved-head"])
def test_live_peft_is_the_reference(
    name: str, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFS_MLX_PEFT_PYTHON", os.environ["AFS_MLX_PARITY_PYTHON"])
    base = bases[ADAPTERS[name]["base"]]
    convert_peft(golden_folder(name), base, tmp_path / "out")
    found = verify(golden_folder(name), base, tmp_path / "out")
    assert found.reference.startswith("PEFT ")
    assert found.agrees


def test_answer_of_the_reference_program_is_what_counts(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text(
        f"#!{sys.executable}\nimport sys\nimport numpy as np\n"
        "assert sys.argv[1] == '-I', sys.argv\n"
        "tokens, out = sys.argv[-2:]\nnp.save(out, np.ones((len(np.load(tokens)), 64)))\nprint('PEFT 9')\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("AFS_MLX_PEFT_PYTHON", str(fake))
    convert_peft(golden_folder("several-names"), bases["micro-llama"], tmp_path / "out")
    found = verify(golden_folder("several-names"), bases["micro-llama"], tmp_path / "out")
    assert (found.reference, found.largest_logit, found.agrees) == ("PEFT 9", 1.0, False)


def test_names_of_another_family_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    shutil.copytree(golden_folder("qwen3-dora"), folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {key.replace("model.layers", "transformer.h"): value for key, value in tensors.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    with pytest.raises(AfsError, match=r"transformer\.h\.0\.mlp\.down_proj: no linear layer of models of type qwen3"):
        convert_peft(folder, bases["micro-qwen3"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_base_of_an_unknown_family_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    shutil.copytree(bases["micro-llama"], strange)
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(AfsError, match="no table of layer names for models of type 'gpt2'") as caught:
        convert_peft(golden_folder("llama-seven-bf16"), strange, tmp_path / "out")
    assert "qwen2, qwen3, llama, mistral" in caught.value.fix


def test_another_architecture_of_a_known_family_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    """qwen3's untrained-for shapes are those of llama here; what differs is the output layer."""
    with pytest.raises(AfsError, match="lm_head: the base has no such linear layer"):
        convert_peft(golden_folder("output-layer"), bases["micro-qwen3"], tmp_path / "out")
