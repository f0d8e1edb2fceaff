"""Texts on both sides of a split that differ in little, which the check for equal texts cannot see."""

from minimon.evaluate import questions_of
from minimon.tasks import Conversation, Mixture, words

LETTERS = ("L", "M")  # Unicode categories: letters, and the marks that belong to them


def near_duplicates(mixture: Mixture, conversations: list[Conversation] = ()) -> dict[str, dict[str, int]]:
    """split -> {"rows", "near_duplicates"}: test rows whose letters are those of a training row (see `bare`).

    Equal texts are refused before. "instruct" counts the conversations that hold a test row."""
    texts = {row.text for task in mixture.train for row in task.rows if row.side == "train"}
    trained = {bare(text) for text in texts}
    tested, found = set(), {}
    for split, questions in questions_of(mixture).items():
        letters = [bare(text) for question in questions for text in question.texts]
        tested.update(letters)
        near = sum(text in trained for text in letters)
        found[split] = {"rows": len(letters), "near_duplicates": near}
    if conversations:
        near = sum(not tested.isdisjoint(map(bare, said.parts)) for said in conversations)
        found["instruct"] = {"rows": len(conversations), "near_duplicates": near}
    return found


def bare(text: str) -> str:
    """The letters of a text, without case, spacing, punctuation and digits; all of it where it has none."""
    return words(text, LETTERS) or text.strip()
