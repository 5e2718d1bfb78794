"""The ecosystem's way to a .pte: transformers' ExecuTorch integration, torchao's 8da4w, ExecuTorch's own lowering.

These are the steps of optimum-executorch's xnnpack recipe, whose package pins other versions of transformers. Formats
are those of our recipe int4-rtn: linears int4 in groups of 32 with int8 activations, embedding and head int8 by row.
Usage: python peer.py MODEL OUT.pte CONTEXT; prints seconds and peak bytes as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def load(path: Path, context: int) -> Any:
    """The model as transformers has it, ready for its static cache."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    place, options = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, attn_implementation="sdpa", **options)
    model.generation_config = GenerationConfig(
        use_cache=True, cache_implementation="static", max_length=context,
        cache_config={"batch_size": 1, "max_cache_len": context},
    )  # fmt: skip
    return model.eval()


def quantize(model: Any) -> None:
    """In place, by torchao's own quantiser."""
    import torch
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.quantization.quant_api import (
        Int8DynamicActivationIntxWeightConfig,
        IntxWeightOnlyConfig,
        quantize_,
    )

    table = model.get_input_embeddings()
    table.padding_idx = None  # of training only, and in the way of ExecuTorch's fused embedding
    if model.config.tie_word_embeddings:  # torchao needs two tables for two formats
        model.lm_head.weight = torch.nn.Parameter(table.weight.detach().clone())

    def is_layer(module: Any, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and name != "lm_head"

    groups = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32))
    rows = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
    table_rows = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    quantize_(model, groups, is_layer)
    quantize_(model, rows, lambda module, name: name == "lm_head")
    quantize_(model, table_rows, lambda module, name: module is table)


def lower(model: Any, context: int) -> Any:
    """torch.export by transformers, then XNNPACK."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass
    from executorch.exir.passes.quant_fusion_pass import QuantFusionPass
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    tokens = torch.export.Dim("tokens", min=1, max=context - 1)
    ids = torch.arange(8, dtype=torch.long)
    with torch.no_grad():
        program = TorchExportableModuleForDecoderOnlyLM(model, 1, context).export(
            input_ids=ids[None],
            cache_position=ids,
            dynamic_shapes={"input_ids": {1: tokens}, "cache_position": {0: tokens}},
            strict=True,
        )
    edge = to_edge_transform_and_lower(
        program,
        partitioner=[XnnpackPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    return edge.to_executorch(
        ExecutorchBackendConfig(
            extract_delegate_segments=True,
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            passes=[QuantFusionPass()],
            do_quant_fusion_and_const_prop=True,
        )
    )


def main() -> None:
    """Export once."""
    model_path, out, context = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    started = time.perf_counter(), time.process_time()
    model = load(model_path, context)
    quantize(model)
    program = lower(model, context)
    with out.open("wb") as file:
        program.write_to_file(file)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([time.perf_counter() - started[0], time.process_time() - started[1], peak]))


if __name__ == "__main__":
    main()
