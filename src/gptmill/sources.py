"""Where a data set comes from, as params.yaml says it: each source has keys of its own."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

# Bounds far beyond use: what is above would hang or abort rather than fail.
Positive = Annotated[int, Field(ge=1, le=10**12)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """A frozen mapping of known keys and strict types (an integer is accepted as a float); every
    number is finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Embedded(Section):
    source: Literal["embedded"] = Field(description="made here, of a source whose optimum is known")
    count: Positive = Field(description="documents or entries to make")
    seed: Seed = Field(description="seed of the source")


class Manifest(Section):
    source: Literal["manifest"] = Field(description="downloaded, and checked by SHA-256")
    path: str = Field(description="JSON of addresses, sizes and hashes")


class Stdlib(Section):
    source: Literal["stdlib"] = Field(description="functions of Python's standard library")


class Files(Section):
    source: Literal["files"] = Field(description="your own, of any usual layout")
    path: str = Field(
        description="one file, a folder with all below it, or a glob; own/ is watched"
    )
    encoding: str = Field(description="of text files; '' finds it out and prints what is not UTF-8")
    instead: Embedded | None = Field(
        description="what to use, and say so, where path holds no file; null is an error"
    )


class Hub(Section):
    source: Literal["huggingface"] = Field(description="a data set at Hugging Face")
    repository: str = Field(description="OWNER/NAME")
    revision: str = Field(min_length=1, description="commit, so that the same is read again")
    path: str = Field(description="glob of its files, such as data/*.parquet")
    encoding: str = Field(description="of text files; '' finds it out")


class _TextColumn(Section):
    text: str = Field(description="column of tables; '' is the only one of a usual name")
    separator: str = Field(description="a line that ends a document of plain text; '' is off")


class _LabelColumns(Section):
    text: str = Field(description="column of the text; '' is the only one of a usual name")
    label: str = Field(description="column of the label; '' is the only one of a usual name")


class TextFiles(Files, _TextColumn): ...


class TextHub(Hub, _TextColumn): ...


class LabeledFiles(Files, _LabelColumns): ...


class LabeledHub(Hub, _LabelColumns): ...


class Trove(Section):
    source: Literal["datatrove"] = Field(
        description="any size and place, read and filtered by datatrove, which is to be installed"
    )
    version: str = Field(description="of datatrove, on which the documents depend")
    path: str = Field(
        description="folder or address (s3://, gs://, hf://, file://); not watched: dvc repro -f"
    )
    pattern: str = Field(description="glob of its files, such as **/*.jsonl.gz; '' takes all")
    format: Literal["text", "jsonl", "csv", "parquet", "warc"] = Field(
        description="of its files, plain or compressed; of WARC the main text of each page"
    )
    text: str = Field(description="column of the text; '' is text")
    urls: bool = Field(description="drop pages of blocked addresses")
    languages: list[str] = Field(description="to keep, such as [en, de]; [] keeps all")
    language_threshold: Annotated[float, Field(ge=0, le=1)] = Field(
        description="least probability of the language"
    )
    quality: list[
        Literal["gopher_repetition", "gopher_quality", "c4_quality", "fineweb_quality"]
    ] = Field(description="filters, in their order; [] is off")
    held_out: list[str] = Field(
        description="addresses of texts whose runs of 12 words no document may hold; [] is off"
    )
    pii: bool = Field(description="replace addresses of mail and of machines")
    minhash: bool = Field(description="drop near-duplicates by MinHash")
    executor: Literal["local", "ray", "slurm"] = Field(
        description="what runs the tasks, one a file"
    )
    workers: Positive = Field(description="tasks at once")
    slurm_partition: str = Field(description="partition for Slurm's jobs; '' for others")
    slurm_time: str = Field(description="time limit of a job, such as 01:00:00; '' for others")


Text = Annotated[
    Embedded | TextFiles | Manifest | Stdlib | TextHub | Trove, Field(discriminator="source")
]
Labeled = Annotated[Embedded | LabeledFiles | Manifest | LabeledHub, Field(discriminator="source")]
Entries = Annotated[Embedded | Files | Manifest | Hub, Field(discriminator="source")]
Dataset = Embedded | Files | Manifest | Stdlib | Hub | Trove


class Mixed(Section):
    name: str = Field(pattern="^[a-z0-9_]+$", description="corpus, as metrics call it")
    documents: str = Field(description="glob of the ids of its documents; the first that fits")
    weight: float = Field(gt=0, description="share of training rows, relative to the others'")


def sections_of(annotation: Any) -> tuple[type[Section], ...]:
    """The sections that a field may be: one, those of a choice, or none."""
    kinds = get_args(annotation) or (annotation,)
    return tuple(k for k in kinds if isinstance(k, type) and issubclass(k, Section))


def sources_of(kind: type[Section]) -> tuple[str, ...]:
    """What `source` may say in a section."""
    return get_args(kind.model_fields["source"].annotation)
