"""What an engine adds to a served search: the tokens, rankings and verdicts of an evaluation, and text as it comes.

Before the weights change, see `test_models.py`.
"""

from itertools import takewhile
from pathlib import Path

import ray
from transformers import AutoTokenizer

from vsr1.search.parse import last_element
from vsr1.search.prompts import agent_prompt, turn_prompt
from vsr1.search.record import latents_of

from .served import CORPUS, SMALL, Served

SECRET_QUERY = "a query that nobody else should ever read"


def test_a_search_is_the_evaluation_s_episode(served: Served) -> None:
    assert any(len(one.turns) > 1 for one in served.evaluated), "no query was refined; the test needs one"
    for one in served.evaluated:
        status, answer = served.search(query=one.task.query, top_k=5)
        assert (status, answer["weight_version"]) == (200, 0)
        assert [turn["video_id"] for turn in answer["turns"]] == [look.record.video_id for look in one.turns]
        assert [turn["verdict"] for turn in answer["turns"]] == [look.record.verdict for look in one.turns], (
            answer,
            one,
        )
        for turn, look in zip(answer["turns"], one.turns, strict=True):
            assert turn["reasoning"] == (last_element(look.text, "think") or "").strip()
            assert [found["video_id"] for found in turn["retrieved"]] == [video for video, _ in look.record.retrieved]
            after = look.record.retrieved_after
            assert [row["video_id"] for row in turn["refined"] or []] == [video for video, _ in after or []]
        assert answer["usage"]["prompt_tokens"] == sum(len(look.prompt_token_ids) for look in one.turns)
        assert answer["usage"]["text_tokens"] == sum(len(look.response_token_ids) for look in one.turns)
        assert answer["usage"]["latent_tokens"] == sum(map(latents_of, one.turns))
        last = one.last.record
        assert answer["index_version"] == last.index_version
        assert answer["status"] == ("matched" if one.end_reason == "matched" and last.span else "not_found")
        spans = [(moment["video_id"], moment["start"], moment["end"]) for moment in answer["moments"]]
        assert spans == ([(last.video_id, *last.span)] if answer["moments"] and last.span else [])


def test_the_text_comes_in_pieces_while_it_is_sampled(served: Served) -> None:
    one = max(served.evaluated, key=lambda trajectory: len(trajectory.turns))
    events = served.events(query=one.task.query, top_k=5)
    assert [event["type"] for event in events if event["type"] != "reasoning.delta"][:3] == [
        "retrieved", "turn.started", "verdict",
    ]  # fmt: skip
    assert [event["type"] for event in events].count("turn.started") == len(one.turns)
    assert events[-1]["type"] == "done"
    for number, look in enumerate(one.turns, start=1):
        pieces = [event["text"] for event in events if event["type"] == "reasoning.delta" and event["turn"] == number]
        assert len(pieces) > 3
        assert "".join(pieces) == look.text


def test_a_prompt_that_is_longer_than_the_model_takes_is_refused(served: Served) -> None:
    status, answer = served.search(query="0" * 2_000)
    assert (status, answer["error"]["code"]) == (422, "query_too_long")
    assert "ask in fewer words" in answer["error"]["message"]


def test_words_that_leave_no_room_for_the_video_are_refused_before_any_event(served: Served) -> None:
    most, system = served.config.rollout.engine.max_model_len, agent_prompt(served.config.agent)
    tokenizer = AutoTokenizer.from_pretrained(served.config.model.policy)
    lengths = (len(tokenizer.encode(turn_prompt("0" * count, system))) for count in range(1, 2_000))
    query = "0" * (sum(1 for _ in takewhile(lambda length: length < most - 5, lengths)))
    for stream in (False, True):
        status, answer = served.search(query, stream=stream)
        assert (status, answer["error"]["code"]) == (422, "query_too_long")
        assert "tokens with video" in answer["error"]["message"]


def test_a_search_names_its_corpus_where_there_are_two(served: Served) -> None:
    query = served.queries[0]
    status, answer = served.search(query, corpus=None)
    assert (status, answer["error"]["code"]) == (404, "unknown_corpus")
    assert f"{CORPUS}, {SMALL}" in answer["error"]["message"]
    for corpus in (CORPUS, SMALL):
        status, answer = served.search(query, corpus=corpus, top_k=100)
        assert (status, answer["corpus"]) == (200, corpus)
        split = served.config.serve.corpora[corpus].split
        assert all(row["video_id"].startswith(split) for row in answer["turns"][0]["retrieved"])


def test_no_log_has_a_query(served: Served) -> None:
    assert served.search(SECRET_QUERY, max_turns=1)[0] == 200
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    texts = {path: path.read_bytes() for path in logs.rglob("*") if path.is_file()}
    assert any(b"agent-first" in path.name.encode() for path in texts)
    assert not [path.name for path, text in texts.items() if SECRET_QUERY.encode() in text]
