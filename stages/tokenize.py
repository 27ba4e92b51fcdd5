"""Train or load the tokenizer and stream the corpus into memory-mapped token shards."""

from pathlib import Path

from gptmill.data.corpus import SPLITS
from gptmill.data.splits import plan_splits
from gptmill.data.tokenizers import make_tokenizer
from gptmill.data.tokens import write_tokens
from gptmill.params import load
from gptmill.tracking import Stage
from stages import run


def main(corpus: Path, output: Path, metrics: Path) -> None:
    parameters = load()
    section = parameters.tokenize
    with Stage("tokenize", section.model_dump(), {"corpus": corpus}) as stage:
        plan = plan_splits(
            corpus,
            validation_fraction=section.validation_fraction,
            test_fraction=section.test_fraction,
            seed=parameters.runtime.seed,
        )
        shares = zip(SPLITS, plan.shares)
        print("shares of the text:", ", ".join(f"{split} {share:.1%}" for split, share in shares))
        tokenizer = make_tokenizer(
            section.kind, corpus, plan, section.vocabulary_size, parameters.pretrain.foundation
        )
        counts = write_tokens(
            corpus, tokenizer, output, plan=plan, shard_tokens=section.shard_tokens
        )
        stage.write_metrics(metrics, counts)


if __name__ == "__main__":
    run(main)
