"""Whether packets answer as full recompute does, on the user's own documents and questions."""

from collections.abc import Callable, Sequence

from kvrag.engine import PacketEngine
from kvrag.evaluation.calibration import Calibration
from kvrag.evaluation.cases import Case
from kvrag.evaluation.comparison import Comparison
from kvrag.evaluation.engine_answerer import EngineAnswerer
from kvrag.evaluation.metrics import answer_f1, kl_divergence
from kvrag.evaluation.quality import FULL, methods_from_names
from kvrag.evaluation.report import Setup
from kvrag.prepared import certainty

__all__ = ["calibrate"]


def calibrate(
    engine: PacketEngine,
    cases: Sequence[Case],
    strategy: str,
    *,
    threshold: float = 0.9,
    max_new_tokens: int = 24,
    left_out: int = 0,
    advance: Callable[[int], None] = lambda done: None,
) -> Calibration:
    """Answer every case by the strategy, from the packets that the store has, and by full recompute.

    Args:
        engine: with the user's store, which is only read.
        cases: at least one.
        strategy: its name.
        threshold: as in `Calibration`.
        max_new_tokens: of an answer.
        left_out: questions that made no case, for the report.
        advance: hears of every case.
    """
    methods = methods_from_names([strategy])
    answerer = EngineAnswerer(engine, max_new_tokens, builds=False)
    found: list[Comparison] = []
    for case in cases:
        (full,) = answerer.answer([case], methods[FULL])
        (own,) = answerer.answer([case], methods[strategy], [full.token_ids])
        found.append(
            Comparison(
                question=case.question,
                packets=own.text.strip(),
                full=full.text.strip(),
                f1=answer_f1(own.text, [full.text]),
                kl=float(kl_divergence(full.logits, own.logits).mean()),
                first_token_equal=own.token_ids[0] == full.token_ids[0],
                computed_tokens=own.computed,
                prompt_tokens=own.prompt_tokens,
                full_tokens=full.prompt_tokens,
                probability=certainty(own.logits[0]),
                fell_back=own.fell_back,
            )
        )
        advance(1)
    return Calibration(Setup.of(engine), strategy, threshold, max_new_tokens, tuple(found), left_out)
