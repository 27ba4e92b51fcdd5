"""Embedded corpora with a known optimum: stories, messages and instructions, drawn from a seed.

lexicon.py       the words all three share
source.py        probabilistic programs: sampled forwards, parsed and scored backwards
stories.py       pretraining text with its exact nats
messages.py      ham and spam with their exact log likelihood ratio
instructions.py  tasks with one right answer, keyed by combination
"""

from gptmill.embedded.instructions import Instruction, instructions
from gptmill.embedded.messages import (
    SPAM_SHARE,
    Message,
    message_log_likelihood_ratio,
    messages,
)
from gptmill.embedded.stories import Story, stories, story_nats

__all__ = [
    "SPAM_SHARE",
    "Instruction",
    "Message",
    "Story",
    "instructions",
    "message_log_likelihood_ratio",
    "messages",
    "stories",
    "story_nats",
]
