"""Write the foundation that fine-tuning starts from: read, verified, measured, sampled."""

from pathlib import Path

from gptmill.data.tokens import TokenSplit
from gptmill.engine.runtime import open_runtime
from gptmill.generate.loop import generate
from gptmill.generate.sampling import SamplingOptions
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.gpt2 import count_parameters
from gptmill.params import load
from gptmill.tasks.language_model import text_likelihood
from gptmill.tokenizer import load_tokenizer
from gptmill.tracking import stage_of
from gptmill.weights.folder import save_model
from gptmill.weights.foundation import read_foundation
from stages import run


def main(task: str, pretrained: Path, tokens: Path, output: Path, metrics: Path) -> None:
    parameters = load()
    section = getattr(parameters.load_gpt2, task)
    inputs = {"pretrained": pretrained, "tokens": tokens}
    runtime = open_runtime(**dict(parameters.runtime), launch=parameters.launch)
    with stage_of(runtime.first, f"load_gpt2_{task}", section.model_dump(), inputs) as stage:
        model, tokenizer, origin, stops = read_foundation(
            section.source, section.location, section.revision, section.context_length
        )
        model.to(runtime.device)
        held_out = TokenSplit(tokens, "validation").texts(
            load_tokenizer(tokens / "tokenizer"), section.evaluation_tokens
        )
        window = model.config.context_length
        likelihood = text_likelihood(model, tokenizer, held_out, window, window // 2, runtime)
        if not runtime.first:
            return
        greedy = SamplingOptions(max_new_tokens=40, temperature=0)
        sample = generate(TorchDecoder(model), tokenizer, [section.prompt], greedy)[0].text
        stage.text("sample", 0, section.prompt + sample)
        results = {"parameters": count_parameters(model), **likelihood.metrics()}
        provenance = stage.provenance() | {"foundation": origin}
        save_model(output, model, tokenizer, provenance=provenance, stop_tokens=stops)
        stage.reference({"model": output})
        stage.write_metrics(metrics, results)


if __name__ == "__main__":
    run(main, launched=True)
