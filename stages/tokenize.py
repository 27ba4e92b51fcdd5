"""Train or load the tokenizer and stream the corpus into memory-mapped token shards."""

from pathlib import Path

from gptmill.data.corpus import SPLITS, filtered
from gptmill.data.shards import write_tokens
from gptmill.data.splits import plan_splits
from gptmill.data.tokenizers import make_tokenizer
from gptmill.params import load
from gptmill.tracking import Stage
from stages import run


def main(corpus: Path, output: Path, metrics: Path) -> None:
    parameters = load()
    section, workers = parameters.tokenize, parameters.runtime.threads
    with (
        Stage("tokenize", section.model_dump(), {"corpus": corpus}) as stage,
        plan_splits(
            corpus,
            validation_fraction=section.validation_fraction,
            test_fraction=section.test_fraction,
            seed=parameters.runtime.seed,
            workers=workers,
            beside=output,
            mixture=section.mixture,
        ) as plan,
    ):
        shares = zip(SPLITS, plan.shares)
        print("shares of the text:", ", ".join(f"{split} {share:.1%}" for split, share in shares))
        tokenizer = make_tokenizer(
            section.kind, plan, section.vocabulary_size, parameters.pretrain.foundation
        )
        counts = write_tokens(
            plan,
            tokenizer,
            output,
            shard_tokens=section.shard_tokens,
            workers=workers,
        )
        counts |= {f"filtered/{reason}": count for reason, count in filtered(corpus).items()}
        stage.write_metrics(metrics, counts)


if __name__ == "__main__":
    run(main)
