"""Several query embedders behind one search: who embeds which batch, and what becomes of one whose embedder dies."""

import asyncio

import numpy as np

from vsr1.retrieval.replicas import ShardUnavailableError
from vsr1.retrieval.request import SearchRequest
from vsr1.retrieval.searcher import Searcher

from .test_searcher import CATALOGUE, DIM, QUICK, GatedEmbedder, WordEmbedder, searcher


class AnotherEmbedder:
    """A further embedder; `fault` is what is wrong with it."""

    def __init__(self, name: str, embedder: WordEmbedder) -> None:
        self.name, self.embedder, self.fault = name, embedder, ""

    async def embed_queries(self, queries: list[str], soft_tokens: list[np.ndarray | None]) -> np.ndarray:
        if self.fault:
            raise ShardUnavailableError(self.name, self.fault)
        return await asyncio.to_thread(self.embedder.embed_queries, queries, soft_tokens)

    async def recover(self) -> None:
        while self.fault:
            await asyncio.sleep(0.01)


def test_each_embedder_has_a_batch_of_its_own_and_one_that_dies_gives_its_batch_away() -> None:
    async def story() -> None:
        own, first, second = GatedEmbedder(), GatedEmbedder(), GatedEmbedder()
        others = [AnotherEmbedder("embedder 1", first), AnotherEmbedder("embedder 2", second)]
        search = Searcher(own, searcher()[0]._shards, QUICK, others)
        search.serve(CATALOGUE)
        answers = []
        for word, embedder in zip("xyz", (own, first, second), strict=True):  # each query finds all before it at work
            request = SearchRequest(word, np.ones((1, DIM), np.float32))
            answers.append(asyncio.create_task(search.search(request)))
            assert await asyncio.to_thread(embedder.is_inside.wait, 60)
        for embedder in (own, first, second):
            embedder.gate.set()
        results = await asyncio.gather(*answers)
        assert own.calls == first.calls == second.calls == [1]
        await asyncio.gather(*(search.search(SearchRequest("x")) for _ in range(QUICK.max_batch)))
        assert max(own.calls) <= 86 and sum(map(sum, (own.calls, first.calls, second.calls))) == 3 + QUICK.max_batch
        assert len(first.calls) > 1 and len(second.calls) > 1
        assert [result.query_vector.tolist() for result in results] == (np.eye(DIM) + 1).tolist()

        for one in others:
            one.fault = "dead"
        own.gate.clear()
        own.is_inside.clear()
        waiting = [asyncio.create_task(search.search(SearchRequest("x")))]
        assert await asyncio.to_thread(own.is_inside.wait, 60)
        waiting.append(asyncio.create_task(search.search(SearchRequest("y"))))  # to those that are dead, and then here
        while len(search.embedders.down) < 2:
            await asyncio.sleep(0.01)
        own.gate.set()
        assert [(await one).retrieved[0][0] for one in waiting] == ["a", "e"]
        for one in others:
            one.fault = ""
        while search.embedders.down:
            await asyncio.sleep(0.01)

    asyncio.run(story())
