"""What a step of Stage 2 costs at the size of the 2B policy: seconds by what was measured, scaled by the work.

Each constant has its source in docs/performance.md; what was assumed and not measured says so. Tokens are those of a
clip of 64 frames at 256 pixels with its query (2,411) and of a reply of 96 words with 8 latents (102).
"""

from __future__ import annotations

from dataclasses import dataclass

from vsr1.footprint import index_gib

PROMPT_TOKENS, REPLY_TOKENS = 2411, 102
WEIGHT_GB = 4.29  # of the 2B policy in bfloat16
WIDTH = 2048  # of a vector
INDEX_GIB = 70.0  # of a GPU of 80


@dataclass(frozen=True)
class Costs:
    """Seconds and rates.

    Attributes:
        token_s: of the learner, for a token of prompts that replies share: 0.51 s for 12,900 of them on an H100, less
            the optimiser's.
        optimiser_s: of a step, "optimiser, copies".
        reduce_gb_s: of gradients between nodes; assumed, 400 Gbit/s a GPU, for 2 x the weights.
        turn_s, turn_more_s: of an engine that plays a turn of 96 words, and for each request beside it: 256 took 1.76 s
            for 64 words on an H200, of which 0.44 s is assumed to be there with one.
        push_s, check_s: of a broadcast inside a node and of its check on 2 x H200.
        push_gb_s: of a broadcast between nodes; assumed, 400 Gbit/s.
        start_s: of an engine; 24 to 26 CPU seconds on the CPU, twice that assumed.
        row_s: of a core that scores a vector of 2,048: 341 queries a second over 100,000 on two threads.
        gpu_row_s: of a GPU; assumed, 2 x 2,048 operations at 400 TFLOP/s, half of TF32.
        driver_s: CPU seconds of rewards, driver and Ray for a sample: 0.6 s for 64, with toy clips.
    """

    token_s: float = (0.51 - 0.04) / 12_900
    optimiser_s: float = 0.04
    reduce_gb_s: float = 50.0
    turn_s: float = 0.44 * 96 / 64
    turn_more_s: float = (1.76 - 0.44) / 255 * 96 / 64
    push_s: float = 0.035
    check_s: float = 0.16
    push_gb_s: float = 50.0
    start_s: float = 50.0
    row_s: float = 2 / (341 * 100_000)
    gpu_row_s: float = 2 * 2048 / 400e12
    driver_s: float = 0.6 / 64

    def learn_s(self, prompts: float, group: int, turns: float, ranks: int) -> float:
        """Return the seconds of an optimiser step of so many prompts, each turn of which is a prompt of its own."""
        tokens = prompts * turns * (PROMPT_TOKENS + group * REPLY_TOKENS) / ranks
        reduce = 2 * WEIGHT_GB * (ranks - 1) / ranks / self.reduce_gb_s
        return tokens * self.token_s + self.optimiser_s + reduce

    def play_s(self, load: int) -> float:
        """Return the seconds of a turn in an engine that plays so many at one time."""
        return self.turn_s + self.turn_more_s * (load - 1)

    def weights_s(self) -> float:
        """Return the seconds until all engines hold new weights: a broadcast in a pipeline does not grow with them."""
        return self.push_s + WEIGHT_GB / self.push_gb_s + self.check_s

    def search_cores(self, queries_s: float, videos: int) -> float:
        """Return the cores that exact search needs for so many queries a second."""
        return queries_s * videos * self.row_s

    def search_gpus(self, queries_s: float, videos: int) -> float:
        """Return the GPUs that exact search needs, by its products or by the memory of its vectors in float32."""
        return max(queries_s * videos * self.gpu_row_s, index_gib(videos, WIDTH) / INDEX_GIB)
