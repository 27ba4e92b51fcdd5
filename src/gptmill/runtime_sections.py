"""The sections of params.yaml that say how stages compute: on one machine, and on several."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gptmill.sources import Section, Seed

Threads = Annotated[int, Field(ge=1, le=1024)]


class Runtime(Section):
    seed: Seed = Field(description="seed of every random choice")
    threads: Threads = Field(description="CPU threads; one against two changes the last digits")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        description="compute precision; auto is bfloat16 where the hardware has it natively"
    )
    compile: bool = Field(description="torch.compile the training step; pays after a minute or so")


class Launch(Section):
    """How many processes train; none of it is hashed, because the result does not depend on it."""

    processes: Threads = Field(description="processes on each machine; one for each GPU")
    nodes: Threads = Field(description="machines, at most")
    minimum_nodes: Threads = Field(description="machines to start with, and to continue with")
    rendezvous: str = Field(description="HOST:PORT of the first machine; empty on one or in Slurm")
    strategy: Literal["none", "ddp", "fsdp2"] = Field(
        description="ddp: a whole model in each process; fsdp2: a part of it in each"
    )
    cpu_offload: bool = Field(description="fsdp2 keeps a GPU's parameters in the host's memory")
    activation_checkpointing: bool = Field(
        description="compute blocks again in the backward pass: less memory, a third more time"
    )
    restarts: Annotated[int, Field(ge=0, le=1000)] = Field(
        description="times that lost processes are started again, from the last checkpoint"
    )

    @property
    def world_size(self) -> int:
        """Processes on all machines."""
        return self.processes * self.nodes

    @model_validator(mode="after")
    def _several_processes_share_by_a_strategy(self) -> "Launch":
        if self.world_size > 1 and self.strategy == "none":
            raise ValueError(
                f"{self.world_size} processes need a strategy: ddp if the model fits each of them, "
                "else fsdp2"
            )
        if self.minimum_nodes > self.nodes:
            raise ValueError(f"minimum_nodes {self.minimum_nodes} is above nodes {self.nodes}")
        return self
