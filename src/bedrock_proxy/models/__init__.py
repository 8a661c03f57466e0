"""
One reader per Bedrock model family: upstream JSON in, parts out; and what each family's
request says of the tokens it may use.
"""

from bedrock_proxy.models.converse import ConverseReader, converse_answer
from bedrock_proxy.models.counts import header_usage, invocation_metrics
from bedrock_proxy.models.estimates import estimate, estimate_converse
from bedrock_proxy.models.families import family_of
from bedrock_proxy.models.reader import Family, Reader, Reserves

__all__ = [
    "ConverseReader",
    "Family",
    "Reader",
    "Reserves",
    "converse_answer",
    "estimate",
    "estimate_converse",
    "family_of",
    "header_usage",
    "invocation_metrics",
]
