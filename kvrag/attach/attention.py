"""The attention function that transformers calls, and the pass it works for.

transformers hands every attention layer's queries and keys, already rotated, to a function registered under a name.
Ours is registered under names of its own, one per implementation it stands in for: a call that carries a pass is
answered over the pass's lanes, any other call goes to the implementation the model had before.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from kvrag_kernels.packet_attention import AttentionItem, AttentionTable, packet_attention

from kvrag.attach.lane import Lane
from kvrag.errors import UnsupportedModelError
from kvrag.rope import Rope

__all__ = ["PASS_KWARG", "AttentionPass", "LanePass", "Pass", "attend"]

PASS_KWARG = "kvrag_pass"

_HARMLESS = frozenset(
    {
        "dropout",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "use_cache",
    }
)


class Pass(Protocol):
    """What answers the attention layers of one forward pass.

    Attributes:
        layers_seen: how many it has answered.
    """

    layers_seen: int

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """`[S, HQ, D]` from queries `[HQ, S, D]`, keys and values `[H, S, D]`."""
        ...


class LanePass:
    """What all passes over lanes have in common.

    Args:
        lanes: the lanes, in the order of their rows in the pass.
        rows: number of rows each lane computes now.
    """

    def __init__(self, lanes: Sequence[Lane], rows: Sequence[int]) -> None:
        self.layers_seen = 0
        self._lanes = list(zip(lanes, rows, strict=True))
        for lane, count in self._lanes:
            lane.reserve(count)

    def asked(self) -> tuple[torch.Tensor, float]:
        """Queries of the layers that ask, `[l, HQ, S, D]`, if the pass was made to keep them; and the scaling."""
        raise NotImplementedError

    def commit(self) -> None:
        """Make the rows of a pass that went through part of their lanes."""
        for lane, count in self._lanes:
            lane.advance(count)


class AttentionPass(LanePass):
    """One forward pass over rows of several lanes.

    Args:
        lanes: the lanes, in the order of their rows in the pass.
        rows: number of rows each lane computes now.
        rope: of the model.
        asking: layers whose queries are kept.
    """

    def __init__(self, lanes: Sequence[Lane], rows: Sequence[int], rope: Rope, asking: range = range(0)) -> None:
        super().__init__(lanes, rows)
        self._asking = asking
        self._queries: list[torch.Tensor] = []
        self._scaling = 1.0
        device = lanes[0].own(0, 0).device
        turns: dict[int, int] = {}
        groups = {1.0: 0}  # by merge scale
        items: list[AttentionItem] = []
        self._keys: list[tuple[torch.Tensor, ...]] = []
        self._values: list[tuple[torch.Tensor, ...]] = []
        first = 0
        for lane, count in self._lanes:
            for extent in lane.extents:
                seen_from = first + max(0, extent.seen_from - lane.length)
                if seen_from < first + count:
                    turn = turns.setdefault(extent.turn, len(turns)) if extent.turn else None
                    group = groups.setdefault(extent.merge_scale, len(groups))
                    items.append(AttentionItem(seen_from, first + count, turn, None, extent.score_scale, group))
                    self._keys.append(extent.keys)
                    self._values.append(extent.values)
            items.append(AttentionItem(first, first + count, diagonal=lane.length))
            own = lane.own(0, lane.length + count)
            self._keys.append(own[:, 0].unbind(0))
            self._values.append(own[:, 1].unbind(0))
            first += count
        cos, sin = rope.angles(list(turns))
        scales = tuple(groups), (0.0,) * len(groups)
        self._table = AttentionTable(tuple(items), cos.to(device), sin.to(device), *scales)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Write the rows' keys and values `[H, S, D]` into their lanes and attend: `[S, HQ, D]` from `[HQ, S, D]`."""
        first = 0
        for lane, count in self._lanes:
            lane.write(layer, key[:, first : first + count], value[:, first : first + count])
            first += count
        self.layers_seen += 1
        if layer in self._asking:
            self._queries.append(query)
            self._scaling = scaling
        keys = [of_layer[layer] for of_layer in self._keys]
        values = [of_layer[layer] for of_layer in self._values]
        return packet_attention(query.transpose(0, 1), keys, values, self._table, scaling)

    def asked(self) -> tuple[torch.Tensor, float]:
        """As `LanePass.asked`."""
        return torch.stack(self._queries), self._scaling


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]
) -> tuple[torch.Tensor, None]:
    """Answer one attention layer of a call that carries a pass.

    Shapes:
        query:   [1, HQ, S, D]
        key:     [1, H, S, D]
        value:   [1, H, S, D]
        returns: [1, S, HQ, D]

    Raises:
        UnsupportedModelError: the layer asks for something packet attention does not do, such as a soft cap.
    """
    current: Pass = options.pop(PASS_KWARG)
    scaling = options.pop("scaling", None)
    strange = sorted(name for name, value in options.items() if name not in _HARMLESS and value is not None)
    if strange:
        raise UnsupportedModelError(
            f"expected plain softmax attention, found a layer that passes {', '.join(strange)}; this model's packets "
            "cannot be attached"
        )
    if query.shape[0] != 1 or key.shape != value.shape:
        raise UnsupportedModelError(
            f"expected keys and values of one shape [1, H, S, D], found {list(key.shape)} and {list(value.shape)}"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    layer = int(module.layer_idx)  # pyright: ignore[reportArgumentType]
    return current.attend(layer, query[0], key[0], value[0], scaling)[None], None
