"""The recipe of classification, with TF-IDF and logistic regression as the baseline."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gptmill.data.classification import best_possible_accuracy
from gptmill.engine.batches import ShuffledBatches
from gptmill.engine.hooks import Hook
from gptmill.engine.runtime import Runtime
from gptmill.engine.state import TrainState
from gptmill.model.classifier import random_language_model, with_classification_head
from gptmill.model.lora import merge_low_rank
from gptmill.params import FinetuneClassifier
from gptmill.tasks.classify import ClassificationData, ClassificationTask, choose_trainable
from gptmill.tasks.classify_report import confusion_table, final_report, tfidf_baseline
from gptmill.tasks.recipe import Note, Result
from gptmill.tokenizer import load_tokenizer
from gptmill.weights.folder import load_language_model

BALANCED = 0.05  # class weights this near to one leave the baseline unweighted


class ClassifierTuning:
    """A `Recipe`: the foundation with a head that tells labels apart."""

    steps = 0

    def __init__(
        self,
        section: FinetuneClassifier,
        foundation: Path,
        data: Path,
        runtime: Runtime,
        seed: int,
    ) -> None:
        self._section, self._folder, self._runtime = section, data, runtime
        self.tokenizer = load_tokenizer(foundation)
        start = load_language_model(foundation)
        self._texts = texts = ClassificationData(
            data,
            self.tokenizer,
            maximum_length=section.maximum_length,
            context_length=start.config.context_length,
            readout=section.readout,
            long_texts=section.long_texts,
        )
        weighted = not np.allclose(texts.class_weights, 1.0, atol=BALANCED)
        # Before the training, which it must not undo.
        self._baseline = tfidf_baseline(texts.train.texts, texts.train.labels, weighted, seed)
        if section.initial_weights == "random":
            start = random_language_model(start.config)
        self.model = with_classification_head(start, len(texts.reading.labels)).to(runtime.device)
        choose_trainable(self.model, section.trainable, section.lora)
        self.task = ClassificationTask(texts.class_weights, texts.reading.readout)
        self.batches = ShuffledBatches(
            texts.train.examples,
            texts.collate,
            section.training.batch_size,
            seed,
            lengths=texts.train.lengths,
        )

    def evaluate(self) -> dict[str, float]:
        return self._texts.evaluate(self.model, self.task, self._runtime)

    def hooks(self, note: Note) -> Sequence[Hook]:
        return []

    def finish(self, state: TrainState, note: Note) -> Result:
        merge_low_rank(self.model)
        reading, metrics, tables = final_report(
            self._texts,
            self.model,
            self.task,
            self._runtime,
            baseline=self._baseline,
            threshold=self._section.threshold,
        )
        metrics["train/texts_cut"] = self._texts.cut
        best = best_possible_accuracy(self._folder)
        if best is not None:
            metrics["test/best_possible_accuracy"] = best
        confusion = confusion_table(tables["confusion"], reading.labels, "test")
        return Result(
            metrics, tables, shown=("confusion_matrix", *confusion), saved={"reading": reading}
        )
