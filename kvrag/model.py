"""A transformers model as kvrag uses it; the only module that touches transformers' model and cache classes."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging as transformers_logging

from kvrag.attach import (
    PASS_KWARG,
    DevicePool,
    Geometry,
    Lane,
    PacketRanking,
    Pass,
    Passes,
    PrivatePass,
    attend,
)
from kvrag.errors import ModelError, PromptError, UnsupportedModelError
from kvrag.framing import Framing
from kvrag.joined import join_linears
from kvrag.packet import Identity, digest_fields
from kvrag.rope import Rope, check_rope_type
from kvrag.tokenizing import ChunkTokenizer
from kvrag.turns import SharedModel, Turns
from kvrag.weights import all_modules, digest_weights, is_linear, switches

if TYPE_CHECKING:
    from kvrag.grammar import Grammars
    from kvrag.graphs import ForwardGraphs
    from kvrag.recompute import Repair

__all__ = ["LanguageModel", "Rows", "convert_gguf"]

_PREFIX = "kvrag_"
_IMPLEMENTATION_KWARG = "kvrag_implementation"
_COMPILED_SIZES = 64  # passes of different sizes that torch.compile may see before it gives up
_SHARE_OF_FREE = 0.4  # of a GPU's memory, for packets; the rest is for activations, lanes and others


@dataclass(frozen=True)
class Rows:
    """What one lane computes in a pass.

    Attributes:
        lane: where keys and values go.
        ids: `[S]` token ids; where `soft` says otherwise, a placeholder.
        positions: `[S]` positions in the prompt.
        soft: row number to `[n, hidden]` trained embeddings that replace the rows from there on.
        repair: what computes some of the rows, in a pass of its own, when the others are packets in the lane's block.
        ranking: what is to learn how much attention its last rows pay to packets.
    """

    lane: Lane
    ids: Sequence[int]
    positions: Sequence[int]
    soft: Sequence[tuple[int, torch.Tensor]] = ()
    repair: "Repair | None" = None
    ranking: PacketRanking | None = None


class LanguageModel:
    """A causal language model whose packets can be attached.

    The model object stays the user's: it is never moved, and generates as before. Its attention implementation is
    renamed while kvrag uses it; calls without a pass go to the implementation it had. `close` gives the name back. Any
    number of these objects may stand for one model; those who compute with it take `turns`.

    Args:
        model: a transformers causal language model, on one device.
        tokenizer: its fast tokenizer.
        name: what to call it in reports.

    Raises:
        UnsupportedModelError: its configuration says that packets cannot be moved.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str | None = None) -> None:
        self.name = name or str(getattr(model.config, "name_or_path", "") or type(model).__name__)
        self.config = model.config.get_text_config()
        self._model = model.eval() if model.training else model
        self._chat_tokenizer = tokenizer
        self.tokenizer = ChunkTokenizer(tokenizer)
        _check_config(self.config, getattr(model, "hf_device_map", None))
        self.rope = _find_rope(model)
        self.geometry = _geometry(self.config)
        self.dtype: torch.dtype = model.get_input_embeddings().weight.dtype
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.passes = Passes(self.geometry, self.rope, self.dtype, self.device)
        self.graphs: ForwardGraphs | None = None
        self._shared = SharedModel.join(model, _stand_in)
        self._closed = False

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str = "auto", dtype: str | torch.dtype = "auto"
    ) -> "LanguageModel":
        """Load a model and its tokenizer from a local folder or a hub id.

        Args:
            source: folder or id.
            device: "auto" takes CUDA when there is one.
            dtype: "auto" is bfloat16 where the hardware computes in it, else float32.

        Raises:
            ModelError: it cannot be loaded.
        """
        chosen = _device(device)
        kind = _auto_dtype(chosen) if dtype == "auto" else dtype
        try:
            with _without_bars():
                tokenizer = AutoTokenizer.from_pretrained(str(source))
                model: Any = AutoModelForCausalLM.from_pretrained(str(source), dtype=kind)
                model.to(chosen)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, AssertionError) as error:
            raise ModelError(
                f"expected a causal language model in {str(source)!r}, found none that loads "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}); "
                "give a local folder with config.json, weights and tokenizer.json, or a hub id"
            ) from error
        return cls(model, tokenizer, name=str(source))

    @property
    def max_positions(self) -> int:
        """The context window in tokens."""
        return int(self.config.max_position_embeddings)

    @property
    def hidden_size(self) -> int:
        """Channels of an input embedding."""
        return int(self._model.get_input_embeddings().weight.shape[1])

    @property
    def device_name(self) -> str:
        """What a result says it was measured on, such as "NVIDIA H200" or "cpu"."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)

    @property
    def transformers_model(self) -> Any:
        """The model object itself; a call without a pass goes where it went before."""
        return self._model

    @property
    def streamed_bytes(self) -> int:
        """Bytes of weights that a pass reads: all but input embeddings, of which it picks rows."""
        embeddings = self._model.get_input_embeddings().weight
        output = self._model.get_output_embeddings()
        tied = output is not None and output.weight is embeddings
        every = sum(p.nbytes for p in self._model.parameters())
        return every if tied else every - embeddings.nbytes

    def modules(self) -> list[torch.nn.Module]:
        """All modules of the model, itself included."""
        return all_modules(self._model)

    def linear_modules(self) -> dict[str, torch.nn.Module]:
        """The linear layers inside the decoder layers by path, in the model's order: what a writer may act on.

        Paths are those of the model without peft's wrapper; a layer that peft has wrapped counts as one layer.

        Raises:
            UnsupportedModelError: the model is compiled, which makes it blind to hooks.
        """
        if any("_orig_mod" in m._modules or m._compiled_call_impl for m in self.modules()):
            raise UnsupportedModelError(
                f"expected a model that is not compiled, since a writer works through hooks, found {self.name} under "
                "torch.compile; load it without, or choose adapter='none'"
            )
        found: dict[str, torch.nn.Module] = {}
        wrapped = "."  # the begin of no path
        for path, module in self._model.named_modules():
            if is_linear(module) and any(part.isdigit() for part in path.split(".")) and not path.startswith(wrapped):
                found[path.removeprefix("base_model.model.")] = module
                wrapped = f"{path}."
        return found

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer: those that end a turn, and the one that would begin another text."""
        own = (self._chat_tokenizer.eos_token_id, self._chat_tokenizer.bos_token_id)
        return frozenset(i for i in (*self._configured_ends, *own) if i is not None)

    @property
    def end_id(self) -> int:
        """The token id that a trained answer ends with: the tokenizer's, if the model's configuration agrees.

        Tokenizers converted from GGUF files by transformers 5.17 have been seen to name the token that begins a turn.
        """
        ends, own = self._configured_ends, self._chat_tokenizer.eos_token_id
        return int(own) if own in ends or not ends else int(ends[0])

    @property
    def _configured_ends(self) -> list[int]:
        """The configuration's end tokens, in its order."""
        ends = self._model.generation_config.eos_token_id
        return [] if ends is None else ends if isinstance(ends, list) else [ends]

    @cached_property
    def grammars(self) -> "Grammars":
        """Hold answers to a form; made once, since reading the vocabulary takes a second.

        Raises:
            ImportError: the package that does it is missing.
        """
        from kvrag.grammar import Grammars

        return Grammars(self._chat_tokenizer, self.stop_ids, int(self.config.vocab_size))

    @cached_property
    def identity(self) -> Identity:
        """Everything its packets' numbers depend on; reads every weight once (0.1 s for 135 million)."""
        config = {k: v for k, v in self.config.to_dict().items() if k not in _UNNUMBERED}
        return Identity(
            config=digest_fields(json.dumps(config, sort_keys=True, default=str)),
            weights=digest_weights(self._model),
            tokenizer=self.tokenizer.digest,
            rope=self.rope.digest,
            dtype=str(self.dtype).removeprefix("torch."),
        )

    def state_stamp(self) -> int:
        """Changes when somebody trains, swaps or switches the model's weights in place; cheap enough for every call."""
        modules = self.modules()
        weights = (p for module in modules for p in module._parameters.values() if p is not None)
        versions = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in weights)
        return hash((versions, switches(modules)))

    def forget_identity(self) -> None:
        """Read the weights again at the next use of `identity`."""
        self.__dict__.pop("identity", None)

    def new_lane(self, capacity: int) -> Lane:
        """An empty lane with room for `capacity` rows."""
        return Lane(self.geometry, capacity, self.dtype, self.device)

    def new_pool(self, capacity: int | None = None) -> DevicePool | None:
        """A pool of packets on the device, or None where packets are not kept on another device than the host.

        Args:
            capacity: in bytes; None takes 0.4 of what is free.
        """
        if self.passes.works is None:
            return None
        if capacity is None:
            capacity = int(_SHARE_OF_FREE * torch.cuda.mem_get_info(self.device)[0])
        return DevicePool(self.geometry, self.dtype, self.device, capacity, self.passes.works.arrivals)

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer says how a conversation is written; if not, `render` names the roles in plain text."""
        return bool(getattr(self._chat_tokenizer, "chat_template", None))

    def render(self, messages: Iterable[dict[str, Any]], **options: Any) -> str:
        """The prompt string of a conversation, by the tokenizer's chat template, open for the assistant's answer.

        Options are the template's; `add_generation_prompt=False` leaves the opening of the answer out.

        Raises:
            PromptError: the template refuses the messages.
        """
        messages = list(messages)
        if not self.has_chat_template:
            lines = [f"{message['role']}: {message['content']}" for message in messages]
            return "\n".join([*lines, "assistant: " if options.get("add_generation_prompt", True) else ""])
        options = {"add_generation_prompt": True, **options, "tokenize": False}
        try:
            return self._chat_tokenizer.apply_chat_template(messages, **options)
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise PromptError(
                f"expected messages that the chat template of {self.name} accepts, found: {error}; "
                "many templates want the roles user and assistant in turns, after at most one system message"
            ) from error

    @cached_property
    def framing(self) -> Framing:
        """What stands around texts in its prompts."""

        def render(message: str) -> str:
            return self.render([{"role": "user", "content": message}], add_generation_prompt=False)

        return Framing(self.tokenizer, render)

    def prompt_beginning(self, count: int) -> tuple[int, ...]:
        """The first token ids of a conversation; only few of them, such as BOS, begin every other prompt too."""
        return tuple(self.tokenizer.encode(self.render([{"role": "user", "content": "?"}]))[:count])

    @torch.inference_mode()
    def forward(self, rows: Sequence[Rows], *, recorded: bool = True) -> torch.Tensor:
        """Compute the rows of several lanes in one pass; logits `[len(rows), vocab]` of each lane's last row.

        The lanes gain their rows only when the whole pass went through. `recorded` lets a recorded pass do it. Every
        repair has a pass of its own.
        """
        if any(r.repair is not None for r in rows):
            others = [r for r in rows if r.repair is None]
            shared = iter(self.forward(others, recorded=recorded) if others else ())
            return torch.stack([next(shared) if r.repair is None else r.repair.forward(self, r) for r in rows])
        counts = [len(r.ids) for r in rows]
        firsts = [0, *accumulate(counts)]
        ids = [*chain.from_iterable(r.ids for r in rows)]
        positions = [*chain.from_iterable(r.positions for r in rows)]
        wanted = [end - 1 for end in firsts[1:]]
        soft = [(first + row, given) for r, first in zip(rows, firsts, strict=False) for row, given in r.soft]
        asking = any(r.ranking is not None for r in rows)
        current = self.passes.new([r.lane for r in rows], counts, asking=asking)
        logits = None
        if recorded and self.graphs is not None and self.graphs.takes(current):
            logits = self.graphs.run(ids, positions, soft, current, wanted)
        if logits is None:
            numbers = torch.tensor([*ids, *positions, *wanted], device=self.device)  # one copy to the device
            on_device = numbers.split((len(ids), len(ids), len(wanted)))
            embeds = self.embed(on_device[0])
            for first, given in soft:
                embeds[first : first + len(given)] = given
            logits = self.run(embeds, on_device[1], current, on_device[2])
        current.commit()
        if asking:
            queries, scaling = current.asked()
            for r, end in zip(rows, firsts[1:], strict=True):
                if r.ranking is not None:
                    asked = queries[:, :, end - r.ranking.rows : end]
                    r.ranking.take(asked, r.lane, self.geometry.asking, self.rope, scaling)
        return logits

    def freeze(self, *, checkpointing: bool = False) -> None:
        """Let no gradient reach the model's own parameters.

        Args:
            checkpointing: have the layers compute their activations again in a backward pass instead of keeping them.
        """
        for p in self._model.parameters():
            p.requires_grad_(False)
        if checkpointing:
            name = "activation_checkpointing_enable"  # its name from transformers 6 on
            enable = getattr(self._model, name, None) or self._model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):  # layers do it in training mode only; the rest stays in eval
                module.training = checkpointing

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Input embeddings `[S, hidden]` of token ids `[S]`, made by the model's own module: some scale there."""
        return self._model.get_input_embeddings()(ids)

    def run(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        current: Pass,
        wanted: torch.Tensor,
        forward: Callable[..., Any] | None = None,
    ) -> torch.Tensor:
        """Logits `[n, vocab]` of some rows of a pass; gradients flow, unless the caller says otherwise.

        Args:
            embeds: `[S, hidden]` of all rows.
            positions: `[S]` in their prompts.
            current: answers the attention layers.
            wanted: `[n]` row numbers.
            forward: the model's own, or what stands in for it.

        Raises:
            UnsupportedModelError: a layer did not call the attention function.
        """
        logits = (self._model if forward is None else forward)(
            inputs_embeds=embeds[None],
            position_ids=positions[None],
            attention_mask=embeds.new_zeros(1, 1, 1, 1),  # any 4-D mask: transformers then builds none of its own
            use_cache=False,
            logits_to_keep=wanted,
            **{PASS_KWARG: current},
        ).logits[0]
        if current.layers_seen < self.geometry.layers:
            raise UnsupportedModelError(
                f"expected {self.geometry.layers} attention layers that call transformers' attention interface, found "
                f"{current.layers_seen}; this model's packets cannot be attached"
            )
        return logits

    @contextmanager
    def narrowing(self, current: PrivatePass) -> Iterator[None]:
        """Let a pass leave out rows behind any layer, while the context is open: no layer after it computes them.

        Raises:
            UnsupportedModelError: the decoder layers are called in another way than transformers' own.
        """
        layers = self._model.get_decoder().layers
        handles = [layer.register_forward_pre_hook(partial(_narrow, current), with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def plain_forward(self, ids: Sequence[int], positions: Sequence[int], *, implementation: str = "") -> torch.Tensor:
        """Logits `[S, vocab]` of transformers' own forward, without packets.

        Args:
            ids: `[S]` token ids.
            positions: `[S]`.
            implementation: a registered attention implementation; empty means the model's own.
        """
        mask = torch.ones(len(ids), len(ids), dtype=torch.bool, device=self.device).tril()
        additive = torch.zeros(mask.shape, dtype=self.dtype, device=self.device)
        return self._model(
            input_ids=torch.tensor([list(ids)], device=self.device),
            position_ids=torch.tensor([list(positions)], device=self.device),
            attention_mask=additive.masked_fill(~mask, torch.finfo(self.dtype).min)[None, None],
            use_cache=False,
            **{_IMPLEMENTATION_KWARG: implementation or None},
        ).logits[0]

    def record_passes(self, *, compiled: bool = False) -> None:
        """Have passes of few rows recorded as CUDA graphs when they first come, and replayed from then on.

        Does nothing where there is no GPU, or no Triton.

        Args:
            compiled: let torch.compile join small kernels first; takes up to a minute per size.
        """
        if self.graphs is None and self.passes.works is not None and self.device.type == "cuda":
            from kvrag.graphs import ForwardGraphs

            self.graphs = ForwardGraphs(self.compiled_run() if compiled else self.run, self.embed)

    def compiled_run(self, **options: Any) -> Callable[[torch.Tensor, torch.Tensor, Pass, torch.Tensor], torch.Tensor]:
        """`run` through torch.compile, for rows of fixed numbers, with layers joined that read the same input.

        Args:
            options: of torch.compile.
        """
        join_linears(self.modules(), lambda: self.plain_forward([0], [0]))
        forward = torch.compile(self._model, dynamic=False, **options)

        def run(embeds: torch.Tensor, positions: torch.Tensor, current: Pass, wanted: torch.Tensor) -> torch.Tensor:
            with torch._dynamo.config.patch(recompile_limit=_COMPILED_SIZES):
                return self.run(embeds, positions, current, wanted, forward)

        return run

    def forget_passes(self) -> None:
        """Record passes anew, since the weights they read have moved."""
        if self.graphs is not None:
            self.graphs.clear()

    def warm_up(self, rows: Iterable[int] | None = None) -> float:
        """Record passes now instead of when they first come; the seconds it took.

        Args:
            rows: of the passes that will come; None records every size.
        """
        begin = time.perf_counter()
        if self.graphs is not None:
            sizes = self.graphs.sizes
            wanted = sizes if rows is None else {next((size for size in sizes if size >= n), 0) for n in rows} - {0}
            for size in sorted(wanted):
                lane = self.new_lane(size + 1)
                self.forward([Rows(lane, [0], [0])])
                self.forward([Rows(lane, [0] * size, range(1, size + 1))])
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - begin

    @property
    def turns(self) -> Turns:
        """Held by whoever computes with the model, one thread at a time, whichever object of this class it has."""
        return self._shared.turns

    def close(self) -> None:
        """Give the model its own attention implementation's name back, if nobody else uses it through this class."""
        if not self._closed:
            self._closed = True
            self._shared.part(self._model)


_UNNUMBERED = frozenset({"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache"})
"""Configuration entries that no number depends on."""


def convert_gguf(gguf: Path, folder: str | Path) -> None:
    """Write the model in a GGUF file into a folder of bfloat16 safetensors, its tokenizer included.

    Raises:
        ModelError: the file cannot be converted, or the packages that read GGUF are missing.
    """
    try:
        from transformers import GgufConfig

        source, options = str(gguf.parent), {"gguf_file": gguf.name}
        with _without_bars():
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            options |= {"dtype": torch.bfloat16, "quantization_config": GgufConfig(dequantize=True)}
            model = AutoModelForCausalLM.from_pretrained(source, **options)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (ImportError, ValueError, OSError, RuntimeError) as error:
        raise ModelError(
            f"expected to read {gguf.name}, found: {error}; pip install 'kvrag[demo]' brings what reads GGUF files"
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Transformers' progress bars for single steps say nothing to whoever waits for the whole."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _narrow(
    current: PrivatePass, layer: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a decoder layer is called with, for those rows that the pass goes on with."""
    left, among = current.narrow()
    if among is None:
        return args, options
    turns = options.get("position_embeddings")
    if not args or turns is None:
        raise UnsupportedModelError(
            f"expected decoder layers that are called with hidden states and position embeddings, found "
            f"{type(layer).__name__}; choose a strategy that computes the same rows in every layer"
        )
    hidden = args[0] if left is None else args[0][:, left]
    options = options | {"position_embeddings": tuple(turn[:, among] for turn in turns)}
    return (hidden, *args[1:]), options


def _stand_in(model: Any) -> Callable[[Any], None]:
    """Give a model kvrag's attention, and return what gives it its own back."""
    original = model.config._attn_implementation
    model.set_attn_implementation(_register(original))
    return lambda model: model.set_attn_implementation(original)


def _register(original: str) -> str:
    """Register kvrag's attention function as a stand-in for `original`; returns the name to set."""
    name = _PREFIX + original

    def stand_in(module, query, key, value, attention_mask, **options):
        if options.get(PASS_KWARG) is not None:
            return attend(module, query, key, value, options)
        default: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        implementation = options.pop(_IMPLEMENTATION_KWARG, None) or original
        function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, default)
        return function(module, query, key, value, attention_mask, **options)

    AttentionInterface.register(name, stand_in)
    if original in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[original])
    return name


def _check_config(config: Any, device_map: dict[str, Any] | None) -> None:
    """Refuse what a short probe cannot see: windows, length-dependent RoPE, several devices."""
    if device_map and len({str(device) for device in device_map.values()}) > 1:
        devices = sorted({str(device) for device in device_map.values()})
        raise UnsupportedModelError(
            f"expected a model on one device, found hf_device_map over {devices}; "
            "load it without device_map, or with device_map={'': 'cuda:0'}"
        )
    types = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    windowed = "sliding_attention" in types if types else bool(window) and getattr(config, "use_sliding_window", True)
    if windowed:
        raise UnsupportedModelError(
            f"expected attention over the whole context, found a sliding window of {window} tokens "
            f"({type(config).__name__}); its packets cannot be attached"
        )
    if types - {"full_attention"}:
        raise UnsupportedModelError(
            f"expected full attention in every layer, found {sorted(types - {'full_attention'})}"
        )
    check_rope_type(getattr(config, "rope_parameters", None))


def _find_rope(model: Any) -> Rope:
    """The model's one rotary embedding."""
    found = [m for m in model.modules() if isinstance(getattr(m, "inv_freq", None), torch.Tensor)]
    if not found:
        raise UnsupportedModelError(
            f"expected rotary position embeddings, found none in {type(model).__name__}; its packets cannot be moved"
        )
    frequencies = [m.inv_freq.detach().to("cpu", torch.float64) for m in found]
    if any(not torch.equal(frequencies[0], other) for other in frequencies[1:]):
        raise UnsupportedModelError("expected one rotary embedding for all layers, found several that differ")
    return Rope(frequencies[0], float(getattr(found[0], "attention_scaling", 1.0)))


def _geometry(config: Any) -> Geometry:
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return Geometry(int(config.num_hidden_layers), kv_heads, heads, head_dim)


def _device(name: str) -> str:
    """The device of this name, which is there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"expected a device that PyTorch has here, such as 'auto', 'cpu' or 'cuda', found {name!r} "
            f"({str(error).splitlines()[0]})"
        ) from error
    return name


def _auto_dtype(device: str) -> torch.dtype:
    """bfloat16 where the hardware computes in it, else float32."""
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = (
        getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        or getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    )
    return torch.bfloat16 if native else torch.float32
