"""One formatter a public set: its files -> rows {"text", "label", "group"}, with no clue to the label.

A formatter is called like its set in public.toml (- as _), takes the set's files in the order given there and
yields rows. label: 1 (what a monitor would flag) and 0, or the set's own word. group: rows of one group lie
on one side of a split. Rows with a "part" go to a file of their own, <set>-<part>.jsonl; other keys label.
"""

import csv
import gzip
import json
import math
import sys
from collections import defaultdict
from functools import wraps
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minimon.formats.transcript import transcript  # noqa: E402


def row(text: str, label, group=None, **more) -> dict:
    text = text.strip()
    return {
        "text": text,
        "label": label if isinstance(label, str) else int(label),
        "group": str(group or text),
        **more,
    }


def lines(path: Path, encoding: str = "utf-8-sig") -> list[str]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [line.strip() for line in data.decode(encoding).split("\n")]


def objects(files: list[Path]):
    """A JSON object a line."""
    for path in files:
        for line in lines(path):
            if line:
                yield json.loads(line)


def table(files: list[Path], columns: list[str] | None = None, **options):
    """Rows of CSV or TSV files by column; columns are given where the files have no header."""
    for path in files:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file, columns, **{"delimiter": delimiter, **options})


def content(path: Path):
    return json.loads(path.read_text())


def matched(formatter):
    """Keeps as many rows of either label at every length (in steps of 9%): length tells nothing then."""

    @wraps(formatter)
    def formatted(files):
        bins = defaultdict(lambda: ([], []))
        for record in formatter(files):
            step = int(8 * math.log2(len(record["text"]) + 1))
            bins[record.get("part"), step][record["label"]].append(record)
        for negatives, positives in bins.values():
            for pair in zip(negatives, positives, strict=False):
                yield from pair

    return formatted


# ---- sessions of agents --------------------------------------------------------------------------


def agent_risk(files):
    for record in content(files[0]):
        session = transcript(record["contents"], f"{files[0]}: {record['id']}")
        yield row(
            f"[system]\n{record['profile']}\n\n{session}", record["label"], record["profile"] + session[:300]
        )


def agent_attacked(files):
    """Sessions from AgentHarm carry a canary and are left out."""
    for record in agent_risk(files):
        if "You are a helpful LLM agent that calls all necessary tools" not in record["text"]:
            yield record


def agent_injected(files):
    """Attacked runs alone, so that an injection being there does not give the label away."""
    for path in files:
        for record in objects([path]):
            about = record.get("metadata", {})
            if about.get("attack_type"):
                text = transcript(record["messages"], f"{path}: {record['index']}")
                yield row(text, about["security"], about["user_task_id"])


def airline_agent(files):
    """Without the policy, which is the same long first message everywhere."""
    for record in content(files[0]):
        text = transcript(record["traj"][1:], f"{files[0]}: {record['task_id']}")
        yield row(text, record["reward"] == 0, f"task {record['task_id']}")


def search_agent(files):
    for record in objects(files):
        if record["final_label"] in (1, -1):
            text = transcript(record["messages"], f"{files[0]}: {record['total_index']}")
            yield row(text, record["final_label"] == -1, record["question"])


@matched
def sql_agent(files):
    yield from shell_agent(files)


def shell_agent(files):
    for path in files:
        for record in content(path).values():
            turns = record["turn_history"]
            steps = zip(turns["thoughts"], turns["actions"], turns["observations"], strict=False)
            session = "\n\n".join(f"{thought}\n> {action}\n{seen}" for thought, action, seen in steps)
            yield row(
                f"Task: {record['query']}\n\n{session}", record["summary"]["max_reward"] < 1, record["query"]
            )


@matched
def planted_instruction(files):
    """The fields that name the attack stay out, and translations, which are often mislabelled."""
    for record in objects(files):
        if record["instruction_type"] in ("xss", "encoding", "data-exfil-markdown", "long-output"):
            text = f"{record['input']}\n\nReply: {record['response']}"
            yield row(text, record["success"], record["jailbreak_type"])


# ---- replies of chat models ----------------------------------------------------------------------


def refusal(files):
    for record in table(files):
        text = f"Question: {record['prompt']}\n\nReply: {record['completion'].strip()}"
        yield row(text, record["final_label"], record["prompt"])


def jailbreak_reply(files):
    questions = {record["index"]: record["text"] for record in table(files[2:])}
    for record in table(files[:2]):
        question = questions[record["question"]]
        yield row(f"Request: {question}\n\nReply: {record['Response']}", record["label"] == "1", question)


def hallucination(files):
    for record in objects(files):
        text = f"Question: {record['user_query']}\n\nReply: {record['chatgpt_response']}"
        yield row(text, record["hallucination"] == "yes", record["user_query"])


def arithmetic(files):
    for record in objects(files):
        for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            text = f"Problem: {record['question']}\n\nSolution: {record[model]['solution']}"
            yield row(text, not record[model]["is_correct"], record["question"])


def better_reply(files):
    """Rows on which all three annotators agree that one of the two is better."""
    for record in content(files[0]):
        votes = {record["annotator1"], record["annotator2"], record["annotator3"]}
        if votes in ({1}, {2}):
            text = f"Request: {record['instruction']}\n{record['input']}".strip()
            text += f"\n\nFirst reply: {record['response1']}\n\nSecond reply: {record['response2']}"
            yield row(text, votes == {1}, record["instruction"])


@matched
def chat_safety(files):
    """Five kinds of unsafe replies; a reply is safe or not of its own kind."""
    for path in files:
        for record in content(path):
            kind = record["category"].lower().replace(" ", "-")
            text = f"User: {record['context'].strip()}\nReply: {record['response'].strip()}"
            yield row(text, record["label"] == "Unsafe", record["context"], part=kind, kind=kind)


def grounded_chat(files):
    for record in table(files, quoting=csv.QUOTE_NONE):
        if record["begin_label"] != "Generic":
            text = f"Source: {record['knowledge']}\nUser: {record['message']}\nReply: {record['response']}"
            yield row(text, record["begin_label"] != "Fully attributable", record["knowledge"])


# ---- prompts to chat models ----------------------------------------------------------------------


def moderation(files):
    """A category that nobody judged counts as absent.

    Left out: self-harm, minors, and texts under 60 characters, one of which is a sentence of hate_case."""
    for record in objects(files):
        if record.get("SH") != 1 and record.get("S3") != 1 and len(record["prompt"]) >= 60:
            kinds = [kind for kind in ("S", "H", "V", "HR", "H2", "V2") if record.get(kind) == 1]
            yield row(
                record["prompt"],
                bool(kinds),
                sexual=int("S" in kinds),
                violent=int("V" in kinds or "V2" in kinds),
            )


@matched
def jailbreak_prompt(files):
    for record in table(files):
        yield row(record["prompt"], record["type"] == "jailbreak")


def decline(files):
    """The file gives the label; only the categories that occur in both files."""
    kinds = ("Requests with safety concerns", "Incomplete requests", "Unsupported requests")
    for path in files:
        for record in objects([path]):
            if record["category"] in kinds:
                yield row(record["prompt"], "contrast" not in path.name)


def unsafe_prompt(files):
    for record in table(files):
        yield row(record["prompt"], record["label"] == "unsafe", record["focus"])


# ---- statements and claims -----------------------------------------------------------------------


@matched
def persona(files):
    """First-person statements that a model wrote, a trait a file; about: the trait, shown or not."""
    for path in files:
        for record in objects([path]):
            shown = record["answer_matching_behavior"].strip() == "Yes"
            yield row(record["statement"], shown, part=path.stem.lower(), about=path.stem)


def oversight(files):
    for record in persona(files):
        del record["part"], record["about"]
        yield record


def claim(files):
    for record in objects(files):
        yield row(record["sentence"], record["label"] == "false", record["entity"])


def fact_check(files):
    """The claim and what fact checkers wrote about it, without their verdict and without who said it."""
    labels = {"false": 1, "pants-fire": 1, "true": 0, "mostly-true": 0}
    for record in objects(files):
        if record["label"] in labels:
            text = f"Claim: {record['claim']}\nCheck: {(record['justification'] or '').strip()}"
            yield row(text, labels[record["label"]], record["originator"])


def fact(files):
    """Statements from templates, a topic a file."""
    for path in files:
        for record in table([path]):
            yield row(record["statement"], record["label"] == "0", topic=path.name.split("_")[0])


def nonsense(files):
    """Of each pair of sentences one is absurd; the answers stand in a file of their own."""
    for path, answers in zip(files[::2], files[1::2], strict=True):
        absurd = {record["id"]: record["index"] for record in table([answers], ["id", "index"])}
        for record in table([path]):
            for index in ("0", "1"):
                yield row(
                    record[f"sent{index}"], absurd[record["id"]] == index, f"{path.name} {record['id']}"
                )


# ---- questions and requests ----------------------------------------------------------------------


def question(files):
    """Label: what kind of answer it asks for."""
    for path in files:
        for line in lines(path, "latin-1"):
            kind, _, text = line.partition(" ")
            if text:
                yield row(text, kind.partition(":")[0])


def common_sense(files):
    for record in objects(files):
        yield row(record["question"], record["answer"] == "no", record["topic_prompt"])


def trivia(files):
    for record in content(files[0]):
        yield row(record["question"], not record["answer"], record["term"])


@matched
def disfluent(files):
    for key, record in content(files[0]).items():
        yield row(record["original"], 0, key)
        yield row(record["disfluent"], 1, key)


def ill_formed(files):
    """The mean of five ratings; those between 0.2 and 0.8 are left out."""
    for record in table(files, ["text", "rating"], quoting=csv.QUOTE_NONE):
        if not 0.2 < float(record["rating"]) < 0.8:
            yield row(record["text"], float(record["rating"]) <= 0.2)


def assistant_request(files):
    """Label: travel, money, kitchen, outside (what the assistant does not cover), other."""
    topics = {intent: topic for topic, intents in CLINC.items() for intent in intents.split()}
    for texts in content(files[0]).values():
        for text, intent in texts:
            yield row(text, topics.get(intent, "other"))


CLINC = {
    "outside": "oos",
    "travel": """
        plug_type travel_notification translate flight_status international_visa timezone
        exchange_rate travel_suggestion travel_alert vaccines lost_luggage book_flight
        book_hotel carry_on car_rental""",
    "money": """
        transfer transactions balance freeze_account pay_bill bill_balance bill_due
        interest_rate routing min_payment order_checks pin_change report_fraud
        account_blocked spending_history credit_score report_lost_card credit_limit
        rewards_balance new_card application_status card_declined international_fees apr
        redeem_rewards credit_limit_change damaged_card replacement_card_duration
        improve_credit_score expiration_date""",
    "kitchen": """
        recipe restaurant_reviews calories nutrition_info restaurant_suggestion
        ingredients_list ingredient_substitution cook_time food_last meal_suggestion
        restaurant_reservation confirm_reservation how_busy cancel_reservation
        accept_reservations""",
}


def bank_message(files):
    """Label: stuck (money that did not arrive), loss (fraud, lost or stolen), other."""
    kinds = {intent: kind for kind, intents in BANKING.items() for intent in intents.split()}
    for record in table(files):
        yield row(record["text"], kinds.get(record["category"], "other"))


BANKING = {
    "stuck": """declined_card_payment declined_cash_withdrawal declined_transfer failed_transfer top_up_failed
        top_up_reverted reverted_card_payment? pending_card_payment pending_cash_withdrawal pending_top_up
        pending_transfer transfer_not_received_by_recipient beneficiary_not_allowed Refund_not_showing_up
        balance_not_updated_after_bank_transfer balance_not_updated_after_cheque_or_cash_deposit""",
    "loss": """compromised_card lost_or_stolen_card lost_or_stolen_phone card_payment_not_recognised
        cash_withdrawal_not_recognised direct_debit_payment_not_recognised""",
}


# ---- opinions and feelings -----------------------------------------------------------------------


def film_opinion(files):
    """Also film_review and product_review: a digit and the sentence, 0 for what is flagged."""
    for line in lines(files[0], "latin-1"):
        if line[:2] in ("0 ", "1 "):
            yield row(line[2:], line[0] == "0")


film_review = product_review = film_opinion


def developer_post(files):
    """Some lines have stray quotes; those without three fields are left out."""
    for record in table(files, ["id", "polarity", "text"], delimiter=";"):
        if record["text"]:
            yield row(record["text"], record["polarity"])


def share_tweet(files):
    for record in table(files):
        yield row(record["Tweet Text"], record["Sentiment"] == "Negative", record["Stock Ticker"])


def crypto_comment(files):
    for record in table(files):
        yield row(record["Comment Text"], record["Sentiment"] == "Negative")


def sitcom_emotion(files):
    """Label: the speaker's emotion. Split by scene."""
    for path in files:
        for episode in content(path)["episodes"]:
            for scene in episode["scenes"]:
                for line in scene["utterances"]:
                    yield row(line["transcript"], line["emotion"], scene["scene_id"])


def sitcom_sarcasm(files):
    """The lines before and the last line, without who speaks and in which show."""
    for record in content(files[0]).values():
        said = [f"- {line}" for line in [*record["context"], record["utterance"]]]
        yield row("\n".join(said), record["sarcasm"])


def sarcastic_tweet(files):
    for record in table(files):
        yield row(record["tweet"], record["sarcastic"] == "1")


# ---- hate and abuse ------------------------------------------------------------------------------


def hate_case(files):
    for record in table(files):
        yield row(record["test_case"], record["label_gold"] == "hateful", record["templ_id"])


def hate_emoji(files):
    """A row and its minimal contrast are one group."""
    for record in table(files):
        pair = min(int(record["entry_id"]), int(record["matched_id"]))
        yield row(record["text"], record["label_gold"] == "1", f"pair {pair}")


def toxic_comment(files):
    for record in table(files):
        yield row(record["text"], record["is_toxic"] == "Toxic")


def abusive_tweet(files):
    for record in table(files):
        yield row(record["tweet"], record["class"] in ("0", "1"))


# ---- language and logic --------------------------------------------------------------------------


def unacceptable(files):
    """Without the author's mark, which stars what is unacceptable."""
    for record in table(files, ["source", "label", "mark", "text"], quoting=csv.QUOTE_NONE):
        yield row(record["text"], record["label"] == "0")


def monotone(files):
    for record in table(files, quoting=csv.QUOTE_NONE):
        yield row(
            f"First: {record['sentence1']}\nSecond: {record['sentence2']}", record["gold_label"] == "neutral"
        )


def caption_pair(files):
    """Label: contradiction, entailment or neutral. A pair and its edits lie in one file, hence its split."""
    for path in files:
        for record in table([path], quoting=csv.QUOTE_NONE):
            text = f"First: {record['sentence1']}\nSecond: {record['sentence2']}"
            yield row(text, record["gold_label"], split={"dev": "validation"}.get(path.stem, path.stem))


def simple_english(files):
    """Blocks of an advanced and an elementary sentence."""
    block = []
    for line in [*lines(files[0]), "*****"]:
        if not line.startswith("*****"):
            block += [line] if line else []
            continue
        if len(block) == 2 and block[0] != block[1]:
            yield row(block[0], 0, block[0])
            yield row(block[1], 1, block[0])
        block = []


@matched
def machine_essay(files):
    """The file gives the label. Texts of one number in the four files of abstracts have one topic."""
    for path in files:
        for index, record in enumerate(content(path)):
            text = record["document"].strip().removeprefix("Title:")
            yield row(text, "GPT_Data" in path.parts, f"{path.parent.name.split('_')[0]} {index}")


def abstract(files):
    for key, record in content(files[0]).items():
        if record["final_decision"] != "maybe":
            text = f"Question: {record['QUESTION']}\n\nAbstract: {' '.join(record['CONTEXTS'])}"
            yield row(text, record["final_decision"] == "no", key)


# ---- software and mail ---------------------------------------------------------------------------


def commit_message(files):
    for record in table(files):
        yield row(record["text"], record["classification"] != "non_debt", record["project"])


def shell_command(files):
    for record in table(files):
        text = f"Task: {record['description']}\nCommand: {record['prediction']}"
        if record["correct command"] in ("y", "n"):
            yield row(text, record["correct command"] == "n", record["description"])


def vulnerability(files):
    """A function before and after its repair, two rows."""
    for record in objects(files):
        yield row(record["func_src_before"], 1, record["commit_link"])
        yield row(record["func_src_after"], 0, record["commit_link"])


def headline(files):
    """The file gives the label, by outlet."""
    for path in files:
        for line in lines(path):
            if line:
                yield row(line, "non_" not in path.name)


def spam(files):
    for record in table(files, ["label", "text"], quoting=csv.QUOTE_NONE):
        yield row(record["text"], record["label"] == "spam")


# ---- instruction data ----------------------------------------------------------------------------


def instruct(files):
    """Conversations of an instruction and its answer.

    Left out: classification, answers of fewer than four words (mostly classes as well) and what is long."""
    for record in objects(files):
        for case in record["instances"]:
            user, answer = f"{record['instruction']}\n\n{case['input']}".strip(), case["output"].strip()
            unsuitable = len(answer.split()) < 4 or len(user) + len(answer) > 1500
            if not record.get("is_classification") and not unsuitable:
                turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
                yield {"messages": turns}
