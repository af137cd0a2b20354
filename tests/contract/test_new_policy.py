"""A stock checkpoint becomes a policy whose soft tokens change a query little, at the start and after a step."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench.reference import prefill, roll_latents
from bench.toy.models import new_policy, toy_processor, write_random_models
from bench.toy.tokenizer import embedder_tokenizer, train_tokenizer, vocabulary_texts
from vsr1.model.checkpoint import load_policy, policy_sizes, refine_token_id
from vsr1.model.embedder import Embedder
from vsr1.model.forward import Row
from vsr1.model.new_policy import NEUTRAL_WORD, lacks_heads, write_new_policy
from vsr1.model.policy import VideoSearchPolicy, build_heads, init_heads
from vsr1.model.processor import ClipProcessor
from vsr1.toy.world import make_corpus

TOY = Path(__file__).parents[2] / "checkpoints" / "toy"
SEEDS, LATENTS, HEAD_RATE = (0, 1, 2), 8, 1e-4


def _stock_folder(root: Path, spare_rows: int) -> tuple[Path, Path]:
    """A base without heads or refine token, its word table longer than its vocabulary, and an embedder."""
    base = train_tokenizer(vocabulary_texts(0, 100))
    _, embedder = write_random_models(root, base)
    policy, _ = new_policy(base, seed=0)
    tokenizer = embedder_tokenizer(base)
    stock = root / "stock"
    policy.resize_token_embeddings(len(tokenizer) + spare_rows)
    policy.save_pretrained(stock)
    toy_processor(tokenizer).save_pretrained(stock)
    path = stock / "model.safetensors"
    save_file(
        {k: v for k, v in load_file(path).items() if not k.startswith("refine_")}, path, metadata={"format": "pt"}
    )
    return stock, embedder


@pytest.mark.parametrize("spare_rows", [0, 5])
def test_a_stock_checkpoint_gets_the_token_and_heads(tmp_path: Path, spare_rows: int) -> None:
    stock, embedder = _stock_folder(tmp_path, spare_rows)
    assert lacks_heads(stock) and not lacks_heads(TOY / "policy")
    write_new_policy(stock, embedder, tmp_path / "start", seed=3)
    policy_sizes(tmp_path / "start", embedder_width=Embedder.load(embedder).dim)
    kept, made = (load_file(folder / "model.safetensors") for folder in (stock, tmp_path / "start"))
    token = refine_token_id(ClipProcessor(tmp_path / "start").tokenizer)
    table = "model.language_model.embed_tokens.weight"
    assert len(made[table]) == max(len(kept[table]), token + 1)
    torch.testing.assert_close(made[table][token], kept[table][:token].mean(0))
    assert made[table][:token].equal(kept[table][:token])
    assert all(made[name].equal(tensor) for name, tensor in kept.items() if name != table)
    write_new_policy(stock, embedder, tmp_path / "again", seed=3)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(again[name].equal(tensor) for name, tensor in made.items())


def _reference(policy: VideoSearchPolicy) -> None:
    """Input projections the identity, last layer of the latents zero (method.md §1.3)."""
    for head in (policy.refine_latent_input_projector, policy.refine_append_input_projector):
        nn.init.eye_(head[1].weight)
        nn.init.zeros_(head[1].bias)
    nn.init.zeros_(policy.refine_projector[3].weight)
    nn.init.zeros_(policy.refine_projector[3].bias)


def test_new_heads_change_a_query_least() -> None:
    """Mean cosine of plain and refined queries, at the start and after a step: above torch's start values and matched
    sizes without a neutral word; the lower of the two above the reference's (zero tokens, a jump in one step)."""
    embedder, policy = Embedder.load(TOY / "embedder"), load_policy(TOY / "policy").eval()
    policy.requires_grad_(False)
    tokenizer = ClipProcessor(TOY / "policy").tokenizer
    queries = [example.query for example in make_corpus("start", 12, 5)]
    rows = [Row(tokenizer.encode(query), [refine_token_id(tokenizer)]) for query in queries]
    plain = embedder.query_vectors(queries).detach()
    table = embedder.model.language_model.embed_tokens.weight.detach()
    rms = float(table.square().mean().sqrt())
    word = table[embedder.processor.tokenizer.encode(NEUTRAL_WORD, add_special_tokens=False)[0]]

    def refined() -> torch.Tensor:
        state = prefill(policy.model, rows, [], keep_cache=True)
        return embedder.query_vectors(queries, list(policy.soft_tokens(roll_latents(policy, state, LATENTS))))

    def cosine() -> float:
        with torch.no_grad():
            return float((refined() * plain).sum(-1).mean())

    def start_and_after(init: Callable[[VideoSearchPolicy], None], seed: int) -> tuple[float, float]:
        torch.manual_seed(seed)
        for name, head in build_heads(plain.shape[1], plain.shape[1], plain.shape[1]).items():
            setattr(policy, name, head)
        init(policy)
        optimizer = torch.optim.AdamW(policy.head_parameters(), lr=HEAD_RATE, weight_decay=0.0)
        before = cosine()
        (-(refined() * plain.roll(1, 0)).sum()).backward()  # towards the next query's vector
        optimizer.step()
        return before, cosine()

    starts: dict[str, Callable[[VideoSearchPolicy], None]] = {
        "reference": _reference,
        "torch": lambda policy: None,
        "matched size": lambda policy: init_heads(policy, 10 * rms, torch.zeros_like(word)),
        "ours": lambda policy: init_heads(policy, rms, word),
    }
    found = {name: torch.tensor([start_and_after(init, s) for s in SEEDS]).mean(0) for name, init in starts.items()}
    ours = found["ours"]
    for name in found.keys() - {"ours", "reference"}:
        assert (ours > found[name]).all(), (name, found)
    assert ours.min() > found["reference"].min(), found
    assert ours[0] - ours[1] < 0.002 < found["reference"][0] - found["reference"][1], found
