"""Settings of navigation inside one long video: the tree, the tools, what calls cost, budgets and rewards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vsr1.settings.parts import ChatModelConfig, Section

ToolName = Literal["caption", "video_qa", "look", "find"]
SHORTEST_MINUTES, LONGEST_MINUTES = 10, 480  # of a film of the long toy world
ToyMinutes = list[Annotated[float, Field(ge=SHORTEST_MINUTES, le=LONGEST_MINUTES)]]


class NavigateRewardConfig(Section):
    """Weights of the reward terms of an episode, each of which is within 0 and 1."""

    answer: float = 1.0
    location: float = 0.5
    repeat: float = Field(-0.2, le=0, description="of the share of calls that were made before")
    thrift: float = Field(0.3, ge=0, description="of the share of the budget that a right answer left")
    abstention: float = Field(
        0.1, ge=0, lt=1, description="what abstaining counts as an answer, between a wrong one (0) and a right one (1)"
    )


class CaptionerConfig(ChatModelConfig):
    """Who describes nodes and answers questions about them, from frames that are spread over a node."""

    kind: Literal["toy", "vllm", "openai"] = Field(
        "toy",
        description="toy: the long toy world's own; vllm: an engine in each actor; openai: an OpenAI-compatible server",
    )
    max_tokens: int = Field(1024, ge=1, description="most tokens of a reply, its thinking included")
    temperature: float = Field(0.0, ge=0)
    frames: int = Field(32, ge=2, multiple_of=2, description="frames of a node that the model sees")
    max_pixels: int = Field(131_072, ge=1024, description="most pixels in a frame that the model sees")

    @model_validator(mode="after")
    def _captioner_can_be_reached(self) -> CaptionerConfig:
        if missing := self.missing(self.kind, "navigate.pools.captioner"):
            raise ValueError(f"navigate.pools.captioner.kind={self.kind} needs {' and '.join(missing)}")
        return self


class ToolsConfig(Section):
    """The pools of actors behind the tools, and how long a call may take."""

    captioner: CaptionerConfig = CaptionerConfig()
    captioners: int = Field(1, ge=1, description="actors that describe nodes")
    answerers: int = Field(1, ge=1, description="actors that answer questions about nodes")
    calls: int = Field(8, ge=1, description="calls that an actor works on at one time")
    deadline_s: float = Field(60.0, gt=0, description="seconds until a call fails, and with it the samples that wait")
    frames: int = Field(16, ge=2, multiple_of=2, description="frames of a node that a look shows")

    def gpus(self, device: str) -> int:
        """Return the GPUs of each actor of the pools: an engine on a GPU takes one."""
        return int(self.captioner.kind == "vllm" and device == "cuda")


class NavigateConfig(Section):
    """Navigation inside one long video under a budget of calls."""

    budgets: list[float] = Field(
        [4, 8, 16, 30], min_length=1, description="one of them is drawn for each group by its prompt id"
    )
    eval_budgets: list[float] = Field(
        [2, 4, 8, 16, 30], min_length=1, description="each question of an evaluation is played with each of them"
    )
    costs: dict[ToolName, float] = Field(
        {"caption": 1, "video_qa": 1, "look": 1, "find": 1},
        description="of a call, in units of the budget; a call that was made before costs nothing",
    )
    tools: list[ToolName] = Field(["caption", "video_qa", "look", "find"], min_length=1, description="on offer")
    find_level: Literal[2, 3] = Field(
        2, description="level of the nodes that find names, all of whose captions a search needs"
    )
    parent_first: bool = Field(
        True,
        description="a leaf is open to calls once the node above it was read, or a search has named one of them",
    )
    one_look_s: float = Field(
        300.0, ge=16, description="search_then_navigate: seconds of the longest video that is judged by one look"
    )
    free_turns: int = Field(3, ge=0, description="replies without a new call or an answer before the episode ends")
    toy_minutes: ToyMinutes = Field(
        [12], min_length=1, description="lengths of the films that toy.create makes, in turn"
    )
    toy_test_minutes: ToyMinutes = Field(
        [], description="lengths of the films of other splits than train, in turn; empty: as toy_minutes"
    )
    toy_careless: float = Field(
        0.0, ge=0, le=1, description="share of the records whose agent takes the first look-alike for the right scene"
    )
    toy_record_films: int = Field(0, ge=0, description="films that records of searches are of; 0: those of train")
    rewards: NavigateRewardConfig = NavigateRewardConfig()
    pools: ToolsConfig = ToolsConfig()

    @model_validator(mode="after")
    def _costs_and_budgets_are_not_negative(self) -> NavigateConfig:
        missing = [tool for tool in self.tools if tool not in self.costs]
        if missing:
            raise ValueError(f"navigate.costs names no cost of {', '.join(missing)}")
        if min(*self.budgets, *self.eval_budgets, *self.costs.values(), 0) < 0:
            raise ValueError("navigate.budgets, navigate.eval_budgets and navigate.costs must not be negative")
        return self
