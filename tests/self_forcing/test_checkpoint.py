"""Checkpoints as they are published: names, keys of their weights, settings; errors name what is wrong."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel, WanPipeline, WanTransformer3DModel
from layouts import change, on_meta, shapes
from reference import Case

from flowcache.wan.conversion import OFFICIAL_CONFIGS, transformer_config, transformer_key
from self_forcing import FlowCacheSelfForcingPipeline, load_pipeline, resolve_model
from self_forcing.published import PUBLISHED, find_published
from self_forcing.settings import CONFIGS, VideoSettings, read_yaml


def test_transformer_names_and_shapes(folder):
    keys = Case(folder, "keys_t2v_1.3b").info["keys"]
    model = on_meta(SkyReelsV2Transformer3DModel, **transformer_config(OFFICIAL_CONFIGS["Wan-1.3B"]))
    expected = {key: list(shape) for key, shape in shapes(model).items()}
    assert {transformer_key(key.removeprefix("model.")): shape for key, shape in keys.items()} == expected
    assert shapes(on_meta(WanTransformer3DModel, num_attention_heads=12, num_layers=30, ffn_dim=8960)) == shapes(model)
    table = Case(folder, "mapping_original_to_diffusers").info["mapping"]
    assert {key: transformer_key(key) for key in table} == table


@pytest.mark.parametrize(("use_ema", "scale"), [(None, 1), (False, 1), (True, 2)])
def test_weights_of_a_checkpoint(folder, base, trained, use_ema, scale):
    source = resolve_model(str(base), "cpu", {"transformer": trained}, use_ema)
    loaded = load_pipeline(source, "cpu").transformer.state_dict()
    expected = Case(folder, "weights").tensors
    assert loaded.keys() == {transformer_key(key) for key in expected}
    assert all(torch.equal(loaded[transformer_key(key)], scale * tensor) for key, tensor in expected.items())


def test_a_published_checkpoint_gets_its_weights_and_settings(base, trained, tmp_path, caplog):
    for name, key, steps, block in (
        ("self_forcing_dmd.pt", "generator_ema", (1000, 750, 500, 250), 3),
        ("chunkwise/causal_forcing.pt", "generator", (1000, 750, 500, 250), 3),
        ("framewise/causal_forcing.pt", "generator_ema", (1000, 750, 500, 250), 1),
        ("framewise-2step.pt", "generator_ema", (1000, 500), 1),
        ("chunkwise/ar_diffusion.pt", "generator", None, 3),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(trained, path)
        source = resolve_model(str(base), "cpu", {"transformer": path})
        assert source.key == key and str(find_published(path).license) in source.reason
        settings = VideoSettings(**{k: v for k, v in source.defaults.items() if k in VideoSettings.__annotations__})
        assert (settings.denoising_step_list, settings.num_frame_per_block) == (steps, block)
        assert not caplog.records
    resolve_model(str(base), "cpu", {"transformer": path}, use_ema=True)
    assert "without" in caplog.text
    assert [find_published(Path(each.name)) for each in PUBLISHED] == list(PUBLISHED)
    assert all(each.config.is_file() for each in PUBLISHED)


def test_a_checkpoint_that_does_not_fit_is_refused(base, trained, tmp_path):
    def refused(path: Path | str, use_ema: bool | None = None) -> str:
        with pytest.raises(ValueError) as error:
            resolve_model(str(base), "cpu", {"transformer": path}, use_ema)
        return str(error.value)

    lacking, plain = (shutil.copy(trained, tmp_path / name) for name in ("lacking.pt", "plain.pt"))
    change(lacking, lambda content: content["generator"].pop("model.head.head.bias"))
    assert "proj_out.bias" in refused(lacking)
    resolve_model(str(base), "cpu", {"transformer": lacking}, use_ema=True)
    content = torch.load(plain, weights_only=True)
    torch.save({"generator": content["generator"], "critic": {}}, plain)
    assert "generator_ema" in refused(plain, use_ema=True)
    torch.save(content["generator"], plain)
    resolve_model(str(base), "cpu", {"transformer": plain})
    assert "generator_ema" in refused(plain, use_ema=True)
    assert "rolling" in refused("zhuhz22/Causal-Forcing/chunkwise/longvideo.pt")
    with pytest.raises(ValueError, match="not autoregressive"):
        resolve_model(str(base), "cpu")
    with pytest.raises(ValueError, match="use_ema"):
        resolve_model("small", "cpu", use_ema=True)


def test_configurations_of_the_originals(tmp_path):
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= {each.config.stem for each in PUBLISHED}
    path = tmp_path / "config.yaml"
    path.write_text(
        "denoising_step_list: [1000, 500]\nwarp_denoising_step: true\nlr: 1.0e-6\nseed: 7\n"
        "model_kwargs:\n  timestep_shift: 5.0\n  local_attn_size: 12\n  sink_size: 3\n"
        "image_or_video_shape: [1, 12, 16, 30, 52]\n"
    )
    read = read_yaml(path)
    assert read["denoising_step_list"] == [1000, 500] and "seed" not in read
    assert (read["local_attn_size"], read["sink_size"]) == (12, 3)
    assert (read["num_output_frames"], read["height"], read["width"]) == (12, 240, 416)
    path.write_text("guidance_scale: 3\n")
    assert not VideoSettings(**read_yaml(path)).is_few_step


def test_a_folder_in_the_layout_of_diffusers(folder, base, trained, tmp_path):
    parts = dict(load_pipeline(resolve_model(str(base), "cpu", {"transformer": trained}), "cpu").components)
    config, weights = dict(parts["transformer"].config), parts["transformer"].state_dict()
    names = WanTransformer3DModel.__init__.__annotations__
    parts["transformer"] = WanTransformer3DModel(**{key: value for key, value in config.items() if key in names})
    parts["transformer"].load_state_dict(weights)
    WanPipeline(**parts).save_pretrained(tmp_path)
    (tmp_path / "defaults.json").write_text('{"height": 64, "denoising_step_list": [1000, 500]}')
    source = resolve_model(str(tmp_path), "cpu")
    assert source.defaults["denoising_step_list"] == [1000, 500]
    shared = FlowCacheSelfForcingPipeline.from_pretrained(tmp_path)
    assert shared.model_defaults["height"] == 64
    for pipeline in (load_pipeline(source, "cpu"), shared):
        pipeline.set_progress_bar_config(disable=True)
        loaded = pipeline.transformer.state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in weights.items())
        out = pipeline("a red", height=32, width=32, num_output_frames=3, output_type="latent")
        assert out.latents.isfinite().all()
