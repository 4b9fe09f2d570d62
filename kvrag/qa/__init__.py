"""Questions about passages: what training draws its examples from, and what quality is measured on."""

from kvrag.qa.topics import Context, Question, QuestionSet, Topic

__all__ = ["Context", "Question", "QuestionSet", "Topic"]
