"""`python -m benchmarks [--json] [--only NAME]`"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial

from benchmarks import (
    anomaly,
    bootstrap,
    cache,
    cache_search,
    decode,
    decoder,
    detection,
    encode,
    grid,
    pretraining,
    prompts,
    ridge,
    search,
    transduction,
    tuning,
)
from benchmarks.harness import Case, Result, measured

BENCHMARKS: Mapping[str, Callable[[], AbstractContextManager[Case]]] = {
    "encode_vit_b32_batch8": partial(encode.vit_bf16, 8),
    "encode_vit_b32_batch1": partial(encode.vit_bf16, 1),
    "encode_bundled_onnxruntime": encode.bundled_onnxruntime,
    "decode_640": decode.of_640,
    "decode_1600": decode.of_1600,
    "decode_small_grey": decode.of_small_grey,
    "second_run": cache.second_run,
    "cache_rows": cache.rows,
    "bootstrap": bootstrap.macro_auroc_and_balanced_accuracy,
    "grid": grid.fourteen_methods,
    "cache_search": cache_search.twenty_by_twenty,
    "ridge": ridge.leave_one_out,
    "transduction": transduction.of_rows,
    "patch_memory_search": anomaly.search,
    "average_precision": partial(detection.average_precision, resamples=0),
    "average_precision_bootstrap": detection.average_precision,
    "decoder_vit_b16": partial(decoder.cached_grids, "ViT-B-16", 5.0),
    "decoder_vit_b16_dense": partial(decoder.cached_grids, "ViT-B-16@dense", 5.0),
    "decoder_bundled": partial(decoder.cached_grids, "bundled", None),
    "two_prompts": decoder.two_prompts,
    "prompt_step_3": partial(prompts.step, 3, "float32", 6.0),
    "prompt_step_8": partial(prompts.step, 8, "float32", 8.0),
    "prompt_step_20": partial(prompts.step, 20, "float32", 10.0),
    "prompt_step_3_bf16": partial(prompts.step, 3, "bfloat16", 9.0),
    "prompt_step_8_bf16": partial(prompts.step, 8, "bfloat16", 12.0),
    "prompt_step_20_bf16": partial(prompts.step, 20, "bfloat16", 15.0),
    "prompt_step_bert": prompts.bert,
    "short_frozen_prompts": prompts.short_frozen_prompts,
    "lora_bf16": partial(tuning.lora, None, 2.2),
    "lora_last_4_blocks_kept_inputs": partial(tuning.lora, 4, 6.0),
    "pretrain_in_chunks": pretraining.chunked,
    "search_100_000": partial(search.nearest, 100_000, 15.0),
    "search_1_000_000": partial(search.nearest, 1_000_000, 50.0),
}


def main() -> int:
    """Exit code 1 where results do not agree; a missed goal is shown and is no error: it depends on the machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours against the plain loop: one thread, CPU time.")
    parser.add_argument("--json", action="store_true", help="a list of results on stdout")
    parser.add_argument("--only", choices=[*BENCHMARKS], help="one benchmark")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    results = []
    for name in [asked.only] if asked.only else BENCHMARKS:
        print(f"{name} ...", file=sys.stderr)
        results.append(measured(name, BENCHMARKS[name]()))
        if not asked.json:
            print(line(results[-1]), flush=True)
    if asked.json:
        print(json.dumps([result.as_json() for result in results], indent=1))
    return int(any(result.check.startswith("failed") for result in results))


def line(result: Result) -> str:
    """One result in words."""
    goal = "no goal" if result.goal is None else f"goal {result.goal:g} {'met' if result.ratio >= result.goal else 'missed'}"
    seconds = f"ours {result.ours_seconds:.4f} s, plain {result.plain_seconds:.4f} s"
    return f"{result.name:28} {result.ratio:8.2f} x   {goal:16} {seconds}   {result.check}"


if __name__ == "__main__":
    sys.exit(main())
