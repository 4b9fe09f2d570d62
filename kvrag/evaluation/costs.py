"""What a method costs beside its quality: rows, operations, bytes, and the time to a first token."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Self

from kvrag.attach import ComputedStates, DevicePool
from kvrag.bench.timing import median_ms
from kvrag.engine import PacketEngine
from kvrag.evaluation.cases import Case
from kvrag.evaluation.report import QualityRow
from kvrag.model import LanguageModel
from kvrag.plan import plan_lane
from kvrag.prepared import Prepared
from kvrag.prompt import PacketSegment
from kvrag.strategies import Strategy

__all__ = ["Costs", "MethodRow", "Work", "compute_first_token", "measure_costs"]


@dataclass(frozen=True)
class Work:
    """What is to be done for one prompt until its first token.

    Attributes:
        rows: that go through the model; where a method computes some rows in some layers only, their mean.
        keys: that these rows attend to, summed over the rows, a layer.
        nbytes: of the packets that it reads, each once.
        chunk_tokens: of the texts that these packets hold.
    """

    rows: float
    keys: float
    nbytes: int
    chunk_tokens: int

    @classmethod
    def of(cls, prepared: Prepared, computed: float) -> Self:
        """Of a prompt of which so many rows are computed.

        Text and soft rows see every row before them and themselves. What is computed beyond them are tokens of packets,
        scattered over the prompt of `N` rows, which see `(N + 1) / 2` keys on average.
        """
        rows, keys, seen = 0, 0.0, 0
        chunks: dict[str, tuple[int, int]] = {}
        for segment in prepared.segments:
            length = prepared.length(segment)
            if isinstance(segment, PacketSegment):
                chunks[segment.key] = prepared.packets[segment.key].nbytes, len(segment.ids)
            else:
                keys += length * seen + length * (length + 1) / 2
                rows += length
            seen += length
        keys += (computed - rows) * (prepared.tokens + 1) / 2
        return cls(computed, keys, sum(n for n, _ in chunks.values()), sum(n for _, n in chunks.values()))

    def __add__(self, later: "Work") -> "Work":
        """Both one after the other; the packets are those of the first."""
        return replace(self, rows=self.rows + later.rows, keys=self.keys + later.keys)

    def flops(self, model: LanguageModel) -> float:
        """Floating point operations: `2 P rows + 4 L HQ D keys + 2 hidden vocabulary`.

        P are the weights of the linear layers in the decoder layers, all experts included. A multiplication and an
        addition are two operations; scores and weighted values take one of each a channel. Norms, rotations and the
        softmax are left out, and so is what a method does to choose rows.
        """
        g = model.geometry
        weights = sum(p.numel() for m in model.linear_modules().values() for p in m.parameters() if p.ndim == 2)
        head = 2 * model.hidden_size * int(model.config.vocab_size)
        return 2 * weights * self.rows + 4 * g.layers * g.heads * g.head_dim * self.keys + head


def compute_first_token(model: LanguageModel, prompt: Prepared, pool: DevicePool | None = None) -> tuple[int, Work]:
    """The first token of an answer, and what was done for it, however often the prompt had to be read.

    Args:
        model: to run on.
        prompt: nothing of it but packets is reused.
        pool: of packets on the device.
    """
    work: Work | None = None
    while True:
        plan = plan_lane(model, prompt, ComputedStates(0), 1, pool)
        try:
            logits = model.forward([plan.rows])[0]
            done = Work.of(prompt, plan.computed)
            again = plan.again(logits)
        finally:
            plan.release()
        work = done if work is None else work + done
        if again is None:
            return int(logits.argmax()), work
        prompt = again


@dataclass(frozen=True)
class Costs:
    """What a method costs, over the prompts that were timed.

    Attributes:
        flops: until the first token, mean; `Work.flops` has the formula.
        bytes_loaded: of packets that a prompt reads, mean.
        ttft_ms: from the prompt string until the first token is there, packets in host memory: the median over prompts
            of the median of runs that take turns with those of the other methods; the mean over prompts where a method
            falls back for some of them, which a median would hide.
        timed: prompts.
        bytes_per_token: of packets, for each token of the text that they hold; 0 where nothing is stored.
    """

    flops: float
    bytes_loaded: float
    ttft_ms: float
    timed: int
    bytes_per_token: float


@dataclass(frozen=True)
class MethodRow(Costs, QualityRow):
    """Quality and costs of one method over the cases of a data set; the attributes are those of both."""

    @classmethod
    def of(cls, quality: QualityRow, costs: Costs) -> Self:
        """The two together."""
        return cls(**asdict(quality), **asdict(costs))


def measure_costs(
    engine: PacketEngine,
    cases: Sequence[Case],
    methods: Mapping[str, Strategy],
    *,
    runs: int = 3,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, Costs]:
    """Send prompts through the engine by every method in turn, and count what it does.

    Args:
        engine: with `computed_bytes=0`, so that nothing is reused from run to run but packets.
        cases: at least one; their packets are built where they are missing.
        methods: strategies by name.
        runs: of every prompt by every method, besides two that do not count.
        advance: hears of every prompt and method.
    """
    works: dict[str, list[Work]] = {name: [] for name in methods}
    times: dict[str, list[float]] = {name: [] for name in methods}
    for case in cases:
        calls: dict[str, Callable[[], object]] = {}
        known: list[Prepared] = []
        for name, strategy in methods.items():
            if strategy.attaches:
                engine.build(case.passages, strategy=strategy, progress=False)
            prepared = engine.prepare(case.prompt, strategy=strategy, documents=case.passages)
            known.append(prepared)
            calls[name] = lambda strategy=strategy, case=case: engine.generate(
                case.prompt, strategy=strategy, documents=case.passages, max_new_tokens=1
            )
            _, work = engine.run(compute_first_token, engine.model, prepared)
            works[name].append(work)

        def forget(known: Sequence[Prepared] = known) -> None:
            for prepared in known:
                engine.forget_on_device(prepared)

        for name, ms in median_ms(calls, engine.model.device, runs=runs, before=forget).items():
            times[name].append(ms)
            advance(1)
    return {
        name: _costs(engine.model, works[name], (median if strategy.fallback is None else fmean)(times[name]))
        for name, strategy in methods.items()
    }


def _costs(model: LanguageModel, works: Sequence[Work], ttft_ms: float) -> Costs:
    stored, tokens = sum(work.nbytes for work in works), sum(work.chunk_tokens for work in works)
    return Costs(
        flops=fmean(work.flops(model) for work in works),
        bytes_loaded=fmean(work.nbytes for work in works),
        ttft_ms=ttft_ms,
        timed=len(works),
        bytes_per_token=stored / tokens if tokens else 0.0,
    )
