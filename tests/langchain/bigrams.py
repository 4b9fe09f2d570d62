"""A Llama whose next token depends on the last one alone, so that its answers are known without training it.

It calls a tool where it may, answers "Hi" where it may not, writes one word into all strings, and of numbers knows 3.
"""

import torch
from transformers import LlamaConfig, PreTrainedTokenizerFast

from kvrag.model import LanguageModel
from tests.conftest import TINY, build_model

CALL = "<tool_call>"
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ '' if loop.first else '\n' }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML with calls as Qwen2.5 writes them."""

WORD = "你こ"
"""What the model writes into strings: six tokens, each a byte."""

_TEXTS = (f"\n{CALL}Hi<|im_end|>", f'"{WORD}"', "3}\n", ' "')
"""Texts that the model writes from wherever it is in them."""

_WEAKLY = ("\nH", " 3")
"""Where it may not go on in those."""


def bigram_model(hf_tokenizer: PreTrainedTokenizerFast, *, template: str = TOOL_TEMPLATE) -> LanguageModel:
    """The model, with `<tool_call>` as a token of its own; its layers add nothing to what they are given."""
    names = {name: getattr(hf_tokenizer, name) for name in ("bos_token", "eos_token", "pad_token")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=hf_tokenizer.backend_tokenizer, **names)
    tokenizer.add_tokens([CALL])
    tokenizer.chat_template = template
    size = 512  # one channel for each token
    model = build_model(LlamaConfig(**TINY | {"vocab_size": size, "hidden_size": size, "num_hidden_layers": 2}))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for weight, text in [*((1.0, text) for text in _WEAKLY), *((2.0, text) for text in _TEXTS)]:
            ids = tokenizer.encode(text, add_special_tokens=False)
            model.lm_head.weight[ids[1:], ids[:-1]] = weight
    return LanguageModel(model, tokenizer, name="bigrams")
