"""Peak memory of guided generation beside unguided generation, in processes of their own.

    python scripts/bench_memory.py

The bound it checks: unguided, one more key-value cache, and five per cent.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

import lmguide as lg

LAYERS, HIDDEN, PROMPT, NEGATIVE, NEW = 12, 768, 3072, 64, 16
MODES = ("unguided", "CFG batched", "SelectiveCFG", "SuffixCFG (MTI)", "transformers guidance_scale")


def peak(mode: str) -> float:
    """Peak resident memory of this process after one generation, in MB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=8192,
        eos_token_id=None,
        pad_token_id=0,
    )
    model: Any = LlamaForCausalLM(config).eval()
    prompt, negative = torch.randint(2, 32000, (1, PROMPT)), torch.randint(2, 32000, (1, NEGATIVE))
    options: dict[str, Any] = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": NEW, "do_sample": False}
    guidance: dict[str, lg.Guidance] = {
        "CFG batched": lg.CFG(1.5),
        "SelectiveCFG": lg.SelectiveCFG(1.5, entropy_threshold=0.0),
        "SuffixCFG (MTI)": lg.SuffixCFG(1.5, (17, 23), entropy_threshold=None),
    }
    if mode in guidance:
        negatives: dict[str, Any] = {} if mode.startswith("Suffix") else {"negative_prompt_ids": negative}
        lg.guide(model, guidance[mode]).generate(prompt, **options, **negatives)
    elif mode == "unguided":
        model.generate(prompt, **options)
    else:
        model.generate(prompt, guidance_scale=1.5, negative_prompt_ids=negative, **options)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure every mode in a process of its own and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    mode = parser.parse_args().mode
    if mode is not None:
        print(peak(mode))
        return
    cache = 2 * LAYERS * (PROMPT + NEW) * HIDDEN * 4 / 2**20
    print(f"prompt {PROMPT}, negative {NEGATIVE}, key-value cache {cache:.0f} MB, float32\n")
    print("| mode | peak MB | more than unguided | within unguided + one cache + 5 % |\n|---|---|---|---|")
    peaks = {}
    for name in MODES:
        command = [sys.executable, __file__, "--mode", name]
        peaks[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        bound = 1.05 * peaks["unguided"] + cache
        verdict = "yes" if peaks[name] <= bound else "no"
        print(f"| {name} | {peaks[name]:.0f} | {peaks[name] - peaks['unguided']:+.0f} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()
