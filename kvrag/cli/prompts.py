"""The prompts that frameworks send, as templates, read from the framework that is installed."""

from kvrag.errors import SettingsError
from kvrag.qa.prompt_template import PromptTemplate
from kvrag.qa.templates import HELD_OUT, TEMPLATES

__all__ = ["find_template", "framework_templates", "training_templates"]


def find_template(name: str) -> PromptTemplate:
    """A framework's prompt or one of kvrag's own.

    Raises:
        SettingsError: none has this name.
    """
    known = {template.name: template for template in (*TEMPLATES, HELD_OUT, *framework_templates())}
    if name not in known:
        raise SettingsError(
            f"expected the name of a template: {', '.join(known)}; found {name!r} (LlamaIndex's are there once "
            "pip install 'kvrag[demo]' has brought it)"
        )
    return known[name]


def training_templates() -> list[PromptTemplate]:
    """What to train with: kvrag's own templates, and those of the frameworks that are installed."""
    return [*TEMPLATES, *framework_templates()]


def framework_templates() -> list[PromptTemplate]:
    """What LlamaIndex sends by default; an empty list where it is not installed.

    `llama-index-compact` and `llama-index-completion` are those of a query engine, for chat models and for others,
    whose string reaches the model as one user message. The two chat engines appear as they open a conversation.
    """
    try:
        from llama_index.core.chat_engine import condense_plus_context, context
        from llama_index.core.prompts.chat_prompts import CHAT_TEXT_QA_PROMPT
        from llama_index.core.prompts.default_prompts import DEFAULT_TEXT_QA_PROMPT
    except ImportError:
        return []
    query = CHAT_TEXT_QA_PROMPT.format_messages(context_str="{context}", query_str="{question}")
    completion = DEFAULT_TEXT_QA_PROMPT.format(context_str="{context}", query_str="{question}")
    return [
        PromptTemplate("llama-index-compact", tuple((m.role.value, m.content or "") for m in query)),
        PromptTemplate("llama-index-completion", (("user", completion),)),
        _chat_engine("llama-index-context-chat", context.DEFAULT_CONTEXT_TEMPLATE),
        _chat_engine("llama-index-condense-plus-context-chat", condense_plus_context.DEFAULT_CONTEXT_PROMPT_TEMPLATE),
    ]


def _chat_engine(name: str, system: str) -> PromptTemplate:
    return PromptTemplate(name, (("system", system.replace("{context_str}", "{context}")), ("user", "{question}")))
