"""Tasks of lm-evaluation-harness on any model of an experiment. Needs the extra `lm-eval`.

Only log-likelihoods and greedy generation are supported, one document at a time.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from exact_prep.errors import UsageError
from exact_prep.validation.generation import continue_greedily

if TYPE_CHECKING:
    from torch import nn

    from exact_prep.validation.ruler import Codec

MAX_NEW_TOKENS = 64
"""Used if a task does not set a limit."""


def evaluate(model: nn.Module, codec: Codec, tasks: list[Any], device: str = "cpu", **options: Any) -> dict[str, float]:
    """Every numeric metric of `tasks` (names of harness tasks, or Task objects), as `harness TASK METRIC`.

    `options` are passed to `lm_eval.simple_evaluate`. Raises UsageError if the harness is not installed or does not
    know a task.
    """
    lm_eval = import_harness()
    try:
        found = lm_eval.simple_evaluate(make_adapter(model, codec, device), tasks=tasks, bootstrap_iters=0, **options)
    except (KeyError, ValueError) as error:
        raise UsageError(f"lm-evaluation-harness cannot run {', '.join(map(str, tasks))}: {error}") from error
    return {
        f"harness {task} {metric.removesuffix(',none')}": float(value)
        for task, metrics in found["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, int | float) and "stderr" not in metric and metric not in ("sample_len", "alias")
    }


def import_harness() -> Any:
    """Import `lm_eval`; raises UsageError if it is not installed."""
    try:
        import lm_eval
    except ImportError:
        raise UsageError("--harness needs lm-evaluation-harness: pip install 'exact-prep[lm-eval]'") from None
    return lm_eval


def make_adapter(model: nn.Module, codec: Codec, device: str) -> Any:
    """Make an `lm_eval.api.model.LM` from a model that maps ids[T] in segments to logits[T, V]."""
    from lm_eval.api.model import LM

    class Adapter(LM):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return [self.score(*request.args) for request in requests]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            # A document's first token is not scored: nothing comes before it, and in training it carries no loss.
            return [self.score("", *request.args)[0] for request in requests]

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [self.generate(*request.args) for request in requests]

        @torch.no_grad()
        def score(self, context: str, continuation: str) -> tuple[float, bool]:
            # As in the harness: white space between the two belongs to the continuation, and both are encoded as one.
            kept = context.rstrip()
            given = len(codec.encode(kept))
            ids = codec.encode(context + continuation)
            first = max(min(given, len(ids) - 1), 1)
            if len(ids) <= first:
                return 0.0, True
            edges, places = torch.tensor([0, len(ids)], device=device), torch.arange(first, len(ids), device=device)
            logits = model(torch.tensor(ids, device=device), edges, places - 1).float()
            targets = torch.tensor(ids[first:], device=device)
            logp = logits.log_softmax(-1).gather(1, targets[:, None])
            return float(logp.sum()), bool((logits.argmax(-1) == targets).all())

        @torch.no_grad()
        def generate(self, context: str, options: dict[str, Any]) -> str:
            if options.get("do_sample") or options.get("temperature", 0):
                raise UsageError("this adapter decodes greedily; choose a task without sampling")
            until = options.get("until") or []
            stops = [until] if isinstance(until, str) else list(until)
            following = continue_greedily(model, torch.tensor(codec.encode(context), device=device))
            ids: list[int] = []
            said = ""
            for token in islice(following, int(options.get("max_gen_toks", MAX_NEW_TOKENS))):
                ids.append(token)
                said = codec.decode(ids)
                if any(stop in said for stop in stops):
                    break
            cuts = [said.index(stop) for stop in stops if stop in said]
            return said[: min(cuts, default=len(said))]

    model.eval()
    return Adapter()
