"""Weights and data for others: folders that any machine and the Hugging Face Hub read, and back into a run."""

from dreamer4.sharing.agents import STARTS as STARTS
from dreamer4.sharing.agents import Precision as Precision
from dreamer4.sharing.agents import export_agent as export_agent
from dreamer4.sharing.agents import import_agent as import_agent
from dreamer4.sharing.datasets import export_dataset as export_dataset
