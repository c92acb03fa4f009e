"""Reference cases of MAGI-1 as the objects of our code, and tiny models."""

import inspect

import torch
from reference import Case, reference_dir
from safetensors.torch import load_file
from torch import Tensor

from flowcache import StaircaseSchedule
from magi1.captions import make_captions
from magi1.chunk_model import KVRange, MagiChunkModel, Sampling
from magi1.conversion import official_key
from magi1.guidance import DistilledGuidance, Guidance, ThreeWayGuidance
from magi1.schedule import Timetable
from magi1.transformer import MagiTransformer3DModel

#: A transformer with random weights.
SIZES = {"num_layers": 1, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 2}
SIZES |= {"num_query_groups": 1, "kv_channels": 16, "in_channels": 4, "out_channels": 4}
SIZES |= {"caption_channels": 16, "caption_max_length": 20}


def magi_case(name: str) -> Case:
    return Case(reference_dir() / "magi1", name)


def pick_known(kind: type, values: dict) -> dict:
    """Those of the values that are arguments of a class."""
    known = inspect.signature(kind.__init__).parameters
    return {key: value for key, value in values.items() if key in known}


def load_transformer(case: Case) -> MagiTransformer3DModel:
    config = pick_known(MagiTransformer3DModel, case.info["config"]["model_config"])
    transformer = MagiTransformer3DModel(**config).eval()
    weights = load_file(case.folder / case.info["weights"])
    transformer.load_state_dict({name: weights[official_key(name)] for name in transformer.state_dict()})
    return transformer


def guidance_of(case: Case, nearly_clean: bool = True) -> Guidance:
    runtime, engine = case.info["config"]["runtime_config"], case.info["config"]["engine_config"]
    if runtime["cfg_number"] == 1:
        return DistilledGuidance(engine["distill_nearly_clean_chunk_threshold"] if nearly_clean else None)
    return ThreeWayGuidance(runtime["cfg_t_range"], runtime["prev_chunk_scales"], runtime["text_scales"])


def chunk_model(case: Case, noise: Tensor, schedule: StaircaseSchedule, nearly_clean: bool = True) -> MagiChunkModel:
    runtime, engine = case.info["config"]["runtime_config"], case.info["config"]["engine_config"]
    transformer = load_transformer(case)
    table = Timetable(runtime["num_steps"], engine["shortcut_mode"], engine["distill"], clean_time=runtime["clean_t"])
    kv_range = KVRange(tuple(runtime["noise2clean_kvrange"]), runtime["clean_chunk_kvrange"])
    sampling = Sampling(table, guidance_of(case, nearly_clean), schedule, kv_range)
    text = case.tensors["caption_embs"][0, 0][case.tensors["emb_masks"][0].bool()]
    captions = make_captions(text, transformer.caption_embed.null_caption, schedule.num_chunks)
    return MagiChunkModel(transformer, captions, tuple(noise.shape[2:]), sampling)


def random_model(schedule, kv_range=None, guidance=None, size=(4, 4), device="cpu", **sizes) -> MagiChunkModel:
    """A chunk model with random weights, distilled unless it has three-way guidance."""
    torch.manual_seed(0)
    transformer = MagiTransformer3DModel(**{**SIZES, **sizes}).requires_grad_(False)
    for parameter in transformer.time_embed.parameters():
        torch.nn.init.normal_(parameter)
    transformer.to(device)
    null = transformer.caption_embed.null_caption
    captions = make_captions(torch.randn(5, 16, device=device), null, schedule.num_chunks)
    table = Timetable(schedule.num_steps, distilled=not isinstance(guidance, ThreeWayGuidance))
    sampling = Sampling(table, guidance or DistilledGuidance(), schedule, kv_range or KVRange())
    return MagiChunkModel(transformer, captions, size, sampling)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()
