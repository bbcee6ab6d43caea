"""What guides are trained for: class-conditional likelihood, Bayes' class, the class of every prefix. Knows no data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy, pad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

ABSENT = float("nan")
"""Stands where a class was not asked for; a loss that reads it is NaN."""


def class_log_likelihoods(
    model: Any,
    code_ids: Sequence[Sequence[int]],
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    bos: int | None,
    scored: Tensor | None = None,
    only: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`log p(text | code)` for every code, from one forward pass of the model over all of them.

        L_c = sum_j log p(x_j | [bos] code_c x_<j)      over the scored tokens of a text

    Args:
        model: A causal language model: `input_ids` and `attention_mask` → an object with `logits` `[R, T, V]`.
        code_ids: Tokens of each of the C codes, at least one each.
        input_ids: Texts without `<bos>`, `[B, L]`, padded on the right.
        attention_mask: 1 at tokens and 0 at padding, `[B, L]`.
        bos: The token in front of the code; `None` for none.
        scored: Of the tokens, those whose probability counts, `[B, L]`; `None` is all. A topic in front of a text is a
            condition and does not count.
        only: The one code to run for each text, `[B]`; `None` runs all. The other columns are NaN.

    Returns:
        Log-likelihoods in nats, `[B, C]`, float32, and the number of scored tokens of each text, `[B]`.

    Example:
        >>> from lmguide.bundled import bundled
        >>> model, _ = bundled("tales")
        >>> texts = torch.tensor([[40, 41, 42]])
        >>> likelihoods, counts = class_log_likelihoods(model, [[7], [8, 9]], texts, torch.ones_like(texts), bos=0)
        >>> likelihoods.shape, counts.tolist()
        (torch.Size([1, 2]), [3])
    """
    batch, length = input_ids.shape
    start = [] if bos is None else [bos]
    fronts = [input_ids.new_tensor([*start, *code]) for code in code_ids]
    everyone = torch.arange(batch, device=input_ids.device)
    readers = [everyone if only is None else everyone[only == code] for code in range(len(fronts))]
    width = max(map(len, fronts)) + length
    ids, masks = [], []
    for front, texts in zip(fronts, readers, strict=True):
        missing = width - len(front) - length
        known = front.expand(len(texts), -1)
        ids.append(pad(torch.cat([known, input_ids[texts]], 1), (0, missing)))
        masks.append(pad(torch.cat([torch.ones_like(known), attention_mask[texts]], 1), (0, missing)))
    logits = model(input_ids=torch.cat(ids), attention_mask=torch.cat(masks), use_cache=False).logits.float()
    counted = attention_mask if scored is None else attention_mask * scored
    found = logits.new_full((batch, len(fronts)), ABSENT)
    for code, (front, texts, part) in enumerate(
        zip(fronts, readers, logits.split([len(texts) for texts in readers]), strict=True)
    ):
        before = len(front) - 1  # whose logits are those of the first token of text
        losses = cross_entropy(
            part[:, before : before + length].flatten(0, 1), input_ids[texts].flatten(), reduction="none"
        )
        found[texts, code] = -losses.view(-1, length).where(counted[texts] > 0, 0.0).sum(1)
    return found, counted.sum(1)


def gedi_loss(
    log_likelihoods: Tensor, counts: Tensor, labels: Tensor, *, gen_weight: float, logit_scale: Tensor, bias: Tensor
) -> Tensor:
    """GeDi's loss, with `l_c = L_c / t` the mean over the t tokens of a text and `y` its class.

        L_gen = -l_y
        L_disc = -log softmax_c(logit_scale l_c + bias_c) at y
        loss = gen_weight L_gen + (1 - gen_weight) L_disc      mean over texts

    Args:
        log_likelihoods: `L_c` in nats, `[B, C]`; with `gen_weight` 1 only those of the right class are read.
        counts: Tokens of each text, `[B]`, at least 1.
        labels: The class of each text, `[B]`.
        gen_weight: lambda, in [0, 1]. The paper's is 0.8.
        logit_scale: Learned factor, a scalar tensor.
        bias: Learned offset of each class, `[C]`.

    Returns:
        A scalar. (Krause et al., 2009.06367, and its code.)

    Example:
        >>> log_likelihoods, counts, labels = torch.tensor([[-4.0, -8.0]]), torch.tensor([4]), torch.tensor([0])
        >>> settings = {"logit_scale": torch.tensor(1.0), "bias": torch.zeros(2)}
        >>> round(float(gedi_loss(log_likelihoods, counts, labels, gen_weight=1.0, **settings)), 3)
        1.0
        >>> round(float(gedi_loss(log_likelihoods, counts, labels, gen_weight=0.0, **settings)), 3)
        0.313
    """
    means = log_likelihoods / counts[:, None]
    generative = -means.gather(1, labels[:, None]).mean()
    if gen_weight == 1:  # the other classes may not have been run
        return generative
    return gen_weight * generative + (1 - gen_weight) * cross_entropy(means * logit_scale + bias, labels)


def prefix_loss(logits: Tensor, labels: Tensor, attention_mask: Tensor) -> Tensor:
    """FUDGE's loss: every prefix of a text is an example of the class of the whole.

        loss = -mean log softmax_c(logits_j) at y      over all prefixes x_<=j of all texts

    Args:
        logits: Class logits behind every token, `[B, L, C]`.
        labels: The class of each text, `[B]`.
        attention_mask: 1 at tokens and 0 at padding, `[B, L]`.

    Returns:
        A scalar. (Yang and Klein, 2104.05218.)

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [0.0, 99.0]]])
        >>> round(float(prefix_loss(logits, torch.tensor([0]), torch.tensor([[1, 1, 0]]))), 3)
        0.41
    """
    real = attention_mask.bool()
    return cross_entropy(logits[real].float(), labels[:, None].expand_as(real)[real])
