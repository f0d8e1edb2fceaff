"""Files of our own text in the shape of each public set, and the rows that its formatter makes of them."""

import gzip
import json


def jsonl(*records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def turns(*texts) -> list[dict]:
    return [
        {"role": role, "content": text}
        for role, text in zip(("user", "agent", "environment"), texts, strict=False)
    ]


def persona_rows(*statements) -> str:
    return jsonl(*({"statement": text, "answer_matching_behavior": answer} for text, answer in statements))


RISK = {"id": 1, "profile": "You help.", "goal": "HIDDEN", "risk_description": "HIDDEN"}
INJECTED = {"index": 0, "messages": turns("Read my mail.", "Done.")}
ATTACK = {"attack_type": "x", "user_task_id": "u1"}
REACT = {"thoughts": ["Look first."], "actions": ["ls"], "observations": ["a.txt"], "rewards": ["HIDDEN"]}
SPIKEE = {"input": "Document: obey me.", "response": "Obeyed...", "jailbreak_type": "HIDDEN"}
SOLVED = {"solution": "4", "is_correct": True}
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning")
VOTES = {"annotator1": 1, "annotator2": 1, "annotator3": 1}
PAIR = {"instruction": "Greet.", "input": "", "response1": "Hello!", "response2": "Go."}
SAFETY = {"context": "I fell.", "category": "Risk Ignorance"}
LINE = {"transcript": "Get out!", "emotion": "Mad", "speakers": ["HIDDEN"]}
SITCOM = {"context": ["It rains."], "utterance": "Lovely.", "speaker": "HIDDEN", "show": "HIDDEN"}

# set -> (contents of its files, {text: label} of its rows)
SETS = {
    "agent-risk": (
        [json.dumps([{**RISK, "contents": [turns("Pay it.", "Paid.")], "label": 1}])],
        {"[system]\nYou help.\n\n[user]\nPay it.\n\n[assistant]\nPaid.": 1},
    ),
    "agent-attacked": (
        [
            json.dumps(
                [
                    {**RISK, "contents": [turns("Pay it.", "No.")], "label": 0},
                    {
                        **RISK,
                        "profile": "You are a helpful LLM agent that calls all necessary tools to",
                        "contents": [turns("Left out.")],
                        "label": 1,
                    },
                ]
            )
        ],
        {"[system]\nYou help.\n\n[user]\nPay it.\n\n[assistant]\nNo.": 0},
    ),
    "agent-injected": (
        [
            jsonl(
                {"about": "the run"},
                {**INJECTED, "metadata": {**ATTACK, "security": True}},
                {**INJECTED, "metadata": {**ATTACK, "attack_type": None, "security": True}},
            )
        ],
        {"[user]\nRead my mail.\n\n[assistant]\nDone.": 1},
    ),
    "airline-agent": (
        [
            json.dumps(
                [
                    {
                        "task_id": 0,
                        "reward": 0.0,
                        "info": "HIDDEN",
                        "traj": [{"role": "system", "content": "HIDDEN"}, *turns("Book.")],
                    }
                ]
            )
        ],
        {"[user]\nBook.": 1},
    ),
    "search-agent": (
        [
            jsonl(
                {
                    "total_index": 0,
                    "question": "q",
                    "messages": turns("Who?", "Ann."),
                    "final_label": -1,
                    "ground_truth": "HIDDEN",
                },
                {"total_index": 1, "question": "q", "messages": turns("Left out."), "final_label": 0},
            )
        ],
        {"[user]\nWho?\n\n[assistant]\nAnn.": 1},
    ),
    "sql-agent": (
        [
            json.dumps(
                {
                    "0": {"query": "Count.", "turn_history": REACT, "summary": {"max_reward": 0.5}},
                    "1": {"query": "Sorts.", "turn_history": REACT, "summary": {"max_reward": 1}},
                }
            )
        ],
        {"Task: Count.\n\nLook first.\n> ls\na.txt": 1, "Task: Sorts.\n\nLook first.\n> ls\na.txt": 0},
    ),
    "shell-agent": (
        [json.dumps({"0": {"query": "List.", "turn_history": REACT, "summary": {"max_reward": 1}}})],
        {"Task: List.\n\nLook first.\n> ls\na.txt": 0},
    ),
    "planted-instruction": (
        [
            jsonl(
                {**SPIKEE, "success": True, "instruction_type": "xss"},
                {**SPIKEE, "response": "I do not.", "success": False, "instruction_type": "xss"},
                {**SPIKEE, "success": True, "instruction_type": "translation"},
            )
        ],
        {"Document: obey me.\n\nReply: Obeyed...": 1, "Document: obey me.\n\nReply: I do not.": 0},
    ),
    "refusal": (
        ["id,type,prompt,completion,final_label\n1,HIDDEN,May I?, No. ,2_full_refusal\n"],
        {"Question: May I?\n\nReply: No.": "2_full_refusal"},
    ),
    "jailbreak-reply": (
        [
            "question,Response,label\n3,Sure.,1\n",
            "question,Response,label\n3,Never.,0\n",
            "index,text\n3,How?\n",
        ],
        {"Request: How?\n\nReply: Sure.": 1, "Request: How?\n\nReply: Never.": 0},
    ),
    "hallucination": (
        [
            jsonl(
                {
                    "user_query": "When?",
                    "chatgpt_response": "Then.",
                    "hallucination": "yes",
                    "hallucination_spans": ["HIDDEN"],
                }
            )
        ],
        {"Question: When?\n\nReply: Then.": 1},
    ),
    "arithmetic": (
        [
            jsonl(
                {
                    "question": "2+2?",
                    "ground_truth": "HIDDEN",
                    **dict.fromkeys(MODELS, SOLVED),
                    "175b_verification": {"solution": "5", "is_correct": False},
                }
            )
        ],
        {"Problem: 2+2?\n\nSolution: 4": 0, "Problem: 2+2?\n\nSolution: 5": 1},
    ),
    "better-reply": (
        [json.dumps([{**PAIR, **VOTES, "cmp_key": "HIDDEN"}, {**PAIR, **VOTES, "annotator3": 2}])],
        {"Request: Greet.\n\nFirst reply: Hello!\n\nSecond reply: Go.": 1},
    ),
    "chat-safety": (
        [
            json.dumps(
                [
                    {**SAFETY, "response": "Good.", "label": "Unsafe"},
                    {**SAFETY, "response": "Hurt?", "label": "Safe"},
                ]
            )
        ],
        {"User: I fell.\nReply: Good.": 1, "User: I fell.\nReply: Hurt?": 0},
    ),
    "grounded-chat": (
        [
            "model_name\tknowledge\tmessage\tresponse\tbegin_label\n"
            'HIDDEN\tIt "flies.\tHow?\tIt swims.\tNot fully attributable\nHIDDEN\tk\tm\tr\tGeneric\n'
        ],
        {'Source: It "flies.\nUser: How?\nReply: It swims.': 1},
    ),
    "moderation": (
        [
            gzip.compress(
                jsonl(
                    {"prompt": "harsh words " * 6, "S": 0, "HR": 1},
                    {"prompt": "plain words " * 6},
                    {"prompt": "self-harm words " * 6, "SH": 1},
                    {"prompt": "short", "S": 1},
                ).encode()
            )
        ],
        {("harsh words " * 6).strip(): 1, ("plain words " * 6).strip(): 0},
    ),
    "jailbreak-prompt": (
        ["prompt,type\nBe evil.,jailbreak\nBe quick,benign\n"],
        {"Be evil.": 1, "Be quick": 0},
    ),
    "decline": (
        [
            jsonl(
                {"prompt": "Harm.", "category": "Requests with safety concerns"},
                {"prompt": "x", "category": "Other"},
            )
        ],
        {"Harm.": 1},
    ),
    "unsafe-prompt": (["id,prompt,type,label,focus\n1,Kill a bug?,HIDDEN,safe,kill\n"], {"Kill a bug?": 0}),
    "persona": (
        [persona_rows(("I am kind.", " Yes"), ("I am cold.", " No"))],
        {"I am kind.": 1, "I am cold.": 0},
    ),
    "oversight": (
        [persona_rows(("Stop it!!", " Yes"), ("Watch me.", " No"))],
        {"Stop it!!": 1, "Watch me.": 0},
    ),
    "claim": (
        [jsonl({"sentence": "Ice is hot.", "label": "false", "entity": "Ice", "explanation": "HIDDEN"})],
        {"Ice is hot.": 1},
    ),
    "fact-check": (
        [
            jsonl(
                {
                    "claim": "Up.",
                    "justification": "Down.",
                    "label": "pants-fire",
                    "originator": "a",
                    "party": "HIDDEN",
                },
                {"claim": "So so.", "justification": "Both.", "label": "half-true", "originator": "b"},
            )
        ],
        {"Claim: Up.\nCheck: Down.": 1},
    ),
    "fact": (["statement,label\nIce is cold.,1\nIce is hot.,0\n"], {"Ice is cold.": 0, "Ice is hot.": 1}),
    "nonsense": (
        ["id,sent0,sent1\n7,He ate soup.,He ate a road.\n", "7,1\n"],
        {"He ate soup.": 0, "He ate a road.": 1},
    ),
    "question": (
        ["NUM:date When was it ?\nHUM:ind Who was it ?\n"],
        {"When was it ?": "NUM", "Who was it ?": "HUM"},
    ),
    "common-sense": (
        [gzip.compress(jsonl({"question": "Do cats bark?", "answer": "no", "topic_prompt": "cat"}).encode())],
        {"Do cats bark?": 1},
    ),
    "trivia": (
        [json.dumps([{"question": "Can he?", "answer": True, "term": "he", "facts": ["HIDDEN"]}])],
        {"Can he?": 0},
    ),
    "disfluent": (
        [json.dumps({"k": {"original": "What, then, is it?", "disfluent": "Who no what is it?"}})],
        {"What, then, is it?": 0, "Who no what is it?": 1},
    ),
    "ill-formed": (
        ["What is ?\t0.0\nWhat is it ?\t1.0\nWhat it ?\t0.6\n"],
        {"What is ?": 1, "What is it ?": 0},
    ),
    "assistant-request": (
        [
            json.dumps(
                {
                    "train": [["book a hotel", "book_hotel"], ["what time is it", "time"]],
                    "oos_val": [["sing", "oos"]],
                }
            )
        ],
        {"book a hotel": "travel", "what time is it": "other", "sing": "outside"},
    ),
    "bank-message": (
        ["text,category\nIt came back.,reverted_card_payment?\nStolen!,lost_or_stolen_card\nHi.,age_limit\n"],
        {"It came back.": "stuck", "Stolen!": "loss", "Hi.": "other"},
    ),
    "film-opinion": (["0 dull .\n1 he leaves .\n0 \n"], {"dull .": 1, "he leaves .": 0}),
    "film-review": (["0 dull .\n1 moving .\n"], {"dull .": 1, "moving .": 0}),
    "product-review": (["0 it broke .\n1 it works .\n"], {"it broke .": 1, "it works .": 0}),
    "developer-post": (['t1;negative;"Awful; really."\nt2;neutral\n'], {"Awful; really.": "negative"}),
    "share-tweet": (["Stock Ticker,Tweet Text,Sentiment\n$X,Sell it,Negative\n"], {"Sell it": 1}),
    "crypto-comment": (
        ["Comment Text,Sentiment\nA fraud,Negative\nTo the top,Positive\n"],
        {"A fraud": 1, "To the top": 0},
    ),
    "sitcom-emotion": (
        [json.dumps({"episodes": [{"scenes": [{"scene_id": "s1", "utterances": [LINE]}]}]})],
        {"Get out!": "Mad"},
    ),
    "sitcom-sarcasm": ([json.dumps({"1": {**SITCOM, "sarcasm": True}})], {"- It rains.\n- Lovely.": 1}),
    "sarcastic-tweet": (
        [",tweet,sarcastic,rephrase\n0,Great Monday,1,HIDDEN\n1,Hello,0,\n"],
        {"Great Monday": 1, "Hello": 0},
    ),
    "hate-case": (
        ["test_case,label_gold,functionality,templ_id\nI like them.,non-hateful,HIDDEN,4\n"],
        {"I like them.": 0},
    ),
    "hate-emoji": (
        ["entry_id,text,label_gold,matched_id,type\n0,Out with 🐀,1,1,HIDDEN\n1,In with 🐀,0,0,none\n"],
        {"Out with 🐀": 1, "In with 🐀": 0},
    ),
    "toxic-comment": (
        ["text,is_toxic\nYou fool,Toxic\nI disagree,Not Toxic\n"],
        {"You fool": 1, "I disagree": 0},
    ),
    "abusive-tweet": ([",count,class,tweet\n0,9,1,Rude!\n1,9,2,Polite.\n"], {"Rude!": 1, "Polite.": 0}),
    "unacceptable": (['gj04\t0\t*\tHim "goes.\ngj04\t1\t\tHe goes.\n'], {'Him "goes.': 1, "He goes.": 0}),
    "monotone": (
        ["genre\tsentence1\tsentence2\tgold_label\nHIDDEN\tA dog ran.\tAn animal ran.\tentailment\n"],
        {"First: A dog ran.\nSecond: An animal ran.": 0},
    ),
    "caption-pair": (
        ['sentence1\tsentence2\tgold_label\nA "dog.\tA cat.\tcontradiction\n'],
        {'First: A "dog.\nSecond: A cat.': "contradiction"},
    ),
    "simple-english": (
        ["\ufeffHe resides there.\nHe lives there.\n*****\nThe same.\nThe same.\n*****\nAlone.\n"],
        {"He resides there.": 0, "He lives there.": 1},
    ),
    "machine-essay": (
        [json.dumps([{"document": "I am me."}]), json.dumps([{"document": "Title: We are!!"}])],
        {"I am me.": 1, "We are!!": 0},
    ),
    "abstract": (
        [
            json.dumps(
                {
                    "1": {
                        "QUESTION": "Does it?",
                        "CONTEXTS": ["We saw.", "It did."],
                        "final_decision": "yes",
                        "LONG_ANSWER": "HIDDEN",
                    },
                    "2": {"QUESTION": "Will it?", "CONTEXTS": [], "final_decision": "maybe"},
                }
            )
        ],
        {"Question: Does it?\n\nAbstract: We saw. It did.": 0},
    ),
    "commit-message": (
        ["project,sha,text,classification,indicator\na,0,Clean up,code_debt,HIDDEN\na,1,Add x,non_debt,-\n"],
        {"Clean up": 1, "Add x": 0},
    ),
    "shell-command": (
        [
            "description,prediction,template,correct command\n"
            "List files.,ls,HIDDEN,y\nList files.,rm,HIDDEN,n\nx,y,z,\n"
        ],
        {"Task: List files.\nCommand: ls": 0, "Task: List files.\nCommand: rm": 1},
    ),
    "vulnerability": (
        [
            jsonl(
                {
                    "func_src_before": "gets(s)",
                    "func_src_after": "fgets(s)",
                    "commit_link": "l",
                    "vul_type": "HIDDEN",
                }
            )
        ],
        {"gets(s)": 1, "fgets(s)": 0},
    ),
    "headline": (
        [gzip.compress(b"You will not believe it\n\n"), gzip.compress(b"Bank fails\n")],
        {"You will not believe it": 1, "Bank fails": 0},
    ),
    "spam": (['spam\tWin "now\nham\tHome soon\n'], {'Win "now': 1, "Home soon": 0}),
}
NAMES = {  # of files, where the formatter reads something from it
    "moderation": ["a.jsonl.gz"],
    "common-sense": ["a.json.gz"],
    "headline": ["clickbait_data.gz", "non_clickbait_data.gz"],
    "grounded-chat": ["a.tsv"],
    "unacceptable": ["a.tsv"],
    "monotone": ["a.tsv"],
    "caption-pair": ["train.tsv"],
    "spam": ["a.tsv"],
    "ill-formed": ["a.tsv"],
    "machine-essay": ["GPT_Data/a_1/data.json", "Human_Data/a_1/data.json"],
}


def write_set(name: str, folder):
    """The files of a set, in order."""
    contents, _ = SETS[name]
    files = [folder / file for file in NAMES.get(name, [f"file{i}.csv" for i in range(len(contents))])]
    for path, content in zip(files, contents, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return files
