"""The prompts that frameworks send, as templates, read from the framework that is installed."""

from kvrag.qa.prompt_template import PromptTemplate

__all__ = ["framework_templates"]


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
