"""Questions about passages: what training draws its examples from, and what quality is measured on."""

from kvrag.qa.files import load_questions
from kvrag.qa.prompt_template import FilledPrompt, PromptTemplate
from kvrag.qa.topics import Context, Question, QuestionSet, Topic

__all__ = ["Context", "FilledPrompt", "PromptTemplate", "Question", "QuestionSet", "Topic", "load_questions"]
