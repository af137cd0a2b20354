"""What an agent is told, and replies that hold the query in new words."""

import pytest

from vsr1.search.parse import last_element, parse_reply
from vsr1.search.prompts import SYSTEM_PROMPT, agent_prompt, assistant_text, with_rewrite
from vsr1.settings.parts import AgentConfig


def test_a_rewrite_goes_before_the_refine_token() -> None:
    reply = with_rewrite(assistant_text("nothing of it", False, None), "a blue ring")
    assert last_element(reply, "query") == "a blue ring"
    assert reply.endswith("</query> <REFINE>")
    assert parse_reply(reply, 10.0).verdict == "not_matched"
    with pytest.raises(ValueError, match="must end in <REFINE>"):
        with_rewrite("<answer>not_matched</answer>", "a blue ring")


def test_only_an_agent_that_rewrites_is_told_to() -> None:
    assert agent_prompt(AgentConfig()) == SYSTEM_PROMPT
    assert "<query>" in agent_prompt(AgentConfig(refinement="text")).removeprefix(SYSTEM_PROMPT)
